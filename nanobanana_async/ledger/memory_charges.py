"""The charges of named batches in a dict: what `charges.py` does in SQL."""

from collections.abc import Callable
from decimal import Decimal

from attrs import define, evolve, field, frozen

from nanobanana_async.jobs import JobRecord
from nanobanana_async.ledger.base import Allowance, Refusal
from nanobanana_async.policy.prices import NOTHING, Basis, Price, charge_of, price_in


@frozen(kw_only=True)
class _Noted:
    batch: str | None
    account: str
    price: Price
    under_way: bool = True


@define
class MemoryCharges:
    """All charges since the dict was made. It forgets none: a job that is pruned leaves its charges here."""

    _notes: dict[tuple[str, int], _Noted] = field(factory=dict, init=False)
    _forgotten: list[_Noted] = field(factory=list, init=False)
    _prices: dict[tuple[str, str], Decimal] = field(factory=dict, init=False)

    def allowance(
        self,
        job: JobRecord,
        price: Price,
        max_credits: Decimal | None,
        follower: Callable[[str], str | None],
    ) -> Allowance:
        """Tell whether a purchase fits; `follower` tells who follows a job: "ours", "others", None."""
        if price.is_users_word:
            self._take_users_word(job.batch, price.credits)
        known = self._prices.get((job.account, price.price_class))
        learned = None if known is None else Price(price.price_class, known)
        spent = self.spent(job.batch)
        if max_credits is None:
            return Allowance(price=learned or price, spent=spent)
        if learned is not None and (price.estimated or learned.credits > price.credits):
            return Allowance(refusal=Refusal.PRICE, price=learned, spent=spent)
        mine = {key: noted for (key, _), noted in self._notes.items() if noted.batch == job.batch}
        untold = [noted for noted in self._forgotten if noted.batch == job.batch and price.basis is Basis.EXAMPLE]
        blocked = price.estimated and any(noted.price.estimated for noted in (*mine.values(), *untold))
        if not blocked and spent + price.credits <= max_credits:
            return Allowance(price=price, spent=spent)
        open_keys = [key for key, noted in mine.items() if noted.under_way and (noted.price.estimated or not blocked)]
        return Allowance(
            refusal=Refusal.ESTIMATE if blocked else Refusal.SUM,
            price=price,
            spent=spent,
            ours=tuple(key for key in open_keys if follower(key) == "ours"),
            others=any(follower(key) == "others" for key in open_keys),
        )

    def add(self, job: JobRecord, price: Price) -> None:
        """Set a price aside for a purchase that is about to be sent."""
        self._notes[job.key, job.generation] = _Noted(batch=job.batch, account=job.account, price=price)
        if price.basis is Basis.TOLD and (job.account, price.price_class) not in self._prices:
            self._learn(job.account, price.price_class, price.credits)

    def follow(self, before: JobRecord, job: JobRecord) -> None:
        """Keep the charge of a job's purchase up to date with its record."""
        this = (job.key, job.generation)
        noted, charge = self._notes.get(this), charge_of(job)
        if noted is None:
            return
        price_class = noted.price.price_class
        if charge is None:
            self._notes[this] = evolve(noted, price=Price(price_class, NOTHING), under_way=False)
            return
        price = noted.price
        if charge.credits is not None:
            price = Price(price_class, charge.credits)
        elif charge.over and price.basis is Basis.EXPECTED:
            price = evolve(price, basis=Basis.AGREED)
        self._notes[this] = evolve(noted, price=price, under_way=charge.under_way)
        told = price_in(job)
        if told is not None and told != price_in(before):
            self._learn(noted.account, price_class, told)

    def spent(self, batch: str | None) -> Decimal:
        """Return the sum of all charges under a name."""
        every = (*self._notes.values(), *self._forgotten)
        return sum((noted.price.credits for noted in every if noted.batch == batch), NOTHING)

    def forget(self, key: str) -> None:
        """Forget a job, and not what it has cost: its next purchase under the key is another one."""
        for this in [this for this in self._notes if this[0] == key]:
            noted = self._notes.pop(this)
            self._forgotten.append(evolve(noted, under_way=False))

    def _learn(self, account: str, price_class: str, amount: Decimal) -> None:
        self._prices[account, price_class] = amount
        for this, noted in self._notes.items():
            if noted.price.estimated and (noted.account, noted.price.price_class) == (account, price_class):
                self._notes[this] = evolve(noted, price=Price(price_class, amount))

    def _take_users_word(self, batch: str | None, amount: Decimal) -> None:
        for this, noted in self._notes.items():
            if noted.batch == batch and noted.price.estimated and not noted.under_way:
                self._notes[this] = evolve(noted, price=Price(noted.price.price_class, amount, Basis.AGREED))

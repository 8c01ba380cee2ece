"""The charges of named batches in memory: the same rules as `charges.py` has in SQL."""

from collections.abc import Callable
from decimal import Decimal

from attrs import define, evolve, field, frozen

from nanobanana_async.jobs import JobRecord
from nanobanana_async.ledger.base import Allowance, Refusal
from nanobanana_async.policy.prices import ZERO_CREDITS, Basis, Price, charge_of, price_in


@frozen(kw_only=True)
class _Charge:
    batch: str | None
    account: str
    price: Price
    under_way: bool = True


@define
class MemoryCharges:
    """All charges of the ledger's lifetime, by key and generation. The charges of pruned jobs are kept."""

    _charges: dict[tuple[str, int], _Charge] = field(factory=dict, init=False)
    _pruned: list[_Charge] = field(factory=list, init=False)
    _prices: dict[tuple[str, str], Decimal] = field(factory=dict, init=False)

    def allowance(
        self,
        job: JobRecord,
        price: Price,
        max_credits: Decimal | None,
        owner_of: Callable[[str], str | None],
    ) -> Allowance:
        """Return whether a purchase fits; `owner_of` returns who owns a job: "ours", "others" or None."""
        if price.is_user_stated:
            self._apply_users_price(job.batch, price.credits)
        known = self._prices.get((job.account, price.price_class))
        learned = None if known is None else Price(price.price_class, known)
        spent = self.spent_or_reserved(job.batch)
        if max_credits is None:
            return Allowance(price=learned or price, other_charges=spent)
        if learned is not None and (price.is_estimate or learned.credits > price.credits):
            return Allowance(refusal=Refusal.PRICE, price=learned, other_charges=spent)
        in_batch = {key: charge for (key, _), charge in self._charges.items() if charge.batch == job.batch}
        pruned = [charge for charge in self._pruned if charge.batch == job.batch and price.basis is Basis.EXAMPLE]
        blocked = price.is_estimate and any(charge.price.is_estimate for charge in (*in_batch.values(), *pruned))
        if not blocked and spent + price.credits <= max_credits:
            return Allowance(price=price, other_charges=spent)
        under_way = [
            key for key, charge in in_batch.items() if charge.under_way and (charge.price.is_estimate or not blocked)
        ]
        return Allowance(
            refusal=Refusal.ESTIMATE if blocked else Refusal.SUM,
            price=price,
            other_charges=spent,
            ours_may_free=tuple(key for key in under_way if owner_of(key) == "ours"),
            others_may_free=any(owner_of(key) == "others" for key in under_way),
        )

    def reserve(self, job: JobRecord, price: Price) -> None:
        """Reserve the price of a purchase that is about to be sent."""
        self._charges[job.key, job.generation] = _Charge(batch=job.batch, account=job.account, price=price)
        if price.basis is Basis.REPORTED and (job.account, price.price_class) not in self._prices:
            self._learn_price(job.account, price.price_class, price.credits)

    def update_from_record(self, before: JobRecord, job: JobRecord) -> None:
        """Update the charge of a job's purchase from its record."""
        purchase = (job.key, job.generation)
        stored, charge = self._charges.get(purchase), charge_of(job)
        if stored is None:
            return
        price_class = stored.price.price_class
        if charge is None:
            self._charges[purchase] = evolve(stored, price=Price(price_class, ZERO_CREDITS), under_way=False)
            return
        price = stored.price
        if charge.credits is not None:
            price = Price(price_class, charge.credits)
        elif charge.is_final and price.basis is Basis.EXPECTED:
            price = evolve(price, basis=Basis.AGREED)
        self._charges[purchase] = evolve(stored, price=price, under_way=charge.under_way)
        reported = price_in(job)
        if reported is not None and reported != price_in(before):
            self._learn_price(stored.account, price_class, reported)

    def spent_or_reserved(self, batch: str | None) -> Decimal:
        """Return the sum of a batch's charges."""
        charges = (*self._charges.values(), *self._pruned)
        return sum((charge.price.credits for charge in charges if charge.batch == batch), ZERO_CREDITS)

    def forget(self, key: str) -> None:
        """Forget a job but keep its charges: the next purchase under the key adds a new one."""
        for purchase in [purchase for purchase in self._charges if purchase[0] == key]:
            self._pruned.append(evolve(self._charges.pop(purchase), under_way=False))

    def _learn_price(self, account: str, price_class: str, amount: Decimal) -> None:
        """Store the price of a class, and apply it to all charges that are estimates of the class."""
        self._prices[account, price_class] = amount
        for purchase, charge in self._charges.items():
            if charge.price.is_estimate and (charge.account, charge.price.price_class) == (account, price_class):
                self._charges[purchase] = evolve(charge, price=Price(price_class, amount))

    def _apply_users_price(self, batch: str | None, amount: Decimal) -> None:
        for purchase, charge in self._charges.items():
            if charge.batch == batch and charge.price.is_estimate and not charge.under_way:
                self._charges[purchase] = evolve(charge, price=Price(charge.price.price_class, amount, Basis.AGREED))

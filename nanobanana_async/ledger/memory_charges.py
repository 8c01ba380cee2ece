"""The charges of named batches and budgets in memory: the same rules as `charges.py` has in SQL."""

from collections import defaultdict
from collections.abc import Callable, Collection
from datetime import datetime
from decimal import Decimal

from attrs import define, evolve, field, frozen

from nanobanana_async.jobs import JobRecord
from nanobanana_async.ledger.base import Allowance, Refusal
from nanobanana_async.ledger.counts import Count, counts_of, no_budget_error
from nanobanana_async.policy.named_budget import Budget, BudgetState, check_same_period, state_of
from nanobanana_async.policy.prices import ZERO_CREDITS, Basis, Price, charge_of, price_in

Purchase = tuple[str, int]


@frozen(kw_only=True)
class _Charge:
    account: str
    price: Price
    under_way: bool = True
    is_reserved: bool = True
    """The purchase has not ended, and the gateway has not stated its price."""


@define
class _Charges:
    """The charges under one name."""

    closed: Decimal = ZERO_CREDITS
    """The sum of those that can't change any more."""
    unpriced: int = 0
    """Pruned jobs whose price was still an estimate."""
    open: dict[Purchase, _Charge] = field(factory=dict)

    @property
    def total(self) -> Decimal:
        """The sum of all."""
        return sum((charge.price.credits for charge in self.open.values()), self.closed)

    def has_estimates(self, price: Price) -> bool:
        """Return whether one is an estimate. Pruned jobs count only against the gateway's example."""
        if self.unpriced and price.basis is Basis.EXAMPLE:
            return True
        return any(charge.price.is_estimate for charge in self.open.values())


@define
class MemoryCharges:
    """All charges of the ledger's lifetime: the sum of those that can't change, and each of the others."""

    _charges: defaultdict[str, _Charges] = field(factory=lambda: defaultdict(_Charges), init=False)
    """Batch, or name under which a budget counts (`Budget.count_name_at`) -> its charges."""
    _names: dict[Purchase, list[str]] = field(factory=dict, init=False)
    """Purchase -> the names under which it has an open charge."""
    _prices: dict[tuple[str, str], Decimal] = field(factory=dict, init=False)
    _budgets: dict[str, Budget] = field(factory=dict, init=False)

    def allowance(
        self, job: JobRecord, price: Price, max_credits: Decimal | None, owner_of: Callable[[str], str | None]
    ) -> Allowance:
        """Return whether a purchase fits; `owner_of` returns who owns a job: "ours", "others" or None."""
        allowance = Allowance(price=price, other_charges=ZERO_CREDITS)
        for name, cap, budget in self._counts_of(job, max_credits):
            allowance = self._allowance_under(name, cap, job.account, price, owner_of)
            if allowance.refusal is not None:
                return evolve(allowance, budget=budget)
            price = allowance.price
        return allowance

    def _counts_of(self, job: JobRecord, max_credits: Decimal | None) -> list[Count]:
        if job.budget is not None and job.budget not in self._budgets:
            raise no_budget_error(job.budget)
        return counts_of(job, max_credits, None if job.budget is None else self._budgets[job.budget])

    def _allowance_under(
        self,
        name: str,
        max_credits: Decimal | None,
        account: str,
        price: Price,
        owner_of: Callable[[str], str | None],
    ) -> Allowance:
        charges = self._charges[name]
        if price.is_user_stated:
            _apply_users_price(charges, price.credits)
        known = self._prices.get((account, price.price_class))
        learned = None if known is None else Price(price.price_class, known)
        spent = charges.total
        if max_credits is None:
            return Allowance(price=learned or price, other_charges=spent)
        if learned is not None and (price.is_estimate or learned.credits > price.credits):
            return Allowance(refusal=Refusal.PRICE, price=learned, other_charges=spent)
        blocked = price.is_estimate and charges.has_estimates(price)
        if not blocked and spent + price.credits <= max_credits:
            return Allowance(price=price, other_charges=spent)
        under_way = [
            key
            for (key, _), charge in charges.open.items()
            if charge.under_way and (charge.price.is_estimate or not blocked)
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
        purchase = (job.key, job.generation)
        self._drop(purchase)  # an earlier create of the purchase may have counted on another day
        self._names[purchase] = [name for name, _, _ in self._counts_of(job, None)]
        for name in self._names[purchase]:
            self._charges[name].open[purchase] = _Charge(account=job.account, price=price)
        if price.basis is Basis.REPORTED and (job.account, price.price_class) not in self._prices:
            self._learn_price(job.account, price.price_class, price.credits)

    def update_from_record(self, before: JobRecord, job: JobRecord) -> None:
        """Update the charges of a job's purchase from its record."""
        purchase, charge = (job.key, job.generation), charge_of(job)
        if charge is None:
            self._drop(purchase)
            return
        reported = price_in(job)
        for name in self._names.get(purchase, ()):
            stored = self._charges[name].open[purchase]
            price = stored.price
            if charge.credits is not None:
                price = Price(price.price_class, charge.credits)
            elif charge.is_final and price.basis is Basis.EXPECTED:
                price = evolve(price, basis=Basis.CHARGED_AS_EXPECTED)
            is_reserved = charge.credits is None and not charge.is_final
            self._charges[name].open[purchase] = evolve(
                stored, price=price, under_way=charge.under_way, is_reserved=is_reserved
            )
            if reported is not None and reported != price_in(before):
                self._learn_price(stored.account, price.price_class, reported)
        if charge.is_final:
            self._close(purchase)

    def set_budget(self, budget: Budget) -> None:
        """Store a budget; raise `ConfigurationError` if the name counts in another way."""
        check_same_period(self._budgets.get(budget.name, budget), budget)
        self._budgets[budget.name] = budget

    def budgets(self, now: datetime, names: Collection[str] | None) -> list[BudgetState]:
        """Return the state of each budget at a time, or of those of these names, by name."""
        states = []
        for name, budget in sorted(self._budgets.items()):
            if names is not None and name not in names:
                continue
            charges = self._charges[budget.count_name_at(now)]
            reserved = [charge.price.credits for charge in charges.open.values() if charge.is_reserved]
            states.append(state_of(budget, now, counted=charges.total, reserved=sum(reserved, ZERO_CREDITS)))
        return states

    def spent_or_reserved(self, batch: str) -> Decimal:
        """Return the sum of the charges of a batch or budget."""
        return self._charges[batch].total

    def forget(self, key: str) -> None:
        """Forget an ended job but keep its charges: the next purchase under the key adds new ones."""
        for purchase in [purchase for purchase in self._names if purchase[0] == key]:
            for name in self._names.pop(purchase):
                charge = self._charges[name].open.pop(purchase)
                self._charges[name].closed += charge.price.credits
                self._charges[name].unpriced += charge.price.is_estimate

    def _drop(self, purchase: Purchase) -> None:
        """Drop the charges of a purchase that did not happen."""
        for name in self._names.pop(purchase, ()):
            del self._charges[name].open[purchase]

    def _close(self, purchase: Purchase) -> None:
        """Keep only the sum of the charges of a purchase that has ended, unless they are still estimates."""
        for name in list(self._names.get(purchase, ())):
            charges = self._charges[name]
            if not charges.open[purchase].price.is_estimate:
                charges.closed += charges.open.pop(purchase).price.credits
                self._names[purchase].remove(name)
        if not self._names.get(purchase, True):
            del self._names[purchase]

    def _learn_price(self, account: str, price_class: str, amount: Decimal) -> None:
        """Store the price of a class, and apply it to all charges that are estimates of the class."""
        self._prices[account, price_class] = amount
        for charges in self._charges.values():
            for purchase, charge in charges.open.items():
                if charge.price.is_estimate and (charge.account, charge.price.price_class) == (account, price_class):
                    charges.open[purchase] = evolve(charge, price=Price(price_class, amount))


def _apply_users_price(charges: _Charges, amount: Decimal) -> None:
    for purchase, charge in charges.open.items():
        if charge.price.is_estimate and not charge.under_way:
            price = Price(charge.price.price_class, amount, Basis.CHARGED_AS_EXPECTED)
            charges.open[purchase] = evolve(charge, price=price)

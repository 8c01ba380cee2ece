"""Enforce caps on credits: reserve the price before each create, charge the cost at the end.

Reserving first keeps concurrent jobs from passing the cap together. A price starts as an estimate: `expected_credits`,
or the example of the gateway's reference. Jobs at an estimate run one at a time, across all price classes, so that a
price above its estimate passes a cap by the difference of one job at most.
"""

import enum
from collections.abc import Hashable
from decimal import Decimal

from attrs import evolve, field, frozen

from nanobanana_async.policy.named_budget import Budget
from nanobanana_async.policy.prices import ZERO_CREDITS, Basis, Price, Prices, refusal_reason

NEVER_ASK_AGAIN = float("inf")


class Affordable(enum.IntEnum):
    """Whether one more job fits under a cap, from the best answer to the worst."""

    NOW = 0
    LATER = 1
    """Not while other jobs run: one may be refunded, or make its price known."""
    NEVER = 2


@frozen
class _Reservation:
    price: Price
    under_way: bool = field(default=True, kw_only=True)
    job_ended: bool = field(default=False, kw_only=True)
    """The job ended and its cost is unknown: it counts as spent once the price of its class is known."""


class MemoryCap:
    """A cap counted in memory: of a session, or of a batch without a name."""

    def __init__(self, max_credits: Decimal, prices: Prices) -> None:
        self.max_credits = max_credits
        self.spent = ZERO_CREDITS
        self._prices = prices
        self._reserved_sum = ZERO_CREDITS
        self._reservations: dict[Hashable, _Reservation] = {}
        self._under_way: set[Hashable] = set()
        self._estimated: set[Hashable] = set()

    @property
    def reserved(self) -> Decimal:
        """The reserved credits: the price of jobs that run, and of jobs whose cost is unknown."""
        self._take_learned_prices()
        return self._reserved_sum

    def affordability_of(self, price: Price) -> Affordable:
        """Return whether a job at this price may be bought."""
        self._take_learned_prices(price)
        if price.is_estimate and self._estimated:
            return Affordable.NEVER if self._estimated.isdisjoint(self._under_way) else Affordable.LATER
        if self.spent + self._reserved_sum + price.credits <= self.max_credits:
            return Affordable.NOW
        return Affordable.LATER if self._under_way else Affordable.NEVER

    def reserve(self, purchase: Hashable, price: Price) -> None:
        """Reserve the price of a job until it is released or charged."""
        self._set_reservation(purchase, _Reservation(price))

    def set_price(self, purchase: Hashable, cost: Decimal) -> None:
        """Replace the estimate of a running job by the price that the gateway stated."""
        share = self._reservations.get(purchase)
        if share is not None:
            self._set_reservation(purchase, _Reservation(Price(share.price.price_class, cost)))

    def suspend(self, purchase: Hashable) -> None:
        """Keep the reservation but do not wait for its end: the job is in doubt, or no longer followed."""
        share = self._reservations.get(purchase)
        if share is not None:
            self._set_reservation(purchase, evolve(share, under_way=False))

    def resume(self, purchase: Hashable) -> None:
        """Wait again for the end of a suspended reservation."""
        share = self._reservations.get(purchase)
        if share is not None:
            self._set_reservation(purchase, evolve(share, under_way=True))

    def release(self, purchase: Hashable) -> None:
        """Drop the reservation: nothing was bought."""
        share = self._reservations.pop(purchase, None)
        if share is not None:
            self._reserved_sum -= share.price.credits
            self._under_way.discard(purchase)
            self._estimated.discard(purchase)

    def take_back(self, purchase: Hashable) -> None:
        """Drop the reservation of a job that the ledger refused for another cap."""
        self.release(purchase)

    def charge(self, purchase: Hashable, cost: Decimal | None) -> None:
        """Count the cost of an ended job after refunds; None, if the gateway did not state it, charges the reservation.

        A reservation that is only the example of a reference stays an estimate until the price of its class is known.
        """
        self._take_learned_prices()
        share = self._reservations.get(purchase)
        if share is None:
            return
        if cost is None and share.price.basis is Basis.EXAMPLE:
            self._set_reservation(purchase, evolve(share, under_way=False, job_ended=True))
            return
        self.spent += share.price.credits if cost is None else cost
        self.release(purchase)

    def explain_refusal(self, price: Price) -> str:
        """Return why a job at this price is not bought."""
        blocked = bool(price.is_estimate and self._estimated)
        return refusal_reason(price, limit=self.max_credits, spent=self.spent, reserved=self.reserved, blocked=blocked)

    def _set_reservation(self, purchase: Hashable, share: _Reservation) -> None:
        self.release(purchase)
        self._reservations[purchase] = share
        self._reserved_sum += share.price.credits
        if share.under_way:
            self._under_way.add(purchase)
        if share.price.is_estimate:
            self._estimated.add(purchase)

    def _take_learned_prices(self, asked: Price | None = None) -> None:
        """Replace estimates by known prices, and by the user's estimate for jobs that ended or are in doubt."""
        for purchase in list(self._estimated):
            share = self._reservations[purchase]
            price_class = share.price.price_class
            price = self._prices.price_of(price_class)
            if price is None and asked is not None and asked.is_user_stated and not share.under_way:
                price = asked.credits
            if price is not None:
                self._set_reservation(purchase, evolve(share, price=Price(price_class, price)))
                if share.job_ended:
                    self.spent += price
                    self.release(purchase)


@frozen
class _Refused:
    answer: Affordable
    why: str
    at_estimate: bool


class LedgerCap:
    """The cap of a named batch, or a budget. The ledger counts for all processes, in the write that precedes a create.

    This class remembers the refusals of the ledger, so that it is asked again only when the answer may have changed.
    `max_credits` is None for a budget: the ledger has it.
    """

    def __init__(self, max_credits: Decimal | None, budget: str | None = None) -> None:
        self.max_credits = max_credits
        self.budget = budget
        """The name of the budget; None for a named batch."""
        self.left: Decimal | None = None
        """What was left of the budget when the ledger refused a job."""
        self.ask_again_at = NEVER_ASK_AGAIN
        """When to ask the ledger again, since other processes may have freed credits."""
        self._seen: tuple[Budget, str, Decimal] | None = None
        """What the ledger's refusals rest on."""
        self._reserved: Decimal | None = None
        self._estimated: set[Hashable] = set()
        self._refusals: dict[str, _Refused] = {}

    def affordability_of(self, price: Price) -> Affordable:
        """Return whether asking the ledger for a job at this price can succeed."""
        refusal = self._refusals.get(price.price_class)
        if refusal is not None and (price.is_estimate or not refusal.at_estimate):
            return refusal.answer
        return Affordable.LATER if price.is_estimate and self._estimated else Affordable.NOW

    def explain_refusal(self, price: Price) -> str:
        """Return why a job at this price is not bought."""
        return self._refusals[price.price_class].why

    def on_refused(self, price: Price, answer: Affordable, why: str, *, ask_again_at: float) -> None:
        """Record that the ledger refused a job."""
        self._refusals[price.price_class] = _Refused(answer, why, price.is_estimate)
        self.ask_again_at = min(self.ask_again_at, ask_again_at)

    @property
    def is_awaited(self) -> bool:
        """Whether jobs wait until it has room."""
        return any(refusal.answer is Affordable.LATER for refusal in self._refusals.values())

    def on_read(self, budget: Budget, counted_by: str, counted: Decimal, reserved: Decimal | None = None) -> None:
        """Take what the ledger has of the budget; forget what it refused when it had something else.

        `reserved` is the part of `counted` that is no more than reserved; None if that was not read.
        """
        seen, before = (budget, counted_by, counted), self._reserved
        if seen != self._seen or (reserved is not None and before is not None and reserved != before):
            self.forget_refusals()
        self._seen, self._reserved = seen, reserved

    def forget_refusals(self) -> None:
        """Forget the refusals of the ledger."""
        self._refusals.clear()
        self.ask_again_at = NEVER_ASK_AGAIN

    def reserve(self, purchase: Hashable, price: Price) -> None:
        """Record that a job is about to be sent."""
        if price.is_estimate:
            self._estimated.add(purchase)

    def set_price(self, purchase: Hashable, cost: Decimal) -> None:
        """Record that the price of a job became known."""
        del cost  # the ledger has it
        self.release(purchase)

    def suspend(self, purchase: Hashable) -> None:
        """Do not wait for the job."""
        self.release(purchase)

    def resume(self, purchase: Hashable) -> None:
        """Do nothing: the ledger counts the jobs that run."""

    def release(self, purchase: Hashable) -> None:
        """Ask the ledger again: credits may be free."""
        self._estimated.discard(purchase)
        self.forget_refusals()

    def take_back(self, purchase: Hashable) -> None:
        """Record that a job is not sent: the ledger refused it, so that its other refusals hold, too."""
        self._estimated.discard(purchase)

    def charge(self, purchase: Hashable, cost: Decimal | None) -> None:
        """Record that a job ended."""
        del cost  # the ledger has it
        self.release(purchase)


Cap = MemoryCap | LedgerCap

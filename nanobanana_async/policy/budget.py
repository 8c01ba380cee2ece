"""What may be spent: set aside before each purchase and settled after it, so that concurrency can't overshoot.

A price starts as an estimate: `expected_credits`, else the example of the gateway's reference. Jobs at an estimate go
one at a time across all kinds, so that a price above its estimate passes a cap by the difference of one job.
"""

import enum
from collections.abc import Hashable
from decimal import Decimal

from attrs import evolve, field, frozen

from nanobanana_async.policy.prices import NOTHING, Basis, Price, Prices, why_not

NEVER_ASK_AGAIN = float("inf")


class Affordable(enum.IntEnum):
    """Whether one more purchase fits, from the best answer to the worst."""

    NOW = 0
    LATER = 1
    """Not while others are under way: one may be refunded, or tell its price."""
    NEVER = 2


@frozen
class _Share:
    price: Price
    under_way: bool = field(default=True, kw_only=True)
    over: bool = field(default=False, kw_only=True)
    """It ended without a word about its price: it counts as spent once that is known."""


class Budget:
    """A cap of credits, counted in memory: of a session, or of a batch without a name."""

    def __init__(self, max_credits: Decimal, prices: Prices) -> None:
        self.max_credits = max_credits
        self.spent = NOTHING
        self._prices = prices
        self._sum = NOTHING
        self._shares: dict[Hashable, _Share] = {}
        self._under_way: set[Hashable] = set()
        self._estimated: set[Hashable] = set()

    @property
    def reserved(self) -> Decimal:
        """What is set aside: the price of jobs under way, and of those whose cost is not known."""
        self._take_learned_prices()
        return self._sum

    def check(self, price: Price) -> Affordable:
        """Tell whether a job at this price may be bought."""
        self._take_learned_prices(price)
        if price.estimated and self._estimated:
            return Affordable.NEVER if self._estimated.isdisjoint(self._under_way) else Affordable.LATER
        if self.spent + self._sum + price.credits <= self.max_credits:
            return Affordable.NOW
        return Affordable.LATER if self._under_way else Affordable.NEVER

    def reserve(self, purchase: Hashable, price: Price) -> None:
        """Set aside what a purchase will probably cost, until it is released or settled."""
        self._put(purchase, _Share(price))

    def set_price(self, purchase: Hashable, cost: Decimal) -> None:
        """Note the true price of a job under way."""
        share = self._shares.get(purchase)
        if share is not None:
            self._put(purchase, _Share(Price(share.price.price_class, cost)))

    def suspend(self, purchase: Hashable) -> None:
        """Keep it set aside, and wait for it no longer: the job is in doubt, or is followed no more."""
        share = self._shares.get(purchase)
        if share is not None:
            self._put(purchase, evolve(share, under_way=False))

    def resume(self, purchase: Hashable) -> None:
        """Wait for it again."""
        share = self._shares.get(purchase)
        if share is not None:
            self._put(purchase, evolve(share, under_way=True))

    def release(self, purchase: Hashable) -> None:
        """Give back what was set aside: nothing was bought."""
        share = self._shares.pop(purchase, None)
        if share is not None:
            self._sum -= share.price.credits
            self._under_way.discard(purchase)
            self._estimated.discard(purchase)

    def settle(self, purchase: Hashable, cost: Decimal | None) -> None:
        """Count what a job has cost after refunds; what was set aside, if the gateway did not say.

        Where that is only the example of a reference it stays an estimate, until the price of its class is known.
        """
        self._take_learned_prices()
        share = self._shares.get(purchase)
        if share is None:
            return
        if cost is None and share.price.basis is Basis.EXAMPLE:
            self._put(purchase, evolve(share, under_way=False, over=True))
            return
        self.spent += share.price.credits if cost is None else cost
        self.release(purchase)

    def explain(self, price: Price) -> str:
        """Say why a job at this price is not bought."""
        blocked = bool(price.estimated and self._estimated)
        return why_not(price, limit=self.max_credits, spent=self.spent, reserved=self.reserved, blocked=blocked)

    def _put(self, purchase: Hashable, share: _Share) -> None:
        self.release(purchase)
        self._shares[purchase] = share
        self._sum += share.price.credits
        if share.under_way:
            self._under_way.add(purchase)
        if share.price.estimated:
            self._estimated.add(purchase)

    def _take_learned_prices(self, asked: Price | None = None) -> None:
        """Take the price of a class for what was set aside at an estimate; the user's own for what nobody will tell."""
        for purchase in list(self._estimated):
            share = self._shares[purchase]
            price_class = share.price.price_class
            price = self._prices.of(price_class)
            if price is None and asked is not None and asked.is_users_word and not share.under_way:
                price = asked.credits
            if price is not None:
                self._put(purchase, evolve(share, price=Price(price_class, price)))
                if share.over:
                    self.spent += price
                    self.release(purchase)


@frozen
class _Refused:
    consent: Affordable
    why: str


class BatchBudget:
    """The cap of a named batch. The ledger counts, for all processes, when a job is about to be sent.

    This remembers its refusals, so that it is asked again only when something may have changed.
    """

    def __init__(self, max_credits: Decimal) -> None:
        self.max_credits = max_credits
        self.asks_at = NEVER_ASK_AGAIN
        """When the ledger is asked again: other processes may have freed credits."""
        self._estimated: set[Hashable] = set()
        self._refusals: dict[str, _Refused] = {}

    def check(self, price: Price) -> Affordable:
        """Tell whether it is worth asking the ledger for a job at this price."""
        no = self._refusals.get(price.price_class)
        if no is not None:
            return no.consent
        return Affordable.LATER if price.estimated and self._estimated else Affordable.NOW

    def explain(self, price: Price) -> str:
        """Say why a job at this price is not bought."""
        return self._refusals[price.price_class].why

    def refused(self, price: Price, consent: Affordable, why: str, *, asks_at: float) -> None:
        """Note that the ledger has refused a job."""
        self._refusals[price.price_class] = _Refused(consent, why)
        self.asks_at = asks_at

    def ask_again(self) -> None:
        """Forget what the ledger has said."""
        self._refusals.clear()
        self.asks_at = NEVER_ASK_AGAIN

    def reserve(self, purchase: Hashable, price: Price) -> None:
        """Note that a job is about to be sent."""
        if price.estimated:
            self._estimated.add(purchase)

    def set_price(self, purchase: Hashable, cost: Decimal) -> None:
        """Note that a job has told its price."""
        del cost  # the ledger knows
        self.release(purchase)

    def suspend(self, purchase: Hashable) -> None:
        """Wait for a job no longer."""
        self.release(purchase)

    def resume(self, purchase: Hashable) -> None:
        """Do nothing: the ledger knows which jobs are under way."""

    def release(self, purchase: Hashable) -> None:
        """Note that something has changed."""
        self._estimated.discard(purchase)
        self.ask_again()

    def settle(self, purchase: Hashable, cost: Decimal | None) -> None:
        """Note that a job has ended."""
        del cost  # the ledger knows
        self.release(purchase)


Cap = Budget | BatchBudget

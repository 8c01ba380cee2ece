"""What may be spent: reserved before each purchase and settled after it, so that concurrency can't overshoot."""

import enum
from decimal import Decimal

from nanobanana_async.errors import ConfigurationError

NOTHING = Decimal(0)


class Consent(enum.IntEnum):
    """Whether one more purchase fits, from the best answer to the worst."""

    NOW = 0
    LATER = 1
    """Not while the others are under way: one may be refunded, or tell the price."""
    NEVER = 2


class Prices:
    """What jobs cost by class (`Gateway.price_class`), as the gateway last said."""

    def __init__(self) -> None:
        self._known: dict[str, Decimal] = {}
        self._silent: set[str] = set()

    def of(self, price_class: str) -> Decimal | None:
        """Return the price of a class; None when none was told yet."""
        return self._known.get(price_class)

    def learn(self, price_class: str, price: Decimal | None) -> None:
        """Note what a job cost; None when it ended without a word about that."""
        if price is not None:
            self._known[price_class] = price
            self._silent.discard(price_class)
        elif price_class not in self._known:
            self._silent.add(price_class)

    def is_silent(self, price_class: str) -> bool:
        """Whether the gateway does not say what such jobs cost."""
        return price_class in self._silent


class Budget:
    """A limit of credits, for a session or a batch. `spent` is what earlier runs have spent of it.

    A class of jobs whose price nobody knows goes alone until it is told. `expected` is taken for such a price.
    """

    def __init__(
        self, max_credits: Decimal, prices: Prices, *, expected: Decimal | None = None, spent: Decimal = NOTHING
    ) -> None:
        self.max_credits = max_credits
        self.spent = spent
        self._prices = prices
        self._expected = expected
        self._reserved: dict[str, Decimal] = {}
        self._parked: set[str] = set()
        """Whose cost nobody will tell soon: still set aside, but not worth waiting for."""
        self._sum = NOTHING
        self._unknown: dict[str, str] = {}
        """Class -> the job that goes alone to learn its price."""

    @property
    def reserved(self) -> Decimal:
        """What is set aside: the price of jobs under way, and of those that are in doubt."""
        return self._sum

    def consent(self, price_class: str) -> Consent:
        """Tell whether a job of this class may be bought."""
        price = self._price(price_class)
        if price is None and self._prices.is_silent(price_class):
            return Consent.NEVER
        if price is None and price_class in self._unknown:
            return Consent.LATER
        left = self.max_credits - self.spent - self._sum
        if left >= price if price is not None else left > 0:
            return Consent.NOW
        return Consent.LATER if len(self._reserved) > len(self._parked) else Consent.NEVER

    def reserve(self, key: str, price_class: str) -> None:
        """Set aside what a job will probably cost, until it is released or settled."""
        self._parked.discard(key)
        price = self._price(price_class)
        if price is None:
            self._unknown[price_class] = key
        self._put(key, price or NOTHING)

    def told(self, key: str, price_class: str, price: Decimal) -> None:
        """Note the true price of a job under way."""
        if key in self._reserved:
            self._put(key, price)
            self._learned(key, price_class)

    def park(self, key: str, price_class: str) -> None:
        """Keep it set aside, and wait for it no longer: the job is in doubt, or is followed no more."""
        if key in self._reserved:
            self._parked.add(key)
            self._learned(key, price_class)

    def release(self, key: str, price_class: str) -> None:
        """Give back what was set aside: nothing was bought."""
        self._parked.discard(key)
        self._sum -= self._reserved.pop(key, NOTHING)
        self._learned(key, price_class)

    def settle(self, key: str, price_class: str, cost: Decimal | None) -> None:
        """Count what a job has cost after refunds; what was set aside, if the gateway did not say."""
        if key in self._reserved:
            self.spent += self._reserved[key] if cost is None else cost
            self.release(key, price_class)

    def why(self, price_class: str) -> str:
        """Say why a job does not fit any more."""
        price = self._price(price_class)
        if price is None and self._prices.is_silent(price_class):
            return "the gateway does not say what such a job costs: say it in expected_credits"
        cost = "the next job" if price is None else f"a job for {price}"
        return f"max_credits is {self.max_credits}, {self.spent} are spent, and {cost} would pass it"

    def _price(self, price_class: str) -> Decimal | None:
        price = self._prices.of(price_class)
        return self._expected if price is None else price

    def _put(self, key: str, amount: Decimal) -> None:
        self._sum += amount - self._reserved.get(key, NOTHING)
        self._reserved[key] = amount

    def _learned(self, key: str, price_class: str) -> None:
        if self._unknown.get(price_class) == key:
            del self._unknown[price_class]


def as_credits(name: str, value: Decimal | float | str | None) -> Decimal | None:
    """Return a number of credits as the exact decimal that it was written as; raise `ConfigurationError` otherwise."""
    if value is None:
        return None
    try:
        number = Decimal(str(value))
    except ArithmeticError:
        number = Decimal("NaN")
    if isinstance(value, bool) or not number.is_finite() or number < 0:
        raise ConfigurationError(f"{name} must be a number of at least 0, not {value!r}")
    return number

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

    A class of jobs whose price nobody knows goes alone until it is told. `expected` is taken for such a price; one that
    another budget of the same job was given can be handed in.
    """

    def __init__(
        self, max_credits: Decimal, prices: Prices, *, expected: Decimal | None = None, spent: Decimal = NOTHING
    ) -> None:
        self.max_credits = max_credits
        self.spent = spent
        self.expected = expected
        self._prices = prices
        self._reserved: dict[str, Decimal] = {}
        self._parked: set[str] = set()
        """Whose cost nobody will tell soon: still set aside, but not worth waiting for."""
        self._sum = NOTHING
        self._unpriced: dict[str, set[str]] = {}
        """Class -> jobs that were bought before anybody knew its price."""

    @property
    def reserved(self) -> Decimal:
        """What is set aside: the price of jobs under way, and of those that are in doubt."""
        self._price_the_unpriced()
        return self._sum

    def consent(self, price_class: str, expected: Decimal | None = None) -> Consent:
        """Tell whether a job of this class may be bought."""
        price = self._price(price_class, expected)
        if price is None and self._prices.is_silent(price_class):
            return Consent.NEVER
        if price is None and not self._unpriced.get(price_class, set()) <= self._parked:
            return Consent.LATER
        left = self.max_credits - self.spent - self.reserved
        if left >= price if price is not None else left > 0:
            return Consent.NOW
        return Consent.LATER if len(self._reserved) > len(self._parked) else Consent.NEVER

    def reserve(self, key: str, price_class: str, expected: Decimal | None = None) -> None:
        """Set aside what a job will probably cost, until it is released or settled."""
        self._parked.discard(key)
        self._put(key, price_class, self._price(price_class, expected) or NOTHING)
        if self._prices.of(price_class) is None:
            self._unpriced.setdefault(price_class, set()).add(key)

    def told(self, key: str, price_class: str, price: Decimal) -> None:
        """Note the true price of a job under way."""
        if key in self._reserved:
            self._parked.discard(key)
            self._put(key, price_class, price)

    def park(self, key: str) -> None:
        """Keep it set aside, and wait for it no longer: the job is in doubt, or is followed no more."""
        if key in self._reserved:
            self._parked.add(key)

    def follow(self, key: str) -> None:
        """Wait for it again."""
        self._parked.discard(key)

    def release(self, key: str, price_class: str) -> None:
        """Give back what was set aside: nothing was bought."""
        if key in self._reserved:
            self._put(key, price_class, NOTHING)
            self._parked.discard(key)
            del self._reserved[key]

    def settle(self, key: str, price_class: str, cost: Decimal | None) -> None:
        """Count what a job has cost after refunds; what was set aside, if the gateway did not say.

        If nobody can tell, it stays set aside, and counts as soon as the price of its class is known.
        """
        if key not in self._reserved:
            return
        if cost is None and self._price(price_class) is None:
            self.park(key)
            return
        self._price_the_unpriced()
        self.spent += self._reserved[key] if cost is None else max(cost, NOTHING)
        self.release(key, price_class)

    def why(self, price_class: str, expected: Decimal | None = None) -> str:
        """Say why a job does not fit any more."""
        price = self._price(price_class, expected)
        if price is None and self._prices.is_silent(price_class):
            return "the gateway does not say what such a job costs: say it in expected_credits"
        cost = "the next job" if price is None else f"a job for {price}"
        in_doubt = f", {self.reserved} are set aside for jobs in doubt" if self.reserved else ""
        return f"max_credits is {self.max_credits}, {self.spent} are spent{in_doubt}, and {cost} would pass it"

    def _price(self, price_class: str, expected: Decimal | None = None) -> Decimal | None:
        known = self._prices.of(price_class)
        return next((price for price in (known, self.expected, expected) if price is not None), None)

    def _put(self, key: str, price_class: str, amount: Decimal) -> None:
        self._sum += amount - self._reserved.get(key, NOTHING)
        self._reserved[key] = amount
        unpriced = self._unpriced.get(price_class)
        if unpriced is not None:
            unpriced.discard(key)
            if not unpriced:
                del self._unpriced[price_class]

    def _price_the_unpriced(self) -> None:
        for price_class in list(self._unpriced):
            price = self._prices.of(price_class)
            if price is not None:
                for key in list(self._unpriced[price_class]):
                    self._put(key, price_class, price)


def as_credits(name: str, value: Decimal | float | str | None) -> Decimal | None:
    """Return a number of credits as the exact decimal that it was written as; raise `ConfigurationError` otherwise."""
    if value is None:
        return None
    try:
        number = Decimal(value if isinstance(value, int) else str(value))
    except ArithmeticError:
        number = Decimal("NaN")
    if isinstance(value, bool) or not number.is_finite() or number < 0:
        raise ConfigurationError(f"{name} must be a number of at least 0, not {value!r}")
    return number

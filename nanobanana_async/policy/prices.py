"""What jobs cost: prices as they are learned, charges as records tell them, and amounts as people write them."""

import enum
import functools
from decimal import ROUND_DOWN, ROUND_UP, Decimal

from attrs import frozen

from nanobanana_async.errors import ConfigurationError
from nanobanana_async.jobs import JobRecord, JobState

NOTHING = Decimal(0)

# Amounts are counted in billionths of a credit, up to a billion credits: their sums fit into 63 bits.
BILLIONTH = Decimal("1e-9")
MAX_CREDITS = Decimal(10**9)


class Basis(enum.Enum):
    """What a price rests on. The values stand in ledgers."""

    TOLD = "told"
    """The gateway has stated it, for this job or for one of its class."""
    AGREED = "agreed"
    """`expected_credits`, where a job of the class has ended and the gateway did not say what it cost."""
    EXPECTED = "expected"
    """`expected_credits`: the user's own estimate."""
    EXAMPLE = "example"
    """The example of the gateway's reference."""


@frozen
class Price:
    """What a job is taken to cost."""

    price_class: str
    credits: Decimal
    basis: Basis = Basis.TOLD

    @property
    def estimated(self) -> bool:
        """Whether the gateway has not stated it yet."""
        return self.basis in (Basis.EXPECTED, Basis.EXAMPLE)

    @property
    def is_users_word(self) -> bool:
        """Whether it is `expected_credits`: it stands for jobs, too, of which nobody will tell what they cost."""
        return self.basis in (Basis.EXPECTED, Basis.AGREED)


@frozen(kw_only=True)
class Charge:
    """What a purchase has cost by its record; `credits` is None while that is not known better than before."""

    credits: Decimal | None
    under_way: bool
    """The job runs: it may yet be refunded, or tell its price."""
    over: bool
    """The gateway has said its last word."""


def charge_of(record: JobRecord) -> Charge | None:
    """Return what a record says of its purchase; None when surely nothing was bought.

    A failure without a stated refund has cost what was stated before. 0 is a price only when the job succeeded, and a
    refund when it failed; before that it says nothing.
    """
    over = record.state in (JobState.SUCCEEDED, JobState.FAILED)
    if not over and not record.possibly_bought:
        return None
    cost = record.credits if over else price_in(record)
    return Charge(credits=cost, under_way=record.state in (JobState.SUBMITTING, JobState.RUNNING), over=over)


def price_in(record: JobRecord) -> Decimal | None:
    """Return what such a job costs by its record; 0 is a price only when it succeeded: some say it for a refund."""
    return record.credits_used if record.credits_used or record.state is JobState.SUCCEEDED else None


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
        else:
            self._silent.add(price_class)

    def estimate(self, price_class: str, example: Decimal, expected: Decimal | None) -> Price:
        """Return what a job is taken to cost: as told, as the user expects, or as the reference's example says.

        Where a job of the class has ended and the gateway did not say what it cost, the user's word is the price.
        """
        known = self._known.get(price_class)
        if known is not None:
            return Price(price_class, known)
        if expected is not None:
            return Price(price_class, expected, Basis.AGREED if price_class in self._silent else Basis.EXPECTED)
        return Price(price_class, example, Basis.EXAMPLE)


_ADVICE = {
    Basis.TOLD: "",
    Basis.AGREED: ": expected_credits says so, the gateway does not say what such jobs cost",
    Basis.EXPECTED: ": expected_credits says so, no such job has told its price yet",
    Basis.EXAMPLE: ": the example of the gateway's reference, no such job has told its price yet;"
    " expected_credits sets another estimate",
}


def why_not(price: Price, *, limit: Decimal, spent: Decimal, reserved: Decimal = NOTHING, blocked: bool = False) -> str:
    """Say why a job is not bought under a cap."""
    cost = f"{'estimated at' if price.estimated else 'for'} {plain(price.credits)}"
    if blocked:
        return (
            f"max_credits is {plain(limit)}, and a job {cost} is not bought as long as nobody has said what an earlier"
            " job at an estimate has cost: say what such jobs cost in expected_credits"
        )
    in_doubt = f", {plain(reserved)} are set aside for jobs in doubt" if reserved else ""
    return (
        f"max_credits is {plain(limit)}, {plain(spent)} are spent{in_doubt}, and a job {cost} would pass it"
        f"{_ADVICE[price.basis]}"
    )


def plain(amount: Decimal) -> str:
    """Return an amount without an exponent and without zeros at its end."""
    text = f"{amount:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def as_credits(name: str, value: Decimal | float | str | None) -> Decimal | None:
    """Return a number of credits as the exact decimal that it was written as; raise `ConfigurationError` otherwise."""
    if value is None:
        return None
    try:
        number = Decimal(value if isinstance(value, int) else str(value))
    except ArithmeticError:
        number = Decimal("NaN")
    if isinstance(value, bool) or not number.is_finite() or number < 0:
        raise ConfigurationError(f"{name} must be a number of at least 0, not {_shown(value)}")
    if number > MAX_CREDITS or (number and number < BILLIONTH):
        raise ConfigurationError(
            f"{name} must be 0, or from {plain(BILLIONTH)} to {plain(MAX_CREDITS)} credits, not {_shown(value)}"
        )
    rounded = number.quantize(BILLIONTH, ROUND_DOWN)
    return number if number == rounded else rounded


@functools.lru_cache(maxsize=256)
def units(amount: Decimal) -> int:
    """Return an amount in billionths of a credit, rounded up, as a sum of many can be kept exactly."""
    return int((min(max(amount, NOTHING), MAX_CREDITS) / BILLIONTH).to_integral_value(ROUND_UP))


def credits_in(amount: int) -> Decimal:
    """Return the amount that `units` counted."""
    return amount * BILLIONTH


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # a whole number of thousands of digits
        text = "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:60]}..."

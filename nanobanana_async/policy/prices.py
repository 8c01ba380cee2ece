"""What jobs cost: learned prices, the charge in a record, and amounts as users write them."""

import enum
import functools
from collections.abc import Mapping
from decimal import ROUND_DOWN, ROUND_UP, Decimal

from attrs import frozen

from nanobanana_async.errors import ConfigurationError
from nanobanana_async.jobs import JobRecord, JobState

ZERO_CREDITS = Decimal(0)

# The ledger counts billionths of a credit, up to a billion credits: the sums fit into 63 bits.
BILLIONTH = Decimal("1e-9")
MAX_CREDITS = Decimal(10**9)


class Basis(enum.Enum):
    """The source of a price. The values are stored in ledgers."""

    REPORTED = "reported"
    """The gateway stated the price, for this job or for one of its class."""
    CHARGED_AS_EXPECTED = "agreed"
    """`expected_credits`, after a job of the class ended and the gateway did not state its cost."""
    EXPECTED = "expected"
    """`expected_credits`: the user's estimate."""
    EXAMPLE = "example"
    """What an earlier session paid, or the example of the gateway's reference."""


@frozen
class Price:
    """The price of a job, or the estimate of it."""

    price_class: str
    credits: Decimal
    basis: Basis = Basis.REPORTED

    @property
    def is_estimate(self) -> bool:
        """Whether the price is an estimate."""
        return self.basis in (Basis.EXPECTED, Basis.EXAMPLE)

    @property
    def is_user_stated(self) -> bool:
        """Whether the price is `expected_credits`, which also counts for jobs whose cost stays unknown."""
        return self.basis in (Basis.EXPECTED, Basis.CHARGED_AS_EXPECTED)


@frozen(kw_only=True)
class Charge:
    """The cost of a job by its record; `credits` is None if the record does not state it."""

    credits: Decimal | None
    under_way: bool
    """The job runs: it may still be refunded, or make its price known."""
    is_final: bool
    """The job ended: the gateway will report no other cost."""


def charge_of(record: JobRecord) -> Charge | None:
    """Return the charge that a record states; None if certainly nothing was bought.

    A failed job without a stated refund costs what was stated before. A stated 0 is a price if the job succeeded, a
    refund if it failed, and no information before its end.
    """
    over = record.state in (JobState.SUCCEEDED, JobState.FAILED)
    if not over and not record.possibly_bought:
        return None
    cost = record.credits if over else price_in(record)
    return Charge(credits=cost, under_way=record.state in (JobState.SUBMITTING, JobState.RUNNING), is_final=over)


def price_in(record: JobRecord) -> Decimal | None:
    """Return the price that a record states. A 0 is a price only after success: some gateways report a refund as 0."""
    return record.credits_used if record.credits_used or record.state is JobState.SUCCEEDED else None


class Prices:
    """The price of each class of jobs (`Gateway.price_class`), as the gateway stated it last."""

    def __init__(self) -> None:
        self._known: dict[str, Decimal] = {}
        self._earlier: dict[str, Decimal] = {}
        self._unstated_classes: set[str] = set()

    def price_of(self, price_class: str) -> Decimal | None:
        """Return the price of a class; None if it is not known."""
        return self._known.get(price_class)

    @property
    def known(self) -> Mapping[str, Decimal]:
        """The known prices by class, in this session and in the one before."""
        return {**self._earlier, **self._known}

    def restore(self, price_class: str, price: Decimal) -> None:
        """Record what an earlier session paid: an estimate, since the gateway may have changed its price."""
        self._earlier[price_class] = price

    def learn(self, price_class: str, price: Decimal | None) -> None:
        """Record the price of a job; None if it ended and the gateway did not state a price."""
        if price is not None:
            self._known[price_class] = price
        else:
            self._unstated_classes.add(price_class)

    def estimate(self, price_class: str, example: Decimal, expected: Decimal | None) -> Price:
        """Return the known price of a class, or the user's estimate, or what an earlier session paid, or the example.

        The user's estimate becomes the price once a job of the class ended and the gateway did not state its cost.
        """
        known = self._known.get(price_class)
        if known is not None:
            return Price(price_class, known)
        if expected is not None:
            return Price(
                price_class,
                expected,
                Basis.CHARGED_AS_EXPECTED if price_class in self._unstated_classes else Basis.EXPECTED,
            )
        return Price(price_class, self._earlier.get(price_class, example), Basis.EXAMPLE)


_ADVICE = {
    Basis.REPORTED: "",
    Basis.CHARGED_AS_EXPECTED: ": the price is expected_credits, the gateway does not state what such jobs cost",
    Basis.EXPECTED: ": the estimate is expected_credits, the price of such jobs is not known yet",
    Basis.EXAMPLE: ": the estimate is what such jobs cost earlier or in the gateway's reference, their price is not"
    " known yet; raise {cap}, or in a batch expected_credits sets another estimate",
}


def refusal_reason(
    price: Price,
    *,
    limit: Decimal,
    spent: Decimal,
    reserved: Decimal = ZERO_CREDITS,
    blocked: bool = False,
    cap: str = "max_credits",
) -> str:
    """Return why a job is not bought under a cap, which users know by this name."""
    cost = f"{'estimated at' if price.is_estimate else 'for'} {format_amount(price.credits)}"
    if blocked:
        return (
            f"{cap} is {format_amount(limit)}, and a job {cost} is not bought: an earlier job was bought at an"
            " estimate, and its cost is still unknown; in a batch set expected_credits to what such jobs cost"
        )
    in_doubt = f", {format_amount(reserved)} are reserved for jobs in doubt" if reserved else ""
    spent_so_far = f"{format_amount(spent)} are spent{in_doubt}"
    advice = _ADVICE[price.basis].format(cap=cap)
    return f"{cap} is {format_amount(limit)}, {spent_so_far}, and a job {cost} would pass it{advice}"


def format_amount(amount: Decimal) -> str:
    """Return an amount without an exponent and without trailing zeros."""
    text = f"{amount:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def parse_credits(name: str, value: Decimal | float | None) -> Decimal | None:
    """Return a number of credits as the decimal that was written; raise `ConfigurationError` for anything else."""
    if value is None:
        return None
    try:
        number = Decimal(value if isinstance(value, int) else str(value))
    except ArithmeticError:
        number = Decimal("NaN")
    if isinstance(value, (bool, str)) or not number.is_finite() or number < 0:
        raise ConfigurationError(f"{name} must be a number of at least 0, not {_short_repr(value)}")
    if number > MAX_CREDITS or (number and number < BILLIONTH):
        raise ConfigurationError(
            f"{name} must be 0, or from {format_amount(BILLIONTH)} to {format_amount(MAX_CREDITS)} credits,"
            f" not {_short_repr(value)}"
        )
    if not number:
        return ZERO_CREDITS  # -0 is a number, and would be shown
    rounded = number.quantize(BILLIONTH, ROUND_DOWN)
    return number if number == rounded else rounded


@functools.lru_cache(maxsize=256)
def to_billionths(amount: Decimal) -> int:
    """Return an amount in billionths of a credit, rounded up: whole numbers are summed without error."""
    return int((min(max(amount, ZERO_CREDITS), MAX_CREDITS) / BILLIONTH).to_integral_value(ROUND_UP))


def from_billionths(amount: int) -> Decimal:
    """Return the credits of an amount in billionths."""
    return amount * BILLIONTH


def _short_repr(value: object) -> str:
    try:
        text = str(value) if isinstance(value, Decimal) else repr(value)
    except ValueError:  # a whole number of thousands of digits
        text = "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:60]}..."

"""Named budgets: a cap with a name, which a ledger counts for all calls that name it."""

from datetime import UTC, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Literal, get_args

from attrs import Attribute, field, frozen

from nanobanana_async.errors import ConfigurationError
from nanobanana_async.escaping import plain_text
from nanobanana_async.policy.prices import ZERO_CREDITS, format_amount, parse_credits
from nanobanana_async.validators import shown

Period = Literal["day"]

MAX_NAME_LENGTH = 100


def _to_credits(value: Decimal | float) -> Decimal:
    credits_ = parse_credits("max_credits", value)
    if credits_ is None:
        raise ConfigurationError("max_credits of a Budget must be a number of at least 0, not None")
    return credits_


def _to_name(name: str) -> str:
    return plain_text(name)


def _check_name(_: Any, __: "Attribute[str]", name: object) -> None:
    usable = isinstance(name, str) and name.strip() == name and name.isprintable() and len(name) <= MAX_NAME_LENGTH
    if not (usable and name):
        raise ConfigurationError(
            f"name of a Budget must be printable text of 1 to {MAX_NAME_LENGTH} characters without spaces around it,"
            f" not {shown(name)}"
        )


def _check_period(_: Any, __: "Attribute[Period | None]", per: object) -> None:
    if not (per is None or (isinstance(per, str) and per in get_args(Period))):
        raise ConfigurationError(f'per of a Budget must be "day" or None, not {shown(per)}')


@frozen(kw_only=True)
class Budget:
    """A cap with a name: the ledger counts under it what all calls with this budget spend, also of other processes.

    With `per="day"` it counts each day in UTC for itself: a job counts in the day in which its price was reserved.
    Without, it counts all that was ever spent under the name. Of several values of `max_credits` the one that was
    given last holds, for all that use the ledger.
    """

    max_credits: Decimal = field(converter=_to_credits)  # how much may be spent under the name
    name: str = field(converter=_to_name, validator=_check_name)  # under which the ledger counts
    per: Period | None = field(default=None, validator=_check_period)  # "day": each day in UTC for itself

    def count_at(self, when: datetime) -> str:
        """Return the name under which a ledger counts what is reserved at a time; no named batch has such a prefix."""
        return f"budget {when.astimezone(UTC).date().isoformat() if self.per == 'day' else 'all'} {self.name}"

    def resets_at(self, now: datetime) -> datetime | None:
        """Return when it counts from 0 again; None for never."""
        if self.per is None:
            return None
        return datetime.combine(now.astimezone(UTC).date() + timedelta(days=1), time(), UTC)

    def explain_refusal(self, why: str, spent: Decimal, now: datetime) -> str:
        """Return why a job is not bought under it, what is left, and what to do."""
        resets_at = self.resets_at(now)
        more = "" if resets_at is None else f"; it counts from 0 again at {resets_at:%Y-%m-%d %H:%M} UTC"
        more += "; a budget of that name with a higher max_credits buys more"
        return f"budget {self.name}: {why}; {format_amount(self.left_after(spent))} are left{more}"

    def left_after(self, counted: Decimal) -> Decimal:
        """Return what may still be reserved; 0 if more was spent than `max_credits` allows now."""
        return _without_zeros(max(ZERO_CREDITS, self.max_credits - counted))


@frozen(kw_only=True)
class BudgetState:
    """What `Session.budgets` returns of a budget: its cap, and what was counted under it, in this day if `per` it."""

    name: str  # under which the ledger counts
    max_credits: Decimal  # the value that was given last
    per: Period | None  # "day", or None: it never counts from 0 again
    spent: Decimal
    """The cost of jobs with a known price, after refunds."""
    reserved: Decimal
    """The estimated price of jobs that are sent, or in doubt."""
    resets_at: datetime | None
    """When it counts from 0 again; None for never."""

    @property
    def left(self) -> Decimal:
        """What may still be reserved; 0 if more was spent than `max_credits` allows now."""
        return max(ZERO_CREDITS, self.max_credits - self.spent - self.reserved)


def state_of(budget: Budget, now: datetime, *, counted: Decimal, reserved: Decimal) -> BudgetState:
    """Return the state of a budget; `counted` is the sum of its charges, reserved ones included."""
    return BudgetState(
        name=budget.name,
        max_credits=_without_zeros(budget.max_credits),
        per=budget.per,
        spent=_without_zeros(counted - reserved),
        reserved=_without_zeros(reserved),
        resets_at=budget.resets_at(now),
    )


def check_same_period(known: Budget, wanted: Budget) -> None:
    """Raise `ConfigurationError` if a name counts in another way in the ledger."""
    if known.per != wanted.per:
        raise ConfigurationError(
            f"budget {known.name} counts {_period(known)} in this ledger, not {_period(wanted)}:"
            f" pass per={known.per!r}, or use another name"
        )


def _without_zeros(amount: Decimal) -> Decimal:
    """Return an amount as people write it: ledgers count billionths."""
    return Decimal(format_amount(amount))


def _period(budget: Budget) -> str:
    return "all that was ever spent" if budget.per is None else f"each {budget.per} for itself"

"""Named budgets: a cap with a name, which a ledger counts for all calls that name it."""

from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Literal, get_args

from attrs import Attribute, field, frozen

from nanobanana_async.errors import ConfigurationError
from nanobanana_async.escaping import as_plain_str
from nanobanana_async.misspelt import by_name
from nanobanana_async.policy.prices import ZERO_CREDITS, Price, format_amount, parse_credits, refusal_reason
from nanobanana_async.validators import shown

Period = Literal["day"]

MAX_NAME_LENGTH = 100


def _to_credits(value: Decimal | float) -> Decimal:
    credits_ = parse_credits("max_credits", value)
    if credits_ is None:
        raise ConfigurationError("max_credits of a Budget must be a number of at least 0, not None")
    return credits_


def _to_name(name: str) -> str:
    return as_plain_str(name)


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


@by_name
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

    def count_name_at(self, when: datetime) -> str:
        """Return the name under which a ledger counts what is reserved at a time; no named batch has such a prefix."""
        return f"budget {when.astimezone(UTC).date().isoformat() if self.per == 'day' else 'all'} {self.name}"

    def resets_at(self, now: datetime) -> datetime | None:
        """Return when it counts from 0 again; None for never."""
        if self.per is None:
            return None
        return datetime.combine(now.astimezone(UTC).date() + timedelta(days=1), time(), UTC)

    def explain_refusal(self, price: Price, counted: Decimal, now: datetime, *, blocked: bool) -> str:
        """Return why a job is not bought under it, what is left, and what to do.

        `counted` is what counts under it already; `blocked` says that an estimate among that keeps the job back.
        """
        why = refusal_reason(price, limit=self.max_credits, spent=counted, blocked=blocked, cap="its cap")
        resets_at = self.resets_at(now)
        more = "" if resets_at is None else f"; it counts from 0 again at {resets_at:%Y-%m-%d %H:%M} UTC"
        left = format_amount(self.left_after(counted))
        return f"budget {self.name}: {why}; {left} are left{more}; raise it to buy more"

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
    def budget(self) -> Budget:
        """The budget as the ledger has it."""
        return Budget(name=self.name, max_credits=self.max_credits, per=self.per)

    @property
    def left(self) -> Decimal:
        """What may still be reserved; 0 if more was spent than `max_credits` allows now."""
        return max(ZERO_CREDITS, self.max_credits - self.spent - self.reserved)


def parse_budget(setting: str, text: str) -> Budget:
    """Return the budget that `NAME=CREDITS` or `NAME=CREDITS/day` says, as people write it in settings."""
    name, _, amount = text.rpartition("=")
    number, slash, per = amount.partition("/")
    max_credits: Decimal | None = None
    with suppress(ArithmeticError):
        max_credits = Decimal(number)
    if max_credits is None or not name or (slash and per.strip() != "day"):
        raise ConfigurationError(
            f"{setting} must be NAME=CREDITS or NAME=CREDITS/day, such as alice=500/day, not {shown(text)}"
        )
    return Budget(name=name, max_credits=max_credits, per="day" if slash else None)


def check_names_apart(setting: str, budgets: Iterable[Budget]) -> None:
    """Raise `ConfigurationError` if two different budgets have one name: the ledger could count only one of them."""
    by_name: dict[str, Budget] = {}
    for budget in budgets:
        if by_name.setdefault(budget.name, budget) != budget:
            raise ConfigurationError(
                f"{setting}: there are two different ones with the name {budget.name!r}: name them apart"
            )


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

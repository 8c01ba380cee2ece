"""The session's money: each job's reservations follow its record."""

from collections.abc import Callable, Iterable
from decimal import Decimal

from nanobanana_async.engine.entry import Entry
from nanobanana_async.jobs import JobRecord, JobState
from nanobanana_async.models import ImageRequest
from nanobanana_async.policy.credits import Budget, Consent, Prices


class Purse:
    """Knows prices, what was spent, and which budgets a job draws on.

    A reservation belongs to the job's key, not to its entry: whoever settles a job later need not hold the same one.
    """

    def __init__(self, price_class: Callable[[ImageRequest], str]) -> None:
        self._price_class = price_class
        self.prices = Prices()
        self.spent = Decimal(0)
        self.remaining: Decimal | None = None
        """The gateway's last word on the account; a hint."""
        self._drawn: dict[str, tuple[Budget, ...]] = {}
        """Key -> where the price of a job is set aside that was perhaps bought, until it is settled."""

    def consent(self, entry: Entry) -> Consent:
        """Tell whether every budget of this job lets it be bought; what was perhaps bought is always finished."""
        if not entry.budgets or entry.key in self._drawn or entry.record.perhaps_bought:
            return Consent.NOW
        name, expected = self.class_of(entry.record), _expected(entry)
        return max(budget.consent(name, expected) for budget in entry.budgets)

    def why(self, entry: Entry) -> str:
        """Say which budget is used up."""
        name, expected = self.class_of(entry.record), _expected(entry)
        used_up = (budget for budget in entry.budgets if budget.consent(name, expected) is Consent.NEVER)
        return next(used_up).why(name, expected)

    def reserve(self, entry: Entry) -> None:
        """Set the job's price aside before its create leaves."""
        if entry.budgets:
            self._drawn[entry.key] = budgets = self._budgets_of(entry)
            for budget in budgets:
                budget.reserve(entry.key, self.class_of(entry.record), _expected(entry))

    def moved(self, before: JobRecord, entry: Entry) -> None:
        """Follow the record: learn what it says of the price, and settle what has ended."""
        record = entry.record
        if record.generation == before.generation:
            self.spent += (record.credits or 0) - (before.credits or 0)
        else:  # a new purchase does not undo the last one, and draws on what that one drew on
            entry.budgets = self._budgets_of(entry)
        price = price_in(record)
        if price is not None or record.state is JobState.SUCCEEDED:
            self.prices.learn(self.class_of(record), price)
        self._balance(entry)

    def found(self, entry: Entry) -> None:
        """Wait for a job again that was set aside for and is followed once more."""
        for budget in self._budgets_of(entry):
            budget.follow(entry.key)

    def let_go(self, entry: Entry) -> None:
        """Follow the record once more, which others may have moved; what is in doubt still stays set aside."""
        self._balance(entry)
        for budget in self._budgets_of(entry):
            budget.park(entry.key)

    def recall(self, records: Iterable[JobRecord]) -> None:
        """Learn prices from jobs of the ledger, the oldest first, where this session has heard of none."""
        told = {self.class_of(record): price for record in records if (price := price_in(record)) is not None}
        for name, price in told.items():
            if self.prices.of(name) is None:
                self.prices.learn(name, price)

    def class_of(self, record: JobRecord) -> str:
        """Return the class of jobs that cost what this one does."""
        return "" if record.request is None else self._price_class(record.request)

    def _balance(self, entry: Entry) -> None:
        record = entry.record
        ended = record.state in (JobState.SUCCEEDED, JobState.FAILED)
        for budget in self._budgets_of(entry):
            if ended:
                budget.settle(entry.key, self.class_of(record), record.credits)
            elif not record.perhaps_bought:
                budget.release(entry.key, self.class_of(record))
            elif (price := price_in(record)) is not None:
                budget.told(entry.key, self.class_of(record), price)
        if ended or not record.perhaps_bought:
            self._drawn.pop(entry.key, None)

    def _budgets_of(self, entry: Entry) -> tuple[Budget, ...]:
        drawn = self._drawn.get(entry.key, ())
        return entry.budgets if not drawn else tuple(dict.fromkeys((*drawn, *entry.budgets)))


def price_in(record: JobRecord) -> Decimal | None:
    """Return what a job costs by its record; 0 is a price only when it succeeded: some say it for a refund."""
    return record.credits_used if record.credits_used or record.state is JobState.SUCCEEDED else None


def _expected(entry: Entry) -> Decimal | None:
    """Return what somebody said that such a job costs, for those of its budgets that were told nothing."""
    return next((budget.expected for budget in entry.budgets if budget.expected is not None), None)

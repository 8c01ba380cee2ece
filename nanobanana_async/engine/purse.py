"""The session's money: each job's reservations follow its record."""

from collections.abc import Callable
from decimal import Decimal

from nanobanana_async.engine.entry import Entry
from nanobanana_async.jobs import JobRecord, JobState
from nanobanana_async.models import ImageRequest
from nanobanana_async.policy.credits import Consent, Prices


class Purse:
    """Knows prices, what was spent, and which budgets a job draws on: those in its entry."""

    def __init__(self, price_class: Callable[[ImageRequest], str]) -> None:
        self._price_class = price_class
        self.prices = Prices()
        self.spent = Decimal(0)
        self.remaining: Decimal | None = None
        """The gateway's last word on the account; a hint."""

    def consent(self, entry: Entry) -> Consent:
        """Tell whether every budget of this job lets it be bought."""
        if not entry.budgets or entry.reserved:
            return Consent.NOW
        name = self.class_of(entry.record)
        return max(budget.consent(name) for budget in entry.budgets)

    def why(self, entry: Entry) -> str:
        """Say which budget is used up."""
        name = self.class_of(entry.record)
        return next(budget.why(name) for budget in entry.budgets if budget.consent(name) is Consent.NEVER)

    def reserve(self, entry: Entry) -> None:
        """Set the job's price aside before its create leaves."""
        if entry.budgets and not entry.reserved:
            entry.reserved = True
            for budget in entry.budgets:
                budget.reserve(entry.key, self.class_of(entry.record))

    def moved(self, before: JobRecord, entry: Entry) -> None:
        """Follow the record: learn what it says of the price, and settle what has ended."""
        record = entry.record
        ended = record.state in (JobState.SUCCEEDED, JobState.FAILED)
        if record.credits == before.credits and not (entry.reserved or ended):
            return
        name = self.class_of(record)
        self.spent += (record.credits or 0) - (before.credits or 0)
        if record.credits_used is not None or record.state is JobState.SUCCEEDED:
            self.prices.learn(name, record.credits_used)
        if not entry.reserved:
            return
        for budget in entry.budgets:
            if ended:
                budget.settle(entry.key, name, record.credits)
            elif not record.perhaps_bought:
                budget.release(entry.key, name)
            elif record.credits is not None:
                budget.told(entry.key, name, record.credits)
        entry.reserved = not ended and record.perhaps_bought

    def let_go(self, entry: Entry) -> None:
        """Give back what was set aside for a job that stops unsent; what was perhaps bought stays set aside."""
        if entry.reserved:
            entry.reserved = entry.record.perhaps_bought
            for budget in entry.budgets:
                leave = budget.park if entry.reserved else budget.release
                leave(entry.key, self.class_of(entry.record))

    def class_of(self, record: JobRecord) -> str:
        """Return the class of jobs that cost what this one does."""
        return "" if record.request is None else self._price_class(record.request)

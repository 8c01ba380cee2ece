"""What a batch has spent by its ledger: on the display, against the cap, and for the rows that are left."""

from contextlib import suppress
from decimal import Decimal

from attrs import frozen

from nanobanana_async import ConfigurationError, CreditLimitReached, Gateway, JobState, LedgerError, SqliteLedger
from nanobanana_async.cli.batch.costs import cost_of
from nanobanana_async.cli.batch.display import BatchDisplay
from nanobanana_async.cli.batch.output import BatchSummary
from nanobanana_async.cli.batch.results import Results
from nanobanana_async.cli.batch.run_options import RunOptions
from nanobanana_async.cli.jobs.actions import require_ledger


@frozen
class BatchCreditsReader:
    """Reads the credits of a batch from its ledger."""

    options: RunOptions
    gateway: Gateway
    ledger: SqliteLedger
    results: Results
    display: BatchDisplay
    summary: BatchSummary

    async def refresh_display(self) -> None:
        """Show what the ledger says that the batch has spent, with its earlier runs, and has reserved."""
        batch, display = self.options.file.batch, self.display
        display.reserved = await self.ledger.reserved(batch)
        display.spent = await self.ledger.spent_or_reserved(batch) - display.reserved

    async def read_final(self) -> None:
        """Read the credits once more: the session stores the last answers while it closes, and closes the ledger."""
        with suppress(LedgerError, ConfigurationError):  # then the display keeps the last amounts
            require_ledger(self.ledger.path)  # or opening it would create an empty one
            await self.ledger.open()
            try:
                await self.refresh_display()
                await self._count_left()
            finally:
                await self.ledger.aclose()

    async def compare_with_cap(self) -> None:
        """Check whether the batch, with its earlier runs, has cost more than the cap."""
        cap = self.options.max_credits
        if cap is not None:
            try:
                spent = await self.ledger.spent_or_reserved(self.options.file.batch)
                self.summary.overspent = max(Decimal(0), spent - cap)
            except LedgerError as error:  # the rows and what to do are said all the same
                self.summary.stop_reason = self.summary.stop_reason or error

    async def _count_left(self) -> None:
        """Count the rows left that are or may be bought and, if the cap stopped the buying, what the others cost."""
        sent = (JobState.SUBMITTING, JobState.RUNNING)
        states = {record.key: record.state async for record in self.ledger.jobs(sent) if record.key not in self.results}
        bought = {key for key, state in states.items() if state is JobState.RUNNING}
        bought |= {key for key in self.display.saving if key not in self.results}  # perhaps its end was not stored
        self.summary.uncollected = len(bought)
        self.summary.unanswered = len(states.keys() - bought)
        if isinstance(self.summary.stop_reason, CreditLimitReached):
            left = (row for row in self.options.file.rows(self.gateway) if row.key not in self.results)
            self.summary.cost_left = await cost_of(left, self.ledger, self.gateway, self.options.expected_credits)

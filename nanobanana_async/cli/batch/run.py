"""Run a batch: load finished rows, buy the rest, and write the result of each row as it ends."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import suppress

import anyio
import anyio.to_thread
from rich.console import Console

from nanobanana_async import (
    Batch,
    BatchStopped,
    ConfigurationError,
    Gateway,
    LedgerError,
    NanoBananaError,
    Outcome,
    Session,
    SqliteLedger,
)
from nanobanana_async.cli.balance import watch_balance
from nanobanana_async.cli.batch.changed import changed_sentence
from nanobanana_async.cli.batch.credits import BatchCreditsReader
from nanobanana_async.cli.batch.display import COLLECTING, BatchDisplay
from nanobanana_async.cli.batch.edited import find_edits
from nanobanana_async.cli.batch.finished import FinishedRows
from nanobanana_async.cli.batch.folder import LEDGER, REPORT, BatchFolder, unwritable_error
from nanobanana_async.cli.batch.input_file import FileRow
from nanobanana_async.cli.batch.output import MAX_ERRORS, BatchSummary, StdoutLines
from nanobanana_async.cli.batch.rehearsal import begin_lost_jobs_again
from nanobanana_async.cli.batch.results import IMAGES, RESULTS, OldResults, Result, Results
from nanobanana_async.cli.batch.rows import YIELD_EVERY, PendingRows, result_with_files
from nanobanana_async.cli.batch.run_options import RunOptions
from nanobanana_async.cli.batch.run_report import RunReport
from nanobanana_async.cli.batch.spreadsheet import SPREADSHEET, write_spreadsheet
from nanobanana_async.cli.batch.store_marker import claim_store
from nanobanana_async.cli.result_lines import missing_images_sentence
from nanobanana_async.cli.signals import StopSignals

OK, FAILED, STOPPED, INTERRUPTED = 0, 1, 3, 130

TICK_S = 0.25
LAST_PAGE_S = 2.0  # how long a run that stops at once may take for its page
REPORT_S, REPORT_SHARE = 30.0, 20  # seconds between two reports, at least this many times the time to write one


class Run:
    """Runs a batch in a locked folder."""

    def __init__(self, options: RunOptions, gateways: Sequence[Gateway], folder: BatchFolder, console: Console) -> None:
        self._options = options
        self._gateways = gateways
        self._gateway = gateway = gateways[0]  # rows are the same at each account
        self._folder = folder.path
        clock = asyncio.get_running_loop().time
        self._stdout = StdoutLines()
        on_stdout = self._stdout.enabled
        self._display = BatchDisplay(
            options.total, console, clock, max_credits=options.max_credits, on_stdout=on_stdout
        )
        self._results = Results(folder.path)
        self._ledger = SqliteLedger(folder.path / LEDGER)
        self._summary = BatchSummary(folder.path, options.file.unit, rehearsal=options.emulated)
        self._signals = StopSignals(console, self._display.say, self._display.running, rehearsal=options.emulated)
        self._changed = False
        display, results = self._display, self._results
        self._credits = BatchCreditsReader(options, gateway, self._ledger, results, display, self._summary)
        self._report = RunReport(folder.path, options, gateway, results, display)
        self._finalize_error: NanoBananaError | None = None
        """Why the results or the report could not be finalized."""

    async def run(self) -> int:
        """Run the batch and return the exit code."""
        with self._display, self._signals:
            finalized = False
            try:
                with self._signals.end_of_work():
                    await self._run_session()
                    await self._finalize()
                    finalized = True
                if not finalized:
                    await self._write_last_page()
            finally:
                self._results.discard()
        return self._print_summary()

    async def _run_session(self) -> None:
        session = Session(
            self._gateways,
            ledger=self._ledger,
            concurrency=self._options.concurrency,
            observers=[self._display, self._report.recorder, self._summary.observe],
            trust_env=True,
        )
        try:
            if self._options.store is None:
                (self._folder / IMAGES).mkdir(exist_ok=True)
            await session.open()
        except OSError as error:
            raise unwritable_error(self._folder, error) from None
        except LedgerError as error:
            raise ConfigurationError(str(error)) from None
        try:
            if self._options.turn.budget is not None:
                await self._ledger.set_budget(self._options.turn.budget)  # raises if it counts in another way there
            await self._load_finished()
            if not self._signals.stop_requested.is_set():
                await self._buy(session)
                await self._credits.compare_with_cap()
        except OSError as error:
            raise unwritable_error(self._folder, error) from None
        finally:
            self._display.phase = "closing"
            await session.aclose()
            self._display.show_session(session)
            await self._credits.read_final()

    async def _load_finished(self) -> None:
        """Start the new results file with every row that has already ended."""
        options = self._options
        await claim_store(options, self._ledger)
        if options.emulated:
            images = self._folder / IMAGES
            if note := await begin_lost_jobs_again(self._ledger, self._gateway, images, options.store):
                self._display.say(note)
        old = OldResults.read(self._results.path)
        edits = await find_edits(options.file, self._gateway, self._ledger, old)
        if edits.why and not options.buy_changed:
            raise ConfigurationError(edits.why)
        if edits.note:
            self._display.say(edits.note)
        finished = self._finished = FinishedRows(
            self._folder,
            options.file,
            self._gateway,
            self._ledger,
            old,
            retry_failed=options.retry_failed,
            buy_changed=options.buy_changed,
            store=options.store,
            ours=options.ours,
        )
        await finished.begin()
        self._results.begin()
        for row in self._options.file.rows(self._gateway):
            if row.error is not None:
                file = self._options.file
                raise ConfigurationError(f"{file.title}, {file.unit} {row.number}: {row.error}")
            result = await finished.find(row)
            if result is not None:
                self._results.add(result)
                self._summary.add(result)
                self._report.add(result.row)
                self._display.add_from_earlier_run(result.row.status)
                self._stdout.add(result, self._folder)
            if row.index % YIELD_EVERY == 0:
                self._display.tick(None)
                await asyncio.sleep(0)  # the lines wait on: a run that is refused below prints none
            if self._signals.stop_requested.is_set():
                return
        finished.other_accounts.check()
        if len(self._summary.changed) == options.total:  # the results and the page stay as they are
            raise ConfigurationError(f"nothing to buy: {changed_sentence(self._summary.changed, options.file.unit)}")
        await self._stdout.flush()
        self._summary.removed = len(old.offsets)
        self._changed = self._results.commit()
        self._summary.finished_before = len(self._results)
        if self._summary.finished_before:
            self._display.say(self._summary.beginning())
        await self._credits.refresh_display()
        self._summary.spent_before = self._display.spent

    async def _buy(self, session: Session) -> None:
        options = self._options
        self._display.phase = ""
        pending = PendingRows(options.file.rows(self._gateway), self._results)
        try:
            async with (
                asyncio.TaskGroup() as group,
                session.generate_many(
                    pending,
                    batch=options.file.batch,
                    ordered=options.ordered,
                    save_to=self._folder / IMAGES if options.store is None else options.store,
                    sidecar=options.sidecar,
                    max_credits=options.max_credits,
                    budget=options.turn.budget,
                    priority=options.turn.priority,
                    group=options.turn.group,
                    expected_credits=options.expected_credits,
                    retry_failed=options.retry_failed,
                    max_budget_wait_s=options.max_budget_wait_s,
                ) as batch,
            ):
                report = (self._keep_report_current(batch), self._report.make_thumbnails())
                coroutines = (
                    self._tick(session, batch),
                    watch_balance(session, self._display),
                    self._stop_on_signal(batch),
                )
                background = [group.create_task(coroutine) for coroutine in (*coroutines, *report)]
                try:
                    async for outcome in batch:
                        await self._on_outcome(batch, outcome)
                except BatchStopped as stopped:
                    self._summary.stop_reason = self._summary.stop_reason or stopped.cause
                for task in background:
                    task.cancel()
        finally:
            pending.close()

    async def _on_outcome(self, batch: Batch, outcome: Outcome) -> None:
        try:
            await self._write_result(outcome)
            await self._stdout.flush()
        except OSError as error:  # the next run finds the row in the ledger, and its images in the folder
            await self._stop_on_write_error(batch, unwritable_error(self._folder, error, RESULTS))
        except (ConfigurationError, LedgerError) as error:  # stdout can't be written, or the ledger read
            await self._stop_on_write_error(batch, error)

    async def _stop_on_write_error(self, batch: Batch, reason: NanoBananaError) -> None:
        """Stop buying, because results can't be written; collect the running jobs."""
        self._summary.stop_reason = self._summary.stop_reason or reason
        self._display.phase = COLLECTING
        await batch.aclose()

    async def _write_result(self, outcome: Outcome) -> None:
        row: FileRow = outcome.metadata
        record = await self._ledger.find(row.key)
        result = await result_with_files(row, outcome, record, self._gateway, self._folder, self._options.ours)
        result = self._finished.with_earlier_images(result)
        self._results.add(result)
        self._report.add(result.row)
        self._changed = True
        self._summary.add(result)
        self._display.ended(result.row.job_key, result.row.status, result.row.prompt, result.row.error)
        if outcome.result is not None and outcome.result.missing and self._summary.incomplete <= MAX_ERRORS:
            self._display.say(f"{self._options.file.unit} {row.number}: {missing_images_sentence(outcome.result)}")
        self._stdout.add(result, self._folder)

    async def _tick(self, session: Session, batch: Batch) -> None:
        while True:
            with suppress(LedgerError):  # the batch reports it
                await self._credits.refresh_display()
            if batch.unbought:  # such as by --max-credits
                self._display.phase = COLLECTING
            self._display.show_session(session)
            self._display.tick(self._display.stats, batch.running_progress)
            await asyncio.sleep(TICK_S)

    async def _stop_on_signal(self, batch: Batch) -> None:
        await self._signals.stop_requested.wait()
        self._display.phase = COLLECTING
        await batch.aclose()

    async def _keep_report_current(self, batch: Batch) -> None:
        clock, pause_s = asyncio.get_running_loop().time, REPORT_S
        while True:
            await asyncio.sleep(pause_s)
            began_at = clock()
            try:
                await self._report.write()
            except ConfigurationError as error:
                await self._stop_on_write_error(batch, error)
            pause_s = max(REPORT_S, REPORT_SHARE * (clock() - began_at))

    async def _write_last_page(self) -> None:
        """Write the page once more after the second signal, if that takes little time: the last one may be old."""
        if self._results.committed:
            with anyio.move_on_after(LAST_PAGE_S), suppress(ConfigurationError):
                await self._report.write()

    async def _finalize(self) -> None:
        """Write the final results and report; nothing is bought any more."""
        try:
            await self._finish_results()
        except OSError as error:
            self._finalize_error = unwritable_error(self._folder, error)
        except ConfigurationError as error:
            self._finalize_error = error

    async def _finish_results(self) -> None:
        if self._options.ordered and self._summary.finished_before and self._results.committed:
            rows = self._options.file.rows(self._gateway)
            await anyio.to_thread.run_sync(self._results.reorder, [row.key for row in rows])
        self._results.close()
        if self._results.committed and (self._changed or not (self._folder / SPREADSHEET).exists()):
            file, results = self._options.file, self._results

            def ended() -> Iterator[Result]:
                return filter(None, (results.get(row.key) for row in file.rows(self._gateway)))

            await anyio.to_thread.run_sync(write_spreadsheet, self._folder, ended, self._options.results_delimiter)
        if not self._changed and self._report.is_newer_than_the_results():
            self._report.written = True  # keep the page of the last run, which has its charts
        elif self._results.committed:
            self._display.phase = f"writing {REPORT}"
            await self._report.finish_thumbnails()
            await self._report.write()

    def _print_summary(self) -> int:
        """Print the summary and return the exit code."""
        display, left = self._display, self._options.total - len(self._results)
        interrupted = self._signals.cancelled or (self._signals.stop_requested.is_set() and left > 0)
        for line in self._summary.ending(display, left, interrupted=interrupted, reported=self._report.written):
            display.say(line)
        for problem in display.account_problems():
            display.say(f"nanobanana: {problem}")
        if interrupted:
            return INTERRUPTED
        if self._summary.stop_reason is not None or self._summary.overspent:
            return STOPPED
        if self._finalize_error is not None:
            display.say(f"nanobanana: {self._finalize_error}")
            return FAILED
        return OK if display.counts["succeeded"] == display.done and not self._summary.changed else FAILED

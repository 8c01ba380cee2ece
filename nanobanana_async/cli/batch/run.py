"""One run of a batch: what has ended is looked up, the rest is bought, and each row written down as it ends."""

import asyncio
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import anyio.to_thread
from attrs import evolve, frozen
from rich.console import Console

from nanobanana_async import (
    Batch,
    BatchStopped,
    ConcurrencyPolicy,
    ConfigurationError,
    Gateway,
    JobState,
    LedgerError,
    NanoBananaError,
    Outcome,
    Session,
    SqliteLedger,
)
from nanobanana_async.batch.rows import key_prefix
from nanobanana_async.cli.batch.display import BatchDisplay
from nanobanana_async.cli.batch.folder import LEDGER, REPORT, BatchFolder, unwritable
from nanobanana_async.cli.batch.input_file import FileRow, InputFile
from nanobanana_async.cli.batch.output import BatchSummary, StdoutLines, StopSignals
from nanobanana_async.cli.batch.results import (
    PICTURES,
    RESULTS,
    Result,
    Results,
    SavedImages,
    line_offsets,
    read,
    with_files,
)
from nanobanana_async.cli.batch.rows import (
    YIELD_EVERY,
    PendingRows,
    at_new_position,
    is_over,
    is_same,
    result_from_outcome,
    result_from_record,
    unfinished,
)
from nanobanana_async.cli.batch.run_report import RunReport
from nanobanana_async.cli.generate import missing_images
from nanobanana_async.jobs import with_indexes

OK, FAILED, STOPPED, INTERRUPTED = 0, 1, 3, 130

TICK_S = 0.25
REPORT_S, REPORT_SHARE = 30.0, 20  # between two reports: so long, and so many times what one takes


@frozen(kw_only=True)
class Plan:
    """What is to be done."""

    file: InputFile
    total: int
    folder: Path
    max_credits: Decimal | None = None
    expected_credits: Decimal | None = None
    max_jobs: int | None = None
    retry_failed: bool = False
    ordered: bool = False


class Run:
    """Works through a plan in a folder that is held."""

    def __init__(self, plan: Plan, gateway: Gateway, folder: BatchFolder, console: Console) -> None:
        self._plan = plan
        self._gateway = gateway
        self._folder = folder.path
        clock = asyncio.get_running_loop().time
        self._board = BatchDisplay(plan.total, console, clock, max_credits=plan.max_credits)
        self._results = Results(folder.path)
        self._ledger = SqliteLedger(folder.path / LEDGER)
        self._data = StdoutLines()
        self._story = BatchSummary(folder.path, plan.file)
        self._signals = StopSignals(self._board)
        self._listed: SavedImages | None = None
        self._changed = False
        self._report = RunReport(folder.path, plan.file, gateway, self._results, lambda: self._signals.ended)
        self._unfinished: NanoBananaError | None = None
        """Why the results or the report could not be put in their final shape."""

    async def __call__(self) -> int:
        """Do it all, and return the exit code."""
        with self._board, self._signals:
            try:
                await self._work()
                await self._finalize()
            except asyncio.CancelledError:
                if not self._signals.ended:
                    raise
                self._signals.uncancel()
            except BaseExceptionGroup as troubles:
                raise troubles.exceptions[0] from None
            finally:
                self._results.discard()
        return self._exit_code()

    async def _work(self) -> None:
        session = Session(
            self._gateway,
            ledger=self._ledger,
            concurrency=ConcurrencyPolicy(max_jobs=self._plan.max_jobs),
            observers=[self._board, self._report.recorder, self._story.hear],
            trust_env=True,
        )
        try:
            (self._folder / PICTURES).mkdir(exist_ok=True)
            await session.open()
        except OSError as error:
            raise unwritable(self._folder, error) from None
        except LedgerError as error:
            raise ConfigurationError(str(error)) from None
        try:
            await self._load_finished()
            if not self._signals.asked.is_set():
                await self._buy(session)
                await self._compare_with_cap()
        except OSError as error:
            raise unwritable(self._folder, error) from None
        finally:
            self._board.phase = "closing"
            await session.aclose()
            self._board.stats = session.stats()

    async def _load_finished(self) -> None:
        """Begin the results anew, with every row that has ended by now."""
        old = line_offsets(self._results.path)
        self._results.begin()
        for row in self._plan.file.rows(self._gateway):
            if row.error is not None:
                raise ConfigurationError(f"{self._plan.file.title}, line {row.line}: {row.error}")
            result = await self._standing(row, old.pop(row.key, None))
            if result is not None:
                self._results.add(result)
                self._story.add(result)
                self._board.known(result.row.status)
                self._data.add(result, self._folder)
            if row.index % YIELD_EVERY == 0:
                self._board.tick(None)
                await self._data.tell()
            if self._signals.asked.is_set():
                return
        await self._data.tell()
        self._story.gone = len(old)
        self._changed = self._results.commit()
        self._story.known = len(self._results)
        if self._story.known:
            self._board.say(self._story.beginning())
        self._board.spent_before = await self._ledger.spent(key_prefix(self._plan.file.batch))

    async def _standing(self, row: FileRow, place: int | None) -> Result | None:
        """Return the line of a row that has ended; None if there is something left to do for it."""
        old = None if place is None else next(read(self._results.path, [place]), None)
        kept = (
            old is not None
            and old.row.status == "succeeded"
            and bool(old.row.images)
            and old.files_intact(self._folder)
        )
        if old is not None and kept and row.own_key is None:  # else its key says nothing of what it wants
            return at_new_position(old, row)
        record = await self._ledger.find(row.key)
        if record is None:  # it was pruned
            same = old is not None and old.row.prompt == unfinished(row).prompt
            return at_new_position(old, row) if old is not None and kept and same else None
        if not is_same(row, record, self._gateway):
            return None  # the batch will say so
        if record.state is not JobState.SUCCEEDED:
            over = is_over(record, retry_failed=self._plan.retry_failed)
            return result_from_record(row, record, self._gateway) if over else None
        if old is not None and kept and record.task_id == old.row.task_id:
            return at_new_position(old, row)
        self._listed = self._listed or SavedImages.read(self._folder / PICTURES)
        paths = self._listed.pictures(row.key, (place for place, _ in with_indexes(record.images, record.missing)))
        return (
            with_files(result_from_record(row, record, self._gateway), paths, self._folder, _now()) if paths else None
        )

    async def _buy(self, session: Session) -> None:
        plan = self._plan
        self._board.phase = ""
        wanted = PendingRows(plan.file.rows(self._gateway), self._results)
        try:
            async with (
                asyncio.TaskGroup() as group,
                session.generate_many(
                    wanted,
                    batch=plan.file.batch,
                    ordered=plan.ordered,
                    save_to=self._folder / PICTURES,
                    max_credits=plan.max_credits,
                    expected_credits=plan.expected_credits,
                    retry_failed=plan.retry_failed,
                ) as batch,
            ):
                works = (self._tick(session), self._stop_when_asked(batch), self._report_now_and_then(batch))
                beside = [group.create_task(work) for work in works]
                try:
                    async for outcome in batch:
                        await self._ended(batch, outcome)
                except BatchStopped as stopped:
                    self._story.stopped = self._story.stopped or stopped.cause
                for task in beside:
                    task.cancel()
        finally:
            wanted.close()

    async def _compare_with_cap(self) -> None:
        """Look whether prices above their estimates have passed the cap."""
        cap = self._plan.max_credits
        if cap is not None:
            spent = await self._ledger.spent(key_prefix(self._plan.file.batch))
            self._story.overspent = max(Decimal(0), spent - cap)

    async def _ended(self, batch: Batch, outcome: Outcome) -> None:
        try:
            await self._write_down(outcome)
            await self._data.tell()
        except OSError as error:  # the next run finds the row in the ledger, and its images in their folder
            await self._stop(batch, unwritable(self._folder, error, RESULTS))
        except ConfigurationError as error:  # stdout can't be written
            await self._stop(batch, error)

    async def _stop(self, batch: Batch, why: NanoBananaError) -> None:
        """Buy no more, since this run can't write down what it buys; collect what runs."""
        self._story.stopped = self._story.stopped or why
        self._board.phase = "collecting what runs"
        await batch.aclose()

    async def _write_down(self, outcome: Outcome) -> None:
        row: FileRow = outcome.metadata
        result = result_from_outcome(row, outcome, await self._ledger.find(row.key), self._gateway)
        if outcome.saved:
            try:
                result = await anyio.to_thread.run_sync(with_files, result, outcome.saved, self._folder, _now())
            except OSError as error:  # somebody was quicker than we
                report = evolve(result.row, status="unfinished", error=str(error), error_kind=type(error).__name__)
                result = evolve(result, row=report)
        self._results.add(result)
        self._changed = True
        self._story.add(result)
        self._board.ended(result.row.status, result.row.prompt, result.row.error)
        if outcome.result is not None and outcome.result.missing:
            self._board.say(f"row {row.own_key or outcome.index + 1}: {missing_images(outcome.result)}")
        self._data.add(result, self._folder)

    async def _tick(self, session: Session) -> None:
        while True:
            self._board.tick(session.stats())
            await asyncio.sleep(TICK_S)

    async def _stop_when_asked(self, batch: Batch) -> None:
        await self._signals.asked.wait()
        self._board.phase = "collecting what runs"
        await batch.aclose()

    async def _report_now_and_then(self, batch: Batch) -> None:
        clock, pause_s = asyncio.get_running_loop().time, REPORT_S
        while True:
            await asyncio.sleep(pause_s)
            began_at = clock()
            try:
                await self._report.write()
            except ConfigurationError as error:
                await self._stop(batch, error)
            pause_s = max(REPORT_S, REPORT_SHARE * (clock() - began_at))

    async def _finalize(self) -> None:
        """Put everything in its final shape; nothing is bought any more."""
        try:
            await self._finish_results()
        except OSError as error:
            self._unfinished = unwritable(self._folder, error)
        except ConfigurationError as error:
            self._unfinished = error

    async def _finish_results(self) -> None:
        if self._plan.ordered and self._story.known and self._results.committed:
            rows = self._plan.file.rows(self._gateway)
            await anyio.to_thread.run_sync(self._results.reorder, [row.key for row in rows])
        self._results.close()
        if not self._changed and self._report.is_newer_than_the_results():
            self._report.written = True  # and it tells more than we could: how the last run went
        elif self._results.committed:
            self._board.phase = f"writing {REPORT}"
            await self._report.write()

    def _exit_code(self) -> int:
        """Tell how it ended, and return the exit code."""
        board, left = self._board, self._plan.total - len(self._results)
        interrupted = self._signals.ended or (self._signals.asked.is_set() and left > 0)
        for line in self._story.ending(board, left, interrupted=interrupted, reported=self._report.written):
            board.say(line)
        if interrupted:
            return INTERRUPTED
        if self._story.stopped is not None or self._story.passed_the_cap:
            return STOPPED
        if self._unfinished is not None:
            board.say(f"nanobanana: {self._unfinished}")
            return FAILED
        return OK if board.counts["succeeded"] == board.done else FAILED


def _now() -> datetime:
    return datetime.now(UTC)

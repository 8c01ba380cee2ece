"""Buy rows of a fed batch until none is left, with a line of JSON for each row that ends here."""

import asyncio
import os
import sys
from collections import Counter
from contextlib import suppress
from decimal import Decimal
from pathlib import Path

import anyio
import anyio.to_thread
from attrs import field, frozen
from rich.console import Console

from nanobanana_async import (
    Batch,
    BatchStopped,
    ConcurrencyPolicy,
    ConfigurationError,
    Gateway,
    LedgerError,
    NanoBananaError,
    Outcome,
    Session,
)
from nanobanana_async.cli.balance import watch_balance
from nanobanana_async.cli.batch.display import COLLECTING, BatchDisplay
from nanobanana_async.cli.batch.input_file import FileRow
from nanobanana_async.cli.batch.output import MAX_ERRORS
from nanobanana_async.cli.batch.results import Result
from nanobanana_async.cli.batch.rows import result_with_files
from nanobanana_async.cli.display import shorten
from nanobanana_async.cli.options import in_cli_words, with_option_names
from nanobanana_async.cli.signals import StopSignals
from nanobanana_async.cli.streams import silence
from nanobanana_async.formatting import number, plural
from nanobanana_async.images.files import why_unwritable
from nanobanana_async.images.target import Target
from nanobanana_async.ledger.location import ledger_at
from nanobanana_async.ledger.postgres.url import PostgresUrl
from nanobanana_async.report import STATUSES

OK, FAILED, STOPPED, INTERRUPTED = 0, 1, 3, 130

TICK_S, CREDITS_S = 0.25, 2.0


@frozen(kw_only=True)
class WorkOptions:
    """What a worker is to do."""

    ledger: PostgresUrl
    batch: str
    target: Target
    sidecar: bool = False
    results: Path | None = None
    """The file of results; None: standard output, unless it is a terminal."""
    concurrency: ConcurrencyPolicy = field(factory=ConcurrencyPolicy)
    max_budget_wait_s: float | None = None
    max_credits: Decimal | None = None
    """What this worker may spend."""
    unit: str = "row"


class ResultLines:
    """Appends a line for each row to a file, or prints it on stdout unless that is a terminal."""

    def __init__(self, file: Path | None) -> None:
        self._out = sys.stdout
        self._file = file
        self._descriptor: int | None = None
        if file is not None:
            try:
                self._descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            except OSError as error:
                raise ConfigurationError(why_unwritable(file, error, or_else="name another --results")) from None
        self._prints = file is None and not self._out.isatty()

    async def add(self, result: Result) -> None:
        """Write a line. Raises `ConfigurationError` if it can't be written."""
        line = f"{result.to_json()}\n"
        if self._descriptor is not None:
            await anyio.to_thread.run_sync(self._append, self._descriptor, line.encode())
        elif self._prints:
            await anyio.to_thread.run_sync(self._print, line)

    def _append(self, descriptor: int, line: bytes) -> None:
        left = memoryview(line)
        try:
            while left:
                left = left[os.write(descriptor, left) :]
        except OSError as error:
            raise ConfigurationError(why_unwritable(self._file or "", error)) from None

    def _print(self, line: str) -> None:
        try:
            self._out.write(line)
            self._out.flush()
        except BrokenPipeError:
            self._prints = False
            silence(self._out)
        except OSError as error:
            raise ConfigurationError(why_unwritable("standard output", error)) from None

    def close(self) -> None:
        """Close the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)


class Work:
    """Runs one worker."""

    def __init__(self, options: WorkOptions, gateway: Gateway) -> None:
        console = Console(stderr=True)
        self._options = options
        self._gateway = gateway
        self._folder = options.target if isinstance(options.target, Path) else Path()
        self._lines = ResultLines(options.results)
        self._ledger = ledger_at(options.ledger)
        self._display = BatchDisplay(None, console, asyncio.get_running_loop().time)
        self._signals = StopSignals(console, self._display.say, self._display.running)
        self._stop_reason: NanoBananaError | None = None
        self._listed: Counter[str] = Counter()

    async def run(self, *, drained: int = OK) -> int:
        """Work until no row is left; return the exit code, `drained` if a signal ended the drawing."""
        with self._display, self._signals:
            try:
                with self._signals.end_of_work():
                    await self._run_session()
            finally:
                self._lines.close()
        return self._exit_code(drained)

    async def _run_session(self) -> None:
        options = self._options
        session = Session(
            self._gateway,
            ledger=self._ledger,
            concurrency=options.concurrency,
            max_credits=options.max_credits,
            observers=[self._display],
            trust_env=True,
        )
        self._display.phase = ""
        try:
            await session.open()
        except LedgerError as error:
            raise ConfigurationError(str(error)) from None
        try:
            batch = session.work(
                options.batch,
                save_to=options.target,
                sidecar=options.sidecar,
                max_budget_wait_s=options.max_budget_wait_s,
            )
            async with asyncio.TaskGroup() as group, batch:
                coroutines = (
                    self._tick(session, batch),
                    self._read_credits(),
                    watch_balance(session, self._display),
                    self._stop_on_signal(batch),
                )
                background = [group.create_task(coroutine) for coroutine in coroutines]
                try:
                    async for outcome in batch:
                        await self._add(outcome)
                except BatchStopped as stopped:
                    self._stop_reason = stopped.cause
                except LedgerError as error:  # of the record of a row, whose outcome another worker gets
                    self._stop_reason = error
                for task in background:
                    task.cancel()
            await self._refresh_credits()
        finally:
            self._display.phase = "closing"
            await session.aclose()
            self._display.stats = session.stats()

    async def _add(self, outcome: Outcome) -> None:
        """Write the result of a row. If that fails, another worker gets the outcome."""
        row = FileRow(
            index=outcome.index,
            number=outcome.index + 1,
            key=outcome.key,
            own_key=outcome.row_key,
            request=outcome.request,
            given=outcome.request,
            metadata=outcome.metadata,
        )
        record = await self._ledger.find(row.key)
        result = await result_with_files(row, outcome, record, self._gateway, self._folder)
        await self._lines.add(result)
        found = result.row
        self._display.ended(found.job_key, found.status, found.prompt, found.error)
        if found.status != "succeeded":
            self._listed[found.status] += 1
            if self._listed[found.status] <= MAX_ERRORS:
                why = "" if found.error is None else f": {shorten(found.error, 300)}"
                prompt = shorten(found.prompt, 40)
                self._display.say(f"{self._options.unit} {found.number} {found.status}: {prompt}{why}")

    async def _tick(self, session: Session, batch: Batch) -> None:
        while True:
            if batch.unbought:  # such as by a budget
                self._display.phase = COLLECTING
            self._display.tick(session.stats(), batch.running_progress)
            await asyncio.sleep(TICK_S)

    async def _read_credits(self) -> None:
        while True:
            await self._refresh_credits()
            await asyncio.sleep(CREDITS_S)

    async def _refresh_credits(self) -> None:
        with suppress(LedgerError):  # the batch reports it
            display, batch = self._display, self._options.batch
            display.reserved = await self._ledger.reserved(batch)
            display.spent = await self._ledger.spent_or_reserved(batch) - display.reserved

    async def _stop_on_signal(self, batch: Batch) -> None:
        await self._signals.stop_requested.wait()
        self._display.phase = COLLECTING
        await batch.aclose()

    def _exit_code(self, drained: int) -> int:
        """Print the summary and return the exit code."""
        display = self._display
        counts = ", ".join(f"{display.counts[status]} {status}" for status in STATUSES if display.counts[status])
        reserved = f", and {number(display.reserved)} reserved" if display.reserved else ""
        display.say(
            f"batch {self._options.batch}: {plural(display.done, 'row')} ended here{counts and f': {counts}'};"
            f" {number(display.spent)} credits spent on all hosts{reserved}"
        )
        if failed := display.failed:
            display.say(f"{plural(failed, 'row')} without images: feeding again with --retry-failed buys them again")
        if self._signals.cancelled:
            return INTERRUPTED
        if self._stop_reason is not None:
            why = with_option_names(in_cli_words(self._stop_reason))
            display.say(f"nanobanana: the buying stopped: {why}; rows that were not bought are left in the ledger")
            return STOPPED
        if self._signals.stop_requested.is_set():
            display.say("no more rows were drawn: those that are left wait in the ledger for other workers")
            return drained
        display.say("every row of the batch has ended")
        return OK if display.counts["succeeded"] == display.done else FAILED

"""Run `nanobanana generate`: buy each prompt once, print results as they end, and continue a run that did not end."""

import asyncio
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime

from attrs import field, frozen
from rich.console import Console

from nanobanana_async import (
    Batch,
    BatchStopped,
    ConcurrencyPolicy,
    ConfigurationError,
    Gateway,
    ImageRequest,
    JobState,
    JobUnfinished,
    LedgerError,
    NanoBananaError,
    Outcome,
    SaveError,
    Session,
)
from nanobanana_async.batch.rows import Row
from nanobanana_async.cli.display import JobsDisplay, shorten
from nanobanana_async.cli.jobs.actions import open_read_only
from nanobanana_async.cli.open_runs import OpenRun, fingerprint, runs_beside
from nanobanana_async.cli.options import DEFAULT_LEDGER, check_output, fetch_command, in_cli_words
from nanobanana_async.cli.purchase_notes import REHEARSAL_NOTE, Continued, delivered_before_note, summary
from nanobanana_async.cli.result_lines import ResultLines, missing_images_sentence
from nanobanana_async.cli.signals import Interrupted, StopSignals, ignore_signals
from nanobanana_async.cli.turns import NO_TURN, TurnOptions
from nanobanana_async.commands import resolve_advice
from nanobanana_async.escaping import one_line
from nanobanana_async.formatting import plural
from nanobanana_async.images.files import make_folder, why_unwritable
from nanobanana_async.images.local import digest_local_images
from nanobanana_async.images.names import safe_name, slug
from nanobanana_async.images.target import Target
from nanobanana_async.jobs import JobRecord
from nanobanana_async.keys import generate_key
from nanobanana_async.ledger.location import Location, ledger_at

TICK_S = 0.25
MAX_KEYS = 5  # in a command that a message names


@frozen(kw_only=True)
class GenerateOptions:
    """What to buy, and where the results go."""

    requests: Sequence[ImageRequest]
    target: Target | None = None
    sidecar: bool = False
    ledger: Location | None = None
    """None: in memory, for an emulator that ends with the command."""
    timeout: float | None = None
    concurrency: ConcurrencyPolicy = field(factory=ConcurrencyPolicy)
    turn: TurnOptions = NO_TURN
    ordered: bool = False
    buy_again: bool = False
    fetch_options: Sequence[str] = ()
    """The options with which `nanobanana jobs fetch` and `resolve` reach the same gateway and ledger."""


class GenerateRun:
    """One run of the command."""

    def __init__(self, options: GenerateOptions, gateways: Sequence[Gateway], console: Console) -> None:
        self._options = options
        self._gateways = gateways
        self._gateway = gateways[0]  # others have the same name and address
        self._display = JobsDisplay(len(options.requests), console)
        self._signals = StopSignals(
            console, self._display.print_note, self._display.count_unended_purchases, rehearsal=options.ledger is None
        )
        self._lines = ResultLines(console)
        self._ledger = None if options.ledger is None else ledger_at(options.ledger)
        self._open_run: OpenRun | None = None
        self._keys: Sequence[str] = ()
        self._continued = Continued()
        self._outcomes: dict[str, Outcome] = {}
        self._delivered: set[str] = set()
        self._timed_out = False
        self._stop_reason: NanoBananaError | None = None

    async def run(self) -> int:
        """Run the command; return 0, 1 if a prompt has no image, or 2 if nothing was bought: a store can't be written.

        Raises `ConfigurationError` before anything is bought if folder or ledger can't be written, and `Interrupted`,
        which says what is left, if a signal ended the run.
        """
        options, clock = self._options, asyncio.get_running_loop().time
        await check_output(options.target)
        began_at = clock()
        with self._display, self._signals:
            with self._signals.end_of_work():
                await self._run_session()
            records = await self._read_records()
        return self._print_summary(records, clock() - began_at)

    async def _run_session(self) -> None:
        options = self._options
        session = Session(
            self._gateways,
            ledger=self._ledger,
            concurrency=options.concurrency,
            observers=[self._display],
            trust_env=True,
            adopt=None,
        )
        try:
            if options.ledger is not None and runs_beside(options.ledger).parent == DEFAULT_LEDGER.parent:
                await asyncio.to_thread(make_folder, DEFAULT_LEDGER.parent)
            await session.open()
        except LedgerError as error:
            raise ConfigurationError(f"{error}; --ledger names another file") from None
        except OSError as error:
            raise _unwritable(options.ledger, error) from None
        try:
            if self._ledger is not None and options.turn.budget is not None:
                await self._ledger.set_budget(options.turn.budget)  # raises if it counts in another way there
            self._keys = await self._choose_keys()
            if not self._signals.stop_requested.is_set():
                await self._buy(session)
        finally:
            await session.aclose()

    async def _choose_keys(self) -> Sequence[str]:
        """Return the keys of the jobs: of an earlier run that did not end, or new ones."""
        options = self._options
        if options.ledger is None or self._ledger is None:
            return [generate_key() for _ in options.requests]
        registered = [
            (await asyncio.to_thread(digest_local_images, each, self._gateway))[0] for each in options.requests
        ]
        prints = [fingerprint(self._gateway, request) for request in registered]
        try:
            ledger_id = hashlib.sha256(await self._ledger.callback_secret()).hexdigest()[:16]
            run = await asyncio.to_thread(
                OpenRun, runs_beside(options.ledger), ledger_id, prints, buy_again=options.buy_again
            )
        except OSError as error:
            raise _unwritable(options.ledger, error) from None
        self._open_run = run
        if run.continued:
            self._continued = await Continued.read(self._ledger, run)
            self._display.print_note(self._continued.note)
        if run.continued < len(prints):
            note = await delivered_before_note(self._ledger, self._gateway, set(prints), set(run.keys))
            if note is not None:
                self._display.print_note(note)
        return run.keys

    async def _buy(self, session: Session) -> None:
        options = self._options
        rows = [
            Row(index=index, key=key, request=request, name=safe_name(slug(request.prompt)))
            for index, (key, request) in enumerate(zip(self._keys, options.requests, strict=True))
        ]
        async with (
            asyncio.TaskGroup() as group,
            session.generate_many(
                rows,
                ordered=options.ordered,
                save_to=options.target,
                sidecar=options.sidecar,
                budget=options.turn.budget,
                priority=options.turn.priority,
                group=options.turn.group,
            ) as batch,
        ):
            background = [group.create_task(self._stop_on_signal(batch))]
            if self._display.console.is_terminal:
                background.append(group.create_task(self._show_progress(batch)))
            try:
                async with asyncio.timeout(options.timeout):
                    async for outcome in batch:
                        await self._deliver(outcome)
            except TimeoutError:
                self._timed_out = True
            except BatchStopped as stopped:
                self._stop_reason = stopped.cause
            finally:
                for task in background:
                    task.cancel()

    async def _show_progress(self, batch: Batch) -> None:
        while True:
            self._display.running_progress, end = batch.running_progress, batch.expected_end
            self._display.left_s = None if end is None else max(0.0, (end - datetime.now(UTC)).total_seconds())
            await asyncio.sleep(TICK_S)

    async def _stop_on_signal(self, batch: Batch) -> None:
        await self._signals.stop_requested.wait()
        await batch.aclose()

    async def _deliver(self, outcome: Outcome) -> None:
        """Print the result or the error of a job."""
        self._outcomes[outcome.key] = outcome
        if outcome.error is not None:
            self._note(outcome, self._failure(outcome.error))
        if outcome.result is None:
            return
        if outcome.result.missing:
            self._note(outcome, missing_images_sentence(outcome.result))
        for line in map(str, outcome.saved) if outcome.saved else self._lines.links(outcome.result):
            await self._lines.print(line)
        if outcome.ok and (self._options.target is not None or self._lines.failure is None):
            self._delivered.add(outcome.key)
        stopping = self._signals.stop_requested.is_set()
        if self._lines.failure is not None and self._options.target is None and not stopping:
            why = self._lines.failure.strerror or "closed"
            self._display.print_note(f"nanobanana: standard output can't be written ({why}): buying no more")
            self._signals.stop_requested.set()

    def _note(self, outcome: Outcome, sentence: str) -> None:
        many = len(self._options.requests) > 1 and outcome.request is not None
        prefix = f"{shorten(outcome.request.prompt, 40)}: " if many and outcome.request is not None else ""
        self._display.print_note(f"nanobanana: {prefix}{sentence}")

    def _failure(self, error: NanoBananaError) -> str:
        """Return what went wrong with a job and, if it is or may be paid for, how to go on."""
        sentence = one_line(in_cli_words(error))
        key = error.key or ""
        record = self._display.records.get(key)
        if record is not None and record.state is JobState.UNCERTAIN and self._options.ledger is not None:
            return f"{one_line(in_cli_words(error.message))}: {resolve_advice(None, key, self._options.fetch_options)}"
        if isinstance(error, JobUnfinished) and not error.safe_to_repeat:
            sentence = "the waiting ended before the job, which goes on at the gateway and is paid for"
        outcome = self._outcomes.get(key)
        if (record is not None and record.state is JobState.RUNNING) or (outcome and outcome.result is not None):
            return f"{sentence}; {self._fetch_advice([key])}"
        if record is not None and record.state is JobState.FAILED and self._options.ledger is not None:
            return f"{sentence}; the same command buys it again"
        return sentence

    def _fetch_advice(self, keys: Sequence[str]) -> str:
        """Return how to get the images of jobs that are paid for."""
        options = self._options
        if options.ledger is None:
            return "they are lost with the emulator"
        if len(keys) > MAX_KEYS:
            return "the same command delivers them and buys nothing twice"
        command = fetch_command(keys, options.fetch_options, options.target, sidecar=options.sidecar)
        return f"the same command, or `{one_line(command)}`, delivers {'it' if len(keys) == 1 else 'them'}"

    async def _read_records(self) -> dict[str, JobRecord]:
        """Return the records of the jobs; the session has stored the last answers while it closed."""
        records = {key: record for key, record in self._display.records.items() if key in self._keys}
        if self._options.ledger is not None and self._keys:
            with suppress(LedgerError, ConfigurationError):  # then those of the events
                async with open_read_only(self._options.ledger) as ledger:
                    for key in self._keys:
                        if (record := await ledger.find(key)) is not None:
                            records[key] = record
        return records

    def _print_summary(self, records: dict[str, JobRecord], took_s: float) -> int:
        """Print the summary, forget what is delivered, and return the exit code."""
        whole = bool(self._keys) and self._delivered.issuperset(self._keys)
        results = {key: each.result for key, each in self._outcomes.items() if each.result is not None}
        if results:
            self._display.print_note(summary(self._keys, self._continued.bought, results, records, took_s))
            if self._options.ledger is None:
                self._display.print_note(REHEARSAL_NOTE)
        bought = [key for key, record in records.items() if record.possibly_bought]
        if self._open_run is not None:  # after the last line: a run that was killed before it is delivered again
            kept = [key for key in self._keys if key not in records or records[key].state is not JobState.FAILED]
            if whole:  # once it is forgotten, the same command buys again: no exit code may ask for that
                ignore_signals()
            try:
                self._open_run.close(kept if bought and not whole else ())
            except OSError as error:  # the next run delivers again
                self._display.print_note(f"nanobanana: {why_unwritable(self._open_run.folder, error)}")
        if whole:
            return 0
        sentence = "; ".join(self._early_end_lines(records))
        if self._signals.cancelled or (self._signals.stop_requested.is_set() and self._lines.failure is None):
            raise Interrupted(f"interrupted; {sentence}" if sentence else "interrupted")
        if sentence:
            self._display.print_note(f"nanobanana: {sentence}")
        return 2 if isinstance(self._stop_reason, SaveError) and not bought else 1  # as for a folder

    def _early_end_lines(self, records: dict[str, JobRecord]) -> Iterator[str]:
        """Yield why the run ended early, and what it leaves; nothing about jobs whose error was printed."""
        left = [key for key in self._keys if key not in self._outcomes]
        undelivered = [key for key in self._outcomes if key not in self._delivered and self._outcomes[key].ok]
        if self._stop_reason is not None:
            yield f"the buying stopped: {one_line(in_cli_words(self._stop_reason))}"
        elif self._timed_out:
            failure = self._display.create_failures.get(left[0]) if left else None
            reason = "" if failure is None else f" ({one_line(in_cli_words(failure))})"
            yield f"the waiting ended after {self._options.timeout:g} s{reason}"
        found = {key: records[key] for key in (*left, *undelivered) if key in records}
        paid = [key for key, record in found.items() if record.state in (JobState.RUNNING, JobState.SUCCEEDED)]
        doubt = [key for key, record in found.items() if record.possibly_bought and key not in paid]
        if paid:
            yield f"{plural(len(paid), 'job')} paid for and not delivered: {self._fetch_advice(paid)}"
        if doubt and self._options.ledger is None:
            yield f"{plural(len(doubt), 'job')} ended with the emulator"
        elif doubt:
            yield (
                f"{plural(len(doubt), 'job')} perhaps bought, without an answer: the same command finds out where that"
                " is possible without a second payment"
            )
        if unbought := len(left) - len([key for key in left if key in (*paid, *doubt)]):
            some = any(record.possibly_bought for record in records.values())
            yield f"{plural(unbought, 'prompt')} not bought" if some else "nothing was bought"


def _unwritable(ledger: Location | None, error: OSError) -> ConfigurationError:
    return ConfigurationError(
        why_unwritable(runs_beside(ledger) if ledger else "", error, or_else="name another file with --ledger")
    )

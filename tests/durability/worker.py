"""A process that buys keyed rows on a ledger, saves their images, and reports each step, to be killed by tests."""

import asyncio
import itertools
import json
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nanobanana_async import (
    ApiMall,
    DefApi,
    JobState,
    JobUncertain,
    PollPolicy,
    PostgresLedger,
    RetryPolicy,
    Session,
    SqliteLedger,
)
from nanobanana_async.config import Timeouts
from nanobanana_async.emulator import API_KEY
from nanobanana_async.events import Event, JobStateChanged
from nanobanana_async.gateways.contract import Gateway, HttpRequest, HttpResponse
from nanobanana_async.http.transport import AiohttpTransport
from nanobanana_async.ledger.postgres.leases import Lease

GatewayName = Literal["apimall", "defapi"]
Report = Callable[[str], None]

STEPS = {
    "submit": ("written", "intended", "posting", "posted", "running"),
    "poll": ("polling", "polled", "ended"),
    "save": ("storing", "stored", "saving", "saved"),
}
_STEP_OF_STATE = {
    JobState.PENDING: "written",
    JobState.SUBMITTING: "intended",
    JobState.RUNNING: "running",
    JobState.SUCCEEDED: "ended",
}


@dataclass(frozen=True, kw_only=True)
class Orders:
    """What a worker does: buy sets of rows, one after the other, until the last set or until it is killed."""

    gateway: GatewayName
    url: str
    ledger: Path | str
    """The file of the ledger, or the URL of a PostgreSQL server."""
    results: Path
    images: Path | None = None
    """Where images are saved; None: only their URLs are stored."""
    rows: int = 20
    window: int = 20
    """The number of rows requested at once."""
    shuffled_by: int | None = None
    """The seed of the row order; None: in order."""
    last_set: int | None = None
    stop_at: str | None = None
    """The step at which the worker stops and waits to be killed."""
    stop_nth: int = 1
    reports: tuple[str, ...] | None = None
    """The steps that the worker reports; None: all."""
    retry_uncertain: bool = False


def key_of(number: int, row: int) -> str:
    """Return the key of a row, the same in every process."""
    return f"set-{number}-row-{row}"


def prompt_of(key: str) -> str:
    """Return the prompt of a row, unique so that the emulator's charges can be assigned to rows."""
    return f"a fox, {key}"


class StepReporter:
    """Writes each step to a pipe, and stops at one of them if the orders say so."""

    def __init__(self, pipe: int, orders: Orders) -> None:
        self._pipe = pipe
        self._reports = orders.reports
        self._stop_at = orders.stop_at
        self._left = orders.stop_nth

    def __call__(self, step: str) -> None:
        """Report one step."""
        if self._reports is not None and step not in self._reports:
            return
        os.write(self._pipe, f"{step}\n".encode())
        if step == self._stop_at:
            self._left -= 1
            if not self._left:
                os.write(self._pipe, b"stands still\n")
                time.sleep(60)  # blocks the event loop; the ledger's thread continues

    def observe(self, event: Event) -> None:
        """Report each transition of a job."""
        if isinstance(event, JobStateChanged) and event.record.state in _STEP_OF_STATE:
            self(_STEP_OF_STATE[event.record.state])


class ReportingTransport(AiohttpTransport):
    """The real transport; it reports before a request is sent and after its answer."""

    def __init__(self, gateway: Gateway, report: Report) -> None:
        super().__init__(gateway, timeouts=Timeouts())
        self._report = report

    async def send(self, request: HttpRequest, *, timeout_s: float, fresh_connection: bool = False) -> HttpResponse:
        """Send a request once."""
        self._report("posting" if request.method == "POST" else "polling")
        response = await super().send(request, timeout_s=timeout_s, fresh_connection=fresh_connection)
        self._report("posted" if request.method == "POST" else "polled")
        return response


class Results:
    """The user's own file: a line for each ended row, durable once it is complete.

    The value is the image's URL, or None for a row in doubt.
    """

    def __init__(self, path: Path, report: Report) -> None:
        self._report = report
        complete = path.read_bytes().rpartition(b"\n")[:2] if path.exists() else (b"", b"")
        self.rows: dict[str, str | None] = dict(json.loads(line) for line in b"".join(complete).splitlines())
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        os.ftruncate(self._file, len(b"".join(complete)))  # a kill may have cut the last line
        os.lseek(self._file, 0, os.SEEK_END)

    def save(self, key: str, url: str | None) -> None:
        """Write a row; a kill may come in the middle."""
        if key in self.rows:
            return
        line = f"{json.dumps([key, url])}\n".encode()
        os.write(self._file, line[:10])
        self._report("saving")
        os.write(self._file, line[10:])
        os.fsync(self._file)
        self.rows[key] = url
        self._report("saved")


def gateway_at(name: GatewayName, url: str) -> ApiMall | DefApi:
    """Return the gateway at an emulator in another process."""
    kind = ApiMall if name == "apimall" else DefApi
    return kind(api_key=API_KEY, base_url=url, expected_job_s=0.3)


def ledger_at(location: Path | str) -> SqliteLedger | PostgresLedger:
    """Return the ledger; on PostgreSQL with a short lease, since each worker waits for the burial of the one before."""
    if isinstance(location, Path):
        return SqliteLedger(location)
    return PostgresLedger(location, lease=Lease(beat_s=0.5, silence_s=1.5))


async def work(orders: Orders, report: StepReporter) -> None:
    """Resume the jobs that killed workers left, then buy set after set."""
    report("opening")
    gateway = gateway_at(orders.gateway, orders.url)
    ledger = ledger_at(orders.ledger)
    results = Results(orders.results, report)
    async with Session(
        gateway,
        ledger=ledger,
        http=ReportingTransport(gateway, report),
        observers=[report.observe],
        polling=PollPolicy(target_delay_s=0.05, min_gap_s=0.03, max_gap_s=0.2),
        retry=RetryPolicy(first_backoff_s=0.03, max_backoff_s=0.3, retry_uncertain=orders.retry_uncertain),
    ) as session:
        found = await ledger.count_by_state()
        saved = sum(url is not None for url in results.rows.values())
        unsaved = found[JobState.SUCCEEDED] - saved
        open_states = (JobState.PENDING, JobState.SUBMITTING, JobState.RUNNING)
        report(json.dumps({**{state.value: found[state] for state in open_states}, "unsaved": unsaved}))
        await session.resume(buy=True)
        for number in itertools.count():
            await _buy_set(session, orders, number, results, report)
            if number == orders.last_set:
                break
    report("done")


async def _buy_set(session: Session, orders: Orders, number: int, results: Results, report: Report) -> None:
    window = asyncio.Semaphore(orders.window)

    async def buy(key: str) -> None:
        async with window:
            try:
                result = await session.generate(prompt_of(key), idempotency_key=key)
            except JobUncertain:
                results.save(key, None)
                return
            if orders.images is not None:
                report("storing")
                await session.save(result, orders.images)
                report("stored")
            results.save(key, result.images[0].url)

    keys = [key_of(number, row) for row in range(orders.rows)]
    if orders.shuffled_by is not None:
        random.Random(orders.shuffled_by).shuffle(keys)
    if not all(key in results.rows for key in keys):
        async with asyncio.TaskGroup() as group:
            for key in keys:  # saved rows too: requesting them again must cost nothing
                group.create_task(buy(key))

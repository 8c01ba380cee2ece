"""A process that buys keyed rows on a ledger, saves what they bring, and says each step: it is there to be killed."""

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
    RetryPolicy,
    Session,
    SqliteLedger,
)
from nanobanana_async.config import Timeouts
from nanobanana_async.emulator import API_KEY
from nanobanana_async.events import Event, JobStateChanged
from nanobanana_async.gateways.contract import Gateway, HttpRequest, HttpResponse
from nanobanana_async.http.transport import AiohttpTransport

GatewayName = Literal["apimall", "defapi"]
Say = Callable[[str], None]

STEPS = {
    "submit": ("written", "intended", "posting", "posted", "running"),
    "poll": ("looking", "looked", "ended"),
    "save": ("storing", "stored", "saving", "saved"),
}
_MOVES = {
    JobState.PENDING: "written",
    JobState.SUBMITTING: "intended",
    JobState.RUNNING: "running",
    JobState.SUCCEEDED: "ended",
}


@dataclass(frozen=True, kw_only=True)
class Orders:
    """What a worker shall do: buy sets of rows, one after the other, until the last one or its end."""

    gateway: GatewayName
    url: str
    ledger: Path
    results: Path
    pictures: Path | None = None
    """Where pictures are saved; None: only their URLs are kept."""
    rows: int = 20
    window: int = 20
    """So many rows are asked for at once."""
    shuffled_by: int | None = None
    """In which order the rows are asked for; None: in their own."""
    last_set: int | None = None
    stop_at: str | None = None
    """The step at which it stands still, and waits to be killed."""
    stop_nth: int = 1
    says: tuple[str, ...] | None = None
    """The steps that it tells; None: all."""
    retry_uncertain: bool = False


def key_of(number: int, row: int) -> str:
    """Return the key of a row; it is the same in every process."""
    return f"set-{number}-row-{row}"


def prompt_of(key: str) -> str:
    """Return the prompt of a row, which no other row has: by it the shop tells what was charged for it."""
    return f"a fox, {key}"


class Teller:
    """Says each step on a pipe, and stands still at one of them if it was told to."""

    def __init__(self, pipe: int, orders: Orders) -> None:
        self._pipe = pipe
        self._says = orders.says
        self._stop_at = orders.stop_at
        self._left = orders.stop_nth

    def __call__(self, step: str) -> None:
        """Say one step."""
        if self._says is not None and step not in self._says:
            return
        os.write(self._pipe, f"{step}\n".encode())
        if step == self._stop_at:
            self._left -= 1
            if not self._left:
                os.write(self._pipe, b"stands still\n")
                time.sleep(60)  # the whole event loop; what the ledger's thread was given goes on

    def saw(self, event: Event) -> None:
        """Say each move of a job."""
        if isinstance(event, JobStateChanged) and event.record.state in _MOVES:
            self(_MOVES[event.record.state])


class Door(AiohttpTransport):
    """The door to the gateway; it says when a request leaves and when its answer is there."""

    def __init__(self, gateway: Gateway, say: Say) -> None:
        super().__init__(gateway, timeouts=Timeouts())
        self._say = say

    async def send(self, request: HttpRequest, *, timeout_s: float, fresh_connection: bool = False) -> HttpResponse:
        """Send once."""
        self._say("posting" if request.method == "POST" else "looking")
        response = await super().send(request, timeout_s=timeout_s, fresh_connection=fresh_connection)
        self._say("posted" if request.method == "POST" else "looked")
        return response


class Results:
    """The user's own file: a line for each row that has ended, durable once it is whole.

    The value is the picture's URL, or None for a row of which nobody knows whether it was bought.
    """

    def __init__(self, path: Path, say: Say) -> None:
        self._say = say
        whole = path.read_bytes().rpartition(b"\n")[:2] if path.exists() else (b"", b"")
        self.rows: dict[str, str | None] = dict(json.loads(line) for line in b"".join(whole).splitlines())
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        os.ftruncate(self._file, len(b"".join(whole)))  # the last line may have been cut by a kill
        os.lseek(self._file, 0, os.SEEK_END)

    def save(self, key: str, url: str | None) -> None:
        """Write a row down; a kill may come in the middle."""
        if key in self.rows:
            return
        line = f"{json.dumps([key, url])}\n".encode()
        os.write(self._file, line[:10])
        self._say("saving")
        os.write(self._file, line[10:])
        os.fsync(self._file)
        self.rows[key] = url
        self._say("saved")


def gateway_at(name: GatewayName, url: str) -> ApiMall | DefApi:
    """Return the gateway at an emulator in another process."""
    kind = ApiMall if name == "apimall" else DefApi
    return kind(api_key=API_KEY, base_url=url, expected_job_s=0.3)


async def work(orders: Orders, say: Teller) -> None:
    """Go on with what others left, then buy set after set."""
    say("opening")
    gateway = gateway_at(orders.gateway, orders.url)
    ledger = SqliteLedger(orders.ledger)
    results = Results(orders.results, say)
    async with Session(
        gateway,
        ledger=ledger,
        http=Door(gateway, say),
        observers=[say.saw],
        polling=PollPolicy(target_delay_s=0.05, min_gap_s=0.03, max_gap_s=0.2),
        retry=RetryPolicy(first_backoff_s=0.03, max_backoff_s=0.3, retry_uncertain=orders.retry_uncertain),
    ) as session:
        found = await ledger.counts()
        saved = sum(url is not None for url in results.rows.values())
        unsaved = found[JobState.SUCCEEDED] - saved
        open_states = (JobState.PENDING, JobState.SUBMITTING, JobState.RUNNING)
        say(json.dumps({**{state.value: found[state] for state in open_states}, "unsaved": unsaved}))
        await session.resume(buy=True)
        for number in itertools.count():
            await _buy_set(session, orders, number, results, say)
            if number == orders.last_set:
                break
    say("done")


async def _buy_set(session: Session, orders: Orders, number: int, results: Results, say: Say) -> None:
    room = asyncio.Semaphore(orders.window)

    async def buy(key: str) -> None:
        async with room:
            try:
                result = await session.generate(prompt_of(key), idempotency_key=key)
            except JobUncertain:
                results.save(key, None)
                return
            if orders.pictures is not None:
                say("storing")
                await session.save(result, orders.pictures)
                say("stored")
            results.save(key, result.images[0].url)

    keys = [key_of(number, row) for row in range(orders.rows)]
    if orders.shuffled_by is not None:
        random.Random(orders.shuffled_by).shuffle(keys)
    if not all(key in results.rows for key in keys):
        async with asyncio.TaskGroup() as group:
            for key in keys:  # those that are saved too: asking again must cost nothing
                group.create_task(buy(key))

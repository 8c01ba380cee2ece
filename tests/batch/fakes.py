"""Fixtures for batches: a fake gateway whose prompts set the duration of jobs, counting inputs, sessions on a file."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from nanobanana_async import ApiMall, Batch, ConcurrencyPolicy, DefApi, Outcome, Session
from nanobanana_async.errors import BatchStopped
from nanobanana_async.gateways.contract import HttpRequest
from nanobanana_async.testing import FakeTransport, Reply
from tests.support.fakes import API_KEY, now, wire_key
from tests.support.loopback import QUICK_POLLS, QUICK_RETRIES
from tests.support.replies import completed, created, defapi_created, defapi_done, refused, task

AnswerFor = Callable[[str], Reply | None]
"""What a create for a prompt is answered with instead of being sold."""


class PromptGateway:
    """Both gateways in few lines. A job takes `job_s`, or what stands before " s" in its prompt.

    A job with "fail" in its prompt fails; what follows "fail: " is the reason.
    """

    def __init__(self, *, job_s: float = 2.0, limit: int | None = None, says: AnswerFor | None = None) -> None:
        self.job_s = job_s
        self.limit = limit
        self.says: AnswerFor = says or (lambda prompt: None)
        self.posts: list[str] = []
        """The prompt of each POST, in order."""
        self.keys: dict[str, str] = {}
        self.wire_keys: list[str | None] = []
        self.polls: Counter[str] = Counter()
        self._tasks: dict[str, tuple[str, float]] = {}

    @property
    def sold(self) -> list[str]:
        """The prompts that were bought, in order."""
        return [prompt for prompt, _ in self._tasks.values()]

    @property
    def running(self) -> int:
        return sum(1 for _, ends_at in self._tasks.values() if now() < ends_at)

    def answer(self, request: HttpRequest) -> Reply:
        if request.method == "GET":
            return self._poll(request)
        prompt, key = str(json.loads(request.body or b"{}")["prompt"]), wire_key(request)
        self.posts.append(prompt)
        self.wire_keys.append(key)
        if key in self.keys:
            return created(self.keys[key])
        if (reply := self.says(prompt)) is not None:
            return reply
        if self.limit is not None and self.running >= self.limit:
            return refused(429, "too_many_concurrent_jobs", "too many concurrent jobs")
        return self._create(prompt, key)

    def _create(self, prompt: str, key: str | None) -> Reply:
        task_id = f"t{len(self._tasks) + 1}"
        seconds, said, _ = prompt.partition(" s")
        self._tasks[task_id] = (prompt, now() + (float(seconds) if said else self.job_s))
        if key is None:
            return defapi_created(task_id)
        self.keys[key] = task_id
        return created(task_id)

    def _poll(self, request: HttpRequest) -> Reply:
        keyed = "=" not in request.url
        task_id = request.url.rpartition("/" if keyed else "=")[2]
        self.polls[task_id] += 1
        prompt, ends_at = self._tasks[task_id]
        if now() < ends_at:
            return task("processing" if keyed else "in_progress", task_id)
        if "fail" in prompt:
            return task("failed", task_id, error_message=prompt.partition("fail: ")[2] or "it did not work out")
        return completed(task_id) if keyed else defapi_done(task_id)


class CountingInput:
    """An input that counts how many rows were pulled; without a number it has no end."""

    def __init__(self, count: int | None = None) -> None:
        self._count = count
        self.pulled = 0

    def __iter__(self) -> Iterator[str]:
        while self._count is None or self.pulled < self._count:
            self.pulled += 1
            yield f"image {self.pulled}"


async def slowly(rows: Iterable[Any], pause_s: float = 0.5) -> AsyncIterator[Any]:
    """Yield the rows with a pause before each."""
    for row in rows:
        await asyncio.sleep(pause_s)
        yield row


def slots(number: int) -> ConcurrencyPolicy:
    """Hold exactly so many jobs."""
    return ConcurrencyPolicy(max_jobs=number, learn=False)


def on_file(
    path: Path, transport: FakeTransport, gateway: type[ApiMall] | type[DefApi] = ApiMall, **settings: Any
) -> Session:
    """Return a session that remembers, in real time, for jobs that take milliseconds."""
    quick = {"polling": QUICK_POLLS, "retry": QUICK_RETRIES, **settings}
    return Session(gateway(api_key=API_KEY, expected_job_s=0.01), ledger=path, http=transport, **quick)


def transport_to(gateway: PromptGateway) -> FakeTransport:
    """Return a fast transport to a fake gateway."""
    return FakeTransport(gateway.answer, latency_s=0.002)


async def all_of(batch: Batch) -> list[Outcome]:
    """Take every outcome."""
    return [outcome async for outcome in batch]


async def until_stopped(batch: Batch) -> tuple[list[Outcome], BatchStopped]:
    """Take every outcome up to the stop, and return both."""
    outcomes: list[Outcome] = []
    try:
        async for outcome in batch:
            outcomes.append(outcome)  # noqa: PERF401 - they are wanted also when it raises
    except BatchStopped as stopped:
        return outcomes, stopped
    raise AssertionError("the batch did not stop")


async def run_batch(path: Path, gateway: PromptGateway, rows: Iterable[Any], **options: Any) -> list[Outcome]:
    """Run a batch named "spring" in a session of its own."""
    async with on_file(path, transport_to(gateway)) as session:
        outcomes = await all_of(session.generate_many(rows, **{"batch": "spring", **options}))
    return sorted(outcomes, key=lambda outcome: outcome.index)


def file_of(outcome: Outcome) -> Path:
    """Return the first saved file of a row."""
    assert isinstance(outcome.saved[0], Path)
    return outcome.saved[0]

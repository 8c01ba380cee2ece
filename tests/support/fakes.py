"""Fakes for tests on virtual time: sessions on a fake transport, a recording ledger, and a fake gateway."""

import asyncio
import functools
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, ParamSpec

from nanobanana_async import ApiMall, DefApi, Job, JobState, MemoryLedger, PollPolicy, Session
from nanobanana_async.errors import LedgerError
from nanobanana_async.events import Event, JobStateChanged
from nanobanana_async.gateways.contract import HttpRequest
from nanobanana_async.jobs import JobRecord
from nanobanana_async.ledger.base import Claim
from nanobanana_async.testing import FakeTransport, Reply, VirtualLoop, run_virtual
from tests.support.replies import completed, created, defapi_created, defapi_done, refused, task

API_KEY = "sk-secret-0123456789abcdef"

REAL_TIME = PollPolicy(target_delay_s=0.01, min_gap_s=0.01, max_gap_s=0.05)

P = ParamSpec("P")
Opening = Callable[..., Session]
"""`apimall` or `defapi`."""


def virtually(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run a test on a loop of virtual time; no task of it may be left over."""

    @functools.wraps(test)
    def on_virtual_time(*args: P.args, **kwargs: P.kwargs) -> None:
        async def main() -> None:
            await test(*args, **kwargs)
            assert asyncio.all_tasks() == {asyncio.current_task()}

        run_virtual(main())

    return on_virtual_time


async def states_of(job: Job) -> list[JobState]:
    """Return the states that a job goes through, each once."""
    states: list[JobState] = []
    async for seen in job.updates():
        if not states or states[-1] is not seen.state:
            states.append(seen.state)
    return states


def now() -> float:
    return asyncio.get_running_loop().time()


def virtual_loop() -> VirtualLoop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return loop


def apimall(transport: FakeTransport, **settings: Any) -> Session:
    return Session(ApiMall(api_key=API_KEY), http=transport, **settings)


def defapi(transport: FakeTransport, **settings: Any) -> Session:
    return Session(DefApi(api_key=API_KEY), http=transport, **settings)


def apimall_now(transport: FakeTransport, **settings: Any) -> Session:
    """Return a session in real time, which polls a short job at once."""
    return Session(ApiMall(api_key=API_KEY, expected_job_s=0.01), http=transport, polling=REAL_TIME, **settings)


def defapi_now(transport: FakeTransport, **settings: Any) -> Session:
    """Return the same for defapi."""
    return Session(DefApi(api_key=API_KEY, expected_job_s=0.01), http=transport, polling=REAL_TIME, **settings)


def wire_key(request: HttpRequest) -> str | None:
    return request.headers.get("Idempotency-Key")


class EventLog(list[str]):
    """What happened, in order: the writes to the ledger, the requests and the events."""

    def recording_requests(self, answer: Callable[[HttpRequest], Reply]) -> Callable[[HttpRequest], Reply]:
        """Note each request before it is answered."""

        def noted(request: HttpRequest) -> Reply:
            self.append(request.method)
            return answer(request)

        return noted

    def observe(self, event: Event) -> None:
        """Note each transition that is emitted."""
        if isinstance(event, JobStateChanged):
            self.append(f"event {event.record.state.name}")


class RecordingLedger(MemoryLedger):
    """A ledger that logs its writes, and may be slow, fail at its n-th write, or keep ended jobs."""

    def __init__(
        self,
        *,
        log: EventLog | None = None,
        failing_writes: Iterable[int] = (),
        delay_s: float = 0.0,
        keep_ended: bool = False,
    ) -> None:
        super().__init__()
        self.log = EventLog() if log is None else log
        self.fails = set(failing_writes)
        self.delay_s = delay_s
        self.keeps = keep_ended
        self.writes = 0
        self.closed = 0

    async def aclose(self) -> None:
        await super().aclose()
        self.closed += 1

    async def claim(self, record: JobRecord) -> Claim:
        await self._write(f"claim {record.state.name}")
        return await super().claim(record)

    async def advance(self, before: JobRecord, after: JobRecord) -> None:
        await self._write(f"{before.state.name} -> {after.state.name}")
        await super().advance(before, after)
        if self.keeps:
            self._ended.pop(after.key, None)
            self._jobs[after.key] = after
            self._index_task(after)

    async def _write(self, what: str) -> None:
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        self.writes += 1
        if self.writes in self.fails:
            self.log.append(f"{what} fails")
            raise LedgerError("the disk is full")
        self.log.append(what)

    def states(self) -> dict[str, JobState]:
        """Return the state of each job by key."""
        return {key: record.state for key, record in self._jobs.items()}

    def record(self, key: str) -> JobRecord:
        return self._jobs[key]


class FakeGateway:
    """Both gateways: one job per create (on API Mall per key), which ends after `job_s`; counts its sales."""

    def __init__(self, *, job_s: float = 2.0, limit: int | None = None) -> None:
        self.job_s = job_s
        self.limit = limit
        self.tasks: dict[str, float] = {}
        """Task id -> when it was sold."""
        self.keys: dict[str, str] = {}
        self.most_running = 0

    @property
    def sold(self) -> int:
        return len(self.tasks)

    @property
    def running(self) -> int:
        return sum(1 for sold_at in self.tasks.values() if now() < sold_at + self.job_s)

    def answer(self, request: HttpRequest) -> Reply:
        return self._create(request) if request.method == "POST" else self._poll(request)

    def _create(self, request: HttpRequest) -> Reply:
        key = wire_key(request)
        if key in self.keys:
            return created(self.keys[key])
        if self.limit is not None and self.running >= self.limit:
            return refused(429, "too_many_concurrent_jobs", "too many concurrent jobs")
        task_id = f"t{self.sold + 1}"
        self.tasks[task_id] = now()
        self.most_running = max(self.most_running, self.running)
        if key is None:
            return defapi_created(task_id)
        self.keys[key] = task_id
        return created(task_id)

    def _poll(self, request: HttpRequest) -> Reply:
        if "/history?" in request.url:
            return refused(404, "not_found", "No such endpoint")
        task_id = request.url.rpartition("=" if "=" in request.url else "/")[2]
        done = now() >= self.tasks[task_id] + self.job_s
        if "=" in request.url:
            return defapi_done(task_id) if done else task("in_progress", task_id)
        return completed(task_id) if done else task("processing", task_id)

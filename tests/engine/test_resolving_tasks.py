"""resolve() with a task id: the gateway confirms it first; a job whose task is unknown there can be resolved."""

import asyncio
from typing import Any

import pytest

from nanobanana_async import (
    ConfigurationError,
    IdempotencyConflict,
    ImageRequest,
    InvalidRequest,
    Job,
    JobState,
    JobUncertain,
    Session,
    TaskNotFound,
    TransportError,
)
from nanobanana_async.errors import AuthenticationError, LedgerError, UnexpectedResponse
from nanobanana_async.gateways.contract import HttpRequest
from nanobanana_async.policy.retry import LATE_REPLICA_S
from nanobanana_async.testing import Reply
from tests.support.fakes import apimall, defapi, now, virtually
from tests.support.replies import json_reply, refused
from tests.support.shared_ledger import KEY, FakeProcess, LosingGateway, SharedLedger, two_processes

DECISIONS: dict[str, dict[str, Any]] = {
    "task_id": {"task_id": "t1"},
    "not_bought": {"not_bought": True},
    "buy_again": {"buy_again": True},
}


class Gateway(LosingGateway):
    """A fake gateway that knows its own tasks only; `hidden` tasks get a 404, and `says` overrides any poll."""

    def __init__(self, *, job_s: float = 20.0) -> None:
        super().__init__(job_s=job_s)
        self.hidden: set[str] = set()
        self.says: list[Reply] = []

    def _poll(self, request: HttpRequest) -> Reply:
        if self.says:
            return self.says.pop(0)
        task_id = request.url.rpartition("=" if "=" in request.url else "/")[2]
        if task_id not in self.tasks or task_id in self.hidden:
            return json_reply(404, {"code": 404, "message": "task not found"}) if "=" in request.url else refused(404)
        return super()._poll(request)


async def uncertain(session: Session, gateway: Gateway, key: str = KEY) -> Job:
    gateway.lost_answers = [True]
    job = await session.submit("a fox", idempotency_key=key)
    with pytest.raises(JobUncertain):
        await job
    return job


@pytest.mark.parametrize("later_s", [0.0, 3600.0])
@virtually
async def test_unknown_task_id_changes_nothing(later_s: float) -> None:
    gateway, shared = Gateway(), SharedLedger()
    async with FakeProcess(shared, gateway.answer, session_of=defapi) as process:
        job = await uncertain(process.session, gateway)
        await asyncio.sleep(later_s)
        began, before = now(), shared.record(KEY)
        with pytest.raises(TaskNotFound, match="knows no task tl: nothing was changed") as caught:
            await process.session.resolve(job, task_id="tl")
        assert (caught.value.key, caught.value.safe_to_repeat) == (KEY, False)
        assert shared.record(KEY) == before
        waited_s = now() - began
        assert waited_s < 1.0 if later_s else LATE_REPLICA_S - 5 < waited_s < LATE_REPLICA_S + 5
        assert (await (await process.session.resolve(job, task_id="t1"))).task_id == "t1"
    assert gateway.sold == 1


@pytest.mark.parametrize("task_id", ["", "  ", "t\n1", "\x00", 5, True])
@virtually
async def test_malformed_task_id_is_refused_without_a_request(task_id: Any) -> None:
    gateway, shared = Gateway(), SharedLedger()
    async with FakeProcess(shared, gateway.answer, session_of=defapi) as process:
        job = await uncertain(process.session, gateway)
        asked = len(process.transport.requests)
        with pytest.raises(InvalidRequest, match="task_id must be printable text, and not empty"):
            await process.session.resolve(job, task_id=task_id)
        with pytest.raises(InvalidRequest, match="task_id must be printable text, and not empty"):
            await process.session.attach(task_id)
        assert len(process.transport.requests) == asked
        assert shared.states() == {KEY: JobState.UNCERTAIN}


@virtually
async def test_resolve_waits_for_a_lagging_replica() -> None:
    gateway, shared = Gateway(), SharedLedger()
    async with FakeProcess(shared, gateway.answer, session_of=defapi) as process:
        job = await uncertain(process.session, gateway)
        gateway.hidden.add("t1")
        resolving = asyncio.Task(process.session.resolve(job, task_id="t1"))
        await asyncio.sleep(10.0)
        gateway.hidden.clear()
        assert (await (await resolving)).task_id == "t1"


TROUBLES = [
    TransportError("reset", possibly_sent=True),
    json_reply(401, {"code": 401, "message": "no"}),
    json_reply(200, {}),
]


@pytest.mark.parametrize("trouble", TROUBLES)
@virtually
async def test_unconfirmed_task_id_changes_nothing(trouble: Reply) -> None:
    gateway, shared = Gateway(), SharedLedger()
    async with FakeProcess(shared, gateway.answer, session_of=defapi) as process:
        job = await uncertain(process.session, gateway)
        gateway.says = [trouble] * 100
        with pytest.raises((TransportError, AuthenticationError, UnexpectedResponse)):
            await process.session.resolve(job, task_id="t1")
        assert shared.states() == {KEY: JobState.UNCERTAIN}
        gateway.says = [json_reply(429, {"code": 429, "message": "too many"})]
        assert (await (await process.session.resolve(job, task_id="t1"))).task_id == "t1"


@virtually
async def test_task_of_another_job_is_refused_with_its_key() -> None:
    gateway, shared = Gateway(), SharedLedger()
    async with FakeProcess(shared, gateway.answer, session_of=defapi) as process:
        other = await process.session.submit("a crow", idempotency_key="other")
        assert await other.wait_for_task_id() == "t1"
        job = await uncertain(process.session, gateway)
        held = process.held
        with pytest.raises(ConfigurationError, match="task t1 belongs to job other already: nothing was changed"):
            await process.session.resolve(job, task_id="t1")
        assert (job.state, process.held) == (JobState.UNCERTAIN, held)
        assert (await (await process.session.resolve(job, task_id="t2"))).task_id == "t2"


@virtually
async def test_attached_task_can_resolve_the_job_that_bought_it() -> None:
    gateway, shared = Gateway(), SharedLedger()
    async with FakeProcess(shared, gateway.answer, session_of=defapi) as process:
        job = await uncertain(process.session, gateway)
        assert (await (await process.session.attach("t1"))).task_id == "t1"
        assert (await (await process.session.resolve(job, task_id="t1"))).task_id == "t1"


@virtually
async def test_unknown_task_is_not_attached() -> None:
    gateway, shared = Gateway(), SharedLedger()
    async with FakeProcess(shared, gateway.answer, session_of=apimall) as process:
        with pytest.raises(TaskNotFound, match="knows no task tl") as caught:
            await process.session.attach("tl")
        assert (caught.value.key, caught.value.safe_to_repeat) == ("task-tl", True)
        assert shared.states() == {}
        gateway.tasks["t9"] = now()
        gateway.hidden.add("t9")
        attaching = asyncio.Task(process.session.attach("t9"))
        await asyncio.sleep(10.0)
        gateway.hidden.clear()
        assert (await (await attaching)).task_id == "t9"


@pytest.mark.parametrize("trouble", TROUBLES)
@virtually
async def test_failed_attach_is_safe_to_repeat(trouble: Reply) -> None:
    gateway, shared = Gateway(), SharedLedger()
    async with FakeProcess(shared, gateway.answer, session_of=defapi) as process:
        gateway.says = [trouble] * 100
        with pytest.raises((TransportError, AuthenticationError, UnexpectedResponse)) as caught:
            await process.session.attach("t1", key="mine")
        assert (caught.value.key, caught.value.safe_to_repeat) == ("mine", True)
    assert gateway.sold == 0


@virtually
async def test_known_task_is_attached_under_its_own_key_only() -> None:
    gateway, shared = Gateway(), SharedLedger()
    async with FakeProcess(shared, gateway.answer, session_of=apimall) as process:
        await process.session.generate("a fox", idempotency_key=KEY)
        why = f"task t1 is job {KEY} in this ledger: attach it without a key, or with that one"
        with pytest.raises(ConfigurationError, match=why) as caught:
            await process.session.attach("t1", key="mine")
        assert caught.value.key == KEY
        with pytest.raises(IdempotencyConflict, match="another request"):
            await process.session.attach("t1", request=ImageRequest("a crow"))
        for job in (
            await process.session.attach("t1"),
            await process.session.attach("t1", key=KEY),
            await process.session.attach("t1", request=ImageRequest("a fox")),
        ):
            assert (job.key, (await job).task_id) == (KEY, "t1")
    assert gateway.sold == 1


async def lost_task(process: FakeProcess, gateway: Gateway, shared: SharedLedger) -> Job:
    """Leave a job RUNNING under a task id that the gateway does not know, as a typo once did."""
    job = await uncertain(process.session, gateway)
    gateway.tasks["typo"] = now()
    job = await process.session.resolve(job, task_id="typo")
    del gateway.tasks["typo"]
    with pytest.raises(TaskNotFound):
        await job
    await asyncio.sleep(1.0)
    assert (shared.states(), shared.owner(KEY)) == ({KEY: JobState.RUNNING}, None)
    return job


async def left_uncertain(process: FakeProcess, gateway: Gateway, shared: SharedLedger) -> None:
    """Leave a job UNCERTAIN of which the session holds nothing more."""
    await uncertain(process.session, gateway)
    await asyncio.sleep(7200.0)
    assert (shared.states(), process.held) == ({KEY: JobState.UNCERTAIN}, 0)


@pytest.mark.parametrize("where", ["here", "in another session"])
@pytest.mark.parametrize("way", DECISIONS)
@virtually
async def test_running_job_with_unknown_task_can_be_resolved(way: str, where: str) -> None:
    gateway, shared = Gateway(), SharedLedger()
    async with two_processes(shared, gateway.answer, session_of=defapi) as (a, b):
        await lost_task(a, gateway, shared)
        process = a if where == "here" else b
        resolved = await process.session.resolve(KEY, **DECISIONS[way])
        if way == "not_bought":
            assert resolved.state is JobState.REFUSED
            assert (shared.record(KEY).task_id, shared.record(KEY).in_doubt) == (None, False)
            await asyncio.sleep(1.0)
            assert (await process.session.generate("a fox", idempotency_key=KEY)).task_id == "t2"
        else:
            assert (await resolved).task_id == ("t1" if way == "task_id" else "t2")
        assert (a.held, b.held) == (0, 0)
    assert gateway.sold == (1 if way == "task_id" else 2)
    assert shared.states() == {KEY: JobState.SUCCEEDED}


@pytest.mark.slow
@virtually
async def test_known_or_followed_running_job_is_not_resolved() -> None:
    gateway, shared = Gateway(job_s=5000.0), SharedLedger()
    async with two_processes(shared, gateway.answer, session_of=defapi) as (a, b):
        job = await a.session.submit("a fox", idempotency_key=KEY)
        await job.wait_for_task_id()
        for way in DECISIONS.values():
            with pytest.raises(ConfigurationError, match="polled by this session: nothing to resolve"):
                await a.session.resolve(KEY, **way)
            with pytest.raises(ConfigurationError, match="polled by another session: nothing to resolve"):
                await b.session.resolve(KEY, **way)
        await asyncio.sleep(2000.0)  # job_s is over: no session polls it
        assert shared.owner(KEY) is None
        for way in DECISIONS.values():
            with pytest.raises(ConfigurationError, match="nothing to resolve, the gateway knows its task t1"):
                await b.session.resolve(KEY, **way)
            assert shared.owner(KEY) is None  # it was let go again
    assert (gateway.sold, shared.states()) == (1, {KEY: JobState.RUNNING})


@virtually
async def test_wrong_second_task_id_releases_the_job() -> None:
    gateway, shared = Gateway(), SharedLedger()
    async with FakeProcess(shared, gateway.answer, session_of=defapi) as process:
        await lost_task(process, gateway, shared)
        with pytest.raises(TaskNotFound, match="no task tl"):
            await process.session.resolve(KEY, task_id="tl")
        assert (shared.owner(KEY), process.held) == (None, 0)
        process.ledger.fails["advance"] = 1
        with pytest.raises(LedgerError, match="the disk is full"):
            await process.session.resolve(KEY, task_id="t1")
        await asyncio.sleep(1.0)
        assert (shared.owner(KEY), process.held) == (None, 0)
        assert (await (await process.session.resolve(KEY, task_id="t1"))).task_id == "t1"


@virtually
async def test_concurrent_resolves_decide_once() -> None:
    gateway, shared = Gateway(), SharedLedger()
    async with two_processes(shared, gateway.answer, session_of=defapi) as (a, b):
        job = await uncertain(a.session, gateway)
        ways = [a.session.resolve(KEY, task_id="t1"), a.session.resolve(KEY, task_id="t1")]
        ways += [b.session.resolve(KEY, task_id="t1"), a.session.resolve(KEY, not_bought=True)]
        tasks = [asyncio.Task(way) for way in ways]
        await asyncio.wait(tasks)
        assert sum(task.exception() is None for task in tasks) == 1
        errors = [task.exception() for task in tasks if task.exception() is not None]
        assert all(isinstance(error, (ConfigurationError, LedgerError)) for error in errors)
        del job
    assert gateway.sold == 1


@pytest.mark.parametrize("later_s", [0.05, 1.0, 30.0])
@pytest.mark.parametrize("way", ["not_bought", "buy_again"])
@virtually
async def test_resolve_whose_query_is_answered_later_leaves_what_another_one_decided(way: str, later_s: float) -> None:
    gateway, shared = Gateway(), SharedLedger()
    waits_s: list[float] = []

    async def answer(request: HttpRequest) -> Reply:
        reply = gateway.answer(request)
        await asyncio.sleep(3.0 if request.method == "POST" else waits_s.pop(0) if waits_s else 0.0)
        return reply

    async with FakeProcess(shared, answer, session_of=defapi) as process:
        await lost_task(process, gateway, shared)
        waits_s += [0.0, later_s]
        process.ledger.changes.clear()
        first = asyncio.Task(process.session.resolve(KEY, buy_again=True))
        second = asyncio.Task(process.session.resolve(KEY, **DECISIONS[way]))
        assert (await (await first).result()).task_id == "t2"
        with pytest.raises(ConfigurationError, match=r"changed to \w+ meanwhile: check it"):
            await second
        assert (process.held, process.session.stats().uncertain) == (0, 0)
    moves = [change for change in process.ledger.changes if "->" in change]
    assert moves == ["RUNNING -> PENDING", "PENDING -> SUBMITTING", "SUBMITTING -> RUNNING", "RUNNING -> SUCCEEDED"]
    assert gateway.sold == 2


@pytest.mark.parametrize("later_s", [0.0, 0.02, 0.06, 0.1, 0.15, 0.2, 0.25])
@pytest.mark.parametrize("state", [JobState.RUNNING, JobState.UNCERTAIN])
@virtually
async def test_resolve_ends_when_its_owner_is_buried_meanwhile(state: JobState, later_s: float) -> None:
    gateway, shared = Gateway(), SharedLedger()
    async with FakeProcess(shared, gateway.answer, session_of=defapi, delay_s=0.1) as process:
        await (lost_task if state is JobState.RUNNING else left_uncertain)(process, gateway, shared)
        resolving = asyncio.Task(process.session.resolve(KEY, not_bought=True))
        await asyncio.sleep(later_s)
        process.ledger.bury()
        async with asyncio.timeout(60.0):
            await asyncio.wait([resolving])
        assert isinstance(resolving.exception(), LedgerError | None)
        assert shared.record(KEY).state is (JobState.REFUSED if resolving.exception() is None else state)
        assert process.held == 0

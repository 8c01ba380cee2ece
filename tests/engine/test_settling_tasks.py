"""A task id that a human gives is confirmed by the gateway first; a job whose task is unknown there can be settled."""

import asyncio
from typing import Any

import pytest

from nanobanana_async import (
    ConfigurationError,
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
from tests.support.shared_ledger import KEY, FakeProcess, LosingGateway, SharedLedger

DECISIONS: dict[str, dict[str, Any]] = {
    "task_id": {"task_id": "t1"},
    "not_bought": {"not_bought": True},
    "buy_again": {"buy_again": True},
}


class Gateway(LosingGateway):
    """A shop that knows its own tasks only; `hidden` ones are not seen yet, and `says` overrides any query."""

    def __init__(self, *, job_s: float = 20.0) -> None:
        super().__init__(job_s=job_s)
        self.hidden: set[str] = set()
        self.says: list[Reply] = []

    def _tell(self, request: HttpRequest) -> Reply:
        if self.says:
            return self.says.pop(0)
        task_id = request.url.rpartition("=" if "=" in request.url else "/")[2]
        if task_id not in self.tasks or task_id in self.hidden:
            return json_reply(404, {"code": 404, "message": "task not found"}) if "=" in request.url else refused(404)
        return super()._poll(request)


async def uncertain(session: Session, shop: Gateway, key: str = KEY) -> Job:
    shop.lost_answers = [True]
    job = await session.submit("a fox", idempotency_key=key)
    with pytest.raises(JobUncertain):
        await job
    return job


@pytest.mark.parametrize("later_s", [0.0, 3600.0])
@virtually
async def test_a_task_that_the_gateway_does_not_know_changes_nothing(later_s: float) -> None:
    shop, book = Gateway(), SharedLedger()
    async with FakeProcess(book, shop.answer, session_of=defapi) as process:
        job = await uncertain(process.session, shop)
        await asyncio.sleep(later_s)
        began, before = now(), book.record(KEY)
        with pytest.raises(TaskNotFound, match="knows no task tl: nothing was changed") as caught:
            await process.session.resolve(job, task_id="tl")
        assert (caught.value.key, caught.value.safe_to_repeat) == (KEY, False)
        assert book.record(KEY) == before
        waited_s = now() - began
        assert waited_s < 1.0 if later_s else LATE_REPLICA_S - 5 < waited_s < LATE_REPLICA_S + 5
        assert (await (await process.session.resolve(job, task_id="t1"))).task_id == "t1"
    assert shop.sold == 1


@pytest.mark.parametrize("task_id", ["", "  ", "t\n1", "\x00", 5, True])
@virtually
async def test_what_is_no_task_id_is_refused_without_a_request(task_id: Any) -> None:
    shop, book = Gateway(), SharedLedger()
    async with FakeProcess(book, shop.answer, session_of=defapi) as process:
        job = await uncertain(process.session, shop)
        asked = len(process.transport.requests)
        with pytest.raises(InvalidRequest, match="task_id must be printable text, and not empty"):
            await process.session.resolve(job, task_id=task_id)
        with pytest.raises(InvalidRequest, match="task_id must be printable text, and not empty"):
            await process.session.attach(task_id)
        assert len(process.transport.requests) == asked
        assert book.states() == {KEY: JobState.UNCERTAIN}


@virtually
async def test_a_task_that_a_lagging_replica_shows_late_is_waited_for() -> None:
    shop, book = Gateway(), SharedLedger()
    async with FakeProcess(book, shop.answer, session_of=defapi) as process:
        job = await uncertain(process.session, shop)
        shop.hidden.add("t1")
        settling = asyncio.Task(process.session.resolve(job, task_id="t1"))
        await asyncio.sleep(10.0)
        shop.hidden.clear()
        assert (await (await settling)).task_id == "t1"


TROUBLES = [
    TransportError("reset", possibly_sent=True),
    json_reply(401, {"code": 401, "message": "no"}),
    json_reply(200, {}),
]


@pytest.mark.parametrize("trouble", TROUBLES)
@virtually
async def test_what_the_gateway_could_not_confirm_changes_nothing(trouble: Reply) -> None:
    shop, book = Gateway(), SharedLedger()
    async with FakeProcess(book, shop.answer, session_of=defapi) as process:
        job = await uncertain(process.session, shop)
        shop.says = [trouble] * 100
        with pytest.raises((TransportError, AuthenticationError, UnexpectedResponse)):
            await process.session.resolve(job, task_id="t1")
        assert book.states() == {KEY: JobState.UNCERTAIN}
        shop.says = [json_reply(429, {"code": 429, "message": "too many"})]
        assert (await (await process.session.resolve(job, task_id="t1"))).task_id == "t1"


@virtually
async def test_the_task_of_another_job_is_refused_with_that_jobs_key() -> None:
    shop, book = Gateway(), SharedLedger()
    async with FakeProcess(book, shop.answer, session_of=defapi) as process:
        other = await process.session.submit("a crow", idempotency_key="other")
        assert await other.accepted() == "t1"
        job = await uncertain(process.session, shop)
        held = process.held
        with pytest.raises(ConfigurationError, match="task t1 belongs to job other already: nothing was changed"):
            await process.session.resolve(job, task_id="t1")
        assert (job.state, process.held) == (JobState.UNCERTAIN, held)
        assert (await (await process.session.resolve(job, task_id="t2"))).task_id == "t2"


@virtually
async def test_the_task_that_was_only_attached_before_may_settle_the_job_that_bought_it() -> None:
    shop, book = Gateway(), SharedLedger()
    async with FakeProcess(book, shop.answer, session_of=defapi) as process:
        job = await uncertain(process.session, shop)
        assert (await (await process.session.attach("t1"))).task_id == "t1"
        assert (await (await process.session.resolve(job, task_id="t1"))).task_id == "t1"


@virtually
async def test_an_unknown_task_is_not_attached() -> None:
    shop, book = Gateway(), SharedLedger()
    async with FakeProcess(book, shop.answer, session_of=apimall) as process:
        with pytest.raises(TaskNotFound, match="knows no task tl"):
            await process.session.attach("tl")
        assert book.states() == {}
        shop.tasks["t9"] = now()
        shop.hidden.add("t9")
        attaching = asyncio.Task(process.session.attach("t9"))
        await asyncio.sleep(10.0)
        shop.hidden.clear()
        assert (await (await attaching)).task_id == "t9"


async def lost_task(process: FakeProcess, shop: Gateway, book: SharedLedger) -> Job:
    """Leave a job RUNNING under a task id that the gateway does not know, as a typo once did."""
    job = await uncertain(process.session, shop)
    shop.tasks["typo"] = now()
    job = await process.session.resolve(job, task_id="typo")
    del shop.tasks["typo"]
    with pytest.raises(TaskNotFound):
        await job
    await asyncio.sleep(1.0)
    assert (book.states(), book.owner(KEY)) == ({KEY: JobState.RUNNING}, None)
    return job


@pytest.mark.parametrize("where", ["here", "in another session"])
@pytest.mark.parametrize("way", DECISIONS)
@virtually
async def test_a_running_job_whose_task_is_unknown_is_settled(way: str, where: str) -> None:
    shop, book = Gateway(), SharedLedger()
    async with (
        FakeProcess(book, shop.answer, session_of=defapi) as a,
        FakeProcess(book, shop.answer, session_of=defapi) as b,
    ):
        await lost_task(a, shop, book)
        process = a if where == "here" else b
        settled = await process.session.resolve(KEY, **DECISIONS[way])
        if way == "not_bought":
            assert settled.state is JobState.REFUSED
            assert (book.record(KEY).task_id, book.record(KEY).in_doubt) == (None, False)
            await asyncio.sleep(1.0)
            assert (await process.session.generate("a fox", idempotency_key=KEY)).task_id == "t2"
        else:
            assert (await settled).task_id == ("t1" if way == "task_id" else "t2")
        assert (a.held, b.held) == (0, 0)
    assert shop.sold == (1 if way == "task_id" else 2)
    assert book.states() == {KEY: JobState.SUCCEEDED}


@virtually
async def test_a_running_job_whose_task_is_known_or_which_is_followed_is_not_settled() -> None:
    shop, book = Gateway(job_s=5000.0), SharedLedger()
    async with (
        FakeProcess(book, shop.answer, session_of=defapi) as a,
        FakeProcess(book, shop.answer, session_of=defapi) as b,
    ):
        job = await a.session.submit("a fox", idempotency_key=KEY)
        await job.accepted()
        for way in DECISIONS.values():
            with pytest.raises(ConfigurationError, match="polled by this session: nothing to resolve"):
                await a.session.resolve(KEY, **way)
            with pytest.raises(ConfigurationError, match="polled by another session: nothing to resolve"):
                await b.session.resolve(KEY, **way)
        await asyncio.sleep(2000.0)  # job_s is over: nobody follows it
        assert book.owner(KEY) is None
        for way in DECISIONS.values():
            with pytest.raises(ConfigurationError, match="nothing to resolve, the gateway knows its task t1"):
                await b.session.resolve(KEY, **way)
            assert book.owner(KEY) is None  # it was let go again
    assert (shop.sold, book.states()) == (1, {KEY: JobState.RUNNING})


@virtually
async def test_a_wrong_second_guess_lets_the_job_go_again() -> None:
    shop, book = Gateway(), SharedLedger()
    async with FakeProcess(book, shop.answer, session_of=defapi) as process:
        await lost_task(process, shop, book)
        with pytest.raises(TaskNotFound, match="no task tl"):
            await process.session.resolve(KEY, task_id="tl")
        assert (book.owner(KEY), process.held) == (None, 0)
        process.ledger.fails["advance"] = 1
        with pytest.raises(LedgerError, match="the disk is full"):
            await process.session.resolve(KEY, task_id="t1")
        await asyncio.sleep(1.0)
        assert (book.owner(KEY), process.held) == (None, 0)
        assert (await (await process.session.resolve(KEY, task_id="t1"))).task_id == "t1"


@virtually
async def test_two_who_settle_at_once_decide_once() -> None:
    shop, book = Gateway(), SharedLedger()
    async with (
        FakeProcess(book, shop.answer, session_of=defapi) as a,
        FakeProcess(book, shop.answer, session_of=defapi) as b,
    ):
        job = await uncertain(a.session, shop)
        ways = [a.session.resolve(KEY, task_id="t1"), a.session.resolve(KEY, task_id="t1")]
        ways += [b.session.resolve(KEY, task_id="t1"), a.session.resolve(KEY, not_bought=True)]
        tasks = [asyncio.Task(way) for way in ways]
        await asyncio.wait(tasks)
        assert sum(task.exception() is None for task in tasks) == 1
        errors = [task.exception() for task in tasks if task.exception() is not None]
        assert all(isinstance(error, (ConfigurationError, LedgerError)) for error in errors)
        del job
    assert shop.sold == 1

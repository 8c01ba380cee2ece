"""Inline images are not in the ledger: a later waiter polls the gateway for them once more."""

import asyncio

import pytest

from nanobanana_async import GenerationResult, JobState, SessionClosed, TaskNotFound, Timeouts, TransportError
from nanobanana_async.errors import UnexpectedResponse
from nanobanana_async.gateways.contract import HttpRequest
from nanobanana_async.testing import Reply
from tests.support.fakes import FakeGateway, defapi, now, virtually
from tests.support.replies import defapi_done, json_reply, task
from tests.support.shared_ledger import KEY, FakeProcess, SharedLedger, found

INLINE = "data:image/png;base64,iVBORw0KGgo="


class InlineGateway(FakeGateway):
    """Sends its images inline, while it has them."""

    has_them = True
    down = 0
    knows_the_task = True

    def answer(self, request: HttpRequest) -> Reply:
        reply = super().answer(request)
        if request.method == "POST":
            return reply
        if self.down:
            self.down -= 1
            return TransportError("the connection was reset", possibly_sent=True)
        if not self.knows_the_task:
            return json_reply(404, {"code": 404, "message": "no such task"})
        task_id = request.url.rpartition("=")[2]
        if reply == task("in_progress", task_id):
            return reply
        return defapi_done(task_id, image=INLINE) if self.has_them else task("success", task_id)


def a_process(shared: SharedLedger, gateway: InlineGateway, *, delay_s: float = 0.0) -> FakeProcess:
    return FakeProcess(shared, gateway.answer, session_of=defapi, delay_s=delay_s)


async def bought_before(shared: SharedLedger, gateway: InlineGateway) -> GenerationResult:
    """Let a session buy the job, and end."""
    async with a_process(shared, gateway) as process:
        result = await process.session.generate("a fox", idempotency_key=KEY)
        assert (result.url, shared.record(KEY).images) == (INLINE, ("",))
        assert (await (await found(process.session, KEY))).url == INLINE
    return result


@pytest.mark.parametrize("way", ["job", "generate"])
@virtually
async def test_second_session_fetches_inline_images_by_one_poll(way: str) -> None:
    gateway, shared = InlineGateway(), SharedLedger()
    first = await bought_before(shared, gateway)
    async with a_process(shared, gateway) as process:
        job = await found(process.session, KEY)
        if way == "job":
            result = await job
            assert await job == result
        else:
            result = await process.session.generate("a fox", idempotency_key=KEY)
        assert result == first
        assert (process.creates, process.queries, process.held) == (0, 1, 0)
        assert process.session.stats().succeeded == 0
        assert job.state is JobState.SUCCEEDED
    assert gateway.sold == 1
    assert INLINE not in str(shared.record(KEY))


@virtually
async def test_waiter_in_another_session_fetches_images_by_one_poll() -> None:
    gateway, shared = InlineGateway(job_s=20.0), SharedLedger()
    async with a_process(shared, gateway) as a, a_process(shared, gateway) as b:
        mine = asyncio.Task(a.session.generate("a fox", idempotency_key=KEY))
        await asyncio.sleep(1.0)
        assert (await b.session.generate("a fox", idempotency_key=KEY)).url == INLINE
        assert (await mine).url == INLINE
        assert (b.creates, b.queries) == (0, 1)


@virtually
async def test_lost_inline_images_are_polled_for_on_each_await() -> None:
    gateway, shared = InlineGateway(), SharedLedger()
    await bought_before(shared, gateway)
    gateway.has_them = False
    async with a_process(shared, gateway) as process:
        job = await found(process.session, KEY)
        for asked in (1, 2):
            with pytest.raises(UnexpectedResponse, match="no longer returns its images") as caught:
                await job
            assert (caught.value.key, caught.value.safe_to_repeat, process.queries) == (KEY, False, asked)
        with pytest.raises(UnexpectedResponse):
            await process.session.generate("a fox", idempotency_key=KEY)
        gateway.has_them = True
        assert (await job).url == INLINE
        assert process.creates == 0
    assert (gateway.sold, shared.states()) == (1, {KEY: JobState.SUCCEEDED})


@pytest.mark.parametrize("job_s", [2.0, 20.0, 60.0])
@virtually
async def test_fetch_that_is_not_answered_ends_within_job_s(job_s: float) -> None:
    gateway, shared = InlineGateway(), SharedLedger()
    await bought_before(shared, gateway)
    gateway.down = 10_000
    async with FakeProcess(shared, gateway.answer, session_of=defapi, timeouts=Timeouts(job_s=job_s)) as process:
        began = now()
        with pytest.raises(TransportError):
            await process.session.generate("a fox", idempotency_key=KEY)
        assert now() - began < job_s + 0.5
        assert process.creates == 0


@virtually
async def test_forgotten_task_ends_the_fetch() -> None:
    gateway, shared = InlineGateway(), SharedLedger()
    await bought_before(shared, gateway)
    gateway.knows_the_task = False
    async with a_process(shared, gateway) as process:
        with pytest.raises(TaskNotFound) as caught:
            await process.session.generate("a fox", idempotency_key=KEY)
        assert not caught.value.safe_to_repeat
        assert process.creates == 0
    assert gateway.sold == 1


@virtually
async def test_lost_answer_is_polled_again() -> None:
    gateway, shared = InlineGateway(), SharedLedger()
    await bought_before(shared, gateway)
    gateway.down = 3
    async with a_process(shared, gateway) as process:
        assert (await (await found(process.session, KEY))).url == INLINE
        assert (process.creates, process.queries) == (0, 4)


@virtually
async def test_two_waiters_share_one_poll() -> None:
    gateway, shared = InlineGateway(), SharedLedger()
    await bought_before(shared, gateway)
    async with a_process(shared, gateway) as process:
        one, two = await found(process.session, KEY), await found(process.session, KEY)
        async with asyncio.TaskGroup() as group:
            results = [group.create_task(job.result()) for job in (one, one, two)]
        assert {waiter.result().url for waiter in results} == {INLINE}
        assert process.queries == 1


@pytest.mark.parametrize("delay_s", [0.0, 0.1])
@virtually
async def test_result_always_has_its_inline_images(delay_s: float) -> None:
    gateway, shared = InlineGateway(), SharedLedger()
    await bought_before(shared, gateway)
    for gap_s in (0.0, 0.01, 0.025, 0.05, 0.1, 0.125, 0.15):
        async with a_process(shared, gateway, delay_s=delay_s) as process:
            job = await found(process.session, KEY)
            waiting: list[asyncio.Task[GenerationResult]] = []
            for _ in range(6):
                waiting.append(asyncio.Task(job.result()))
                waiting.append(asyncio.Task(process.session.generate("a fox", idempotency_key=KEY)))
                await asyncio.sleep(gap_s)
            done, _ = await asyncio.wait(waiting)
            assert {waiter.result().url for waiter in done} == {INLINE}
            assert process.creates == 0


@virtually
async def test_late_waiter_shares_the_next_fetch() -> None:
    """The job has ended, and before its waiter runs, another caller has begun to fetch it by its key."""
    gateway, shared = InlineGateway(job_s=5.0), SharedLedger()
    async with a_process(shared, gateway) as a, a_process(shared, gateway, delay_s=0.1) as b:
        mine = asyncio.Task(a.session.generate("a fox", idempotency_key=KEY))
        await asyncio.sleep(1.0)
        job = await found(b.session, KEY)
        waiting = asyncio.Task(job.result())
        await asyncio.sleep(0.5)
        others = [
            asyncio.Task(b.session.generate("a fox", idempotency_key=KEY))
            async for seen in job.updates()
            if seen.state is JobState.SUCCEEDED
        ]
        done, _ = await asyncio.wait([mine, waiting, *others])
        assert [waiter.result().url for waiter in done] == [INLINE] * 3
        assert b.creates == 0


@virtually
async def test_close_during_the_fetch_ends_the_waiters() -> None:
    gateway, shared = InlineGateway(), SharedLedger()
    await bought_before(shared, gateway)
    gateway.down = 10_000
    async with a_process(shared, gateway) as process:
        job = await found(process.session, KEY)
        waiting = [asyncio.Task(job.result()), asyncio.Task(process.session.generate("a fox", idempotency_key=KEY))]
        await asyncio.sleep(5.0)
    await asyncio.wait(waiting)
    assert all(isinstance(waiter.exception(), SessionClosed) for waiter in waiting)
    with pytest.raises(SessionClosed):
        await job
    assert gateway.sold == 1


@virtually
async def test_cancelled_caller_does_not_end_the_fetch() -> None:
    gateway, shared = InlineGateway(), SharedLedger()
    await bought_before(shared, gateway)
    gateway.down = 3
    async with a_process(shared, gateway) as process:
        job = await found(process.session, KEY)
        waiting = [asyncio.Task(job.result()) for _ in range(2)]
        await asyncio.sleep(0.5)
        waiting[0].cancel()
        assert (await waiting[1]).url == INLINE
        assert waiting[0].cancelled()

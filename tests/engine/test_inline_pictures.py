"""Pictures that came inline are not in the ledger: who wants them later asks the gateway once more."""

import asyncio

import pytest

from nanobanana_async import GenerationResult, JobState, SessionClosed, TaskNotFound, TransportError
from nanobanana_async.errors import UnexpectedResponse
from nanobanana_async.gateways.contract import HttpRequest
from nanobanana_async.testing import Reply
from tests.support.fakes import FakeGateway, defapi, virtually
from tests.support.replies import defapi_done, json_reply, task
from tests.support.shared_ledger import KEY, FakeProcess, SharedLedger, found

INLINE = "data:image/png;base64,iVBORw0KGgo="


class InlineGateway(FakeGateway):
    """Shows its pictures inline, while it has them."""

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


def a_process(book: SharedLedger, shop: InlineGateway, *, delay_s: float = 0.0) -> FakeProcess:
    return FakeProcess(book, shop.answer, session_of=defapi, delay_s=delay_s)


async def bought_before(book: SharedLedger, shop: InlineGateway) -> GenerationResult:
    """Let a session buy the job, and end."""
    async with a_process(book, shop) as process:
        result = await process.session.generate("a fox", idempotency_key=KEY)
        assert (result.url, book.record(KEY).images) == (INLINE, ("",))
        assert (await (await found(process.session, KEY))).url == INLINE
    return result


@pytest.mark.parametrize("way", ["job", "generate"])
@virtually
async def test_a_second_session_gets_them_by_one_query(way: str) -> None:
    shop, book = InlineGateway(), SharedLedger()
    first = await bought_before(book, shop)
    async with a_process(book, shop) as process:
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
    assert shop.sold == 1
    assert INLINE not in str(book.record(KEY))


@virtually
async def test_who_waits_in_another_session_gets_them_by_one_query() -> None:
    shop, book = InlineGateway(job_s=20.0), SharedLedger()
    async with a_process(book, shop) as a, a_process(book, shop) as b:
        mine = asyncio.Task(a.session.generate("a fox", idempotency_key=KEY))
        await asyncio.sleep(1.0)
        assert (await b.session.generate("a fox", idempotency_key=KEY)).url == INLINE
        assert (await mine).url == INLINE
        assert (b.creates, b.queries) == (0, 1)


@virtually
async def test_a_gateway_that_has_them_no_longer_is_asked_each_time_the_job_is_awaited() -> None:
    shop, book = InlineGateway(), SharedLedger()
    await bought_before(book, shop)
    shop.has_them = False
    async with a_process(book, shop) as process:
        job = await found(process.session, KEY)
        for asked in (1, 2):
            with pytest.raises(UnexpectedResponse, match="no longer shows its pictures") as caught:
                await job
            assert (caught.value.key, caught.value.safe_to_repeat, process.queries) == (KEY, False, asked)
        with pytest.raises(UnexpectedResponse):
            await process.session.generate("a fox", idempotency_key=KEY)
        shop.has_them = True
        assert (await job).url == INLINE
        assert process.creates == 0
    assert (shop.sold, book.states()) == (1, {KEY: JobState.SUCCEEDED})


@virtually
async def test_a_gateway_that_has_forgotten_the_task_ends_the_asking_after_a_while() -> None:
    shop, book = InlineGateway(), SharedLedger()
    await bought_before(book, shop)
    shop.knows_the_task = False
    async with a_process(book, shop) as process:
        with pytest.raises(TaskNotFound) as caught:
            await process.session.generate("a fox", idempotency_key=KEY)
        assert not caught.value.safe_to_repeat
        assert process.creates == 0
    assert shop.sold == 1


@virtually
async def test_a_lost_answer_is_asked_for_again() -> None:
    shop, book = InlineGateway(), SharedLedger()
    await bought_before(book, shop)
    shop.down = 3
    async with a_process(book, shop) as process:
        assert (await (await found(process.session, KEY))).url == INLINE
        assert (process.creates, process.queries) == (0, 4)


@virtually
async def test_two_who_wait_share_one_query() -> None:
    shop, book = InlineGateway(), SharedLedger()
    await bought_before(book, shop)
    async with a_process(book, shop) as process:
        one, two = await found(process.session, KEY), await found(process.session, KEY)
        async with asyncio.TaskGroup() as group:
            results = [group.create_task(job.result()) for job in (one, one, two)]
        assert {waiter.result().url for waiter in results} == {INLINE}
        assert process.queries == 1


@pytest.mark.parametrize("delay_s", [0.0, 0.1])
@virtually
async def test_nobody_ever_gets_a_result_without_them_whenever_he_asks(delay_s: float) -> None:
    shop, book = InlineGateway(), SharedLedger()
    await bought_before(book, shop)
    for gap_s in (0.0, 0.01, 0.025, 0.05, 0.1, 0.125, 0.15):
        async with a_process(book, shop, delay_s=delay_s) as process:
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
async def test_a_waiter_who_is_told_late_asks_again_with_whoever_asks_then() -> None:
    """The job has ended, and before its waiter runs, somebody else has begun to ask for it under its key."""
    shop, book = InlineGateway(job_s=5.0), SharedLedger()
    async with a_process(book, shop) as a, a_process(book, shop, delay_s=0.1) as b:
        mine = asyncio.Task(a.session.generate("a fox", idempotency_key=KEY))
        await asyncio.sleep(1.0)
        job = await found(b.session, KEY)
        waiting = asyncio.Task(job.result())
        await asyncio.sleep(0.5)
        others = [
            asyncio.Task(b.session.generate("a fox", idempotency_key=KEY))
            async for state in job.updates()
            if state is JobState.SUCCEEDED
        ]
        done, _ = await asyncio.wait([mine, waiting, *others])
        assert [waiter.result().url for waiter in done] == [INLINE] * 3
        assert b.creates == 0


@virtually
async def test_closing_meanwhile_sends_the_waiters_away() -> None:
    shop, book = InlineGateway(), SharedLedger()
    await bought_before(book, shop)
    shop.down = 10_000
    async with a_process(book, shop) as process:
        job = await found(process.session, KEY)
        waiting = [asyncio.Task(job.result()), asyncio.Task(process.session.generate("a fox", idempotency_key=KEY))]
        await asyncio.sleep(5.0)
    await asyncio.wait(waiting)
    assert all(isinstance(waiter.exception(), SessionClosed) for waiter in waiting)
    with pytest.raises(SessionClosed):
        await job
    assert shop.sold == 1


@virtually
async def test_a_caller_who_gives_up_does_not_disturb_who_stays() -> None:
    shop, book = InlineGateway(), SharedLedger()
    await bought_before(book, shop)
    shop.down = 3
    async with a_process(book, shop) as process:
        job = await found(process.session, KEY)
        waiting = [asyncio.Task(job.result()) for _ in range(2)]
        await asyncio.sleep(0.5)
        waiting[0].cancel()
        assert (await waiting[1]).url == INLINE
        assert waiting[0].cancelled()

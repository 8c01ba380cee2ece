"""The outcomes of a batch: each row once, in order of ending or of the input; invalid rows included."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from nanobanana_async import ImageRequest, Outcome
from nanobanana_async.errors import InvalidRequest, JobFailed, NanoBananaError
from nanobanana_async.testing import FakeTransport
from tests.batch.fakes import CountingInput, PromptGateway, all_of, slots, slowly
from tests.support.fakes import apimall, defapi, virtually
from tests.support.replies import refused
from tests.support.rows import each_row


@virtually
async def test_outcomes_come_as_rows_end() -> None:
    async with apimall(FakeTransport(PromptGateway().answer)) as session:
        outcomes = await all_of(session.generate_many(["60 s", "20 s", "40 s"]))
    assert [outcome.index for outcome in outcomes] == [1, 2, 0]
    assert all(outcome.ok and outcome.result and outcome.job for outcome in outcomes)


@virtually
async def test_ordered_outcomes_come_in_input_order() -> None:
    async with apimall(FakeTransport(PromptGateway().answer)) as session:
        outcomes = await all_of(session.generate_many(["60 s", "20 s", {}, "40 s"], ordered=True))
    assert [outcome.index for outcome in outcomes] == [0, 1, 2, 3]


@virtually
async def test_ordered_batch_buffers_at_most_a_window() -> None:
    input_ = CountingInput()

    def rows() -> Iterator[str]:
        yield "500 s"
        yield from input_

    async with (
        apimall(FakeTransport(PromptGateway().answer), concurrency=slots(10)) as session,
        session.generate_many(rows(), ordered=True) as batch,
    ):
        first = await anext(batch)
        assert first.index == 0
        assert input_.pulled <= 10 + 4 + 8
        assert [(await anext(batch)).index for _ in range(100)] == list(range(1, 101))


@virtually
async def test_rows_may_be_prompts_requests_and_mappings() -> None:
    rows: list[Any] = [
        "a lighthouse",
        ImageRequest("a boat", resolution="2K"),
        {"prompt": "fog", "num_images": 2, "key": "row-3", "metadata": {"customer": 7}},
    ]
    async with apimall(FakeTransport(PromptGateway().answer)) as session:
        outcomes = await all_of(session.generate_many(rows, ordered=True))
    assert [outcome.request for outcome in outcomes] == [
        ImageRequest("a lighthouse"),
        ImageRequest("a boat", resolution="2K"),
        ImageRequest("fog", num_images=2),
    ]
    assert [outcome.metadata for outcome in outcomes] == [None, None, {"customer": 7}]
    assert outcomes[2].key == "row-3"
    assert [outcome.key for outcome in outcomes] == [outcome.unwrap().key for outcome in outcomes]


@virtually
async def test_the_input_may_be_an_async_iterable() -> None:
    async with apimall(FakeTransport(PromptGateway().answer)) as session:
        outcomes = await all_of(session.generate_many(slowly(["one", "two", "three"], 5.0)))
    assert [outcome.index for outcome in outcomes] == [0, 1, 2]


@virtually
async def test_the_input_may_have_no_end() -> None:
    async with (
        apimall(FakeTransport(PromptGateway().answer), concurrency=slots(10)) as session,
        session.generate_many(CountingInput()) as batch,
    ):
        assert len({(await anext(batch)).index for _ in range(300)}) == 300


@virtually
async def test_no_rows_give_no_outcomes() -> None:
    async with apimall(FakeTransport(PromptGateway().answer)) as session:
        assert await all_of(session.generate_many([])) == []
        assert await all_of(session.generate_many(slowly([]), ordered=True)) == []


@each_row(
    ("row", "says"),
    [
        ({"prompt": "fog", "colour": "red", "metadata": 7}, "unknown field colour: the fields are prompt, images"),
        ({"num_images": 2, "metadata": 7}, "a row needs a prompt"),
        ({"prompt": " ", "metadata": 7}, "prompt is empty"),
        ({"prompt": "fog", "num_images": "many", "metadata": 7}, "num_images must be a whole number"),
        ({"prompt": "fog", "key": "with space", "metadata": 7}, "visible ASCII"),
        ({"prompt": "fog", "key": 7.5, "metadata": 7}, "must be text"),
        ({"prompt": "fog", "key": "x" * 256, "metadata": 7}, "1 to 255 characters"),
        ({"prompt": "fog", "output_format": "png", "metadata": 7}, "output_format"),
    ],
)
def test_a_bad_row_is_an_outcome(row: dict[str, Any], says: str) -> None:
    @virtually
    async def goes_on() -> None:
        gateway = PromptGateway()
        async with defapi(FakeTransport(gateway.answer)) as session:
            outcomes = await all_of(session.generate_many(["before", row, "after"], ordered=True))
        bad = outcomes[1]
        assert (bad.index, bad.metadata, bad.result, bad.job, bad.ok) == (1, 7, None, None, False)
        assert isinstance(bad.error, InvalidRequest)
        assert says in str(bad.error)
        assert [outcome.ok for outcome in outcomes] == [True, False, True]
        assert gateway.sold == ["before", "after"]

    goes_on()


@virtually
async def test_row_of_a_wrong_type_is_an_outcome() -> None:
    rows: list[Any] = [None, 5, b"bytes", ["a list"], "a prompt"]
    async with apimall(FakeTransport(PromptGateway().answer)) as session:
        outcomes = await all_of(session.generate_many(rows, ordered=True))
    assert [type(outcome.error) for outcome in outcomes] == [InvalidRequest] * 4 + [type(None)]
    assert "not list" in str(outcomes[3].error)


@virtually
async def test_a_failed_and_a_refused_row_are_outcomes_with_their_jobs() -> None:
    gateway = PromptGateway(says=lambda prompt: refused(451, "blocked", "no") if prompt == "rude" else None)
    async with apimall(FakeTransport(gateway.answer)) as session:
        outcomes = await all_of(session.generate_many(["fine", "fail", "rude"], ordered=True))
    assert [type(outcome.error).__name__ for outcome in outcomes] == ["NoneType", "JobFailed", "PromptBlocked"]
    assert [outcome.job.state.name for outcome in outcomes if outcome.job] == ["SUCCEEDED", "FAILED", "REFUSED"]
    assert [outcome.error.key for outcome in outcomes[1:] if outcome.error] == [o.key for o in outcomes[1:]]
    assert outcomes[0].unwrap() is outcomes[0].result
    with pytest.raises(JobFailed, match="did not work out"):
        outcomes[1].unwrap()


def test_outcome_without_result_or_error_cannot_be_unwrapped() -> None:
    with pytest.raises(RuntimeError, match="row 4 has neither"):
        Outcome(index=3, key="k", request=None).unwrap()


@virtually
async def test_two_rows_with_one_key_share_a_job() -> None:
    gateway = PromptGateway()
    rows = [{"prompt": "fog", "key": "same", "metadata": number} for number in range(2)]
    async with apimall(FakeTransport(gateway.answer)) as session:
        outcomes = await all_of(session.generate_many([*rows, {"prompt": "rain", "key": "same"}], ordered=True))
    assert gateway.sold == ["fog"]
    assert [outcome.metadata for outcome in outcomes] == [0, 1, None]
    assert outcomes[0].result == outcomes[1].result
    assert type(outcomes[2].error).__name__ == "IdempotencyConflict"


@pytest.mark.parametrize("ordered", [False, True])
def test_input_exception_is_raised_after_running_rows(ordered: bool) -> None:
    def rows() -> Iterator[str]:
        yield from ("30 s", "10 s")
        raise KeyError("row 3")

    @virtually
    async def raises_late() -> None:
        async with apimall(FakeTransport(PromptGateway().answer)) as session:
            batch = session.generate_many(rows(), ordered=ordered)
            assert [(await anext(batch)).index for _ in range(2)] == ([0, 1] if ordered else [1, 0])
            with pytest.raises(KeyError, match="row 3"):
                await anext(batch)
            assert (await session.generate("afterwards")).images

    raises_late()


@virtually
async def test_cancelled_input_does_not_end_the_session() -> None:
    async def rows() -> AsyncIterator[str]:
        yield "one"
        gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        gone.cancel()
        await gone

    async with apimall(FakeTransport(PromptGateway().answer)) as session:
        batch = session.generate_many(rows())
        assert (await anext(batch)).ok
        with pytest.raises(NanoBananaError, match="was cancelled"):
            await anext(batch)
        assert (await session.generate("afterwards")).images


@virtually
async def test_several_consumers_share_the_outcomes() -> None:
    taken: list[list[int]] = [[], [], []]

    async def consume(mine: list[int]) -> None:
        async for outcome in batch:
            mine.append(outcome.index)
            await asyncio.sleep(0.5)

    async with apimall(FakeTransport(PromptGateway().answer), concurrency=slots(10)) as session:
        batch = session.generate_many(CountingInput(100))
        async with asyncio.timeout(1000), asyncio.TaskGroup() as group:
            for mine in taken:
                group.create_task(consume(mine))
    assert sorted(taken[0] + taken[1] + taken[2]) == list(range(100))
    assert all(taken)


@virtually
async def test_two_batches_of_one_session_do_not_mix() -> None:
    async with (
        apimall(FakeTransport(PromptGateway().answer), concurrency=slots(10)) as session,
        asyncio.TaskGroup() as group,
    ):
        tasks = [group.create_task(all_of(session.generate_many(CountingInput(40), ordered=True))) for _ in range(2)]
    for one in tasks:
        assert [outcome.index for outcome in one.result()] == list(range(40))


@virtually
async def test_batch_counts_rows() -> None:
    async with apimall(FakeTransport(PromptGateway().answer)) as session:
        batch = session.generate_many(["one", "two"])
        assert repr(batch) == "<Batch without a name: 0 done>"
        await all_of(batch)
        assert (batch.done, batch.unbought) == (2, 0)
        with pytest.raises(StopAsyncIteration):
            await anext(batch)

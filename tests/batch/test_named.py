"""Named batches on disk: a second run buys only what was never bought."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from nanobanana_async import DefApi, JobState
from nanobanana_async.errors import ConfigurationError, IdempotencyConflict, JobFailed, JobUncertain, TransportError
from nanobanana_async.testing import FakeTransport
from tests.batch.fakes import PromptGateway, all_of, on_file, run_batch, slots, transport_to
from tests.support.fakes import apimall, virtually
from tests.support.loopback import until
from tests.support.replies import refused

PROMPTS = [f"image {number}" for number in range(100)]


def quick_studio(**settings: Any) -> PromptGateway:
    return PromptGateway(**{"job_s": 0.01, **settings})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.sqlite"


@pytest.mark.slow
async def test_second_run_repeats_outcomes_without_requests(path: Path) -> None:
    gateway = quick_studio()
    first = await run_batch(path, gateway, PROMPTS)
    polls = gateway.polls.total()
    again = await run_batch(path, gateway, PROMPTS)
    assert len(gateway.posts) == 100
    assert gateway.polls.total() == polls
    assert [outcome.key for outcome in again] == [outcome.key for outcome in first]
    for one, other in zip(first, again, strict=True):
        assert one.unwrap().images == other.unwrap().images
        assert one.unwrap().credits == other.unwrap().credits


@pytest.mark.slow
async def test_inserted_first_row_is_one_purchase(path: Path) -> None:
    gateway = quick_studio()
    await run_batch(path, gateway, PROMPTS)
    outcomes = await run_batch(path, gateway, ["a new first line", *PROMPTS])
    assert gateway.posts[100:] == ["a new first line"]
    assert all(outcome.ok for outcome in outcomes)
    assert len(outcomes) == 101


async def test_the_same_prompt_twice_is_two_jobs_in_any_order(path: Path) -> None:
    gateway = quick_studio()
    rows = ["fog", "fog", "rain", "fog"]
    first = await run_batch(path, gateway, rows)
    assert sorted(gateway.sold) == ["fog", "fog", "fog", "rain"]
    assert len({outcome.unwrap().task_id for outcome in first}) == 4
    await run_batch(path, gateway, rows)
    again = await run_batch(path, gateway, ["rain", "fog", "fog", "fog"], ordered=True)
    assert len(gateway.posts) == 4
    assert {outcome.key for outcome in again} == {outcome.key for outcome in first}


async def test_another_name_is_another_batch(path: Path) -> None:
    gateway = quick_studio()
    await run_batch(path, gateway, ["fog"])
    await run_batch(path, gateway, ["fog"], batch="autumn")
    assert gateway.sold == ["fog", "fog"]


async def test_row_with_a_key_keeps_its_job_at_any_position(path: Path) -> None:
    gateway = quick_studio()
    rows = [{"prompt": "fog", "key": "one"}, {"prompt": "fog", "key": "two"}]
    first = await run_batch(path, gateway, rows)
    again = await run_batch(path, gateway, rows[::-1])
    assert len(gateway.sold) == 2
    assert [outcome.key for outcome in again] == [outcome.key for outcome in first[::-1]]


async def test_key_with_another_request_is_a_conflict(path: Path) -> None:
    gateway = quick_studio()
    await run_batch(path, gateway, [{"prompt": "fog", "key": "one"}])
    outcomes = await run_batch(path, gateway, [{"prompt": "rain", "key": "one"}, "snow"])
    assert isinstance(outcomes[0].error, IdempotencyConflict)
    assert outcomes[1].ok
    assert gateway.sold == ["fog", "snow"]


async def test_running_rows_are_polled_by_the_next_run(path: Path) -> None:
    gateway = PromptGateway(job_s=0.3)
    async with (
        on_file(path, transport_to(gateway)) as session,
        session.generate_many(["one", "two", "three"], batch="spring"),
    ):
        await until(lambda: len(gateway.sold) == 3)
    outcomes = await run_batch(path, gateway, ["one", "two", "three"])
    assert len(gateway.posts) == 3
    assert all(outcome.ok for outcome in outcomes)


@pytest.mark.slow
async def test_unsent_rows_are_bought_by_the_next_run(path: Path) -> None:
    gateway = PromptGateway(job_s=0.05)
    async with on_file(path, transport_to(gateway), concurrency=slots(3)) as session:
        taken = 0
        async for _ in session.generate_many(PROMPTS, batch="spring"):
            taken += 1
            if taken == 5:
                break
    bought = len(gateway.sold)
    assert 5 <= bought <= 12
    outcomes = await run_batch(path, gateway, PROMPTS)
    assert sorted(gateway.sold) == sorted(PROMPTS)
    assert all(outcome.ok for outcome in outcomes)


async def test_failed_row_is_bought_again_only_with_retry_failed(path: Path) -> None:
    gateway = quick_studio()
    first = await run_batch(path, gateway, ["fine", "fail"])
    again = await run_batch(path, gateway, ["fine", "fail"])
    assert [type(outcome.error) for outcome in again] == [type(None), JobFailed]
    assert str(again[1].error) == str(first[1].error)
    assert len(gateway.posts) == 2
    third = await run_batch(path, gateway, ["fine", "fail"], retry_failed=True)
    assert isinstance(third[1].error, JobFailed)
    assert gateway.posts[2:] == ["fail"]
    assert gateway.wire_keys[2] not in gateway.wire_keys[:2]
    assert third[1].key == first[1].key


async def test_a_refused_row_is_bought_again(path: Path) -> None:
    gateway = quick_studio(says=lambda prompt: refused(451, "blocked", "no") if prompt == "rude" else None)
    first = await run_batch(path, gateway, ["fine", "rude"])
    assert [outcome.ok for outcome in first] == [True, False]
    gateway.says = lambda prompt: None
    again = await run_batch(path, gateway, ["fine", "rude"])
    assert [outcome.ok for outcome in again] == [True, True]
    assert gateway.sold == ["fine", "rude"]


async def test_an_uncertain_row_is_reported_and_not_sent(path: Path) -> None:
    def lost(prompt: str) -> TransportError | None:
        return TransportError("the answer was lost", possibly_sent=True) if prompt == "lost" else None

    gateway = quick_studio(says=lost)

    async def run_on_defapi() -> list[Any]:
        async with on_file(path, transport_to(gateway), DefApi) as session:
            return await all_of(session.generate_many(["lost", "fine"], batch="spring", ordered=True))

    first = await run_on_defapi()
    gateway.says = lambda prompt: None
    again = await run_on_defapi()
    for outcomes in (first, again):
        assert isinstance(outcomes[0].error, JobUncertain)
        assert outcomes[0].job.state is JobState.UNCERTAIN
        assert outcomes[1].ok
    assert sorted(gateway.posts) == ["fine", "lost"]


@virtually
async def test_named_batch_needs_a_ledger_on_disk() -> None:
    async with apimall(FakeTransport(PromptGateway().answer)) as session:
        with pytest.raises(ConfigurationError, match="needs a ledger on disk"):
            session.generate_many(["fog"], batch="spring")


@pytest.mark.parametrize("name", ["", "  ", 7])
async def test_invalid_batch_name_is_refused(name: Any, path: Path) -> None:
    async with on_file(path, transport_to(quick_studio())) as session:
        with pytest.raises(ConfigurationError, match="batch must be a non-empty name"):
            session.generate_many(["a fox"], batch=name)


@pytest.mark.parametrize("bad", ["a\0b", "", " ", 5])
async def test_save_to_that_is_no_path_is_refused(path: Path, bad: Any) -> None:
    async with on_file(path, transport_to(quick_studio())) as session:
        with pytest.raises(ConfigurationError, match="save_to must be the path of a folder"):
            session.generate_many(["a fox"], save_to=bad)


@pytest.mark.slow
async def test_two_sessions_at_once_buy_each_row_once(path: Path) -> None:
    gateway = PromptGateway(job_s=0.02)
    async with (
        on_file(path, transport_to(gateway), concurrency=slots(4)) as one,
        on_file(path, transport_to(gateway)) as other,
        asyncio.TaskGroup() as group,
    ):
        runs = [group.create_task(all_of(s.generate_many(PROMPTS[:30], batch="spring"))) for s in (one, other)]
    assert sorted(gateway.sold) == sorted(PROMPTS[:30])
    for run in runs:
        assert sorted(outcome.index for outcome in run.result()) == list(range(30))
        assert all(outcome.ok for outcome in run.result())


@pytest.mark.slow
async def test_two_runs_in_one_session_buy_each_row_once(path: Path) -> None:
    gateway = PromptGateway(job_s=0.02)
    async with on_file(path, transport_to(gateway), concurrency=slots(4)) as session, asyncio.TaskGroup() as group:
        runs = [group.create_task(all_of(session.generate_many(PROMPTS[:30], batch="spring"))) for _ in range(2)]
        await asyncio.wait(runs)
    assert sorted(gateway.sold) == sorted(PROMPTS[:30])
    assert [sum(outcome.ok for outcome in run.result()) for run in runs] == [30, 30]


@pytest.mark.slow
async def test_batch_left_and_run_again_loses_no_row(path: Path) -> None:
    gateway = PromptGateway(job_s=0.02)
    async with on_file(path, transport_to(gateway), concurrency=slots(2)) as session:
        for _ in range(3):
            async with session.generate_many(PROMPTS[:20], batch="spring") as batch:
                await anext(batch)
        outcomes = await all_of(session.generate_many(PROMPTS[:20], batch="spring"))
    assert sorted(outcome.index for outcome in outcomes if outcome.ok) == list(range(20))
    assert sorted(gateway.sold) == sorted(PROMPTS[:20])


async def test_a_batch_knows_its_name(path: Path) -> None:
    async with on_file(path, transport_to(quick_studio())) as session:
        batch = session.generate_many([], batch="spring")
        assert (batch.name, repr(batch)) == ("spring", "<Batch spring: 0 done>")
        assert await all_of(batch) == []


async def test_retry_failed_takes_kinds_and_not_moderation_unless_named(path: Path) -> None:
    gateway = quick_studio()
    rows = ["fail: blocked by the content filter", "fail: no capacity", "fail: it broke"]
    first = await run_batch(path, gateway, rows, ordered=True)
    kinds = [outcome.error.kind for outcome in first if isinstance(outcome.error, JobFailed)]
    assert kinds == ["moderation", "capacity", "unknown"]

    async def bought_again(retry_failed: Any) -> list[str]:
        before = len(gateway.posts)
        await run_batch(path, gateway, rows, retry_failed=retry_failed)
        return sorted(gateway.posts[before:])

    assert await bought_again({"capacity"}) == rows[1:2]
    assert await bought_again(True) == sorted(rows[1:])
    assert await bought_again(["moderation"]) == rows[:1]
    assert await bought_again([]) == await bought_again(False) == []


@pytest.mark.parametrize("wrong", ["capacity", ["weather"], 1, None])
async def test_unknown_kinds_of_failures_are_refused(path: Path, wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"collection of kinds \(capacity, input, moderation, unknown\)"):
        await run_batch(path, quick_studio(), ["a fox"], retry_failed=wrong)

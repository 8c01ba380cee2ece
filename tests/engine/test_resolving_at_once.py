"""resolve() while other calls and sessions decide about the same job: one decision counts, the others get an error."""

import asyncio
from typing import Any

import pytest

from nanobanana_async import ConfigurationError, JobState, JobUncertain
from tests.support.fakes import defapi, virtually
from tests.support.shared_ledger import KEY, FakeProcess, LosingGateway, SharedLedger, two_processes

WAYS: dict[str, dict[str, Any]] = {
    "task_id": {"task_id": "t1"},
    "not_bought": {"not_bought": True},
    "buy_again": {"buy_again": True},
}
SOLD_BY = {"task_id": 1, "not_bought": 1, "buy_again": 2}


async def uncertain(process: FakeProcess, gateway: LosingGateway) -> None:
    gateway.lost_answers = [True]
    with pytest.raises(JobUncertain):
        await process.session.generate("a fox", idempotency_key=KEY)


@pytest.mark.parametrize("later_s", [0.0, 0.03])
@pytest.mark.parametrize("second_way", WAYS)
@pytest.mark.parametrize("first_way", WAYS)
@virtually
async def test_one_of_two_sessions_resolves_and_the_other_learns_it(
    first_way: str, second_way: str, later_s: float
) -> None:
    gateway, shared = LosingGateway(), SharedLedger()
    async with two_processes(shared, gateway.answer, session_of=defapi, delay_s=0.05) as (one, two):
        await uncertain(one, gateway)
        first = asyncio.Task(one.session.resolve(KEY, **WAYS[first_way]))
        await asyncio.sleep(later_s)
        second = asyncio.Task(two.session.resolve(KEY, **WAYS[second_way]))
        await asyncio.wait([first, second])
        won = [way for way, task in ((first_way, first), (second_way, second)) if task.exception() is None]
        (error,) = (task.exception() for task in (first, second) if task.exception() is not None)
        assert isinstance(error, ConfigurationError)
        assert "meanwhile: check it, then resolve it again" in str(error)
        (way,) = won
        await asyncio.sleep(60.0)
        assert shared.record(KEY).state is (JobState.REFUSED if way == "not_bought" else JobState.SUCCEEDED)
        assert gateway.sold == SOLD_BY[way]


@pytest.mark.parametrize("later_s", [0.0, 0.02, 0.05, 0.08])
@virtually
async def test_uncertain_job_is_resolved_while_its_key_is_generated(later_s: float) -> None:
    gateway, shared = LosingGateway(), SharedLedger()
    async with FakeProcess(shared, gateway.answer, session_of=defapi, delay_s=0.05) as process:
        await uncertain(process, gateway)
        generating = asyncio.Task(process.session.generate("a fox", idempotency_key=KEY))
        await asyncio.sleep(later_s)
        job = await process.session.resolve(KEY, not_bought=True)
        assert job.state is JobState.REFUSED
        await asyncio.wait([generating])
        assert generating.exception() is not None
    assert shared.record(KEY).state is JobState.REFUSED
    assert gateway.sold == 1


@virtually
async def test_new_job_that_is_being_stored_has_nothing_to_resolve() -> None:
    gateway, shared = LosingGateway(), SharedLedger()
    async with FakeProcess(shared, gateway.answer, session_of=defapi, delay_s=0.05) as process:
        generating = asyncio.Task(process.session.generate("a fox", idempotency_key=KEY))
        await asyncio.sleep(0.0)
        with pytest.raises(ConfigurationError, match="nothing to resolve"):
            await process.session.resolve(KEY, not_bought=True)
        assert (await generating).task_id == "t1"

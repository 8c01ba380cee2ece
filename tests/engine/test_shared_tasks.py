"""One task for two creates is reported, and another default model is another request."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from nanobanana_async import (
    ApiMall,
    GenerationResult,
    IdempotencyConflict,
    ImageRequest,
    JobFailed,
    JobState,
    JobUncertain,
    Ledger,
    MemoryLedger,
    PostgresLedger,
    Session,
    SqliteLedger,
)
from nanobanana_async.batch.rows import RowInput
from nanobanana_async.testing import FakeTransport
from tests.support.fakes import API_KEY, REAL_TIME, FakeGateway, virtually
from tests.support.postgres import new_schema
from tests.support.replies import completed, created, in_turn, task


def session_on(transport: FakeTransport, ledger: Any, model: str = "nano-banana-pro") -> Session:
    gateway = ApiMall(api_key=API_KEY, model=model, expected_job_s=0.01)
    return Session(gateway, ledger=ledger, http=transport, polling=REAL_TIME)


@pytest.fixture(params=["memory", "file", pytest.param("postgres", marks=pytest.mark.slow)])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Ledger:
    """Return an empty ledger of each kind."""
    if request.param == "postgres":
        return PostgresLedger(request.getfixturevalue("postgres").url, schema=new_schema())
    return MemoryLedger() if request.param == "memory" else SqliteLedger(tmp_path / "jobs.sqlite")


@pytest.mark.parametrize("keys", [("k1", "k2"), (None, None)])
@pytest.mark.parametrize("at_once", [True, False])
async def test_second_create_with_the_same_task_is_uncertain(
    ledger: Ledger, keys: tuple[str | None, str | None], at_once: bool
) -> None:
    transport = FakeTransport(in_turn([created("t1")], [task("processing", "t1"), completed("t1")]), latency_s=0.001)
    async with session_on(transport, ledger) as session:
        one, other = (session.generate(f"image {key}", idempotency_key=key) for key in keys)
        if at_once:
            done, _ = await asyncio.wait([asyncio.Task(one), asyncio.Task(other)])
            outcomes = [each.exception() or each.result() for each in done]
        else:
            first = await one
            with pytest.raises(JobUncertain) as caught:
                await other
            outcomes = [first, caught.value]
        (error,) = [each for each in outcomes if isinstance(each, JobUncertain)]
        (result,) = [each for each in outcomes if isinstance(each, GenerationResult)]
        assert f"task t1, which belongs to job {result.key}" in str(error)
        assert not error.safe_to_repeat
        assert session.stats().credits_spent == 16  # the gateway said so of both
        job = await session.job(error.key or "")
        assert job is not None
        assert job.state is JobState.UNCERTAIN


@virtually
async def test_task_attached_in_doubt_is_shared_with_its_job() -> None:
    gateway = FakeGateway()
    async with session_on(FakeTransport(gateway.answer), None) as session:
        gateway.tasks["t1"], gateway.keys["k"] = 0.0, "t1"
        assert (await (await session.attach("t1"))).task_id == "t1"
        assert (await session.generate("a fox", idempotency_key="k")).task_id == "t1"


async def test_another_default_model_is_another_request(ledger: Ledger) -> None:
    gateway = FakeGateway(job_s=0.01)
    transport = FakeTransport(gateway.answer, latency_s=0.001)
    async with session_on(transport, ledger) as session:
        first = await session.generate("a fox", idempotency_key="k")
        again = await session.generate("a fox", idempotency_key="k", model="nano-banana-pro")
        assert first == again
    async with session_on(transport, ledger, "nano-banana-3-ultra") as session:
        for request in (ImageRequest("a fox"), ImageRequest("a fox", model="nano-banana-3-ultra")):
            with pytest.raises(
                IdempotencyConflict, match="model is nano-banana-pro, not nano-banana-3-ultra"
            ) as caught:
                await session.generate(request, idempotency_key="k")
            assert (caught.value.key, caught.value.safe_to_repeat) == ("k", False)
        same = await session.generate("a fox", idempotency_key="k", model="nano-banana-pro")
        assert same == first
    assert gateway.sold == 1


async def test_named_batch_with_another_default_model_names_both(tmp_path: Path) -> None:
    gateway, path = FakeGateway(job_s=0.01), tmp_path / "jobs.sqlite"
    transport = FakeTransport(gateway.answer, latency_s=0.001)
    rows: list[RowInput] = ["a fox", {"prompt": "a crow", "key": "crow"}]
    async with session_on(transport, path) as session:
        assert [outcome.ok async for outcome in session.generate_many(rows, batch="spring")] == [True, True]
    async with session_on(transport, path, "ultra") as session:
        async for outcome in session.generate_many(rows, batch="spring"):
            assert isinstance(outcome.error, IdempotencyConflict)
            assert "model is nano-banana-pro, not ultra" in str(outcome.error)
        named = [{"prompt": "a fox", "model": "ultra"}]
        assert [outcome.ok async for outcome in session.generate_many(named, batch="spring")] == [True]
    assert gateway.sold == 3


@virtually
async def test_buy_again_keeps_the_model() -> None:
    transport = FakeTransport(in_turn([created("t1"), created("t2")], [task("failed", "t1"), completed("t2")]))
    ledger = MemoryLedger()
    async with session_on(transport, ledger) as session:
        with pytest.raises(JobFailed):
            await session.generate("a fox", idempotency_key="k")
    async with session_on(transport, ledger, "ultra") as session:
        assert (await (await session.resolve("k", buy_again=True))).task_id == "t2"
    assert all(b'"model":"nano-banana-pro"' in (create.body or b"") for create in transport.creates)


@virtually
async def test_key_is_not_attached_to_another_task() -> None:
    gateway = FakeGateway(job_s=50.0)
    async with session_on(FakeTransport(gateway.answer), None) as session:
        job = await session.submit("a fox", idempotency_key="k")
        await job.wait_for_task_id()
        gateway.tasks["t9"] = 0.0
        with pytest.raises(IdempotencyConflict, match="belongs to a job of task t1"):
            await session.attach("t9", key="k", request=job.request)

"""Public values survive pickle, copies and process pools; live jobs become snapshots."""

import asyncio
import concurrent.futures
import copy
import multiprocessing
import pickle
from typing import Any

import pytest

from nanobanana_async import (
    ConfigurationError,
    Job,
    JobFailed,
    JobState,
    JobUnfinished,
    NanoBananaError,
    Outcome,
    SessionStats,
)
from nanobanana_async.events import Event
from nanobanana_async.gateways.contract import HttpRequest
from nanobanana_async.jobs import JobSnapshot
from nanobanana_async.testing import FakeTransport, Reply, run_virtual
from tests.support import replies
from tests.support.fakes import FakeGateway, apimall, virtually


def pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def failing(request: HttpRequest) -> Reply:
    return replies.created("t1") if request.method == "POST" else replies.task("failed", "t1")


async def failure() -> JobFailed:
    async with apimall(FakeTransport(failing)) as session:
        with pytest.raises(JobFailed) as caught:
            await session.generate("a fox", idempotency_key="order-1")
    return caught.value


@virtually
async def test_pickled_error_of_a_live_job_has_a_snapshot() -> None:
    error = await failure()
    again = pickled(error)
    assert type(again) is JobFailed
    assert (str(again), again.key, again.safe_to_repeat) == (str(error), "order-1", True)
    snapshot = again.job
    assert isinstance(snapshot, JobSnapshot)
    assert (snapshot.key, snapshot.task_id, snapshot.state) == ("order-1", "t1", JobState.FAILED)
    assert snapshot.request is not None
    assert snapshot.request.prompt == "a fox"
    assert pickled(snapshot) == snapshot
    with pytest.raises(ConfigurationError, match=r"cannot be awaited: use `await session\.job\(key\)`"):
        await snapshot


@virtually
async def test_copied_error_keeps_the_live_job() -> None:
    async with apimall(FakeTransport(FakeGateway().answer)) as session:
        with pytest.raises(JobUnfinished) as caught:
            await session.generate("a fox", timeout=0.5)
        error = caught.value
        for again in (copy.copy(error), copy.deepcopy(error)):
            assert type(again) is JobUnfinished
            assert str(again) == str(error)
            assert again.job is error.job
            assert (await again.job).task_id == "t1"


@virtually
async def test_public_values_pickle_and_copy() -> None:
    events: list[Event] = []
    async with apimall(FakeTransport(FakeGateway().answer), observers=[events.append]) as session:
        result = await session.generate("a fox")
        good, bad = [outcome async for outcome in session.generate_many(["one", ""], ordered=True)]
        stats = session.stats()
    assert isinstance(good.job, Job)
    assert isinstance(bad.error, NanoBananaError)
    for value in (result, stats, *events):
        assert pickled(value) == copy.deepcopy(value) == copy.copy(value) == value
    assert isinstance(pickled(stats), SessionStats)
    for outcome in (good, bad):
        again = pickled(outcome)
        assert isinstance(again, Outcome)
        assert (again.index, again.key, again.request, again.result) == (
            outcome.index,
            outcome.key,
            outcome.request,
            outcome.result,
        )
        assert str(again.error) == str(outcome.error)
        assert copy.deepcopy(outcome).job is outcome.job
        assert copy.copy(outcome) == outcome
    assert pickled(good).job == JobSnapshot(
        key=good.key,
        task_id=good.job.task_id,
        state=JobState.SUCCEEDED,
        request=good.job.request,
        created_at=good.job.created_at,
        credits=good.job.credits,
        progress=1.0,
    )


def fails_in_a_process() -> None:
    async def work() -> None:
        raise await failure()

    run_virtual(work())


@pytest.mark.slow
def test_error_passes_through_a_process_pool() -> None:
    fresh = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=fresh) as pool:
        error = pool.submit(fails_in_a_process).exception(timeout=50)
    assert isinstance(error, JobFailed)
    assert error.key == "order-1"
    assert isinstance(error.job, JobSnapshot)


@virtually
async def test_copied_job_is_the_same_object() -> None:
    async with apimall(FakeTransport(FakeGateway().answer)) as session:
        job = await session.submit("a fox")
        assert copy.copy(job) is copy.deepcopy(job) is job
        assert pickled(job).state is job.state
        await asyncio.sleep(0)

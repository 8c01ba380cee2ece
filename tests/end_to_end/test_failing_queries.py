"""Polls that fail: the job is not bought again, and its result is found in the end."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from nanobanana_async import (
    AccessDenied,
    AuthenticationError,
    GatewayError,
    GatewayUnavailable,
    Job,
    JobFailed,
    JobState,
    JobUnfinished,
    MemoryLedger,
    RateLimited,
    Session,
    TaskNotFound,
    Timeouts,
    TransportError,
    UnexpectedResponse,
)
from nanobanana_async.emulator import Emulator, Fault, Fixed, faults
from nanobanana_async.engine import resolver
from nanobanana_async.jobs import JobRecord
from tests.support.loopback import (
    BOTH,
    QUERY,
    GatewayName,
    RecordingObserver,
    charged,
    emulated,
    gateway_of,
    quick,
    until,
)

TROUBLE = [
    faults.reset(),
    faults.reset(processed=True),
    faults.stall(0.05),
    faults.cut(),
    faults.cut(sent_share=0.0),
    faults.wrong_length(),
    faults.garbage(),
    faults.garbage(503),
    faults.html(200),
    faults.html(404),
    faults.html(502),
    faults.answer(204),
    faults.answer(302, headers={"Location": "/elsewhere"}),
    faults.answer(599, body=b"odd"),
    faults.answer(200, body=b"[]", headers={"Content-Type": "application/json"}),
    *(faults.error(status, envelope=envelope) for status in (500, 502, 503, 504) for envelope in (True, False)),
    faults.error(404),
    faults.error(429),
    faults.error(429, envelope=False),
]
MANNERS = pytest.mark.parametrize("inside_200", [False, True], ids=["by status", "inside a 200"])


def named(fault: Fault) -> str:
    return f"{fault.name}-{'bare' if fault.body == b'' else fault.status}"


async def asked_again(name: GatewayName, fault: Fault) -> None:
    async with Emulator(duration=Fixed(0.01)) as emulator:
        emulator.queue_faults(QUERY[name], fault, fault)
        async with quick(emulator, name) as session:
            assert (await session.generate("a fox")).images, named(fault)
            assert session.stats().succeeded == 1
        assert charged(emulator.stats(), 1), named(fault)
        assert emulator.stats().creates_received == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", BOTH)
async def test_failed_poll_is_repeated(name: GatewayName) -> None:
    before = asyncio.all_tasks()
    async with asyncio.TaskGroup() as group:
        for fault in TROUBLE:
            group.create_task(asked_again(name, fault))
    assert asyncio.all_tasks() <= before


@pytest.mark.parametrize("name", BOTH)
async def test_poll_timeout_is_repeated(name: GatewayName) -> None:
    async with emulated() as emulator:
        emulator.queue_faults(QUERY[name], faults.stall(30.0))
        async with quick(emulator, name, timeouts=Timeouts(query_s=0.1)) as session:
            assert (await session.generate("a fox")).images
        assert charged(emulator.stats(), 1)


@MANNERS
@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [
        (401, AuthenticationError, "API key required or invalid API key"),
        (403, AccessDenied, "API access not approved"),
    ],
)
@pytest.mark.parametrize("name", BOTH)
async def test_revoked_api_key_ends_the_wait_and_not_the_job(
    name: GatewayName, status: int, kind: type[GatewayError], message: str, inside_200: bool
) -> None:
    ledger = MemoryLedger()
    async with emulated(refusals_in_200=inside_200) as emulator:
        emulator.queue_faults(QUERY[name], faults.error(status, message=message))
        async with quick(emulator, name, ledger=ledger) as session:
            job = await session.submit("a fox")
            with pytest.raises(kind) as caught:
                await job
            error = caught.value
            assert (job.state, error.key, error.safe_to_repeat) == (JobState.RUNNING, job.key, False)
            assert message in error.message
            assert error.status == (200 if inside_200 else status)
            assert error.code is not None
            assert (error.request_id is None) == (name == "defapi")
            assert (await job).images
        assert charged(emulator.stats(), 1)


@pytest.mark.parametrize(
    ("status", "kind", "inside_200"),
    [
        (429, RateLimited, False),
        (500, GatewayUnavailable, False),
        (503, GatewayUnavailable, False),
        (503, GatewayUnavailable, True),
    ],
)
@pytest.mark.parametrize("name", BOTH)
async def test_poll_errors_past_job_s_are_raised_and_the_job_can_be_attached(
    name: GatewayName, status: int, kind: type[GatewayError], inside_200: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolver, "FIRST_WAIT_S", 0.001)  # the other session's attach meets the rest of the faults
    async with emulated(refusals_in_200=inside_200) as emulator:
        emulator.queue_faults(QUERY[name], *[faults.error(status)] * (2 if status == 429 else 8))
        async with quick(emulator, name, timeouts=Timeouts(job_s=0.04)) as session:
            job = await session.submit("a fox")
            with pytest.raises(kind) as caught:
                await job
            error = caught.value
            assert type(error) is kind
            assert (job.state, error.safe_to_repeat) == (JobState.RUNNING, False)
            assert error.status == (200 if inside_200 else status)
            assert error.message
            assert (error.request_id is None) == (name == "defapi")
        async with quick(emulator, name) as another:
            assert job.task_id is not None
            found = await attached(another, job.task_id)
            assert (await found.result(timeout=10)).task_id == job.task_id
        assert charged(emulator.stats(), 1)


@pytest.mark.parametrize("name", BOTH)
async def test_lost_poll_answers_past_job_s_are_raised(name: GatewayName) -> None:
    async with emulated() as emulator:
        emulator.queue_faults(QUERY[name], *[faults.reset()] * 60)
        async with quick(emulator, name, timeouts=Timeouts(job_s=0.15)) as session:
            job = await session.submit("a fox")
            with pytest.raises(TransportError) as caught:
                await job
            assert (job.state, caught.value.safe_to_repeat) == (JobState.RUNNING, False)


async def test_job_past_job_s_raises_job_unfinished() -> None:
    async with emulated(duration=Fixed(30.0)) as emulator, quick(emulator, timeouts=Timeouts(job_s=0.2)) as session:
        job = await session.submit("a fox")
        with pytest.raises(JobUnfinished, match=r"still runs after .* await it again$") as caught:
            await job
        assert isinstance(caught.value, TimeoutError)
        assert (caught.value.job, caught.value.safe_to_repeat) == (job, False)
        assert job.state is JobState.RUNNING


def running(emulator: Emulator, name: GatewayName, task_id: str, *, since_s: float) -> JobRecord:
    """Return the record of a task that was accepted some time ago."""
    gateway = gateway_of(emulator, name)
    since = datetime.now(UTC) - timedelta(seconds=since_s)
    return JobRecord(
        key=f"key-of-{task_id}",
        gateway=gateway.name,
        account=gateway.account,
        request=None,
        body=b"",
        created_at=since,
        state=JobState.RUNNING,
        task_id=task_id,
        running_since=since,
    )


@MANNERS
@pytest.mark.parametrize("name", BOTH)
async def test_old_unknown_task_is_task_not_found(name: GatewayName, inside_200: bool) -> None:
    ledger = MemoryLedger()
    async with emulated(refusals_in_200=inside_200) as emulator:
        await ledger.claim(running(emulator, name, "gone-1", since_s=60))
        async with quick(emulator, name, ledger=ledger) as session:
            job = await session.job("key-of-gone-1")
            assert job is not None
            with pytest.raises(TaskNotFound, match=r"[Tt]ask not found") as caught:
                await job
            assert job.state is JobState.RUNNING
        assert caught.value.status == (200 if inside_200 else 404)
        assert caught.value.safe_to_repeat is False
        assert emulator.stats().requests[QUERY[name]] == 1


@pytest.mark.parametrize("name", BOTH)
async def test_lagging_replica_does_not_lose_the_job(name: GatewayName) -> None:
    listener = RecordingObserver()
    async with emulated(visible_after_s=0.3) as emulator:
        async with quick(emulator, name, observers=[listener]) as session:
            assert (await session.generate("a fox")).images
        assert charged(emulator.stats(), 1)
    assert any(isinstance(error, TaskNotFound) for error in listener.errors)


async def test_waiting_for_an_unknown_task_can_be_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver, "FIRST_WAIT_S", 50.0)
    monkeypatch.setattr(resolver, "LONGEST_WAIT_S", 50.0)
    async with emulated() as emulator, quick(emulator) as session:
        attaching = asyncio.Task(session.attach("img_never"))
        await until(lambda: bool(emulator.stats().requests) and not session.stats().requests_in_flight)
        attaching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await attaching
        await asyncio.sleep(0.1)
        assert emulator.stats().requests["apimall.query"] == 1


async def attached(session: Session, task_id: str) -> Job:
    """Attach a task; repeat the call while the gateway's answer to the confirming query is a fault."""
    while True:
        try:
            return await session.attach(task_id)
        except (GatewayUnavailable, RateLimited, UnexpectedResponse, TransportError):
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("fault", [None, faults.error(503), faults.reset(), faults.garbage()], ids=str)
@pytest.mark.parametrize("name", BOTH)
async def test_attach_buys_nothing(name: GatewayName, fault: Fault | None) -> None:
    async with emulated() as emulator:
        async with quick(emulator, name) as session:
            task_id = await (await session.submit("a fox")).wait_for_task_id()
        emulator.queue_faults(QUERY[name], fault)
        async with quick(emulator, name) as other:
            job = await attached(other, task_id)
            result = await job
            assert (job.key, job.request) == (f"task-{task_id}", None)
        assert (result.task_id, len(result.images)) == (task_id, 1)
        assert charged(emulator.stats(), 1)


@pytest.mark.parametrize("status", [401, 403])
async def test_attach_raises_the_gateways_refusal(status: int) -> None:
    async with emulated() as emulator, quick(emulator) as session:
        emulator.queue_faults("apimall.query", faults.error(status))
        with pytest.raises(AuthenticationError if status == 401 else AccessDenied):
            await session.attach("img_of_another_account")


@pytest.mark.slow
async def test_finished_job_without_images_is_polled_again() -> None:
    async with emulated(images_after_s=0.3) as emulator:
        async with quick(emulator) as session:
            assert (await session.generate("a fox")).images
        assert charged(emulator.stats(), 1)


@pytest.mark.parametrize("name", BOTH)
async def test_unknown_status_does_not_end_a_job(name: GatewayName) -> None:
    words = {"pending": "QUEUED", "processing": "dreaming", "in_progress": "dreaming", "success": "SUCCESS"}
    async with emulated(status_words={**words, "completed": "Completed"}, unknown_status_probability=0.3) as emulator:
        async with quick(emulator, name) as session:
            assert (await session.generate("a fox")).images
        assert charged(emulator.stats(), 1)


@pytest.mark.parametrize("name", BOTH)
async def test_failed_task_has_the_gateways_message(name: GatewayName) -> None:
    async with emulated() as emulator:
        async with quick(emulator, name) as session:
            job = await session.submit("a [fail] fox")
            with pytest.raises(JobFailed, match="could not be generated") as caught:
                await job
            assert caught.value.job.task_id == job.task_id
            assert (job.state, caught.value.safe_to_repeat) == (JobState.FAILED, True)
        assert charged(emulator.stats(), 1)


async def test_failure_is_read_from_each_field_and_shape() -> None:
    async with emulated(failure_field="failMsg", query_shape="top") as emulator:
        async with quick(emulator) as session:
            with pytest.raises(JobFailed, match="could not be generated"):
                await session.generate("a [fail] fox")
        async with quick(emulator, "defapi") as session:
            assert (await session.generate("a fox")).images
            with pytest.raises(JobFailed, match="could not be generated"):
                await session.generate("a [fail] fox")

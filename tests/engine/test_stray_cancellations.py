"""A CancelledError raised by foreign code (observer, transport, ledger, input) affects its own job only."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from nanobanana_async import JobState, LedgerError, NanoBananaError, RetryPolicy, Session
from nanobanana_async.events import Event, JobStateChanged
from nanobanana_async.gateways import Secret
from nanobanana_async.gateways.contract import HttpRequest, HttpResponse
from nanobanana_async.jobs import JobRecord
from nanobanana_async.ledger.base import Claim
from nanobanana_async.testing import FakeTransport
from tests.support.fakes import FakeGateway, RecordingLedger, apimall, defapi, virtually

KEY = "the-bad-one"


def cancelled_result() -> None:
    """Do what foreign code does by mistake: ask a cancelled future for its result."""
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    future.result()


def is_bad(record: JobRecord) -> bool:
    return record.key == KEY


async def others_are_served(session: Session, number: int = 3) -> None:
    """See that the session still works, and that it is still open."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(session.generate(f"fox {place}")) for place in range(number)]
    assert len({task.result().task_id for task in tasks}) == number
    assert "open" in repr(session)


@virtually
async def test_observer_raising_cancelled_error_is_logged_with_the_job(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def observer(event: Event) -> None:
        if isinstance(event, JobStateChanged) and is_bad(event.record):
            cancelled_result()

    async with apimall(FakeTransport(FakeGateway().answer), observers=[observer]) as session:
        result = await session.generate("a fox", idempotency_key=KEY)
        assert result.task_id
        await others_are_served(session)
    failed = [record for record in caplog.records if record.message.startswith("observer.failed")]
    assert {record.__dict__["job"] for record in failed} == {KEY}
    assert all(record.exc_info is not None for record in failed)


@virtually
async def test_observer_cancelling_its_task_affects_one_job(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def observer(event: Event) -> None:
        if isinstance(event, JobStateChanged) and is_bad(event.record) and event.record.state is JobState.SUBMITTING:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()

    gateway = FakeGateway()
    async with apimall(FakeTransport(gateway.answer), observers=[observer]) as session:
        with pytest.raises(NanoBananaError, match="was cancelled") as caught:
            await session.generate("a fox", idempotency_key=KEY)
        assert caught.value.safe_to_repeat is False
        await others_are_served(session)
        job = await session.job(KEY)
        assert job is not None
        assert (await job).task_id  # it goes on when it is awaited again, under its key
    assert len(gateway.tasks) == 4
    assert any(record.__dict__.get("job") == KEY for record in caplog.records if record.levelno == logging.ERROR)


class Cancelling(FakeTransport):
    """A transport in which one request is cancelled from within."""

    def __init__(self, gateway: FakeGateway, method: str, *, after: bool) -> None:
        super().__init__(gateway.answer)
        self._method = method
        self._after = after
        self.left = 1

    async def send(self, request: HttpRequest, *, timeout_s: float, fresh_connection: bool = False) -> HttpResponse:
        bad = self.left > 0 and request.method == self._method
        self.left -= bad
        if bad and not self._after:
            cancelled_result()
        answer = await super().send(request, timeout_s=timeout_s, fresh_connection=fresh_connection)
        if bad:
            cancelled_result()
        return answer


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("method", ["POST", "GET"])
@virtually
async def test_request_cancelled_in_the_transport_is_a_lost_answer(method: str, after: bool) -> None:
    gateway = FakeGateway()
    async with apimall(Cancelling(gateway, method, after=after)) as session:
        result = await session.generate("a fox", idempotency_key=KEY)
        assert result.key == KEY
        await others_are_served(session)
    assert len(gateway.tasks) == 4


@virtually
async def test_cancelled_unkeyed_create_is_uncertain_and_not_repeated() -> None:
    gateway = FakeGateway()
    async with defapi(Cancelling(gateway, "POST", after=True)) as session:
        with pytest.raises(NanoBananaError) as caught:
            await session.generate("a fox", idempotency_key=KEY)
        assert caught.value.safe_to_repeat is False
        await others_are_served(session)
    assert len(gateway.tasks) == 4


class Broken(RecordingLedger):
    """A third-party ledger in which a call fails for one job."""

    def __init__(self, method: str, failure: type[BaseException]) -> None:
        super().__init__()
        self._method = method
        self._failure = failure
        self.left = 1

    def _fail(self, method: str, key: str) -> None:
        if method == self._method and key == KEY and self.left:
            self.left -= 1
            raise self._failure

    async def claim(self, record: JobRecord) -> Claim:
        self._fail("claim", record.key)
        return await super().claim(record)

    async def advance(self, before: JobRecord, after: JobRecord) -> None:
        self._fail(after.state.name, before.key)
        await super().advance(before, after)


@pytest.mark.parametrize("failure", [asyncio.CancelledError, OSError])
@pytest.mark.parametrize("method", ["claim", "SUBMITTING", "RUNNING", "SUCCEEDED"])
@virtually
async def test_ledger_raising_cancelled_error_affects_one_job(method: str, failure: type[BaseException]) -> None:
    gateway = FakeGateway()
    async with apimall(FakeTransport(gateway.answer), ledger=Broken(method, failure)) as session:
        if method == "SUCCEEDED":  # what was paid for is handed over all the same
            assert (await session.generate("a fox", idempotency_key=KEY)).task_id
        else:
            with pytest.raises(NanoBananaError) as caught:
                await session.generate("a fox", idempotency_key=KEY)
            if method == "RUNNING":  # accepted: the task id is not lost
                assert isinstance(caught.value, LedgerError)
                assert caught.value.task_id == "t1"
        await others_are_served(session)


class Miscounting(RecordingLedger):
    async def count_foreign_slots(self, account: str, *, since: Any = None) -> int:
        cancelled_result()
        return 0

    async def take_notices(self) -> Any:
        cancelled_result()


@virtually
async def test_other_session_tasks_survive_a_cancelled_error(caplog: pytest.LogCaptureFixture) -> None:
    async with apimall(FakeTransport(FakeGateway(job_s=5.0).answer), ledger=Miscounting()) as session:
        session._callback_router.enable("https://app.example", Secret("s" * 16))
        await others_are_served(session)
        assert session.stats().succeeded == 3
    assert "ledger.failed" in caplog.text
    assert "engine.crashed task=beside" in caplog.text


@virtually
async def test_session_survives_the_cancellation_of_its_tasks() -> None:
    async with apimall(FakeTransport(FakeGateway().answer)) as session:
        await others_are_served(session)  # idle workers wait for their next step now
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            if "SessionLifecycle._run" not in repr(task):
                task.cancel()
        await others_are_served(session)


@virtually
async def test_bar_raising_cancelled_error_ends_the_bar_only(monkeypatch: pytest.MonkeyPatch) -> None:
    class Bar:
        def __init__(self, **_: object) -> None:
            cancelled_result()

    monkeypatch.setattr("nanobanana_async.batch.progress._tqdm", lambda: Bar)
    async with apimall(FakeTransport(FakeGateway().answer)) as session:
        outcomes = [outcome async for outcome in session.generate_many(["one", "two"], progress=True)]
        assert all(outcome.ok for outcome in outcomes)
        await others_are_served(session)


@virtually
async def test_input_raising_cancelled_error_ends_its_batch_only() -> None:
    async def rows() -> AsyncIterator[str]:
        yield "one"
        cancelled_result()

    async with apimall(FakeTransport(FakeGateway().answer)) as session:
        with pytest.raises(NanoBananaError, match="cancelled"):
            async for _ in session.generate_many(rows()):
                pass
        await others_are_served(session)


@virtually
async def test_saver_raising_cancelled_error_is_a_row_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def save(*_: object) -> None:
        cancelled_result()

    monkeypatch.setattr("nanobanana_async.image_saver.ImageSaver.save", save)
    async with apimall(FakeTransport(FakeGateway().answer)) as session:
        outcomes = [outcome async for outcome in session.generate_many(["one", "two"], save_to=tmp_path)]
        assert [outcome.result is not None and outcome.error is not None for outcome in outcomes] == [True, True]
        await others_are_served(session)
    assert caplog.text.count("batch.crashed row=") == 2


class Unopenable(RecordingLedger):
    def __init__(self, method: str) -> None:
        super().__init__()
        self._method = method

    async def open(self) -> None:
        if self._method == "open":
            cancelled_result()
        await super().open()

    async def aclose(self) -> None:
        await super().aclose()
        if self._method == "aclose":
            cancelled_result()


@virtually
async def test_cancelled_error_at_open_or_close_does_not_cancel_caller() -> None:
    session = apimall(FakeTransport(FakeGateway().answer), ledger=Unopenable("open"))
    with pytest.raises(NanoBananaError, match="was cancelled from within"):
        await session.open()
    session = apimall(FakeTransport(FakeGateway().answer), ledger=Unopenable("aclose"))
    await session.open()
    await others_are_served(session)
    with pytest.raises(NanoBananaError, match="was cancelled from within"):
        await session.aclose()
    assert repr(session) == "<Session apimall closed>"


@virtually
async def test_failing_log_handler_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            raise asyncio.CancelledError

    refusing = Refusing()
    log = logging.getLogger("nanobanana_async")
    monkeypatch.setattr(log, "level", logging.DEBUG)
    log.addFilter(refusing)
    try:
        async with apimall(FakeTransport(FakeGateway().answer)) as session:
            await others_are_served(session)
    finally:
        log.removeFilter(refusing)


@virtually
async def test_loop_shutdown_still_ends_the_session() -> None:
    session = apimall(FakeTransport(FakeGateway(job_s=50.0).answer), retry=RetryPolicy())
    await session.open()
    caller = asyncio.Task(session.generate("a fox"))
    await asyncio.sleep(1.0)
    for task in asyncio.all_tasks() - {asyncio.current_task()}:  # as asyncio.run does
        task.cancel()
    with pytest.warns(ResourceWarning, match="never closed"):
        await asyncio.sleep(20.0)
    assert caller.cancelled()
    assert repr(session) == "<Session apimall closed>"

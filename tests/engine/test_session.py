"""Opening and closing a session: in other tasks and scopes, with failures, twice, and at once."""

import asyncio

import anyio
import pytest

from nanobanana_async import ApiMall, ConfigurationError, LedgerError, MemoryLedger, Session, SessionClosed
from nanobanana_async.events import Event
from nanobanana_async.gateways.contract import HttpRequest, HttpResponse
from nanobanana_async.testing import FakeTransport, Reply, run_virtual
from tests.support.fakes import API_KEY, FakeGateway, RecordingLedger, apimall, now, virtually


class LifecycleTransport(FakeTransport):
    """Counts how often it was opened and closed; may fail or hang at opening."""

    def __init__(self, *, fails: Exception | None = None, hangs: bool = False) -> None:
        super().__init__(FakeGateway().answer)
        self.opened = self.closed = 0
        self._fails = fails
        self._hangs = hangs

    async def open(self) -> None:
        if self._hangs:
            await asyncio.sleep(1e6)
        if self._fails is not None:
            raise self._fails
        self.opened += 1

    async def aclose(self) -> None:
        self.closed += 1


@virtually
async def test_session_opens_in_one_task_and_closes_in_another() -> None:
    session = apimall(transport := LifecycleTransport())
    await asyncio.Task(session.open())
    result = await asyncio.Task(session.generate("a fox"))
    await asyncio.Task(session.aclose())
    assert result.task_id == "t1"
    assert (transport.opened, transport.closed) == (1, 1)


@virtually
async def test_session_opens_and_closes_in_different_anyio_groups() -> None:
    session = apimall(transport := LifecycleTransport())
    async with anyio.create_task_group() as group:
        group.start_soon(session.open)
    async with anyio.create_task_group() as group:
        group.start_soon(session.generate, "a fox")
    async with anyio.create_task_group() as group:
        group.start_soon(session.aclose)
        group.start_soon(session.aclose)
    assert (transport.opened, transport.closed) == (1, 1)


@virtually
async def test_session_outlives_the_scope_that_opened_it() -> None:
    session = apimall(LifecycleTransport())
    with anyio.CancelScope() as scope:
        await session.open()
        scope.cancel()
    assert (await session.generate("a fox")).task_id == "t1"
    await session.aclose()


@virtually
async def test_close_is_idempotent_and_concurrent() -> None:
    session = apimall(transport := LifecycleTransport())
    async with asyncio.TaskGroup() as group:
        group.create_task(session.aclose())
    await session.aclose()
    session = apimall(transport)
    await session.open()
    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(session.aclose())
    await session.aclose()
    assert (transport.opened, transport.closed) == (1, 1)
    assert repr(session) == "<Session apimall closed>"


@virtually
async def test_second_open_and_reopen_are_refused() -> None:
    session = apimall(LifecycleTransport())
    async with session:
        assert repr(session) == "<Session apimall open, 0 jobs held>"
        with pytest.raises(ConfigurationError, match="opened before"):
            await session.open()
        assert (await session.generate("a fox")).task_id == "t1"
    with pytest.raises(ConfigurationError, match="make a new one"):
        await session.open()
    never = apimall(LifecycleTransport())
    await never.aclose()
    with pytest.raises(ConfigurationError, match="opened before"):
        await never.open()


@virtually
async def test_only_stats_work_after_closing() -> None:
    async with apimall(FakeTransport(FakeGateway().answer)) as session:
        await session.generate("a fox")
    for attempt in (session.generate("x"), session.submit("x"), session.job("x"), session.attach("x")):
        with pytest.raises(SessionClosed):
            await attempt
    assert (session.stats().succeeded, session.stats().slots_held, session.stats().requests_in_flight) == (1, 0, 0)


@virtually
async def test_exception_in_the_body_closes_and_propagates() -> None:
    transport = LifecycleTransport()
    session = apimall(transport)

    async def body() -> None:
        async with session:
            await session.submit("a fox")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await body()
    assert transport.closed == 1
    with pytest.raises(SessionClosed):
        await session.submit("a fox")


class Unopenable(RecordingLedger):
    async def open(self) -> None:
        raise LedgerError("the file is locked")


@virtually
async def test_failed_ledger_open_is_raised_and_leaves_nothing_open() -> None:
    session = apimall(transport := LifecycleTransport(), ledger=Unopenable())
    with pytest.raises(LedgerError, match="the file is locked"):
        await session.open()
    assert (transport.opened, transport.closed) == (0, 0)
    with pytest.raises(SessionClosed):
        await session.generate("a fox")
    await session.aclose()


@virtually
async def test_failed_transport_open_is_raised_and_closes_the_ledger() -> None:
    ledger = RecordingLedger()
    with pytest.raises(ConfigurationError, match="the lent session is closed"):
        async with apimall(LifecycleTransport(fails=ConfigurationError("the lent session is closed")), ledger=ledger):
            pytest.fail("it was not opened")
    assert ledger.closed == 1


@virtually
async def test_hanging_open_can_be_cancelled() -> None:
    ledger = RecordingLedger()
    session = apimall(LifecycleTransport(hangs=True), ledger=ledger)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(5.0):
            await session.open()
    assert now() == pytest.approx(5.0)
    assert ledger.closed == 1


@pytest.mark.parametrize("moment", [None, 0.0, 5.0])
@virtually
async def test_close_during_open_fails_the_opener(moment: float | None) -> None:
    session = apimall(LifecycleTransport(hangs=True), ledger=RecordingLedger())
    opener = asyncio.Task(session.open())
    if moment is None:
        closer = asyncio.Task(session.aclose())  # it runs before the session's own task has begun
        await asyncio.wait([closer])
    else:
        await asyncio.sleep(moment)
        await session.aclose()
    with pytest.raises(SessionClosed):
        await opener


@virtually
async def test_raising_observer_does_not_affect_the_job() -> None:
    events: list[Event] = []

    def broken(_: Event) -> None:
        raise ZeroDivisionError

    async with apimall(FakeTransport(FakeGateway().answer), observers=[broken, events.append]) as session:
        assert (await session.generate("a fox")).task_id == "t1"
    assert len(events) >= 5


def test_constructor_needs_no_loop_and_environment_only_without_gateway(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DEFAPI_API_KEY", API_KEY)
    monkeypatch.delenv("APIMALL_API_KEY", raising=False)
    monkeypatch.delenv("NANOBANANA_GATEWAY", raising=False)
    assert repr(Session()) == "<Session defapi not open>"
    monkeypatch.delenv("DEFAPI_API_KEY")
    with pytest.raises(ConfigurationError, match="no gateway"):
        Session()
    assert repr(Session(ApiMall(api_key=API_KEY), ledger=MemoryLedger())) == "<Session apimall not open>"


def test_ledger_used_on_another_loop_can_be_reused() -> None:
    ledger, gateway = RecordingLedger(), FakeGateway(job_s=5.0)

    async def begin() -> None:
        async with apimall(FakeTransport(gateway.answer), ledger=ledger) as session:
            await (await session.submit("a fox", idempotency_key="order-1")).wait_for_task_id()

    async def go_on() -> str:
        async with apimall(FakeTransport(gateway.answer), ledger=ledger) as session:
            job = await session.job("order-1")
            assert job is not None
            return (await job).task_id

    run_virtual(begin())
    assert run_virtual(go_on()) == "t1"


@virtually
async def test_unanswered_request_ends_at_its_timeout() -> None:
    class Silent(FakeTransport):
        async def send(self, request: HttpRequest, *, timeout_s: float, fresh_connection: bool = False) -> HttpResponse:
            waits.append((request.method, timeout_s))
            return await super().send(request, timeout_s=timeout_s, fresh_connection=fresh_connection)

    waits = list[tuple[str, float]]()
    gateway = FakeGateway()

    def answer(request: HttpRequest) -> Reply:
        return gateway.answer(request)

    async with apimall(Silent(answer)) as session:
        await session.generate("a fox")
    assert waits == [("POST", 120.0), ("GET", 15.0)]

"""A session that is never closed gives one ResourceWarning and prints nothing else."""

import asyncio
import gc
import warnings
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from nanobanana_async import ConfigurationError, Session
from nanobanana_async.testing import FakeTransport, VirtualLoop, run_virtual
from tests.support.fakes import FakeGateway, RecordingLedger, apimall

Said = list[warnings.WarningMessage]


def warnings_while(action: Callable[[], Any]) -> list[str]:
    """Return what is warned of while something runs, and while all that it left behind is collected."""
    gc.freeze()  # what earlier tests left behind is not this action's; conftest.py has frozen most of it already
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        action()
        for _ in range(3):
            gc.collect()
    assert all(warning.category is ResourceWarning for warning in said)
    return [str(warning.message) for warning in said]


SENTENCE = "<Session apimall> was never closed: use 'async with Session(...)', or await session.aclose()"


async def forgets_at_once() -> None:
    await apimall(FakeTransport(FakeGateway().answer)).open()
    gc.collect()
    await asyncio.sleep(10.0)


async def forgets_after_work() -> None:
    session = apimall(FakeTransport(FakeGateway().answer))
    await session.open()
    await session.generate("a fox")
    await (await session.submit("another")).wait_for_task_id()


async def forgets_during_a_post() -> None:
    session = apimall(FakeTransport(FakeGateway().answer, latency_s=9.0))
    await session.open()
    await session.submit("a fox")
    await asyncio.sleep(1.0)


async def forgets_while_callers_wait() -> None:
    session = apimall(FakeTransport(FakeGateway(limit=1, job_s=99.0).answer))
    await session.open()
    waiting = [asyncio.Task(session.generate(f"fox {number}")) for number in range(5)]
    await asyncio.sleep(10.0)
    assert not any(caller.done() for caller in waiting)


async def fails() -> None:
    session = apimall(FakeTransport(FakeGateway().answer))
    await session.open()
    raise ZeroDivisionError


@pytest.mark.parametrize(
    "forgetful", [forgets_at_once, forgets_after_work, forgets_during_a_post, forgets_while_callers_wait]
)
def test_unclosed_session_warns_once_at_loop_end(
    forgetful: Callable[[], Coroutine[Any, Any, None]],
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert warnings_while(lambda: run_virtual(forgetful())) == [SENTENCE]
    assert not caplog.records
    assert capsys.readouterr() == ("", "")


def test_unclosed_session_warns_once_when_the_program_fails(caplog: pytest.LogCaptureFixture) -> None:
    def failing() -> None:
        with pytest.raises(ZeroDivisionError):
            run_virtual(fails())

    assert warnings_while(failing) == [SENTENCE]
    assert not caplog.records


def test_session_collected_after_its_loop_warns_once(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    def abandon() -> None:
        loop = VirtualLoop()
        session = apimall(FakeTransport(FakeGateway().answer))
        loop.run_until_complete(session.open())
        loop.run_until_complete(session.generate("a fox"))
        loop.close()

    assert warnings_while(abandon) == [SENTENCE]
    assert not caplog.records
    assert capsys.readouterr() == ("", "")


def test_lost_session_warns_and_its_jobs_continue() -> None:
    gateway = FakeGateway()

    async def begin() -> Any:
        session = apimall(FakeTransport(gateway.answer))
        await session.open()
        return await session.submit("a fox")

    async def main() -> None:
        job = await begin()
        assert (await job).task_id == "t1"

    assert warnings_while(lambda: run_virtual(main())) == [SENTENCE]


def test_ledger_of_an_unclosed_session_is_closed() -> None:
    ledger = RecordingLedger()

    async def forget() -> None:
        await apimall(FakeTransport(FakeGateway().answer), ledger=ledger).open()

    assert warnings_while(lambda: run_virtual(forget())) == [SENTENCE]
    assert ledger.closed == 1


def closed_properly() -> None:
    async def main() -> None:
        async with apimall(FakeTransport(FakeGateway().answer)) as session:
            await session.generate("a fox")

    run_virtual(main())


def never_opened() -> None:
    apimall(FakeTransport(FakeGateway().answer))


def never_built() -> None:
    with pytest.raises(ConfigurationError):
        Session(nonsense=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("innocent", [closed_properly, never_opened, never_built])
def test_closed_or_unopened_session_does_not_warn(innocent: Callable[[], None]) -> None:
    assert warnings_while(innocent) == []


def test_warning_as_error_is_raised_after_closing(caplog: pytest.LogCaptureFixture) -> None:
    ledger, kept = RecordingLedger(), list[Session]()

    async def forget() -> None:
        kept.append(apimall(FakeTransport(FakeGateway().answer), ledger=ledger))
        await kept[0].open()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_virtual(forget())
    assert ledger.closed == 1
    (line,) = caplog.records
    assert line.exc_info is not None
    assert isinstance(line.exc_info[1], ResourceWarning)

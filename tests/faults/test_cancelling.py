"""Each call is cancelled at some of its steps; `python -m tests.faults cancel` cancels it at every one."""

import asyncio
import sys
from typing import Any

import pytest

from tests.faults.calls import CALLS, Call
from tests.faults.cancelling import Case, Loop, run_case, socket_cases, virtual_cases
from tests.faults.stepping import Step

pytest.importorskip("python_multipart", reason="the extra serve is missing: pip install -e '.[serve]'")

EVERY: dict[Step, int] = {"turn": 47, "await": 7}
OVER_SOCKETS: dict[Loop, int] = {"asyncio": 8, "uvloop": 16}


@pytest.fixture
def _soon_recounted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that others left jobs to counts their slots again after seconds."""
    monkeypatch.setattr("nanobanana_async.engine.foreign_slots.FOREIGN_RECOUNT_S", 0.05)


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.usefixtures("quiet_log")
@pytest.mark.parametrize("call", [name for name, call in CALLS.items() if not call.needs_sockets])
def test_call_cancelled_on_virtual_time_loses_and_repeats_nothing(call: str) -> None:
    breaches = []
    for number, case in enumerate(each for each in virtual_cases() if each.call == call):
        every = EVERY[case.step]
        cancellations, found = run_case(case, first=1 + number % 4, every=every)
        assert cancellations or case.step == "await", f"{case} was never cancelled"
        breaches += found
    assert breaches == []


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.usefixtures("quiet_log", "_soon_recounted")
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("call", CALLS)
def test_call_cancelled_over_sockets_loses_and_repeats_nothing(call: str, loop: Loop) -> None:
    if loop == "uvloop" and sys.platform == "win32":
        pytest.skip("uvloop has no form for Windows")
    cases = [each for each in socket_cases() if (each.call, each.loop, each.gateway) == (call, loop, "apimall")]
    assert len(cases) == 4
    for number, case in enumerate(cases):
        cancellations, breaches = run_case(case, first=1 + number, every=OVER_SOCKETS[loop])
        assert breaches == []
        assert cancellations or case.step == "await", f"{case} was never cancelled"


# Controls: calls with deliberate bugs


async def _twice(_: object, session: Any) -> None:
    await session.generate("a fox")  # without a key of its own


async def _leaving_a_task(_: object, session: Any) -> None:
    asyncio.get_running_loop().create_task(asyncio.sleep(1e6))
    await session.generate("a fox", idempotency_key="order-1")


async def _ending_others(_: object, session: Any) -> None:
    try:
        await session.generate("a fox", idempotency_key="order-1")
    except BaseException:
        await session.aclose()
        raise


@pytest.mark.parametrize(
    ("call", "says"),
    [(_twice, "3 jobs were bought"), (_leaving_a_task, "tasks are left"), (_ending_others, "another caller was ended")],
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_bug_of_a_cancelled_call_is_found(monkeypatch: pytest.MonkeyPatch, call: Any, says: str) -> None:
    monkeypatch.setitem(CALLS, "wrong", Call(jobs=1, run=call, again=call))
    _, breaches = run_case(Case(call="wrong", gateway="apimall", way="asyncio"), first=5, every=10)
    assert says in "\n".join(breaches)

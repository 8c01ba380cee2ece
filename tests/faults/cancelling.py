"""Cancel each call at each of its steps, and count what is lost: `python -m tests.faults cancel`.

A case is one call, one gateway, one way to cancel and one kind of step. On virtual time a step is a turn of the event
loop or an `await`. Over sockets (with the emulator, a ledger in a file and images in a folder, on asyncio's loop and on
uvloop) the loop turns thousands of times meanwhile: there it is cancelled at turns ever further apart. After each
cancellation all must come to rest, and the call is made again: every job must have been bought exactly once.
"""

import asyncio
import itertools
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from attrs import define, field, frozen

from nanobanana_async import ConcurrencyPolicy, JobState, JobUncertain, Session, SessionClosed, TransportError
from nanobanana_async.emulator import Emulator
from nanobanana_async.gateways.contract import HttpRequest
from nanobanana_async.images.formats import verify_image
from nanobanana_async.testing import FakeTransport, Reply
from tests.faults.calls import CALLS, Call, Stage
from tests.faults.stepping import Step, SteppingLoop, Way, cancelled_at
from tests.support.disk import memory_folder
from tests.support.fakes import FakeGateway, apimall, defapi
from tests.support.loopback import BOTH, GatewayName, emulated, quick, until
from tests.support.shared_ledger import LedgerView, SharedLedger

LOST = TransportError("the connection was reset", possibly_sent=True)
TWO = ConcurrencyPolicy(max_jobs=2, learn=False)
Loop = Literal["virtual", "asyncio", "uvloop"]
MOST_STEPS = 10**7
GROWTH = 1.25
"""How much later each turn is than the one before, over sockets."""


@frozen(kw_only=True)
class Case:
    """What is cancelled, and how."""

    call: str
    gateway: GatewayName
    way: Way
    step: Step = "turn"
    loop: Loop = "virtual"
    trouble: bool = False
    """The answers to the first two creates are lost."""

    def __str__(self) -> str:
        return f"{self.call} on {self.gateway}, {self.way}, {self.step}s, {self.loop}{', answers lost' * self.trouble}"


@define
class VirtualStage(Stage):
    """Sessions on virtual time, with one fake gateway and one ledger in memory."""

    case: Case
    gateway: FakeGateway = field(factory=FakeGateway)
    ledger: SharedLedger = field(factory=SharedLedger)
    posts: Counter[str | None] = field(factory=Counter)
    lost: int = 0

    def make(self) -> Session:
        session_of = apimall if self.case.gateway == "apimall" else defapi
        return session_of(FakeTransport(self._answer), ledger=LedgerView(self.ledger, delay_s=0.03), concurrency=TWO)

    def _answer(self, request: HttpRequest) -> Reply:
        reply = self.gateway.answer(request)
        if request.method == "POST":
            self.posts[request.headers.get("Idempotency-Key")] += 1
            if self.case.trouble and self.lost < 2:
                self.lost += 1
                return LOST
        return reply

    async def rest(self, session: Session) -> None:
        await asyncio.sleep(600.0)

    def breaches(self, wanted: int) -> Iterator[str]:
        known = {row.record.task_id for row in self.ledger.rows.values()}
        lost = set(self.gateway.tasks) - known
        if lost and not (self.case.trouble and self.case.gateway == "defapi"):
            yield f"task ids {lost} are in no record"
        if self.gateway.sold != wanted:
            yield f"{self.gateway.sold} jobs were bought, wanted {wanted}"
        if not self.case.trouble and self.posts.total() != wanted:
            yield f"{self.posts.total()} creates were sent for {wanted} jobs"
        states = set(self.ledger.states().values())
        allowed = {JobState.SUCCEEDED} | ({JobState.UNCERTAIN} if self.case.trouble else set())
        if not states <= allowed:
            yield f"jobs are left in {states - allowed}"


@define
class SocketStage(Stage):
    """Sessions on the emulator, with one ledger in a file and one folder of images."""

    case: Case
    emulator: Emulator
    root: Path

    def make(self) -> Session:
        return quick(self.emulator, self.case.gateway, ledger=self.root / "jobs.sqlite", concurrency=TWO)

    async def rest(self, session: Session) -> None:
        def at_rest() -> bool:
            stats = session.stats()
            return (stats.slots_held, stats.queued, stats.requests_in_flight) == (0, 0, 0)

        await until(at_rest, timeout_s=20.0)

    def breaches(self, wanted: int) -> Iterator[str]:
        stats = self.emulator.stats()
        if (stats.creates_accepted, stats.creates_received) != (wanted, wanted):
            yield f"{stats.creates_received} creates, {stats.creates_accepted} jobs, wanted {wanted}"
        yield from _damaged(self.images)
        saved = len([*self.images.glob("*.png")]) if self.images.exists() else 0
        if saved != CALLS[self.case.call].images:
            yield f"{saved} images are in the folder"

    @property
    def images(self) -> Path:
        return self.root / "images"


def _damaged(folder: Path) -> Iterator[str]:
    for file in sorted(folder.glob("**/*")) if folder.exists() else []:
        if file.suffix == ".png":
            verify_image(file.read_bytes())
        elif file.name not in ("SHA256SUMS", "metadata.jsonl"):
            yield f"{file.name} is left in the folder"


async def cancel_once(stage: Stage, case: Case, number: int) -> tuple[bool, list[str]]:
    """Cancel the call at its n-th step; return whether it has so many, and what went wrong."""
    call, sockets = CALLS[case.call], open_sockets()
    breaches: list[str] = []
    before = asyncio.all_tasks()
    await _prepare(stage, call)
    session = None if call.opens_itself else await _opened(stage)
    bystander = None if session is None else asyncio.Task(_bystander(session))
    if session is not None:
        await call.before(session)
    reached = await cancelled_at(lambda: call.run(stage, session), number, way=case.way, step=case.step)
    if session is not None:
        assert bystander is not None
        await asyncio.wait([bystander])
        if bystander.result() == "closed" and not call.closes:
            breaches.append("another caller was ended too")
        if not call.closes:
            await stage.rest(session)
            stats = session.stats()
            if (stats.slots_held, stats.queued, stats.requests_in_flight) != (0, 0, 0):
                breaches.append(f"leaked: {stats}")
        await session.aclose()
    if isinstance(stage, SocketStage):
        await stage.emulator.wait_for_no_connections()
        breaches += _damaged(stage.images)
        if open_sockets() > sockets:
            breaches.append(f"{open_sockets()} sockets are open, {sockets} before")
    if left := asyncio.all_tasks() - before:
        breaches.append(f"tasks are left: {left}")
    async with stage.make() as again:
        await _bystander(again)
        await call.again(stage, again)
        await stage.rest(again)
    return reached, [*breaches, *stage.breaches(call.jobs + 1)]


async def _prepare(stage: Stage, call: Call) -> None:
    if call.earlier is not None:
        async with stage.make() as earlier:
            await call.earlier(earlier)


async def _opened(stage: Stage) -> Session:
    session = stage.make()
    await session.open()
    return session


async def _bystander(session: Session) -> str:
    """Buy a job that is not cancelled."""
    try:
        await session.generate("a bystander", idempotency_key="bystander")
    except JobUncertain:
        return "uncertain"
    except SessionClosed:
        return "closed"
    return "bought"


def open_sockets() -> int:
    """Count the sockets of this process, on Linux."""
    folder, count = Path("/proc/self/fd"), 0
    for name in os.listdir(folder) if folder.exists() else []:
        try:
            count += os.readlink(folder / name).startswith("socket:")
        except OSError:  # the folder's own descriptor is closed again
            continue
    return count


async def _on_stage(case: Case, number: int) -> tuple[bool, list[str]]:
    if case.loop == "virtual":
        return await cancel_once(VirtualStage(case), case, number)
    with tempfile.TemporaryDirectory(prefix="nanobanana-", dir=memory_folder()) as folder:
        async with emulated() as emulator:
            return await cancel_once(SocketStage(case, emulator, Path(folder)), case, number)


def run_step(case: Case, number: int) -> tuple[bool, list[str]]:
    """Cancel one case at its n-th step, in an event loop of its own."""
    factory: Any = SteppingLoop
    if case.loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    elif case.loop == "asyncio":
        factory = asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(_on_stage(case, number))


def _numbers(case: Case, first: int, every: int) -> Iterator[int]:
    if case.loop == "virtual" or case.step == "await":
        yield from itertools.count(first, every)
    number = first
    while True:
        yield number
        number = max(number + 1, int(number * GROWTH**every))


def run_case(case: Case, *, first: int = 1, every: int = 1) -> tuple[int, list[str]]:
    """Cancel a case at every k-th step; return how many cancellations there were, and what went wrong."""
    breaches: list[str] = []
    for count, number in enumerate(_numbers(case, first, every)):
        try:
            reached, found = run_step(case, number)
        except Exception as error:
            reached, found = True, [f"{type(error).__name__}: {error}"]
        breaches += [f"{case}, step {number}: {breach}" for breach in found]
        if not reached or len(breaches) > 20:
            return count, breaches
        assert number < MOST_STEPS, f"{case} has no end"
    raise AssertionError("unreachable")


def virtual_cases() -> list[Case]:
    """Return all cases on virtual time."""
    ways: tuple[Way, ...] = ("asyncio", "anyio")
    steps: tuple[Step, ...] = ("turn", "await")
    return [
        Case(call=name, gateway=gateway, way=way, step=step, trouble=trouble)
        for name, call in CALLS.items()
        if not call.needs_sockets
        for gateway in BOTH
        for way in ways
        for step in steps
        for trouble in (False, True)
    ]


def socket_cases() -> list[Case]:
    """Return all cases over sockets; those on uvloop where it can be installed."""
    ways: tuple[Way, ...] = ("asyncio", "anyio")
    steps: tuple[Step, ...] = ("turn", "await")
    loops: tuple[Loop, ...] = ("asyncio",) if sys.platform == "win32" else ("asyncio", "uvloop")
    return [
        Case(call=name, gateway=gateway, way=way, step=step, loop=loop)
        for loop in loops
        for name in CALLS
        for gateway in BOTH
        for way in ways
        for step in steps
    ]


def main(count: int | None) -> dict[str, Any]:
    """Cancel every case at every step, or at every n-th."""
    figures: dict[str, Any] = {}
    breaches: list[str] = []
    for cases in (virtual_cases(), socket_cases()):
        for case in cases:
            cancellations, found = run_case(case, every=count or 1)
            name = f"{case.call}, {case.loop}"
            figures[name] = figures.get(name, 0) + cancellations
            breaches += found
    return {"cancellations": sum(figures.values()), **figures, "breaches": breaches}

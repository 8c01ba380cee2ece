"""Simulated processes on one event loop of virtual time: each can be killed between any two steps.

A process is everything that runs in a context which names it: its tasks, their wake-ups, its timers. When it is killed
none of its callbacks runs any more, no `finally` either, so that it can't write or send; what it had sent goes on
without it. Only when a seed is over are the dead thawed, cut off from file and network, to be cancelled and collected.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from typing import Any

from attrs import frozen

from nanobanana_async import Session
from nanobanana_async.testing import VirtualLoop


@frozen
class Fate:
    """Where a process is killed: the n-th time that it comes to a point."""

    point: str
    number: int


class Process:
    """One operating system's process, as the ledger, the gateway and its callers see it."""

    def __init__(self, machine: "Machine", name: str, fate: Fate | None = None) -> None:
        self.machine = machine
        self.name = name
        self.fate = fate
        self.alive = True
        self.closing = False
        self.thawed = False
        self.frozen = False
        """It is suspended, as by SIGSTOP: nothing of it runs until it goes on."""
        self.counts: Counter[str] = Counter()
        self.tasks: dict[asyncio.Task[Any], None] = {}
        self.held_back: list[tuple[Callable[..., object], tuple[Any, ...], Context | None, list[asyncio.Handle]]] = []
        """What was due after it was killed or suspended, each with its handle."""
        self.at_death: list[Callable[[], None]] = []
        self.ended: asyncio.Future[None] = machine.create_future()
        self.session: Session | None = None
        self.owner = ""
        """Its name as an owner in the ledger."""
        self.lease: Any = None
        """Its lease, on a ledger that has leases."""

    def lives_past(self, point: str) -> bool:
        """Count that the process has come to a point, and say whether it survives it."""
        self.counts[point] += 1
        if self.alive and self.fate == Fate(point, self.counts[point]):
            self.kill(f"{point} {self.counts[point]}")
        return self.alive

    def kill(self, why: str) -> None:
        """End it between two steps, as SIGKILL does."""
        if self.alive and not self.ended.done():
            self.alive = False
            self.machine.note(self.name, f"KILLED at {why}")
            for release in self.at_death:
                release()
            self.ended.set_result(None)

    def freeze(self) -> None:
        """Suspend it between two steps."""
        self.frozen = True

    def go_on(self) -> None:
        """Let it run again: first what was due meanwhile, in its order."""
        self.frozen = False
        if self.alive:
            held_back, self.held_back = self.held_back, []
            for callback, args, context, handle in held_back:
                self.machine.call_soon(_unless_cancelled, handle[0], callback, args, context=context)

    def start(self, main: Coroutine[Any, Any, None]) -> None:
        """Let its main coroutine run; the process ends with it."""
        context = copy_context()
        context.run(PROCESS.set, self)
        task = self.machine.create_task(main, context=context)
        task.add_done_callback(self._over, context=Context())

    def _over(self, task: asyncio.Task[None]) -> None:
        if not self.ended.done():
            self.ended.set_result(None)
        if self.alive and not task.cancelled() and (error := task.exception()) is not None:
            self.machine.note(self.name, f"CRASHED {error!r}")
            self.machine.crashes.append(error)

    async def bury(self) -> None:
        """Cancel its remaining tasks, after the disk and network no longer serve it."""
        self.alive, self.thawed = False, True
        if self.session is not None:
            self.session._session_task.closed = True  # else it would warn that it was not closed
        held_back, self.held_back = self.held_back, []
        for callback, args, context, _ in held_back:
            self.machine.call_soon(callback, *args, context=context)
        for _ in range(
            10
        ):  # a coroutine of a task cancelled before its first step would warn that it was never awaited
            await asyncio.sleep(0)
        while left := list(self.tasks):
            for task in left:
                task.cancel()
            done, _ = await asyncio.wait(left, timeout=1.0)
            for task in done:
                if not task.cancelled():
                    task.exception()  # or asyncio would log an exception that was never retrieved


PROCESS: ContextVar[Process | None] = ContextVar("PROCESS", default=None)


def this_process() -> Process:
    """Return the process that runs."""
    process = PROCESS.get()
    assert process is not None
    return process


class Machine(VirtualLoop):
    """A virtual loop that knows the process of each callback, and keeps the trace of a seed."""

    def __init__(self) -> None:
        self.trace: list[str] = []
        self.crashes: list[BaseException] = []
        super().__init__()
        self.set_task_factory(_make_task)

    def note(self, who: str, what: str) -> None:
        """Write a line of the trace."""
        self.trace.append(f"{self.time():9.3f} {who:<8} {what}")

    def after(self, delay_s: float, callback: Callable[[], object]) -> None:
        """Call back later on behalf of no process: the disk, the network and the gateway do."""
        self.call_later(delay_s, callback, context=Context())

    def call_soon(  # type: ignore[override]  # arguments are passed on unchanged
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """Run soon, unless its process is killed before."""
        process = _owner_of(context)
        if process is None:
            return super().call_soon(callback, *args, context=context)
        box: list[asyncio.Handle] = []
        box.append(super().call_soon(_step, process, callback, args, context, box, context=context))
        return box[0]

    def call_at(  # type: ignore[override]  # the same
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Run then, unless its process is killed before."""
        process = _owner_of(context)
        if process is None:
            return super().call_at(when, callback, *args, context=context)
        box: list[asyncio.Handle] = []
        handle = super().call_at(when, _ring, process, callback, args, context, box, context=context)
        box.append(handle)
        return handle


def _owner_of(context: Context | None) -> Process | None:
    return PROCESS.get() if context is None else context.get(PROCESS)


def _unless_cancelled(handle: asyncio.Handle, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
    if not handle.cancelled():
        callback(*args)


def _step(
    process: Process,
    callback: Callable[..., object],
    args: tuple[Any, ...],
    context: Context | None,
    handle: list[asyncio.Handle],
) -> None:
    if process.frozen and process.alive:
        process.held_back.append((callback, args, context, handle))
    elif process.lives_past("step") or process.thawed:
        callback(*args)
    else:
        process.held_back.append((callback, args, context, handle))


def _ring(
    process: Process,
    callback: Callable[..., object],
    args: tuple[Any, ...],
    context: Context | None,
    handle: list[asyncio.Handle],
) -> None:
    if process.frozen and process.alive:
        process.held_back.append((callback, args, context, handle))
    elif process.lives_past("step") or process.thawed:
        callback(*args)


def _make_task(loop: asyncio.AbstractEventLoop, main: Any, **options: Any) -> asyncio.Task[Any]:
    task: asyncio.Task[Any] = asyncio.Task(main, loop=loop, **options)
    process = _owner_of(options.get("context"))
    if process is not None:
        process.tasks[task] = None
        task.add_done_callback(process.tasks.pop, context=Context())
    return task


class CancelledAt:
    """Await something, and be cancelled at the n-th time that it waits."""

    def __init__(self, inner: Coroutine[Any, Any, Any], number: int) -> None:
        self._inner = inner
        self._number = number

    def __await__(self) -> Any:
        steps = self._inner.__await__()
        waits = 0
        thrown: BaseException | None = None
        while True:
            try:
                waited_for = steps.send(None) if thrown is None else steps.throw(thrown)
            except StopIteration as end:
                return end.value
            waits += 1
            task = asyncio.current_task()
            if waits == self._number and task is not None:
                task.cancel()
            thrown = None
            try:
                yield waited_for
            except GeneratorExit:  # it is collected, and what it awaits was perhaps collected first
                self._inner.close()
                raise
            except BaseException as error:
                thrown = error

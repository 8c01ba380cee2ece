"""Cancel an operation at its n-th step: at an `await` of its own, or at a turn of the event loop."""

import asyncio
from collections.abc import Callable, Coroutine, Generator
from contextlib import nullcontext
from typing import Any, Literal

import anyio

from nanobanana_async import JobUncertain, SessionClosed
from nanobanana_async.testing import VirtualLoop

Way = Literal["asyncio", "anyio"]
"""`Task.cancel()`, or `cancel()` of a scope around the operation, which cancels each further `await` as well."""
Step = Literal["await", "turn"]

Strike = Callable[[], None]


class SteppingLoop(VirtualLoop):
    """A loop of virtual time that calls `strike` at the start of its n-th turn from `arm` on."""

    _left = 0
    _strike: Strike | None = None

    def arm(self, turn: int, strike: Strike) -> None:
        self._left, self._strike = turn, strike

    def _run_once(self) -> None:
        if self._left:
            self._left -= 1
            if not self._left and self._strike is not None:
                self._strike()
        super()._run_once()  # type: ignore[misc]  # every loop of asyncio has it


class _Stepped(Coroutine[Any, Any, None]):
    """A coroutine that calls `strike` when it has suspended for the n-th time."""

    def __init__(self, coroutine: Coroutine[Any, Any, None], number: int, strike: Strike) -> None:
        self._coroutine = coroutine
        self._left = number
        self._strike = strike

    def send(self, value: Any) -> Any:
        return self._suspended(self._coroutine.send(value))

    def throw(self, *error: Any) -> Any:
        return self._suspended(self._coroutine.throw(*error))

    def close(self) -> None:
        self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, None]:
        return self._coroutine.__await__()

    def _suspended(self, waits_for: Any) -> Any:
        self._left -= 1
        if not self._left:
            self._strike()
        return waits_for


async def cancelled_at(operation: Callable[[], Coroutine[Any, Any, Any]], number: int, *, way: Way, step: Step) -> bool:
    """Run an operation in a task of its own, and cancel it at its n-th step; return whether it has so many steps.

    An operation that ends in doubt, or because its session was closed, has ended as well.
    """
    scope = anyio.CancelScope() if way == "anyio" else None
    reached = False

    def strike() -> None:
        nonlocal reached
        if not victim.done():
            reached = True
            if scope is None:
                victim.cancel()
            else:
                scope.cancel()

    async def run() -> None:
        with scope or nullcontext():
            await operation()

    victim = asyncio.Task(run() if step == "turn" else _Stepped(run(), number, strike))
    loop = asyncio.get_running_loop()
    left = number

    def tick() -> None:
        nonlocal left
        left -= 1
        if not left:
            strike()
        elif not victim.done():
            loop.call_soon(tick)

    if step == "turn" and isinstance(loop, SteppingLoop):
        loop.arm(number, strike)
    elif step == "turn":
        tick()
    await asyncio.wait([victim])
    if isinstance(loop, SteppingLoop):
        loop.arm(0, strike)
    error = None if victim.cancelled() else victim.exception()
    if error is not None and not isinstance(error, (JobUncertain, SessionClosed)):
        raise error
    return reached

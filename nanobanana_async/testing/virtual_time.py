"""An event loop whose clock jumps to the next timer whenever every task waits."""

import asyncio
import selectors
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

T = TypeVar("T")

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)

# Without a timer only another thread can wake the loop. A loop that waits longer than this is deadlocked.
DEADLOCK_S = 20.0


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock stands still while tasks run, and jumps to the next timer when all wait.

    It does not wait for threads: do not use it with real sockets or executors.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self.wall_clock_offset = timedelta()
        """Shifts the wall clock but not the loop's time, as setting the system clock does."""
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        """Return the virtual seconds since the loop was created."""
        return self._now

    def utcnow(self) -> datetime:
        """Return the virtual wall clock, which dates the records of sessions on this loop."""
        return EPOCH + timedelta(seconds=self._now) + self.wall_clock_offset

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """Wait for threads without a timeout: virtual time would end any timeout at once."""
        await super().shutdown_default_executor()

    def jump(self, seconds: float) -> None:
        """Advance the clock."""
        self._now += seconds


class _JumpingSelector(selectors.DefaultSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout == 0 and len(self.get_map()) == 1:
            return []  # no socket but the one by which threads wake a loop that waits, and this one does not
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is not None:
            self._loop.jump(timeout)
            return []
        if not (ready := super().select(DEADLOCK_S)):
            raise RuntimeError("deadlock: every task waits, and no timer is set")
        return ready


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end on a new `VirtualLoop`."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)

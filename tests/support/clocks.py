"""The clock of event loops, moved by a test: a busy machine can end nothing before the test does."""

import asyncio
import asyncio.base_events
import time
from typing import Any


class _Clock:
    """Stands in place of the module `time` in asyncio, where also a `loop.time` that is kept reads it."""

    ahead_s = 0.0

    @classmethod
    def monotonic(cls) -> float:
        return time.monotonic() + cls.ahead_s  # noqa: TID251

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


def leap(seconds: float) -> None:
    """Let the clock of the running loop jump, so that all that waits for this long ends now.

    The loops of later tests of the process are ahead, too: they compare their clock with no other.
    """
    setattr(asyncio.base_events, "time", _CLOCK)  # noqa: B010 - mypy takes no assignment to a module
    _Clock.ahead_s += seconds


async def turns(count: int = 50) -> None:
    """Let the loop turn: other tasks go as far as they come without a timer, however busy the machine is."""
    for _ in range(count):
        await asyncio.sleep(0)


_CLOCK = _Clock()

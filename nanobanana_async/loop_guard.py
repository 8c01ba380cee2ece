"""The event loop and the process that a session belongs to, and what cancels its tasks."""

import asyncio
import os
import threading

from nanobanana_async.errors import ConfigurationError


class LoopGuard:
    """Refuses calls from another event loop, another thread or a forked child.

    Futures and timers belong to one loop. A call from elsewhere would wait for ever, and the loop's own callers after
    it. Nothing is refused before `bind` and after `release`: then nothing runs that a call could disturb.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process = 0
        self._thread = threading.current_thread()

    def bind(self) -> None:
        """Remember the running loop, its thread and this process."""
        self._loop = asyncio.get_running_loop()
        self._process = os.getpid()
        self._thread = threading.current_thread()

    def release(self) -> None:
        """Forget them: everything is closed."""
        self._loop = None

    @property
    def forked(self) -> bool:
        """Whether this is a forked child's copy of what its parent has open."""
        return self._loop is not None and self._process != os.getpid()

    def check(self) -> None:
        """Raise `ConfigurationError` for a call that does not come from the loop and the process remembered."""
        loop = self._loop
        if loop is None:
            return
        running = running_loop()
        if self._process != os.getpid():
            raise ConfigurationError(
                f"{self._title} was opened by process {self._process}, and this is a fork of it, process"
                f" {os.getpid()}: open a session of its own in each process, after the fork"
            )
        if running is loop or (running is None and threading.current_thread() is self._thread):
            return
        raise ConfigurationError(self._wrong_loop(loop, running))

    def _wrong_loop(self, loop: asyncio.AbstractEventLoop, running: asyncio.AbstractEventLoop | None) -> str:
        here = "no event loop" if running is None else f"the event loop {running!r}"
        home = f"{self._title} belongs to the event loop that opened it, {loop!r} in thread {self._thread.name!r}"
        called = f"{home}, and was called from {here} in thread {threading.current_thread().name!r}"
        if loop.is_closed():
            return f"{called}. That loop is closed: open a new session in this one"
        return (
            f"{called}. Run the call there, asyncio.run_coroutine_threadsafe(coroutine, loop), or open a session of"
            " its own in this loop"
        )


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the event loop that runs in this thread, if one does."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def cancel_requested() -> bool:
    """Whether somebody has asked the current task to end.

    If not, a `CancelledError` that arrives in it comes from inside what it called: from a future of somebody else that
    was cancelled, for example. That is a failure of the call, and no reason to end the task.
    """
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0

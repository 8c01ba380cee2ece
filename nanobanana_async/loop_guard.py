"""Check that a session is used in its own event loop and process; detect requested cancellations."""

import asyncio
import os
import threading
import weakref
from typing import NoReturn

from nanobanana_async.errors import ConfigurationError


class LoopGuard:
    """Refuses calls from another event loop, another thread or a forked child.

    Futures and timers belong to one loop. A call from another loop would wait for ever, and could block later calls
    from the right loop. Before `bind` and after `release` nothing is refused, since nothing runs then.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._loop: asyncio.AbstractEventLoop | None = None
        self._released: weakref.ref[asyncio.AbstractEventLoop] | None = None
        self._process = 0
        self._thread = threading.current_thread()

    def bind(self) -> None:
        """Bind the guard to the running loop, its thread and this process."""
        self._loop = asyncio.get_running_loop()
        self._process = os.getpid()
        self._thread = threading.current_thread()

    def release(self) -> None:
        """Release the guard after everything is closed."""
        if self._loop is not None:
            self._released = weakref.ref(self._loop)
        self._loop = None

    def why_closed(self) -> str:
        """Return that a closed session belonged to another event loop; nothing if this is the loop that opened it."""
        if self._released is None or (loop := running_loop_or_none()) is None or self._released() is loop:
            return ""
        return (
            ": it was opened in another event loop, and closed with it at the latest (each asyncio.run is a loop of its"
            " own). Put all calls into one asyncio.run"
        )

    @property
    def forked(self) -> bool:
        """Whether this process is a fork of the one that called `bind`."""
        return self._loop is not None and self._process != os.getpid()

    def check(self) -> None:
        """Raise `ConfigurationError` for a call from another loop, thread or process."""
        loop = self._loop
        if loop is None:
            return
        running = running_loop_or_none()
        if self._process != os.getpid():
            raise ConfigurationError(
                f"{self._title} was opened by process {self._process}, and this is a fork of it, process"
                f" {os.getpid()}: open a session of its own in each process, after the fork"
            )
        if running is loop or (running is None and threading.current_thread() is self._thread):
            return
        raise ConfigurationError(self._wrong_loop_message(loop, running))

    def _wrong_loop_message(self, loop: asyncio.AbstractEventLoop, running: asyncio.AbstractEventLoop | None) -> str:
        here = "without an event loop" if running is None else "in another event loop"
        called = (
            f"{self._title} belongs to the event loop that opened it, in thread {self._thread.name!r}, and was called"
            f" {here}, in thread {threading.current_thread().name!r}"
        )
        if loop.is_closed():
            return f"{called}. That loop is closed: open a new session in this one"
        return (
            f"{called}. Call it in its own loop, with asyncio.run_coroutine_threadsafe(coroutine, loop), or open a"
            " session of its own in this loop"
        )


class NoPlainWith:
    """Refuses `with` where `async with` is meant."""

    def __enter__(self) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} is used with `async with`, not with `with`{portal_hint()}")

    def __exit__(self, *_: object) -> None: ...


def not_open_error() -> ConfigurationError:
    """Return the error of a call before the session was opened."""
    how = "use 'async with Session(...)', or await session.open()"
    return ConfigurationError(f"the session is not open: {how}{portal_hint()}")


def portal_hint() -> str:
    """Return what code without asyncio uses; nothing where an event loop runs."""
    if running_loop_or_none() is not None:
        return ""
    return "; code without asyncio uses `with nanobanana_async.portal(Session(...)) as images`"


def running_loop_or_none() -> asyncio.AbstractEventLoop | None:
    """Return the running event loop of this thread; None if there is none."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def cancel_requested() -> bool:
    """Return whether the cancellation of the current task was requested.

    If not, a `CancelledError` comes from inside a call, for example from a future that other code cancelled. Then the
    call failed, and the task should not end.
    """
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0

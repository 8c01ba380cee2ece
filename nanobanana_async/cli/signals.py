"""Handle Ctrl-C, SIGTERM and SIGHUP alike: each ends a command; while jobs are bought, the first stops the buying."""

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Self

from rich.console import Console

from nanobanana_async.cli import exit_while_importing
from nanobanana_async.formatting import plural

INTERRUPTED = 130

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name))


class Interrupted(Exception):
    """A signal ended the command; the message says what is paid for and how to get it."""


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Let every signal raise KeyboardInterrupt, as Ctrl-C does, where no event loop runs: while a file is read."""
    before: dict[signal.Signals, Any] = {}
    try:
        for number in SIGNALS:
            if signal.getsignal(number) in (signal.SIG_DFL, exit_while_importing):
                with suppress(ValueError):  # outside the main thread
                    before[number] = signal.signal(number, signal.default_int_handler)
        yield
    finally:
        for number, previous in before.items():
            raises = previous is exit_while_importing  # what was printed is not flushed yet
            signal.signal(number, signal.default_int_handler if raises else previous)


@contextmanager
def handle_signals(handler: Callable[[], object]) -> Iterator[None]:
    """Call a function in the running event loop for each signal, until the end of the block."""
    loop = asyncio.get_running_loop()
    before: dict[signal.Signals, Any] = {}
    try:
        for number in SIGNALS:
            # `nohup` and `&` in scripts ignore signals on purpose.
            if signal.getsignal(number) is not signal.SIG_IGN:
                with suppress(ValueError):  # outside the main thread
                    before[number] = signal.signal(number, lambda *_: loop.call_soon_threadsafe(handler))
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, signal.SIG_DFL if previous is None else previous)


def run_until_signal(main: Coroutine[Any, Any, int]) -> int:
    """Run a command that buys nothing, or nothing more, and return its exit code; a signal cancels it.

    Raises `KeyboardInterrupt` if it was cancelled and has not raised `Interrupted` with words of its own.
    """

    async def run() -> int:
        task = asyncio.current_task()
        with handle_signals(lambda: None if task is None else task.cancel()):
            return await main

    try:
        return asyncio.run(run())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


class StopSignals:
    """The first signal stops the buying; the second one cancels the run; the third one exits at once.

    `say` prints a sentence, `running` returns how many jobs are bought and have not ended. In a rehearsal the emulator
    ends with the command, and they with it.
    """

    def __init__(
        self, console: Console, say: Callable[[str], None], running: Callable[[], int], *, rehearsal: bool = False
    ) -> None:
        self.stop_requested = asyncio.Event()
        self.cancelled = False
        self._console = console
        self._say = say
        self._running = running
        self._rehearsal = rehearsal
        self._task = asyncio.current_task()
        self._handling = handle_signals(self._on_signal)

    def __enter__(self) -> Self:
        self._handling.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handling.__exit__(None, None, None)

    def uncancel(self) -> None:
        """Undo the cancellation by a signal, so that the run can print its summary."""
        if self._task is not None:
            self._task.uncancel()

    def _on_signal(self) -> None:
        if self.cancelled:
            self._console.show_cursor()
            os._exit(INTERRUPTED)  # safe: the ledger holds every job that costs something
        if self.stop_requested.is_set():
            self.cancelled = True
            left = "running jobs are not lost: run the same command to collect them"
            if self._rehearsal:
                left = "running jobs end with the emulator: the same command buys them again, still without cost"
            self._say(f"stopping at once; {left}")
            if self._task is not None:
                self._task.cancel()
            return
        self.stop_requested.set()
        running = self._running()
        rest = f"collecting {plural(running, 'running job')}" if running else "no job is running"
        self._say(f"buying no more; {rest}; press Ctrl-C again to stop at once")

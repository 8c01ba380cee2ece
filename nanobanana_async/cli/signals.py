"""Handle Ctrl-C and SIGTERM: both end a command; while a batch runs, the first Ctrl-C only stops the buying."""

import asyncio
import os
import signal
from collections.abc import Coroutine
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from nanobanana_async.cli.batch.display import BatchDisplay

INTERRUPTED = 130


class Interrupted(Exception):
    """Ctrl-C or SIGTERM ended the command; the message says what is paid for and how to get it."""


def run_until_signal(main: Coroutine[Any, Any, int]) -> int:
    """Run a command and return its exit code. SIGTERM cancels it as Ctrl-C does.

    Raises `KeyboardInterrupt` if it was cancelled and has not raised `Interrupted` with words of its own.
    """

    async def run() -> int:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        if task is not None:
            # Not available on Windows, and not outside the main thread.
            with suppress(NotImplementedError, RuntimeError, ValueError):
                loop.add_signal_handler(signal.SIGTERM, task.cancel)
        return await main

    try:
        return asyncio.run(run())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


class StopSignals:
    """The first Ctrl-C stops the buying; the second one or SIGTERM cancels the run; the third one exits at once."""

    def __init__(self, display: BatchDisplay) -> None:
        self.stop_requested = asyncio.Event()
        self.cancelled = False
        self._display = display
        self._task = asyncio.current_task()
        self._handled: list[signal.Signals] = []

    def __enter__(self) -> Self:
        loop = asyncio.get_running_loop()
        for number, handler in ((signal.SIGINT, self._on_interrupt), (signal.SIGTERM, self._cancel)):
            # Not available on Windows, where Ctrl-C cancels the task, and not outside the main thread.
            with suppress(NotImplementedError, RuntimeError, ValueError):
                loop.add_signal_handler(number, handler)
                self._handled.append(number)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in self._handled:
            asyncio.get_running_loop().remove_signal_handler(number)

    def uncancel(self) -> None:
        """Undo the cancellation by a signal, so that the run can print its summary."""
        if self._task is not None:
            self._task.uncancel()

    def _on_interrupt(self) -> None:
        if self.cancelled:
            self._display.console.show_cursor()
            os._exit(INTERRUPTED)  # safe: the ledger holds every job
        if self.stop_requested.is_set():
            self._cancel()
            return
        self.stop_requested.set()
        running = 0 if self._display.stats is None else self._display.stats.slots_held
        self._display.say(f"buying no more; collecting {running} running jobs; press Ctrl-C again to stop at once")

    def _cancel(self) -> None:
        if not self.cancelled:
            self.cancelled = True
            self._display.say("stopping at once; running jobs are not lost: run the same command to collect them")
            if self._task is not None:
                self._task.cancel()

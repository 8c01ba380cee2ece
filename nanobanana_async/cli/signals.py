"""Handle Ctrl-C and SIGTERM while a batch runs."""

import asyncio
import os
import signal
from contextlib import suppress
from types import TracebackType
from typing import Self

from nanobanana_async.cli.batch.display import BatchDisplay

INTERRUPTED = 130


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

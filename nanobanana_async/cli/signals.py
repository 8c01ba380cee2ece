"""Handle Ctrl-C, SIGTERM and SIGHUP alike: each ends a command; while jobs are bought, the first stops the buying."""

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Self

from rich.console import Console

from nanobanana_async.cli import exit_while_importing
from nanobanana_async.formatting import plural

INTERRUPTED = 130
WAKE_EVERY_S = 0.05

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name))


class Interrupted(Exception):
    """A signal ended the command; the message says what is paid for and how to get it."""


class _Waker:
    """A thread that ends the system call in which the main thread waits, until the handler of a signal has run.

    Python runs a handler between two instructions. A signal that arrives right before a system call, or between two
    calls of one function (`read(n)` of a pipe makes several), would wait until that call returns: perhaps for ever.
    """

    def __init__(self) -> None:
        self._main_thread = threading.get_ident()
        self._awake = False
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._previous_fd = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        # A signal that interrupts system calls and nothing else: by default it is ignored.
        self._previous_handler = signal.signal(signal.SIGURG, self._woken)
        self._thread = threading.Thread(target=self._wake, name="nanobanana-signals", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Restore what was there before."""
        signal.set_wakeup_fd(self._previous_fd)
        os.close(self._writing)
        self._thread.join()
        os.close(self._reading)
        signal.signal(signal.SIGURG, self._previous_handler)

    def _woken(self, *_: object) -> None:
        self._awake = True  # the handlers of earlier signals ran before

    def _wake(self) -> None:
        while numbers := os.read(self._reading, 64):  # of the signals that arrived, one byte each
            self._awake = set(SIGNALS).isdisjoint(numbers)
            while not self._awake:
                signal.pthread_kill(self._main_thread, signal.SIGURG)
                time.sleep(WAKE_EVERY_S)


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Let every signal raise KeyboardInterrupt, as Ctrl-C does, where no event loop runs: while a file is read.

    Until the end of the block no signal waits for a system call to return, also while other handlers are set.
    """
    if threading.current_thread() is not threading.main_thread():  # it gets no signals
        yield
        return
    before: dict[signal.Signals, Any] = {}
    waker = _Waker() if hasattr(signal, "pthread_kill") else None  # not on Windows
    try:
        for number in SIGNALS:
            before[number] = signal.getsignal(number)
            if before[number] in (signal.SIG_DFL, exit_while_importing):
                signal.signal(number, signal.default_int_handler)
        yield
    finally:
        for number, previous in before.items():
            raises = previous is exit_while_importing  # what was printed is not flushed yet
            if previous is not None:  # else it was not set by Python
                signal.signal(number, signal.default_int_handler if raises else previous)
        if waker is not None:
            waker.close()


def ignore_signals() -> None:
    """Ignore every signal until the block of `interrupted_by_signals` ends: what is left takes a moment."""
    with suppress(ValueError):  # outside the main thread
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


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

    @contextmanager
    def end_of_work(self) -> Iterator[None]:
        """Run the work of the block; if the second signal cancels it, go on behind the block to the summary.

        An exception group of its tasks is raised as its first exception.
        """
        try:
            yield
        except asyncio.CancelledError:
            if not self.cancelled:
                raise
            if self._task is not None:
                self._task.uncancel()
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None

    def _on_signal(self) -> None:
        if self.cancelled:
            self._console.show_cursor()
            os._exit(INTERRUPTED)  # safe: the ledger holds every job that costs something
        if self.stop_requested.is_set():
            self.cancelled = True
            left = "no job is running: the same command goes on from here"
            if self._running():
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

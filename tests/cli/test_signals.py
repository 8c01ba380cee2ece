"""A signal that arrives right before a system call ends that call: it is not lost until the call returns by itself."""

import asyncio
import os
import select
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from nanobanana_async.cli.signals import INTERRUPTED, handle_signals, interrupted_by_signals

NUMBERS = [signal.SIGTERM, signal.SIGHUP, signal.SIGINT]


@contextmanager
def unnoticed(number: signal.Signals) -> Iterator[None]:
    """Send a signal that reaches another thread while this one waits: it interrupts nothing here.

    So does a signal that arrives between two instructions, right before a system call.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    sender = threading.Timer(0.1, os.kill, (os.getpid(), number))
    sender.start()
    try:
        yield
    finally:
        sender.join()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})


@pytest.fixture(autouse=True)
def _default_handlers() -> Iterator[None]:
    before = {number: signal.signal(number, signal.SIG_DFL) for number in NUMBERS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", NUMBERS)
def test_unnoticed_signal_ends_a_system_call(number: signal.Signals) -> None:
    reading, writing = os.pipe()
    with interrupted_by_signals(), pytest.raises(KeyboardInterrupt), unnoticed(number):
        select.select([reading], [], [], 30)
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("number", NUMBERS)
def test_unnoticed_signal_wakes_the_event_loop(number: signal.Signals) -> None:
    async def wait() -> int:
        signalled = asyncio.Event()
        with handle_signals(signalled.set), unnoticed(number):  # sent when the loop handles it
            async with asyncio.timeout(30):
                await signalled.wait()
        return INTERRUPTED

    with interrupted_by_signals():
        assert asyncio.run(wait()) == INTERRUPTED


def test_block_of_signals_restores_what_was_there() -> None:
    def state() -> tuple[object, ...]:
        handlers = [signal.getsignal(number) for number in (*NUMBERS, signal.SIGURG)]
        return (*handlers, threading.active_count(), len(os.listdir("/dev/fd")))

    before = state()
    with interrupted_by_signals():
        assert state() != before
    assert state() == before

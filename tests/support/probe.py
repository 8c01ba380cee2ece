"""A program that says what it notices about its process: `tests/test_forked.py` compares a real and a forked one."""

import atexit
import gc
import json
import os
import signal
import sys
import threading
import time
import warnings
from io import TextIOWrapper
from typing import Any


def facts() -> dict[str, Any]:
    """Return all that may differ from one process to another."""
    main = sys.modules["__main__"]
    filters = [
        str(each) for each in warnings.filters if "aiohttp" not in str(each)
    ]  # which adds one when it is imported
    return {
        "forked": "tests.support.forked" in sys.modules,
        "arguments": [sys.argv, sys.orig_argv],
        "module": [__name__, main.__file__, vars(main)["__spec__"].name],
        "path": sys.path,
        "interpreter": [str(sys.flags), filters, gc.isenabled(), gc.get_threshold()],
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "umask": os.umask(0o22),
        "signals": [[number, str(signal.getsignal(number))] for number in sorted(signal.valid_signals())],
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        "leads": [os.getsid(0) == os.getpid(), os.getpgid(0) == os.getpid()],
        "files": sorted(os.listdir("/proc/self/fd")),
        "streams": list(map(_facts_of, (sys.stdin, sys.stdout, sys.stderr))),
        "threads": [threading.active_count(), len(os.listdir("/proc/self/task"))],
        "is main": threading.current_thread() is threading.main_thread(),
        "time zone": time.tzname,
        "read": sys.stdin.read(),
    }


def _facts_of(stream: Any) -> list[object]:
    assert isinstance(stream, TextIOWrapper)
    return [
        *(stream.name, stream.mode, stream.encoding, stream.errors),
        *(stream.line_buffering, stream.write_through, stream.isatty(), stream.fileno()),
        type(stream.buffer).__name__,
        stream in (sys.__stdin__, sys.__stdout__, sys.__stderr__),
    ]


def end(how: str) -> None:
    """End in one of the ways in which programs do."""
    if how == "raise":
        raise ValueError("a bug")
    if how == "message":
        sys.exit("a message")
    if how == "leave":
        sys.exit(7)
    if how == "interrupt":
        signal.raise_signal(signal.SIGINT)
    if how == "abort":
        os.abort()
    if how == "thread":
        threading.Timer(0.1, print, ("a thread ended",)).start()


if __name__ == "__main__":
    atexit.register(print, "the end")
    print(json.dumps(facts()), flush=True)
    end(sys.argv[1])

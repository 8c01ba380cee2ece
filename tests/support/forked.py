"""Processes of Python modules, forked from one that has imported the package: its imports take longer than most tests.

Once `install` was called, `subprocess.Popen` (and with it asyncio) starts `python -m nanobanana_async ...` so, and the
modules of tests and benchmarks. The process is a child of this one, with its own arguments, environment, folder,
streams, signals and session; it inherits no thread and no open file, and the interpreter ends it as it ends any
program. It differs in two things: it may have more modules than it needs, and its memory is partly shared. Tests of
imports, of the start and of memory use the fixture `real_processes`. Programs (`-c`), options of the interpreter and
commands in a shell start a real process anyway, and so does everything where there is no Linux.
"""

import atexit
import ctypes
import gc
import importlib
import inspect
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

ROOT = Path(__file__).parents[2]

_COMMAND = "nanobanana_async"
CORE = (
    *("nanobanana_async.session", "nanobanana_async.emulator", "nanobanana_async.ledger.postgres.driver"),
    # What they import when they use it:
    *("PIL.ImageDraw", "PIL.ImageFilter", "PIL.ImageFont", "PIL.ImageOps", "nanobanana_async.emulator.painting"),
    *("anyio._backends._asyncio", "ctypes.util", "encodings.idna", "encodings.utf_8_sig", "gzip"),
    *("importlib.metadata", "importlib.resources.readers", "psycopg.pq", "sysconfig", "zoneinfo"),
)
COMMANDS = tuple(
    f"nanobanana_async.cli.{name}"
    for name in (
        "app",
        "batch.command",
        "emulate",
        "generate_command",
        "hosts",
        "jobs.command",
        "jobs.follow",
        "worker",
    )
)
_IMPORTED = {
    _COMMAND: (*CORE, *COMMANDS),
    "mcp": (*CORE, "nanobanana_async.cli.app", "nanobanana_async.cli.mcp", "nanobanana_async.mcp_server.server"),
    "uvicorn": (*CORE, "nanobanana_async.asgi", "starlette.applications", "uvicorn.main"),
    "tests": CORE,
}
"""What the process imports from which the modules of one kind are forked."""

# The interpreter, the C library and some packages read these only when they start.
_READ_AT_START = ("AIOHTTP_", "COVERAGE_", "LANG", "LC_", "LD_", "MALLOC_", "PYTHON", "SSL_")
_PROGRAM = "__import__('runpy')._run_module_as_main(__import__('tests.support.forked', fromlist=['serve']).serve())"
_WORKER = ("-u", "-c", "import sys;exec(eval(sys.stdin.readline()))")
"""The arguments with which execnet starts a worker of pytest."""
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of prctl(2): a process whose parent has ended becomes a child of this one
_OF_INTERPRETER = {signal.SIGPIPE, signal.SIGXFSZ} if os.name == "posix" else set()

workers: dict[str, Any] | None = None
"""What the process collects from which pytest's workers are forked; None: they are real ones. See `collected.py`."""

constants: dict[str, dict[str, float]] = {}
"""By module, the constants of the package that a test has changed: each process that it forks has them, too."""

_execute: Callable[..., None] | None = getattr(subprocess.Popen, "_execute_child", None)


def install() -> None:
    """Let `subprocess.Popen` fork what it can."""
    if sys.platform == "linux" and _execute is not None:
        subprocess.Popen._execute_child = _fork_or_execute  # type: ignore[attr-defined]


def uninstall() -> None:
    """Let `subprocess.Popen` start real processes only."""
    if _execute is not None:
        subprocess.Popen._execute_child = _execute  # type: ignore[attr-defined]


def _fork_or_execute(self: "subprocess.Popen[Any]", *arguments: Any) -> None:
    """Do what `Popen._execute_child` does: start the process, keep its id, close the child's ends of the pipes."""
    assert _execute is not None
    given = inspect.signature(_execute).bind(self, *arguments).arguments
    kind = _kind_of(given)
    if kind is None:
        _execute(self, *arguments)
        return
    environ = {os.fsdecode(name): os.fsdecode(value) for name, value in (given["env"] or os.environ).items()}
    orders = {
        "arguments": list(map(os.fsdecode, given["args"])),
        "folder": os.path.abspath(given["cwd"] or os.curdir),
        "environ": environ,
        "session": bool(given["start_new_session"]),
        "constants": constants,
        "ignored": [number for number in _ignored() if not (given["restore_signals"] and number in _OF_INTERPRETER)],
    }
    ends = [
        given[name] if given[name] != -1 else standard
        for standard, name in enumerate(("p2cread", "c2pwrite", "errwrite"))
    ]
    self.pid = _Original.of(kind, environ).fork(orders, ends)
    self._child_created = True  # type: ignore[attr-defined]
    pipes = (given[name] for name in ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite"))
    self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]


def _kind_of(given: Mapping[str, Any]) -> str | None:
    """Return of which kind a process is that can be forked, else None."""
    words = given["args"]
    if isinstance(words, str | bytes | os.PathLike) or len(words) < 3 or words[0] != sys.executable:
        return None
    if workers is not None and tuple(words[1:]) == _WORKER:
        return "worker"
    if words[1] != "-m":
        return None
    odd = ("preexec_fn", "pass_fds", "shell", "gid", "gids", "uid")
    as_usual = given["close_fds"] and given["umask"] < 0 and given.get("process_group", -1) in (-1, None)
    if not as_usual or any(given[name] for name in odd) or not os.path.isdir(given["cwd"] or os.curdir):
        return None
    module, rest = os.fsdecode(words[2]), list(map(os.fsdecode, words[3:]))
    if module == _COMMAND:
        return "mcp" if rest[:1] == ["mcp"] else _COMMAND
    if module == "uvicorn":
        return module
    return "tests" if module.startswith(("benchmarks", "tests.")) else None


def _ignored() -> list[int]:
    return [int(number) for number in signal.valid_signals() if signal.getsignal(number) is signal.SIG_IGN]


class _Original:
    """A process that has imported what a kind needs, waits, and forks."""

    _known: dict[object, "_Original"] = {}  # noqa: RUF012 - of this process
    _lock = threading.Lock()

    @classmethod
    def of(cls, kind: str, environ: Mapping[str, str]) -> "_Original":
        """Return the one for this kind and environment."""
        at_start = {name: value for name, value in environ.items() if name.startswith(_READ_AT_START)}
        key = (os.getpid(), kind, *sorted(at_start.items()))
        with cls._lock:
            if key not in cls._known:
                cls._known[key] = cls(kind, at_start)
            return cls._known[key]

    def __init__(self, kind: str, at_start: Mapping[str, str]) -> None:
        self._kind = kind
        self._orders, theirs = socket.socketpair()
        plain = {name: value for name, value in os.environ.items() if not name.startswith(_READ_AT_START)}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, str(theirs.fileno()), kind, json.dumps(workers)],
                cwd=ROOT,
                env={**plain, **at_start},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        atexit.register(self._end)

    def _end(self) -> None:
        self._orders.close()
        self._process.wait()

    def _ended(self) -> Exception:
        if self._kind != "worker":
            return RuntimeError("the process to fork from has ended: see its traceback above")
        import pytest

        return pytest.UsageError("the tests can't be collected: see above")

    def fork(self, orders: Mapping[str, Any], ends: list[int]) -> int:
        """Return the process id of a new child of ours with these orders, and these files as its standard streams."""
        content = json.dumps(orders).encode()
        prctl = ctypes.CDLL(None).prctl
        with self._lock:
            prctl(_SUBREAPER, 1, 0, 0, 0)
            try:
                socket.send_fds(self._orders, [len(content).to_bytes(8, "big")], ends)
                self._orders.sendall(content)
                answer = self._orders.recv(8)
            except ConnectionError:
                answer = b""
            finally:
                prctl(_SUBREAPER, 0, 0, 0, 0)
        if not answer:
            raise self._ended()
        return int.from_bytes(answer, "big")


def serve() -> str:
    """In the original: fork on orders, until there are none. Return, in each child, the module that it is to run."""
    channel, kind = socket.socket(fileno=int(sys.argv[1])), sys.argv[2]
    if kind == "worker":
        from tests.support import collected

        collected.serve(channel, json.loads(sys.argv[3]))
        sys.exit(1)  # there was an error before the tests could be collected
    import_all(_IMPORTED[kind])
    return _become(*fork_on_orders(channel))


def import_all(names: Iterable[str]) -> None:
    """Import modules, and what they import when they first read or write an image."""
    for name in names:
        importlib.import_module(name)
    from PIL import Image

    Image.init()  # all formats: a quarter of a second


def fork_on_orders(channel: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Fork on orders, until there are none. Return, in each child, its orders and its standard streams."""
    assert len(os.listdir("/proc/self/task")) == 1, "a thread would be lost in a fork"
    gc.collect()
    gc.freeze()  # no collection goes over what is shared, not even the last one of a child: it would copy it
    while True:
        length, ends, _, _ = socket.recv_fds(channel, 8, 3)
        if not length:
            os._exit(0)  # the tests have ended
        content = b""
        while len(content) < int.from_bytes(length, "big"):
            content += channel.recv(1 << 20)
        number = _fork_twice()
        if number is None:
            channel.detach()
            return json.loads(content), ends
        for end in ends:
            os.close(end)
        channel.sendall(number.to_bytes(8, "big"))


def _fork_twice() -> int | None:
    """Return the id of a process whose parent has ended; None in that process."""
    reading, writing = os.pipe()
    parent = os.fork()
    if parent == 0:
        child = os.fork()
        if child == 0:
            return None
        os.write(writing, child.to_bytes(8, "big"))
        os._exit(0)
    os.waitpid(parent, 0)
    number = int.from_bytes(os.read(reading, 8), "big")
    os.close(reading)
    os.close(writing)
    return number


def _become(orders: Mapping[str, Any], ends: list[int]) -> str:
    """Make this process what the interpreter would have made of it, and return the module that it runs."""
    if orders["session"]:
        os.setsid()
    for number, end in enumerate(ends):
        os.dup2(end, number)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    for number in orders["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    os.chdir(orders["folder"])
    os.environ.clear()
    os.environ.update(orders["environ"])
    time.tzset()
    for name, values in orders["constants"].items():
        vars(importlib.import_module(name)).update(values)
    sys.orig_argv[:] = orders["arguments"]
    sys.argv[:] = ["-m", *orders["arguments"][3:]]  # the first becomes the path of the module
    sys.path[0] = os.getcwd()
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = _stream(number, getattr(sys, name))
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    module: str = orders["arguments"][2]
    return module


def _stream(number: int, like: TextIO) -> io.TextIOWrapper:
    """Return a standard stream as the interpreter opens it."""
    assert isinstance(like, io.TextIOWrapper)
    unbuffered = like.write_through and number != 0
    binary: Any = open(number, "wb" if number else "rb", buffering=0 if unbuffered else -1, closefd=False)  # noqa: SIM115
    raw = binary if unbuffered else binary.raw
    raw.name = like.name
    stream = io.TextIOWrapper(
        binary,
        like.encoding,
        like.errors,
        newline="\n",
        line_buffering=not like.write_through and (number == 2 or raw.isatty()),
        write_through=like.write_through,
    )
    stream.mode = "w" if number else "r"  # type: ignore[misc]
    return stream

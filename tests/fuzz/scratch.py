"""A folder for the files that parsers read, and an event loop for those that are coroutines.

Each process has its own: the lanes of a long run are forks of one process.
"""

import asyncio
import atexit
import functools
import os
import shutil
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def scratch() -> Path:
    """Return a folder of this process, in memory where the system has such a file system."""
    return _folder_of(os.getpid())


def file_with(content: bytes, name: str) -> Path:
    """Write a file in that folder, and return its path."""
    path = scratch() / name
    path.write_bytes(content)
    return path


def in_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in the loop of all inputs."""
    return _runner_of(os.getpid()).run(work)


@functools.cache
def _folder_of(process: int) -> Path:
    memory = Path("/dev/shm")
    base = memory if memory.is_dir() and os.access(memory, os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="nanobanana-fuzz-", dir=base))
    atexit.register(_unless_forked, process, functools.partial(shutil.rmtree, folder, ignore_errors=True))
    return folder


@functools.cache
def _runner_of(process: int) -> asyncio.Runner:
    runner = asyncio.Runner()
    atexit.register(_unless_forked, process, runner.close)
    return runner


def _unless_forked(process: int, end: Callable[[], object]) -> None:
    if os.getpid() == process:
        end()

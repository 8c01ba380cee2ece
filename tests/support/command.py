"""Run `nanobanana` in this process or in one of its own, and read its output and exit code."""

import asyncio
import atexit
import contextlib
import functools
import io
import itertools
import os
import shutil
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from attrs import frozen

from nanobanana_async.cli import app as cli
from nanobanana_async.emulator import API_KEY, Emulator

_NUMBERS = itertools.count()

EARLY = (
    "from nanobanana_async.cli import main; from nanobanana_async.policy import poll_schedule;"
    "poll_schedule.FEW_SECONDS_S, poll_schedule.LEAST_DELAY_S = 0.1, 0.05;"
    "poll_schedule.UNKNOWN_GROWTH = poll_schedule.STRAGGLER_GROWTH = 0.0; main()"
)
"""A program that is the command and polls early: in a shell it is no forked process (see `forked.constants`)."""

_OURS = ("APIMALL_", "DEFAPI_", "NANOBANANA_")


class TerminalStream(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self) -> bool:
        return True


@frozen
class Said:
    """The exit code and output of a command."""

    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The only line on stderr; fails if there are more lines, or a traceback."""
        (line,) = self.err.strip().splitlines()
        assert line.startswith("nanobanana: ")
        return line


@functools.cache
def _ledgers() -> Path:
    """Return the folder of this process's ledgers."""
    folder = tempfile.mkdtemp(prefix="nanobanana-ledgers-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def environment(emulator: Emulator | None = None, **variables: str) -> dict[str, str]:
    """Return the environment without our own variables, with a new ledger, and those of the emulator if given."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    environ |= {"PYTHONWARNINGS": "error", "COLUMNS": "200"}
    environ["NANOBANANA_LEDGER"] = str(_ledgers() / f"{next(_NUMBERS)}.sqlite")
    if emulator is not None:
        environ |= {"NANOBANANA_BASE_URL": emulator.url, "NANOBANANA_GATEWAY": "apimall", "APIMALL_API_KEY": API_KEY}
        environ |= {"NANOBANANA_EXPECTED_JOB_S": "0.5"}
    return environ | variables


@contextlib.asynccontextmanager
async def started(
    *arguments: str, environ: dict[str, str], folder: Path | None = None, program: str | None = None
) -> AsyncIterator[Process]:
    """Start the command, or a program that is the command; it is killed at the end of the block."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *(("-m", "nanobanana_async") if program is None else ("-c", program)),
        *arguments,
        cwd=folder,
        env=environ,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=PIPE,
        stderr=PIPE,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def nanobanana(
    *arguments: str, environ: dict[str, str] | None = None, folder: Path | None = None, typed: str | None = None
) -> Said:
    """Run the command in this process: its start-up takes longer than most tests. `typed`: stdin is a terminal."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "environ", environment() if environ is None else environ)
        patch.chdir(folder or Path.cwd())
        printed, err = io.BytesIO(), io.StringIO()
        out = io.TextIOWrapper(printed, "utf-8", write_through=True)  # a batch prints bytes
        stdin = io.StringIO() if typed is None else TerminalStream(typed)
        for name, stream in (("stdin", stdin), ("stdout", out), ("stderr", err)):
            patch.setattr(sys, name, stream)
        code = await asyncio.to_thread(cli.run, arguments)
        return Said(code, printed.getvalue().decode(), err.getvalue())


async def in_a_process(*arguments: str, environ: dict[str, str] | None = None, folder: Path | None = None) -> Said:
    """Run the command to its end in a process of its own."""
    async with started(*arguments, environ=environment() if environ is None else environ, folder=folder) as process:
        return await ended(process)


async def ended(process: Process) -> Said:
    """Wait for the command's end."""
    async with asyncio.timeout(40):
        out, err = await process.communicate()
    assert process.returncode is not None
    return Said(process.returncode, out.decode(), err.decode())


async def says(process: Process, words: str) -> str:
    """Wait until the command writes a line with these words on stderr; return all that it wrote until then."""
    assert process.stderr is not None
    lines: list[str] = []
    async with asyncio.timeout(40):
        while not lines or words not in lines[-1]:
            lines.append((await process.stderr.readline()).decode())
            assert lines[-1], f"{words!r} is not in {''.join(lines)!r}"
    return "".join(lines)

"""Ctrl-C on a real terminal, other signals and a closed pipe: the batch stops without losing a job."""

import asyncio
import fcntl
import os
import pty
import re
import signal
import sys
import termios
from array import array
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from nanobanana_async.emulator import Emulator, Fixed
from tests.cli.batch_kills import images_of, lines_of
from tests.support.command import POLLING_EARLY, environment, nanobanana, started
from tests.support.held import HeldJobs

pytestmark = pytest.mark.slow

ROWS = 24
WITHIN_S = 40.0  # on a busy machine; a signal that is lost would end nothing


class PseudoTerminal:
    """A command on a pseudo terminal; its stdout goes to a file."""

    def __init__(self, process: Process, master: int) -> None:
        self.process = process
        self.screen = ""
        self._master = master
        os.set_blocking(master, False)
        asyncio.get_running_loop().add_reader(master, self._read)

    def _read(self) -> None:
        self.screen += os.read(self._master, 65536).decode(errors="replace")

    def press_ctrl_c(self) -> None:
        os.write(self._master, b"\x03")

    async def shows(self, words: str) -> None:
        async with asyncio.timeout(WITHIN_S):
            while words not in self.screen:
                assert self.process.returncode is None, self.screen
                await asyncio.sleep(0.01)

    async def code(self) -> int:
        async with asyncio.timeout(WITHIN_S):
            return await self.process.wait()


@asynccontextmanager
async def terminal(folder: Path, command: str, environ: dict[str, str]) -> AsyncIterator[PseudoTerminal]:
    master, slave = pty.openpty()
    name = os.ttyname(slave)
    # The leader of a new session gets the first terminal that it opens as its controlling terminal, which sends Ctrl-C.
    process = await asyncio.create_subprocess_exec(
        *("sh", "-c", f"exec {command} <{name} 2>{name} >printed"),
        cwd=folder,
        env=environ | {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "24"},
        start_new_session=True,
        stdin=DEVNULL,
        stdout=DEVNULL,
        stderr=DEVNULL,
    )
    shown = PseudoTerminal(process, master)
    try:
        yield shown
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        asyncio.get_running_loop().remove_reader(master)
        os.close(master)
        os.close(slave)  # not earlier: a terminal without an open slave reads as closed


@asynccontextmanager
async def emulated(
    folder: Path, job_s: float, *, held: HeldJobs | None = None
) -> AsyncIterator[tuple[Emulator, dict[str, str]]]:
    """Run an emulator whose jobs take `job_s`, or are held."""
    (folder / "foxes.txt").write_text("".join(f"a fox {number}\n" for number in range(ROWS)))
    async with Emulator(duration=held or Fixed(job_s), job_limit=6, image_scale=0.05) as emulator:
        yield emulator, environment(emulator, NANOBANANA_EXPECTED_JOB_S=str(job_s))


async def check_rerun(folder: Path, emulator: Emulator, environ: dict[str, str]) -> None:
    """Check that the same command finishes the batch: every row once, every image intact, no double charge."""
    said = await nanobanana("batch", "foxes.txt", "-o", "out", environ=environ, folder=folder)
    assert said.code == 0
    assert (len(lines_of(folder / "out")), len(images_of(folder / "out"))) == (ROWS, ROWS)
    assert (emulator.stats().creates_accepted, emulator.stats().double_charges) == (ROWS, 0)


async def test_the_first_ctrl_c_stops_buying_and_collects_running_jobs(tmp_path: Path) -> None:
    held = HeldJobs(quick=6, job_s=0.5)
    async with emulated(tmp_path, 0.5, held=held) as (emulator, environ):
        async with terminal(tmp_path, f"{POLLING_EARLY} batch foxes.txt -o out", environ) as screen:
            await screen.shows(" succeeded")
            screen.press_ctrl_c()
            await screen.shows("buying no more")
            held.release(emulator)
            assert await screen.code() == 130
        assert "left: run the same command to continue" in screen.screen
        bought = emulator.stats().creates_accepted
        assert 0 < bought < ROWS
        # Everything bought was saved, written to the results and printed.
        assert len(images_of(tmp_path / "out")) == len(lines_of(tmp_path / "out")) == bought
        assert len((tmp_path / "printed").read_text().splitlines()) == bought
        assert (tmp_path / "out" / "index.html").exists()
        await check_rerun(tmp_path, emulator, environ)


async def test_the_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    held = HeldJobs()
    async with emulated(tmp_path, 0.1, held=held) as (emulator, environ):
        async with terminal(tmp_path, f"{POLLING_EARLY} batch foxes.txt -o out", environ) as screen:
            await screen.shows(" running")
            while emulator.stats().creates_accepted < 2:  # noqa: ASYNC110 - it has no event
                await asyncio.sleep(0.01)
            screen.press_ctrl_c()
            await screen.shows("buying no more")
            screen.press_ctrl_c()
            assert await screen.code() == 130
            assert emulator.stats().ended == 0  # before any job ended
        assert "stopping at once" in screen.screen
        assert f"{ROWS} rows: none has ended; " in screen.screen
        bought = emulator.stats().creates_accepted
        left = f"{ROWS} rows left, {bought} of them bought and not collected: run the same command to continue"
        assert left in " ".join(screen.screen.split())
        assert "lists them" not in screen.screen
        assert lines_of(tmp_path / "out") == []
        assert screen.screen.count("\x1b[?25h") >= screen.screen.count("\x1b[?25l")  # the cursor is shown again
        emulator.set_job_limit(None)
        held.release(emulator)
        await check_rerun(tmp_path, emulator, environ)


async def errors_after(process: Process, *numbers: signal.Signals) -> bytes:
    """Send signals to a batch once it has printed a line; return what it wrote on stderr until its end."""
    assert process.stdout is not None
    await process.stdout.readline()
    for number in numbers:
        process.send_signal(number)
    async with asyncio.timeout(WITHIN_S):
        return (await process.communicate())[1]


async def test_another_signal_collects_running_jobs_like_ctrl_c(tmp_path: Path) -> None:
    async with emulated(tmp_path, 0.5) as (emulator, environ):
        async with started("batch", "foxes.txt", "-o", "out", environ=environ, folder=tmp_path) as process:
            stderr = await errors_after(process, signal.SIGHUP)
        assert (process.returncode, b"Traceback" in stderr) == (130, False)
        assert b"buying no more" in stderr
        assert len(images_of(tmp_path / "out")) == emulator.stats().creates_accepted < ROWS
        await check_rerun(tmp_path, emulator, environ)


async def test_two_signals_stop_at_once_and_say_what_is_left(tmp_path: Path) -> None:
    held = HeldJobs(quick=6)
    async with emulated(tmp_path, 0.5, held=held) as (emulator, environ):
        async with started("batch", "foxes.txt", "-o", "out", environ=environ, folder=tmp_path) as process:
            said = (await errors_after(process, signal.SIGTERM, signal.SIGHUP)).decode()
        held.release(emulator)
        assert (process.returncode, "Traceback" in said) == (130, False)
        assert "stopping at once" in said
        assert not list((tmp_path / "out").glob("jobs.sqlite-*"))  # closed
        counts = re.search(rf"{ROWS} rows: (\d+) succeeded, (\d+) left; ", said)
        assert counts is not None, said
        done, left = map(int, counts.groups())
        lines = lines_of(tmp_path / "out")
        assert (done, done + left) == (len(lines), ROWS)
        assert done > 0
        assert f"{left} rows left" in said
        assert "out/results.jsonl lists them" in said
        page = (tmp_path / "out" / "index.html").read_text()  # written once more
        assert all(line["images"][0] in page for line in lines)
        assert "out/index.html shows them" in said
        await check_rerun(tmp_path, emulator, environ)


async def test_signal_ends_the_reading_of_a_pipe_that_never_ends(tmp_path: Path) -> None:
    (tmp_path / "temporary").mkdir()
    environ = environment(APIMALL_API_KEY="k" * 20, TMPDIR=str(tmp_path / "temporary"))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "nanobanana_async", "batch", "-", "-o", "out"),
        cwd=tmp_path,
        env=environ,
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
    )
    try:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(b"a fox in snow\n" * 100_000)  # more than a pipe holds: the command reads it
        await process.stdin.drain()
        process.send_signal(signal.SIGHUP)  # others: test_signals.py
        async with asyncio.timeout(WITHIN_S):
            assert await process.stderr.read() == b"nanobanana: interrupted\n"
            assert await process.wait() == 130
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    assert list((tmp_path / "temporary").iterdir()) == []  # the copy of the prompts is removed
    assert not (tmp_path / "out").exists()


def unread_bytes(pipe: int) -> int:
    """Return how many bytes of a pipe were not read yet."""
    (count,) = array("i", fcntl.ioctl(pipe, termios.FIONREAD, b"\0" * 4))
    return count


async def test_signal_ends_the_wait_for_a_named_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rows.txt")
    environ = environment(APIMALL_API_KEY="k" * 20)
    async with started("batch", "rows.txt", "-o", "out", environ=environ, folder=tmp_path) as process:
        writer = await asyncio.to_thread(os.open, tmp_path / "rows.txt", os.O_WRONLY)  # waits for the command
        try:
            os.write(writer, b"a fox\n")
            async with asyncio.timeout(WITHIN_S):
                while unread_bytes(writer):  # noqa: ASYNC110 - the command reads it in its own time
                    await asyncio.sleep(0.01)
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(WITHIN_S):
                _, stderr = await process.communicate()
        finally:
            os.close(writer)
    assert (process.returncode, stderr) == (130, b"nanobanana: interrupted\n")


async def test_a_closed_pipe_does_not_stop_the_batch(tmp_path: Path) -> None:
    async with emulated(tmp_path, 0.1) as (emulator, environ):
        command = f"{POLLING_EARLY} batch foxes.txt -o out | head -n 1; exit ${{PIPESTATUS[0]}}"
        process = await asyncio.create_subprocess_exec(
            *("bash", "-c", command), cwd=tmp_path, env=environ, stdin=DEVNULL, stdout=PIPE, stderr=PIPE
        )
        async with asyncio.timeout(WITHIN_S):
            stdout, stderr = await process.communicate()
        assert (process.returncode, stdout.count(b"\n"), b"Error" in stderr) == (0, 1, False)
        assert (len(images_of(tmp_path / "out")), emulator.stats().creates_accepted) == (ROWS, ROWS)

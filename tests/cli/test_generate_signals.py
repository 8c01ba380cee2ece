"""Signals, closed and odd streams while `nanobanana generate` runs: what is bought is never lost."""

import asyncio
import io
import os
import shlex
import signal
import subprocess
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from pathlib import Path

import pytest
from rich.console import Console

from nanobanana_async.cli.signals import StopSignals
from nanobanana_async.emulator import Emulator, Fixed, Script
from nanobanana_async.emulator.faults import error
from tests.support.command import POLLING_EARLY, Said, ended, environment, nanobanana, says, started
from tests.support.held import HeldJobs
from tests.support.loopback import until

pytestmark = pytest.mark.slow

WITHIN_S = 40.0  # on a busy machine
NANOBANANA = f"{shlex.quote(sys.executable)} -m nanobanana_async"


async def accepted(emulator: Emulator, jobs: int) -> None:
    await until(lambda: emulator.stats().creates_accepted >= jobs, timeout_s=WITHIN_S)


async def stopped(process: Process, *numbers: signal.Signals) -> Said:
    for number in numbers:
        process.send_signal(number)
    return await ended(process)


async def test_the_first_signal_waits_for_what_is_bought(tmp_path: Path) -> None:
    held = HeldJobs()
    async with Emulator(duration=held, image_scale=0.1) as emulator:
        environ = environment(emulator)
        async with started("generate", "a fox", "an owl", "-o", "out", environ=environ, folder=tmp_path) as process:
            await accepted(emulator, 2)
            process.send_signal(signal.SIGHUP)  # the next tests send SIGTERM and SIGINT
            await says(process, "buying no more")
            held.release(emulator)
            said = await ended(process)
        assert emulator.stats().creates_accepted == 2
    assert said.code == 0
    assert all((tmp_path / line).is_file() for line in said.out.splitlines())
    assert len(said.out.splitlines()) == 2


async def test_the_first_signal_buys_no_more_and_prints_what_ended(tmp_path: Path) -> None:
    async with Emulator(duration=Fixed(0.4), job_limit=1) as emulator:
        environ = environment(emulator)
        arguments = ("generate", *map(str, range(8)), "--max-jobs", "1")
        async with started(*arguments, environ=environ) as process:
            await accepted(emulator, 2)
            said = await stopped(process, signal.SIGTERM)
        bought = emulator.stats().creates_accepted
        assert (said.code, len(said.out.splitlines())) == (130, bought)
        assert f"interrupted; {8 - bought} prompts not bought" in said.err
        again = await nanobanana(*arguments, environ=environ)
        assert (again.code, len(again.out.splitlines())) == (0, 8)
        assert set(said.out.splitlines()) <= set(again.out.splitlines())
        assert (emulator.stats().creates_accepted, emulator.stats().double_charges) == (8, 0)


async def test_results_are_printed_as_they_end() -> None:
    durations = iter([0.5])
    async with Emulator(duration=lambda _: next(durations, 300.0), job_limit=1) as emulator:
        environ = environment(emulator)
        arguments = ("generate", "one", "two", "--max-jobs", "1")
        async with started(*arguments, environ=environ) as process, asyncio.timeout(WITHIN_S):
            assert process.stdout is not None
            line = await process.stdout.readline()
            assert emulator.stats().ended == 1
    assert line.startswith(f"{emulator.url}/cdn/".encode())


async def test_two_signals_name_the_paid_jobs_and_exit_with_130(tmp_path: Path) -> None:
    held = HeldJobs()
    async with Emulator(duration=held) as emulator:
        environ = environment(emulator)
        async with started("generate", "a fox", "an owl", environ=environ) as process:
            await accepted(emulator, 2)
            said = await stopped(process, signal.SIGTERM, signal.SIGINT)
        assert said.code == 130
        await emulator.wait_for_no_connections()
        last = said.err.splitlines()[-1]
        assert "2 jobs paid for and not delivered" in last
        command = last.split("`")[1]
        assert {job.key for job in emulator.jobs()} <= set(command.split())
        words = shlex.split(command)
        assert words[:4] == [sys.executable, "-m", "nanobanana_async", "jobs"]  # as this process was started
        held.release(emulator)
        fetched = await nanobanana(*words[3:], environ=environ)
        assert (fetched.code, len(fetched.out.splitlines())) == (0, 2)
        again = await nanobanana("generate", "a fox", "an owl", environ=environ)
        assert sorted(again.out.splitlines()) == sorted(fetched.out.splitlines())
        assert emulator.stats().creates_accepted == 2


async def test_a_signal_before_anything_is_bought_says_so() -> None:
    script = Script({"apimall.create": [error(429)] * 100})
    async with Emulator(script=script) as emulator:
        async with started("generate", "a fox", environ=environment(emulator)) as process:
            await until(lambda: emulator.stats().creates_received > 0, timeout_s=WITHIN_S)
            said = await stopped(process, signal.SIGINT)
        assert emulator.stats().creates_accepted == 0
    assert (said.code, said.err.splitlines()[-1]) == (130, "nanobanana: interrupted; nothing was bought")


async def test_signals_while_the_run_is_forgotten_leave_exit_code_0(tmp_path: Path) -> None:
    program = """
import os, signal
from nanobanana_async.cli import main, open_runs

def signalled_sync(folder, sync=open_runs.sync_folder):
    sync(folder)
    if not list(folder.glob("*.json")):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)

open_runs.sync_folder = signalled_sync
main()
"""
    async with Emulator(duration=Fixed(0.1), image_scale=0.1) as emulator:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", program, "generate", "a fox", "-o", "out"),
            env=environment(emulator),
            cwd=tmp_path,
            stdout=PIPE,
            stderr=PIPE,
        )
        said = await ended(process)
        assert emulator.stats().creates_accepted == 1
    assert (said.code, len(said.out.splitlines())) == (0, 1)
    assert " credits, " in said.err.splitlines()[-1]


async def test_an_ignored_signal_stays_ignored(tmp_path: Path) -> None:
    held = HeldJobs()
    async with Emulator(duration=held, image_scale=0.1) as emulator:
        process = await asyncio.create_subprocess_exec(
            *("nohup", sys.executable, "-m", "nanobanana_async", "generate", "a fox", "-o", "out"),
            cwd=tmp_path,
            env=environment(emulator),
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=PIPE,
        )
        await accepted(emulator, 1)
        process.send_signal(signal.SIGHUP)
        held.release(emulator)
        said = await ended(process)
    assert (said.code, "buying no more" in said.err) == (0, False)


@pytest.mark.parametrize(
    ("program", "streams"),
    [(NANOBANANA, "<&- >&- 2>&-"), (POLLING_EARLY, "2>&1 | head -n 0"), (POLLING_EARLY, "2>/dev/full")],
    ids=["closed", "closed pipe", "full"],
)
async def test_closed_streams_do_not_stop_the_saving(program: str, streams: str, tmp_path: Path) -> None:
    async with Emulator(duration=Fixed(0.3), job_limit=1, image_scale=0.1) as emulator:
        command = f"{program} generate one two três --max-jobs 1 -o out {streams}; exit ${{PIPESTATUS[0]}}"
        process = await asyncio.create_subprocess_exec(
            "bash", "-c", command, cwd=tmp_path, env=environment(emulator), stdin=DEVNULL, stdout=PIPE, stderr=PIPE
        )
        async with asyncio.timeout(WITHIN_S):
            _, stderr = await process.communicate()
        assert (process.returncode, b"Error" in stderr, b"bug" in stderr) == (0, False, False)
        assert len(list((tmp_path / "out").glob("*.png"))) == emulator.stats().creates_accepted == 3


async def test_a_closed_pipe_of_urls_stops_the_buying_and_loses_nothing(tmp_path: Path) -> None:
    held = HeldJobs(quick=1)  # the second line is written when the reader has surely gone
    async with Emulator(duration=held, job_limit=1) as emulator:
        environ = environment(emulator)
        prompts = ("one", "two", "three", "four", "five", "six")
        reader = "(head -n 1; exec <&-; echo gone)"
        command = f"{POLLING_EARLY} generate {' '.join(prompts)} --max-jobs 1 | {reader}; exit ${{PIPESTATUS[0]}}"
        process = await asyncio.create_subprocess_exec(
            "bash", "-c", command, env=environ, stdin=DEVNULL, stdout=PIPE, stderr=PIPE
        )
        assert process.stdout is not None
        async with asyncio.timeout(WITHIN_S):
            printed = [await process.stdout.readline() for _ in range(2)]
            held.release(emulator)
            rest, stderr = await process.communicate()
        assert (process.returncode, printed[0].count(b"/cdn/"), printed[1], rest) == (1, 1, b"gone\n", b"")
        assert b"standard output can't be written (Broken pipe): buying no more" in stderr
        assert emulator.stats().creates_accepted < len(prompts)
        said = await nanobanana("generate", *prompts, environ=environ)
        assert (said.code, len(said.out.splitlines())) == (0, len(prompts))
        assert emulator.stats().creates_accepted == len(prompts)


async def test_an_encoding_without_the_characters_escapes_them(tmp_path: Path) -> None:
    async with Emulator(duration=Fixed(0.1), image_scale=0.1) as emulator:
        arguments = ("generate", "狐", "梟", "-o", "図")
        async with started(
            *arguments, environ=environment(emulator, PYTHONIOENCODING="cp1252:strict"), folder=tmp_path
        ) as process:
            said = await ended(process)
        assert (said.code, said.out.count("\\u56f3")) == (0, 2)
        assert len(list((tmp_path / "図").glob("*.png"))) == emulator.stats().creates_accepted == 2


def test_closed_descriptors_are_never_those_of_a_ledger(tmp_path: Path) -> None:
    program = (
        "import os, sys; from nanobanana_async.cli.streams import occupy_descriptors; occupy_descriptors();"
        "file = os.open('mine', os.O_CREAT | os.O_RDWR); sys.exit(file)"
    )
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(program)} <&- >&- 2>&-"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment() | dict(os.environ), check=False)
    assert done.returncode > 2


@pytest.mark.parametrize(
    ("running", "rest"),
    [(0, "no job is running"), (1, "collecting 1 running job"), (2, "collecting 2 running jobs")],
)
async def test_first_signal_says_how_many_jobs_run(running: int, rest: str) -> None:
    said: list[str] = []
    with StopSignals(Console(file=io.StringIO()), said.append, lambda: running) as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        await signals.stop_requested.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        with signals.end_of_work():
            await asyncio.sleep(10)
    assert said[0] == f"buying no more; {rest}; press Ctrl-C again to stop at once"
    kept = "running jobs are not lost: run the same command to collect them"
    assert said[1:] == [
        f"stopping at once; {kept if running else 'no job is running: the same command goes on from here'}"
    ]

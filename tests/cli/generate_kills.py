"""Kill `nanobanana generate` at random times: `python -m tests.cli.generate_kills --kills 100`.

The emulator runs in a process of its own and counts what it charges. Each command gets SIGKILL, SIGTERM or both; the
same command is then run to its end. Each prompt must be charged once, and each charged image be on the disk.
"""

import argparse
import asyncio
import random
import signal
import tempfile
import time
from asyncio.subprocess import Process
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from attrs import Factory, define

from nanobanana_async.emulator import API_KEY
from tests.durability.emulator_process import AccountSettings, EmulatorProcess, opened
from tests.support.command import Said, environment, started

JOB_S = 0.6
PLANS: Sequence[Sequence[signal.Signals]] = (
    (signal.SIGKILL,),
    (signal.SIGTERM,),
    (signal.SIGTERM, signal.SIGHUP),
    (signal.SIGTERM, signal.SIGKILL),
)
WITHIN_S = 150.0  # on a busy machine; a command takes seconds
AT_ONCE = 2  # commands that run side by side, on one ledger


@define
class Toll:
    """What the kills did, and what was wrong afterwards."""

    ended_by: Counter[str] = Factory(Counter)
    """How the first runs ended."""
    bought_before: Counter[bool] = Factory(Counter)
    """Whether a killed run had bought something."""
    wrong: list[str] = Factory(list)


def _is_over(said: Said) -> bool:
    """Return whether a run has printed its summary: everything was delivered, and the same command buys again."""
    return said.code == 0 or any(" credits, " in line for line in said.err.splitlines()[-1:])


async def _ended(process: Process) -> Said:
    """Wait for the command's end; a command that hangs is killed, and its exit code is reported as wrong."""
    async with asyncio.TaskGroup() as group:
        reading = group.create_task(process.communicate())
        if not (await asyncio.wait([reading], timeout=WITHIN_S))[0]:
            process.kill()
    out, err = reading.result()
    return Said(process.returncode or 0, out.decode(), err.decode())


async def _hit(
    process: Process, numbers: Sequence[signal.Signals], emulator: EmulatorProcess, prompt: str, rng: random.Random
) -> Said:
    """Send the signals at random times, most of them after the first create; return what the command printed."""
    async with asyncio.TaskGroup() as group:
        reading = group.create_task(_ended(process))
        if rng.random() < 0.1:
            await asyncio.sleep(rng.uniform(0.0, 2.0))  # while it starts
        else:
            while prompt not in emulator.records().prompts and not reading.done():  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.02)
            await asyncio.sleep(rng.uniform(0.0, 2 * JOB_S))
        for number in numbers:
            with suppress(ProcessLookupError):
                process.send_signal(number)
            await asyncio.sleep(rng.choice((0.0, rng.uniform(0.0, 0.3))))
    return reading.result()


async def _one(number: int, emulator: EmulatorProcess, folder: Path, toll: Toll, rng: random.Random) -> None:
    prompts = [f"fox {number} {name}" for name in ("one", "two")[: rng.choice((1, 2))]]
    out = f"out-{number}"
    environ = environment(
        NANOBANANA_GATEWAY="apimall",
        NANOBANANA_BASE_URL=emulator.url,
        APIMALL_API_KEY=API_KEY,
        NANOBANANA_LEDGER=str(folder / "jobs.sqlite"),
        NANOBANANA_EXPECTED_JOB_S=str(JOB_S),
    )
    command = ("generate", *prompts, "-o", out)
    began_at = time.perf_counter()
    async with started(*command, environ=environ, folder=folder) as process:
        said = await _hit(process, PLANS[number % len(PLANS)], emulator, prompts[0], rng)
    if time.perf_counter() - began_at > WITHIN_S:
        toll.wrong.append(f"{prompts}: the command did not end: {said.err}")
    toll.ended_by["delivered" if _is_over(said) else f"exit {said.code}"] += 1
    toll.bought_before[any(prompt in emulator.records().prompts for prompt in prompts)] += 1
    if not _is_over(said):
        async with started(*command, environ=environ, folder=folder) as process:
            said = await _ended(process)
        if said.code:
            toll.wrong.append(f"{prompts}: exit {said.code}: {said.err}")
    _check(prompts, emulator, folder / out, toll)


def _check(prompts: Sequence[str], emulator: EmulatorProcess, folder: Path, toll: Toll) -> None:
    bought = emulator.records().prompts
    charged = [len(bought[prompt].task_ids) if prompt in bought else 0 for prompt in prompts]
    if set(charged) != {1}:
        toll.wrong.append(f"{prompts}: charged {charged}")
    images = [file for file in folder.glob("*.png") if file.stat().st_size]
    if len(images) != len(prompts):
        toll.wrong.append(f"{prompts}: {len(images)} images on the disk")


async def campaign(folder: Path, kills: int, *, seed: int = 0) -> Toll:
    """Kill so many commands, run each again, and return what happened."""
    toll, rng = Toll(), random.Random(seed)
    # Answers are lost too: a repeat under the same key must find the job.
    with opened(AccountSettings(seed=seed, job_limit=4, median_s=JOB_S, lost=0.05)) as emulator:
        numbers = iter(range(kills))

        async def work() -> None:
            for number in numbers:
                await _one(number, emulator, folder, toll, rng)

        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(work())
    return toll


def main() -> None:
    """Run a long campaign and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        began_at = time.perf_counter()
        toll = asyncio.run(campaign(Path(folder), options.kills, seed=options.seed))
    print(f"{options.kills} commands in {time.perf_counter() - began_at:.0f} s; first runs: {dict(toll.ended_by)}")
    print(f"had bought something when they ended: {toll.bought_before[True]}")
    print(f"wrong afterwards: {len(toll.wrong)}", *toll.wrong, sep="\n")
    raise SystemExit(bool(toll.wrong))


if __name__ == "__main__":
    main()

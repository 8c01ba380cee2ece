"""Kill runs that save in an object store: `python -m tests.store.kills --rows 300 --kills 3`.

The emulator, and the proxy that counts what the store is asked for, run in this process; the server and the runs in
processes of their own. First `nanobanana batch` is killed, then two processes that run one named batch together. Each
image must be one object with the right digest, each row be charged once, and one more run must put nothing.
"""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Literal

from attrs import frozen

from nanobanana_async.emulator import Emulator, LogNormal
from tests.store.server import S3, bucket, environment_of, s3_process
from tests.store.shelves import digest
from tests.support.command import environment

Runs = Literal["command", "two processes"]
_WITHIN_S = 300.0


@frozen(kw_only=True)
class Campaign:
    """What is left after the kills."""

    killed_at: tuple[int, ...]
    """The number of images in the store at each kill."""
    codes: tuple[int, ...]
    """The exit codes of the runs after the last kill."""
    images: dict[str, str]
    """The objects that are images, with their digests."""
    wrong: tuple[str, ...]
    """Objects whose digest is not that of their metadata."""
    charges: int
    double_charges: int
    puts_of_last_run: int
    creates_of_last_run: int


@asynccontextmanager
async def _started(command: list[str], environ: dict[str, str], folder: Path) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, env=environ, cwd=folder, stdout=DEVNULL, stderr=PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def _run(command: list[str], at_once: int, environ: dict[str, str], folder: Path) -> list[int]:
    """Run the processes to their end, and return their exit codes."""
    async with AsyncExitStack() as stack:
        processes = [await stack.enter_async_context(_started(command, environ, folder)) for _ in range(at_once)]
        async with asyncio.timeout(_WITHIN_S), asyncio.TaskGroup() as group:
            ends = [group.create_task(process.communicate()) for process in processes]
        for process, end in zip(processes, ends, strict=True):
            if process.returncode:
                print(end.result()[1].decode(errors="replace")[-2000:], file=sys.stderr)
        return [process.returncode or 0 for process in processes]


async def _kill(
    command: list[str],
    at_once: int,
    environ: dict[str, str],
    folder: Path,
    when: Callable[[], bool],
    pause_s: float,
) -> None:
    """Start the processes, and kill all of them some time after something holds, or after one has ended."""
    async with AsyncExitStack() as stack:
        processes = [await stack.enter_async_context(_started(command, environ, folder)) for _ in range(at_once)]
        async with asyncio.timeout(_WITHIN_S):
            while not when() and all(process.returncode is None for process in processes):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await asyncio.sleep(pause_s)
        for process in processes:
            if process.returncode is None:
                process.kill()


async def campaign(upstream: str, folder: Path, runs: Runs, rows: int, kills: int, *, seed: int = 0) -> Campaign:
    """Kill the runs `kills` times, let them end, and run once more."""
    rng, job_s, job_limit = random.Random(seed), 0.5, 8
    duration = LogNormal(median_s=job_s)
    emulator = Emulator(duration=duration, job_limit=job_limit, image_scale=0.1, seed=seed)
    async with bucket(upstream) as s3, emulator:
        environ = {**environment(emulator, NANOBANANA_EXPECTED_JOB_S=str(job_s)), **environment_of(s3)}
        environ["PYTHONPATH"] = str(Path(__file__).parents[2])
        url, at_once = f"s3://{s3.bucket}/spring", 1
        if runs == "command":
            lines = "".join(f"a lighthouse, number {number}\n" for number in range(rows))
            (folder / "prompts.txt").write_text(lines, encoding="utf-8")
            command = ["-m", "nanobanana_async", "batch", "prompts.txt", "-o", url]
        else:
            at_once = 2
            command = ["-m", "tests.store.worker", str(folder / "jobs.sqlite"), url, str(rows)]
        killed_at: list[int] = []
        for number in range(1, kills + 1):
            least = rows * number // (kills + 1) - rng.randrange(job_limit)
            when = partial(_has_put, s3, least)
            await _kill(command, at_once, environ, folder, when, rng.random() * job_s)
            killed_at.append(len(set(s3.puts())))
        codes = await _run(command, at_once, environ, folder)
        before, creates = s3.counts(), emulator.stats().creates_received
        codes += await _run(command, at_once, environ, folder)
        images = await s3.images()
        stats = emulator.stats()
        return Campaign(
            killed_at=tuple(killed_at),
            codes=tuple(codes),
            images={name: digest(content) for name, (content, _) in images.items()},
            wrong=tuple(name for name, (content, facts) in images.items() if facts["sha256"] != digest(content)),
            charges=stats.creates_accepted,
            double_charges=stats.double_charges,
            puts_of_last_run=(s3.counts() - before)["PUT"],
            creates_of_last_run=stats.creates_received - creates,
        )


def _has_put(s3: S3, least: int) -> bool:
    return len(s3.puts()) >= least


def faults_of(found: Campaign, rows: int) -> list[str]:
    """Return what is wrong after a campaign."""
    checks = {
        f"exit codes {found.codes}": not any(found.codes),
        f"{len(found.images)} objects for {rows} rows": len(found.images) == rows,
        f"{rows - len(set(found.images.values()))} images are in the store twice": (
            len(set(found.images.values())) == rows
        ),
        f"wrong digests: {found.wrong}": not found.wrong,
        f"{found.charges} charges, {found.double_charges} double": (found.charges, found.double_charges) == (rows, 0),
        f"{found.puts_of_last_run} puts of the last run": found.puts_of_last_run == 0,
        f"{found.creates_of_last_run} creates of the last run": found.creates_of_last_run == 0,
    }
    return [fault for fault, fine in checks.items() if not fine]


def main() -> int:
    """Run both campaigns and print their figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    wrong: Counter[str] = Counter()
    runs: Runs
    with s3_process() as upstream:
        for runs in ("command", "two processes"):
            began_at = time.perf_counter()
            with tempfile.TemporaryDirectory() as folder:
                work: Awaitable[Campaign] = campaign(
                    upstream, Path(folder), runs, options.rows, options.kills, seed=options.seed
                )
                found = asyncio.run(_awaited(work))
            took_s = time.perf_counter() - began_at
            print(f"{runs}: killed with {', '.join(map(str, found.killed_at))} images in the store; {took_s:.0f} s")
            print(f"  {len(found.images)} objects, {len(found.wrong)} wrong; exit codes {found.codes}")
            print(f"  {found.charges} charges, {found.double_charges} double")
            print(f"  the last run: {found.puts_of_last_run} puts, {found.creates_of_last_run} creates", flush=True)
            wrong.update(faults_of(found, options.rows))
    for fault in wrong:
        print(f"WRONG: {fault}")
    return 1 if wrong else 0


async def _awaited(work: Awaitable[Campaign]) -> Campaign:
    return await work


if __name__ == "__main__":
    sys.exit(main())

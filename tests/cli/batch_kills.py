"""Kill a batch repeatedly: `python -m tests.cli.batch_kills --rows 300 --kills 3`.

The emulator runs in this process, `nanobanana batch` in other processes, which are killed with SIGKILL.
"""

import argparse
import asyncio
import hashlib
import json
import random
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from attrs import frozen

from nanobanana_async.emulator import Emulator, EmulatorStats, LogNormal
from tests.support.command import Said, environment, nanobanana, started


def lines_of(folder: Path) -> list[dict[str, Any]]:
    """Return the results; every line must be JSON."""
    return [json.loads(line) for line in (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()]


def images_of(folder: Path) -> dict[str, str]:
    """Return the images in the results; each must match its digest and appear once."""
    found: dict[str, str] = {}
    for line in lines_of(folder):
        for name, digest in zip(line["images"], line["sha256"], strict=True):
            assert name not in found
            assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
            found[name] = digest
    return found


@frozen(kw_only=True)
class KilledBatch:
    """The outcome of a batch that was killed repeatedly."""

    said: tuple[Said, ...]
    """The results of the last run and of the one after it."""
    killed_at: tuple[int, ...]
    """The number of results at each kill."""
    stats: EmulatorStats
    requests_of_rerun: int
    folder: Path


async def kill_and_rerun(
    folder: Path, rows: int, kills: int, *, job_s: float, job_limit: int, seed: int = 0
) -> KilledBatch:
    """Run a batch, kill it `kills` times, let it end, and run it once more."""
    source, out, rng = folder / "prompts.txt", folder / "out", random.Random(seed)
    source.write_text("".join(f"a lighthouse, number {number}\n" for number in range(rows)), encoding="utf-8")
    duration = LogNormal(median_s=job_s)
    killed_at: list[int] = []
    async with Emulator(duration=duration, job_limit=job_limit, image_scale=0.1, seed=seed) as emulator:
        environ = environment(emulator, NANOBANANA_EXPECTED_JOB_S=str(job_s))
        arguments = ("batch", str(source), "-o", str(out))
        for number in range(1, kills + 1):
            async with started(*arguments, environ=environ) as process:
                # At any point: while rows are loaded, bought, saved or written.
                least = rows * number // (kills + 1) - rng.randrange(job_limit)
                while _count(out) < least:  # noqa: ASYNC110 - another process writes it
                    await asyncio.sleep(0.01)
                await asyncio.sleep(rng.random() * job_s)
                process.kill()
                await process.communicate()
            killed_at.append(_count(out))
        said: list[Said] = []
        async with started(*arguments, environ=environ) as process:
            async with asyncio.timeout(600):
                stdout, stderr = await process.communicate()
            said.append(Said(process.returncode or 0, stdout.decode(), stderr.decode()))
        before = Counter(emulator.stats().requests)
        said.append(await nanobanana(*arguments, environ=environ))
        requests = (Counter(emulator.stats().requests) - before).total()
        stats = emulator.stats()
    return KilledBatch(
        said=tuple(said), killed_at=tuple(killed_at), stats=stats, requests_of_rerun=requests, folder=out
    )


def _count(folder: Path) -> int:
    try:
        return (folder / "results.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def main() -> None:
    """Run a long campaign and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        began_at = time.perf_counter()
        batch = asyncio.run(
            kill_and_rerun(Path(folder), options.rows, options.kills, job_s=1.5, job_limit=12, seed=options.seed)
        )
        took_s = time.perf_counter() - began_at
        lines, images = lines_of(batch.folder), images_of(batch.folder)
        on_disk = sum(path.suffix == ".png" for path in (batch.folder / "images").iterdir())
    stats = batch.stats
    print(f"killed with {', '.join(map(str, batch.killed_at))} results of {options.rows}; {took_s:.0f} s in all")
    print(f"exit codes after that: {', '.join(str(said.code) for said in batch.said)}")
    print(f"results: {len(lines)} lines, {len({line['job_key'] for line in lines})} keys, valid JSON each")
    print(f"images: {len(images)} named, each equal to its sha256; {on_disk} files on disk")
    print(f"charges: {stats.creates_accepted}, double {stats.double_charges}, keys replayed {stats.replays}")
    print(f"requests in all: {dict(stats.requests)}; of the rerun: {batch.requests_of_rerun}")


if __name__ == "__main__":
    main()

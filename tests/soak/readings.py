"""What a process holds at a time, and how fast that grows."""

import asyncio
import gc
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import linear_regression

WARM_UP = 1 / 2
"""The share of the readings that come before the growth is measured: caches and pools fill in that time."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What the process held when so many jobs had ended."""

    done: int
    rss_kb: float
    blocks: int
    """Blocks of Python's own allocator: an exact count, where RSS also has what the allocators keep for later."""
    descriptors: int
    tasks: int
    wal_kb: float
    """The size of the file in which SQLite keeps what is not yet in the ledger's file."""


def read_now(done: int, ledger: Path | None = None) -> Reading:
    """Read what this process holds; call it in the event loop."""
    gc.collect()
    return Reading(
        done=done,
        rss_kb=rss_mb() * 1024,
        blocks=sys.getallocatedblocks(),
        descriptors=len(os.listdir("/proc/self/fd")) - 1,  # the folder itself is open meanwhile
        tasks=len(asyncio.all_tasks()),
        wal_kb=0.0 if ledger is None else _size_kb(ledger.with_name(f"{ledger.name}-wal")),
    )


def rss_mb() -> float:
    """Return the memory of this process."""
    resident = int(Path("/proc/self/statm").read_text().split()[1])
    return resident * os.sysconf("SC_PAGE_SIZE") / 2**20


def growth(done: Sequence[float], held: Sequence[float]) -> float:
    """Return by how much each job adds to what is held, after the warm-up: the slope of the line of least squares."""
    start = round(len(done) * WARM_UP)
    return linear_regression(done[start:], held[start:]).slope


def _size_kb(file: Path) -> float:
    return file.stat().st_size / 1024 if file.exists() else 0.0

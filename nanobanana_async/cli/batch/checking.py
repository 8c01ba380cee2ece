"""Say every few seconds how far a long check has come: a large input is checked for long before anything is bought."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

EVERY_S = 3.0
LONGEST_S = 60.0
"""Between two lines where stderr is no terminal: the gaps grow, for a log."""


def checking(items: Iterable[T], what: str, clock: Callable[[], float] = time.perf_counter) -> Iterator[T]:
    """Yield the items; from the third second on, print on stderr how many there were: "1,200 rows checked"."""
    terminal, printed, gap_s = sys.stderr.isatty(), False, EVERY_S
    due = clock() + gap_s
    for count, item in enumerate(items):
        if (now := clock()) >= due:
            line = f"{count:,} {what}, nothing is bought yet"
            print(f"\r{line}\033[K" if terminal else line, end="" if terminal else "\n", file=sys.stderr, flush=True)
            printed, gap_s = True, gap_s if terminal else min(2 * gap_s, LONGEST_S)
            due = now + gap_s
        yield item
    if printed and terminal:
        print("\r\033[K", end="", file=sys.stderr, flush=True)

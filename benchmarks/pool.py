"""Simulated runs side by side, one process per core."""

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

Plan = TypeVar("Plan")
Result = TypeVar("Result")


def side_by_side(work: Callable[[Plan], Result], plans: Sequence[Plan]) -> list[Result]:
    """Return what the work makes of each plan, in order."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=os.cpu_count(), mp_context=context) as pool:
        return list(pool.map(work, plans))

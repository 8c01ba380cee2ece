"""`python -m tests.credits`: run many campaigns under caps and budgets, one campaign, or the mutation control."""

import argparse
import itertools
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from tests.credits import budget_campaign, campaign
from tests.credits.mutations import MUTATIONS, CampaignMutation

KINDS: dict[str, Any] = {"caps": campaign, "budgets": budget_campaign}
Say = Callable[[str], None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for; return 1 if a cap was passed, or a bug was missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.credits", description=__doc__)
    parser.add_argument("--campaigns", type=int, default=2000, help="how many campaigns of each kind to run")
    parser.add_argument("--kind", choices=KINDS, action="append", help="caps or budgets; both, if not given")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--mutations", action="store_true", help="check that deliberate bugs are caught")
    chosen = parser.parse_args(arguments)
    logging.getLogger("nanobanana_async").setLevel(logging.CRITICAL)
    if chosen.mutations:
        caught = [check(mutation, print) for mutation in MUTATIONS]
        return 0 if all(caught) else 1
    numbers = range(chosen.first, chosen.first + chosen.campaigns)
    return max(run(numbers, print, kind) for kind in chosen.kind or KINDS)


def run(numbers: Sequence[int], say: Say, kind: str = "caps") -> int:
    """Run campaigns and print what they came to; return 1 if one of them found a fault."""
    broken, sold, passed, begun = 0, 0, 0, time.perf_counter()
    counts: Counter[str] = Counter()
    for number in numbers:
        verdict = KINDS[kind].play(number)
        counts += verdict.counts
        sold += verdict.sold
        passed += verdict.passed > 0
        if verdict.faults:
            broken += 1
            say(f"campaign {number}: {'; '.join(verdict.faults)}\n  {verdict.plan}")
    facts = ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))
    say(f"{len(numbers)} campaigns of {kind}, {sold} jobs sold, {facts}, in {time.perf_counter() - begun:.0f} s")
    say(f"{passed} passed their cap by one job's stated difference or by hand, {broken} are broken")
    return 1 if broken else 0


def check(mutation: CampaignMutation, say: Say, *, first: int = 0) -> bool:
    """Return whether a deliberate bug is caught."""
    kind = KINDS[mutation.kind]
    fitting = (number for number in itertools.count(first) if mutation.among(kind.plan_of(number)))
    for number in itertools.islice(fitting, mutation.within):
        with mutation.applied():
            faults = kind.play(number).faults
        if faults and not kind.play(number).faults:
            say(f"{mutation.name}: campaign {number}: {faults[0]}")
            return True
    say(f"{mutation.name}: NOT CAUGHT within {mutation.within} campaigns")
    return False


if __name__ == "__main__":
    sys.exit(main())

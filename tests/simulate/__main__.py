"""`python -m tests.simulate`: many seeds, one seed to read, or the mutation control."""

import argparse
import logging
import sys
import time
from collections.abc import Callable, Sequence

from tests.simulate.mutations import MUTATIONS, SeedMutation
from tests.simulate.seed import Report, play
from tests.simulate.table import Totals

Say = Callable[[str], None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for; return 1 if a promise was broken, or a bug was missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulate", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many seeds to run")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, help="run this one alone")
    parser.add_argument("--accounts", action="store_true", help="two accounts in each session")
    parser.add_argument("--verbose", action="store_true", help="print the trace")
    parser.add_argument("--twice", action="store_true", help="run each seed twice and compare the traces")
    parser.add_argument("--mutations", action="store_true", help="check that deliberate bugs are caught")
    parser.add_argument("--mutation", type=int, help="play with this deliberate bug (a number of --mutations)")
    chosen = parser.parse_args(arguments)
    logging.getLogger("nanobanana_async").setLevel(logging.CRITICAL)
    if chosen.mutations:
        caught = [check(number, mutation, print) for number, mutation in enumerate(MUTATIONS)]
        return 0 if all(caught) else 1
    seeds = range(chosen.first, chosen.first + chosen.seeds) if chosen.seed is None else [chosen.seed]
    if chosen.mutation is None:
        return run(seeds, print, accounts=chosen.accounts, verbose=chosen.verbose, twice=chosen.twice)
    with MUTATIONS[chosen.mutation].applied():
        return run(seeds, print, accounts=chosen.accounts, verbose=chosen.verbose, twice=chosen.twice)


def run(seeds: Sequence[int], say: Say, *, accounts: bool = False, verbose: bool = False, twice: bool = False) -> int:
    """Run seeds and print what they came to; return 1 if one broke a promise."""
    totals, broken, began = Totals(), 0, time.perf_counter()
    for seed in seeds:
        report = play(seed, accounts=accounts)
        totals.add(report)
        if verbose:
            say("\n".join(report.trace))
        if twice and play(seed, accounts=accounts).digest != report.digest:
            say(f"seed {seed} is not the same when it is run again")
            broken += 1
        if report.violations:
            broken += 1
            say(_violations_text(report, " --accounts" if accounts else ""))
    for line in totals.lines():
        say(line)
    say(f"{len(seeds)} seeds in {time.perf_counter() - began:.1f} s, {broken} broken")
    return 1 if broken else 0


def check(
    number: int,
    mutation: SeedMutation,
    say: Say,
    *,
    first: int = 0,
    play_without: Callable[[int], Report] = play,
) -> bool:
    """Return whether a deliberate bug is caught by the rules that it breaks, within its seeds.

    `play_without` plays a seed without the bug, or knows how it ends.
    """
    for seed in range(first, first + mutation.within):
        with mutation.applied():
            found = [violation for violation in play(seed).violations if violation.rule in mutation.rules]
        without = {violation.rule for violation in play_without(seed).violations} if found else set()
        for violation in found:
            if violation.rule not in without:
                say(f"{number:>2} {mutation.name}: seed {seed}, {violation.rule}: {violation.text}")
                return True
    say(f"{number:>2} {mutation.name}: NOT CAUGHT within {mutation.within} seeds")
    return False


def _violations_text(report: Report, options: str) -> str:
    lines = [f"seed {report.seed} ({report.scene}):"]
    lines += [f"  {violation.at:9.3f} {violation.rule}: {violation.text}" for violation in report.violations[:5]]
    return "\n".join([*lines, f"  replay: python -m tests.simulate --seed {report.seed}{options} --verbose"])


if __name__ == "__main__":
    sys.exit(main())

"""The long forms of the fault matrix: `python -m tests.faults NAME [--count N]`. README.md says what each shows.

The exit code is 1 when a promise was broken.
"""

import argparse
import importlib
import sys
import time
from collections.abc import Mapping
from typing import Any

COMMANDS = {
    "cancel": ("cancelling", "each call, cancelled at each of its steps; with --count at every n-th"),
    "lost": ("lost_answers", "answers to creates that are lost or garbled, in so many seeds (1000)"),
    "outage": ("outage", "ten minutes without an answer"),
    "resume": ("resuming", "two processes resume one ledger, so many times (500)"),
    "polls": ("polls", "polls that contradict each other, in so many seeds (1000)"),
    "day": ("day", "so many days in which the system's clock jumps (50)"),
    "downloads": ("downloads", "downloads that break at each byte; with --count at every n-th"),
    "headers": ("headers", "so many keys, headers and task ids of any characters (100000)"),
}


def _text(value: object) -> str:
    match value:
        case Mapping():
            return ", ".join(f"{name}: {fact}" for name, fact in value.items())
        case list():
            return "\n".join(["none"] if not value else [str(len(value)), *(f"  {each}" for each in value[:20])])
        case _:
            return str(value)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="name", required=True)
    for name, (_, text) in COMMANDS.items():
        commands.add_parser(name, help=text).add_argument("--count", type=int)
    chosen = parser.parse_args()
    began = time.perf_counter()
    figures: dict[str, Any] = importlib.import_module(f"tests.faults.{COMMANDS[chosen.name][0]}").main(chosen.count)
    figures["seconds"] = round(time.perf_counter() - began, 1)
    width = max(map(len, figures))
    print("\n".join(f"{name:<{width}}  {_text(value)}" for name, value in figures.items()), flush=True)
    return int(bool(figures["breaches"]))


if __name__ == "__main__":
    sys.exit(main())

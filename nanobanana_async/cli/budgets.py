"""`nanobanana budgets`: what the named budgets of a ledger have spent, reserved and left."""

import asyncio
import json as json_format
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

from attrs import asdict
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nanobanana_async.cli.jobs.actions import open_read_only
from nanobanana_async.cli.options import DEFAULT_LEDGER, Flag, LedgerOption
from nanobanana_async.escaping import one_line
from nanobanana_async.formatting import plain_number
from nanobanana_async.ledger.location import Location
from nanobanana_async.models import to_json_types
from nanobanana_async.policy.named_budget import BudgetState


def budgets(*, ledger: LedgerOption = DEFAULT_LEDGER, json: Flag = False) -> int:
    """Show the named budgets of a ledger: what is left of each, spent and reserved. Nothing is changed.

    A budget begins with the first job that names it: --budget of `generate`, `batch` and `mcp`, a token of `serve`, or
    `Budget` in Python. One of each day shows this day in UTC. In a pipe each line has name, credits left, spent,
    reserved, the cap, and `day` or `all`, separated by tabs.

    Examples:

    nanobanana budgets

    nanobanana budgets --ledger spring/jobs.sqlite --json

    Parameters
    ----------
    ledger
        The ledger: a file, or postgresql://user@host/database.
    json
        Print a JSON object for each budget, a line each.
    """
    states = asyncio.run(_read(ledger))
    if json:
        for state in states:
            print(json_format.dumps(to_json_types({**asdict(state), "left": state.left})))
    elif not sys.stdout.isatty():
        for state in states:
            print("\t".join((one_line(state.name), *_amounts(state), state.per or "all")))
    elif states:
        Console(markup=False, highlight=False).print(_table(states))
    if not states:
        print("no budget in this ledger: --budget NAME=CREDITS of `generate` and `batch` begins one", file=sys.stderr)
    return 0


async def _read(ledger: Location) -> Sequence[BudgetState]:
    async with open_read_only(ledger) as opened:
        return await opened.budgets(datetime.now(UTC))


def _amounts(state: BudgetState) -> tuple[str, ...]:
    return tuple(map(plain_number, (state.left, state.spent, state.reserved, state.max_credits)))


def _table(states: Sequence[BudgetState]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("budget", overflow="fold")  # the only one that gives way on a narrow terminal
    for title in ("left", "spent", "reserved", "of"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for state in states:
        period = "" if state.resets_at is None else f"a day, until {state.resets_at:%H:%M} UTC"
        style = "yellow" if not state.left else ""
        table.add_row(Text(one_line(state.name)), *_amounts(state), period, style=style)
    return table

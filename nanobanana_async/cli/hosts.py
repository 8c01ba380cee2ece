"""`nanobanana hosts`: who works on a ledger that hosts share, and how the account's slots are divided."""

import asyncio
import json as json_format
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

from attrs import asdict
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from nanobanana_async.cli.jobs.actions import open_read_only
from nanobanana_async.cli.options import Flag
from nanobanana_async.cli.shared_ledger import SharedLedgerOption, require_shared_ledger
from nanobanana_async.commands import jobs_command
from nanobanana_async.escaping import one_line
from nanobanana_async.formatting import credit_count, duration, plain_number, plural
from nanobanana_async.ledger.postgres.ledger import PostgresLedger
from nanobanana_async.ledger.postgres.overview import AccountMetrics, Overview, OwnerMetrics
from nanobanana_async.ledger.postgres.url import PostgresUrl
from nanobanana_async.models import json_number

REFRESH_S = 2.0
"""As often as owners beat and exchange their shares."""


def hosts(*, ledger: SharedLedgerOption = None, watch: Flag = False, json: Flag = False) -> int:
    """Show the processes that work on a ledger that hosts share, their shares of the account's slots, and what waits.

    Nothing is changed. Exit code 1: something needs you (an owner is silent, or jobs are uncertain).

    For example: `nanobanana hosts --ledger postgresql://studio@db.example/studio --watch`

    Parameters
    ----------
    ledger
        The ledger, postgresql://user@host/database.
    watch
        Show it again every 2 seconds, until Ctrl-C.
    json
        Print one JSON object, with the columns of the views owner_metrics, account_metrics, batch_metrics and
        ledger_metrics; with --watch one a line, every 2 seconds.
    """
    return asyncio.run(_show(require_shared_ledger("hosts", ledger), watch=watch, json=json))


async def _show(location: PostgresUrl, *, watch: bool, json: bool) -> int:
    async with open_read_only(location) as opened:
        assert isinstance(opened, PostgresLedger)
        overview = await opened.overview()
        if json:
            await _print_json(opened, overview, watch=watch)
        elif not watch:
            Console(markup=False, highlight=False).print(_render(overview, location))
        else:
            await _keep_showing(opened, location, overview)
    return int(bool(list(_warnings(overview, location))))


async def _print_json(ledger: PostgresLedger, overview: Overview, *, watch: bool) -> None:
    print(json_format.dumps(asdict(overview), default=json_number), flush=True)
    while watch:
        await asyncio.sleep(REFRESH_S)
        print(json_format.dumps(asdict(await ledger.overview()), default=json_number), flush=True)


async def _keep_showing(ledger: PostgresLedger, location: PostgresUrl, overview: Overview) -> None:
    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        while True:
            console.print(_watched(overview, location))
            await asyncio.sleep(REFRESH_S)
            overview = await ledger.overview()
    with Live(_watched(overview, location), console=console, auto_refresh=False) as live:
        while True:
            await asyncio.sleep(REFRESH_S)
            live.update(_watched(await ledger.overview(), location), refresh=True)


def _watched(overview: Overview, location: PostgresUrl) -> RenderableType:
    """Return what fits a screen from the top: a low terminal cuts off the last owners, and no warning."""
    title = f"at {datetime.now().astimezone():%H:%M:%S}, every {REFRESH_S:g} s until Ctrl-C"
    return Group(Text(title, style="dim"), *_texts(_warnings(overview, location), "yellow"), *_facts(overview))


def _render(overview: Overview, location: PostgresUrl) -> RenderableType:
    return Group(*_facts(overview), *_texts(_warnings(overview, location), "yellow"))


def _facts(overview: Overview) -> Iterator[RenderableType]:
    yield from _texts(_batches(overview))
    for each in overview.accounts:
        yield from _texts([_account(each)], "bold")
        yield from _owners([owner for owner in overview.owners if owner.account == each.account])
    known = {each.account for each in overview.accounts}
    others = [owner for owner in overview.owners if owner.account not in known]
    if others:
        yield from _texts(["have the ledger open, and no share of an account"], "bold")
        yield from _owners(others)
    if not overview.owners:
        yield "no process has this ledger open"


def _texts(lines: Iterable[str], style: str = "") -> Iterator[Text]:
    return (Text(one_line(line), style=style) for line in lines)


def _owners(owners: Sequence[OwnerMetrics]) -> Iterator[RenderableType]:
    if not owners:
        return
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("  owner", justify="right", no_wrap=True)
    table.add_column("host", overflow="ellipsis")  # the only one that gives way on a narrow terminal
    with_share = any(owner.account is not None for owner in owners)
    for title in ("process", "silent", *(("slots", "granted", "share", "queued") if with_share else ())):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for owner in owners:
        values = (
            owner.owner,
            one_line(owner.host),
            owner.process,
            duration(max(0.0, owner.silent_s), tenths=False),
            *(_share(owner) if with_share else ()),
        )
        refused = f"{plural(owner.refused, 'write')} refused" if owner.refused else ""
        notes = ("overdue" if owner.is_silent else "", "interactive" if owner.interactive else "", refused)
        style = "yellow" if owner.is_silent else ""
        table.add_row(*map(str, values), ", ".join(filter(None, notes)), style=style)
    yield table


def _share(owner: OwnerMetrics) -> tuple[object, ...]:
    if owner.held is None or owner.in_flight is None:
        return ("-",) * 4
    return owner.held + owner.in_flight, owner.granted, owner.target, owner.queued


def _account(each: AccountMetrics) -> str:
    limit = "limit unknown" if each.job_limit is None else f"limit {plain_number(int(each.job_limit))}"
    orphans = f" ({each.orphans:,} without an owner)" if each.orphans else ""
    gate = f", paused for {duration(each.gate_s, tenths=False)}" if each.gate_s else ""
    return f"account {each.account}: {limit}, {each.running:,} running{orphans}, {each.waiting:,} waiting{gate}"


def _batches(overview: Overview) -> Iterator[str]:
    for each in overview.batches:
        rows = "not fed, " if each.fed is None else f"{plural(each.fed, 'row')} fed, "
        cap = ""
        if each.max_credits:
            cap = f" of {credit_count(each.max_credits)} ({each.credits / each.max_credits:.0%})"
        yield f"batch {each.name or each.batch}: {rows}{credit_count(each.credits)} spent or reserved{cap}"


def _warnings(overview: Overview, location: PostgresUrl) -> Iterator[str]:
    """Yield what needs a person."""
    silent = [str(owner.owner) for owner in overview.owners if owner.is_silent]
    if silent:
        owners = f"owner {', '.join(silent)}"
        yield f"silent for longer than its lease: {owners}; its jobs wait until another process buries it"
    for each in overview.accounts:
        if each.uncertain:
            age = "" if each.oldest_uncertain_s is None else f", the oldest for {duration(each.oldest_uncertain_s)}"
            command = jobs_command("reconcile", ledger=location)
            yield f"account {each.account}: {plural(each.uncertain, 'job')} uncertain{age}: `{command}` may decide"
        if each.orphans and not overview.owners:
            yield f"account {each.account}: {plural(each.orphans, 'job')} running that no process follows"

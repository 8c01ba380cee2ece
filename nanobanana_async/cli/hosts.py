"""`nanobanana hosts`: who works on a ledger that hosts share, and how the account's slots are divided."""

import asyncio
import json as json_format
from collections.abc import Iterator

from attrs import asdict
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table

from nanobanana_async.cli.options import Flag, SharedLedgerOption
from nanobanana_async.commands import jobs_command
from nanobanana_async.errors import ConfigurationError, LedgerError
from nanobanana_async.escaping import one_line
from nanobanana_async.formatting import credit_count, duration, plain_number, plural
from nanobanana_async.ledger.location import ledger_at
from nanobanana_async.ledger.postgres.ledger import PostgresLedger
from nanobanana_async.ledger.postgres.overview import Overview, OwnerMetrics
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
        ledger_metrics.
    """
    if ledger is None:
        raise ConfigurationError(
            "hosts needs a ledger that hosts share: pass --ledger postgresql://user@host/database, or set"
            " NANOBANANA_LEDGER to it"
        )
    return asyncio.run(_show(ledger, watch=watch, json=json))


async def _show(location: PostgresUrl, *, watch: bool, json: bool) -> int:
    opened = ledger_at(location, read_only=True)
    assert isinstance(opened, PostgresLedger)
    try:
        await opened.open()
        try:
            overview = await opened.overview()
            if json:
                print(json_format.dumps(asdict(overview), default=json_number))
            elif not watch:
                Console(markup=False).print(_render(overview, location))
            else:
                await _keep_showing(opened, location, overview)
        finally:
            await opened.aclose()
    except LedgerError as error:
        raise ConfigurationError(str(error)) from error
    return int(bool(list(_warnings(overview, location))))


async def _keep_showing(ledger: PostgresLedger, location: PostgresUrl, overview: Overview) -> None:
    with Live(_render(overview, location), console=Console(markup=False), auto_refresh=False) as live:
        while True:
            await asyncio.sleep(REFRESH_S)
            live.update(_render(await ledger.overview(), location), refresh=True)


def _render(overview: Overview, location: PostgresUrl) -> RenderableType:
    parts: list[RenderableType] = [_owners(overview)]
    parts += [one_line(line) for line in (*_accounts(overview), *_batches(overview), *_warnings(overview, location))]
    return Group(*parts)


def _owners(overview: Overview) -> RenderableType:
    if not overview.owners:
        return "no process has this ledger open"
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("owner", "host", "process", "last beat", "account", "slots", "granted", "share", "queued"):
        table.add_column(title, justify="left" if title in ("host", "account") else "right", overflow="fold")
    for owner in overview.owners:
        table.add_row(str(owner.owner), one_line(owner.host), str(owner.process), _beat(owner), *_share(owner))
    return table


def _beat(owner: OwnerMetrics) -> str:
    return f"{duration(max(0.0, owner.silent_s), tenths=False)} ago{' (silent)' if owner.is_silent else ''}"


def _share(owner: OwnerMetrics) -> tuple[str, ...]:
    if owner.account is None or owner.held is None or owner.in_flight is None:
        return "-", "-", "-", "-", "-"
    account = one_line(owner.account) + (" (interactive)" if owner.interactive else "")
    return account, str(owner.held + owner.in_flight), str(owner.granted), str(owner.target), str(owner.queued)


def _accounts(overview: Overview) -> Iterator[str]:
    for each in overview.accounts:
        limit = "limit unknown" if each.job_limit is None else f"limit {plain_number(int(each.job_limit))}"
        gate = f", paused for {duration(each.gate_s, tenths=False)}" if each.gate_s else ""
        yield f"account {each.account}: {limit}, {each.running:,} running, {each.waiting:,} waiting{gate}"


def _batches(overview: Overview) -> Iterator[str]:
    for each in overview.batches:
        rows = "" if each.fed is None else f"{plural(each.fed, 'row')} fed, "
        cap = "" if each.max_credits is None else f" of {credit_count(each.max_credits)}"
        yield f"batch {each.batch}: {rows}{credit_count(each.credits)} spent or reserved{cap}"


def _warnings(overview: Overview, location: PostgresUrl) -> Iterator[str]:
    """Yield what needs a person."""
    silent = [str(owner.owner) for owner in overview.owners if owner.is_silent]
    if silent:
        yield f"silent for longer than its lease: owner {', '.join(silent)}; its jobs wait until another process beats"
    for each in overview.accounts:
        if each.uncertain:
            age = "" if each.oldest_uncertain_s is None else f", the oldest for {duration(each.oldest_uncertain_s)}"
            command = jobs_command("reconcile", ledger=location)
            yield f"account {each.account}: {plural(each.uncertain, 'job')} uncertain{age}: `{command}` may decide"
        if each.orphans and not overview.owners:
            yield f"account {each.account}: {plural(each.orphans, 'job')} running that no process follows"

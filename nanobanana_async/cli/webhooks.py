"""`nanobanana webhooks`: list and remove the webhooks of an account."""

import asyncio
import json as json_format
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

from attrs import asdict, evolve, frozen
from cyclopts import App, Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nanobanana_async import ConfigurationError, Gateway
from nanobanana_async.cli.find_gateway import find_gateway
from nanobanana_async.cli.jobs.actions import require_ledger
from nanobanana_async.cli.jobs.consent import confirm, print_note
from nanobanana_async.cli.options import DEFAULT_LEDGER, BaseUrl, Flag, GatewayFinder, GatewayName, LedgerOption, Yes
from nanobanana_async.commands import command_line
from nanobanana_async.config import Timeouts
from nanobanana_async.connections import make_connections
from nanobanana_async.engine.account_webhook import Webhooks
from nanobanana_async.engine.callback_router import ACCOUNT_PATH, CallbackRouter
from nanobanana_async.escaping import escape_exactly, json_line, one_line
from nanobanana_async.formatting import plural, shorten
from nanobanana_async.gateways.capabilities import MAX_WEBHOOKS_READ, HasWebhooks, Webhook
from nanobanana_async.gateways.contract import HttpRequest, HttpResponse
from nanobanana_async.ledger.base import Ledger
from nanobanana_async.ledger.location import Location, ledger_at
from nanobanana_async.ledger.memory import MemoryLedger
from nanobanana_async.loop_guard import LoopGuard

OK, FAILED = 0, 1

SHOWN_IDS = 10

LONGEST_CELL = 200
"""In the table of a terminal; a pipe gets all of it."""

_TITLES = ("id", "status", "sent", "failed", "ours", "url", "last error")


@frozen
class _Listed:
    """A webhook, and whether it was registered from the ledger. The token in the URL of one of ours is left out."""

    webhook: Webhook
    ours: bool

    @property
    def cells(self) -> tuple[str, ...]:
        webhook = self.webhook
        counts = ("" if number is None else str(number) for number in (webhook.total_sent, webhook.total_failed))
        status = webhook.status or ("active" if webhook.is_active else "inactive")
        ours = "yes" if self.ours else "no"
        return (
            webhook.id,
            one_line(status),
            *counts,
            ours,
            escape_exactly(webhook.url),
            one_line(webhook.last_error or ""),
        )


@frozen
class _Commands:
    find_gateway: GatewayFinder

    def webhooks(
        self,
        *extra: Annotated[str, Parameter(show=False)],
        ledger: LedgerOption = DEFAULT_LEDGER,
        json: Flag = False,
        gateway: GatewayName = None,
        base_url: BaseUrl = None,
    ) -> int:
        """List the webhooks of the account at the gateway; `nanobanana webhooks remove` removes them.

        An app with a `CallbackReceiver` registers one for its ledger: with that ledger it is listed as "ours". In a
        pipe: tab-separated lines with id, status, sent, failed, ours, URL, last error.

        Examples:

        nanobanana webhooks

        nanobanana webhooks --ledger app/jobs.sqlite --json

        Parameters
        ----------
        ledger
            The ledger file of the app whose webhooks are "ours".
        json
            Print one JSON object per line.
        gateway
            The gateway; by default the one whose API key is set.
        base_url
            The gateway's URL, if not the usual one.
        """
        if extra:
            raise ConfigurationError(
                f"webhooks has no command {extra[0]!r}: `{command_line('webhooks', 'remove', 'ID')}`"
            )
        listed = asyncio.run(_fetch(self.find_gateway(gateway, base_url), ledger))
        if json:
            for each in listed:
                facts = {**asdict(each.webhook), "ours": each.ours}
                print(json_line(json_format.dumps(facts, ensure_ascii=False)))
        elif sys.stdout.isatty() and listed:
            Console().print(_table(listed))
        else:
            for each in listed:
                print("\t".join(each.cells))
        sys.stdout.flush()
        ours = sum(each.ours for each in listed)
        more = "; only so many are read" if len(listed) >= MAX_WEBHOOKS_READ else ""
        print_note(f"{plural(len(listed), 'webhook')}, {ours} registered from {ledger}{more}")
        return OK

    def remove(
        self,
        *ids: str,
        all_of_ours: Flag = False,
        ledger: LedgerOption = DEFAULT_LEDGER,
        yes: Yes = False,
        gateway: GatewayName = None,
        base_url: BaseUrl = None,
    ) -> int:
        """Remove webhooks of the account: the gateway delivers nothing to them any more.

        An app that still runs polls its jobs without deliveries; when it is started again it registers its webhook
        again.

        Examples:

        nanobanana webhooks remove wh_01HZX

        nanobanana webhooks remove --all-of-ours --ledger app/jobs.sqlite

        Parameters
        ----------
        ids
            The ids of webhooks, as `nanobanana webhooks` lists them.
        all_of_ours
            Remove those that apps registered from the ledger, for any public URL.
        ledger
            The ledger file of the app whose webhooks are "ours".
        yes
            Do not ask for confirmation.
        gateway
            The gateway; by default the one whose API key is set.
        base_url
            The gateway's URL, if not the usual one.
        """
        if bool(ids) == all_of_ours:
            raise ConfigurationError(
                f"pass the ids of webhooks, or --all-of-ours: `{command_line('webhooks')}` lists them"
            )
        if all_of_ours:
            require_ledger(ledger)
        selected = self.find_gateway(gateway, base_url)
        listed = asyncio.run(_fetch(selected, ledger))
        chosen = [each for each in listed if (each.ours if all_of_ours else each.webhook.id in ids)]
        if missing := [each for each in ids if each not in {each.webhook.id for each in listed}]:
            known = _some([each.webhook.id for each in listed])
            raise ConfigurationError(f"the account has no webhook {shorten(missing[0])!r}; it has {known}")
        if not chosen:
            print_note(f"no webhook of the account was registered from {ledger}")
            return OK
        what = _some([f"{each.webhook.id} ({escape_exactly(shorten(each.webhook.url))})" for each in chosen], limit=700)
        others = sum(not each.ours for each in chosen)
        risk = f" {plural(others, 'of them was', 'of them were')} not registered from {ledger}." if others else ""
        if not confirm(f"{plural(len(chosen), 'webhook')} will be removed: {what}.{risk}", yes=yes):
            return FAILED
        print_note(f"{plural(asyncio.run(_remove(selected, ledger, chosen)), 'webhook')} removed")
        return OK


@asynccontextmanager
async def _opened(gateway: Gateway, path: Location) -> AsyncIterator[Webhooks]:
    """Open the connections, and the ledger if its file is there: without it no webhook is ours."""
    if not isinstance(gateway, HasWebhooks):
        raise ConfigurationError(f"{gateway.name} has no webhooks of an account: nothing is to be listed or removed")
    timeouts = Timeouts()
    transport, _ = make_connections(gateway, timeouts, 1, http=None, tls=None, proxy=None, trust_env=True)

    async def send(request: HttpRequest) -> HttpResponse:
        return await transport.send(request, timeout_s=timeouts.query_s)

    ledger = _ledger_of(path)
    callbacks = CallbackRouter(ledger, LoopGuard("nanobanana webhooks"))
    await transport.open()
    try:
        await ledger.open()
        try:
            yield Webhooks(gateway, gateway.account, callbacks, send)
        finally:
            await ledger.aclose()
    finally:
        await transport.aclose()


def _ledger_of(path: Location) -> Ledger:
    exists = not isinstance(path, Path) or path.expanduser().is_file()
    return ledger_at(path) if exists else MemoryLedger()


async def _fetch(gateway: Gateway, path: Location) -> Sequence[_Listed]:
    async with _opened(gateway, path) as webhooks:
        listed: list[_Listed] = []
        for webhook, account in await webhooks.fetch_with_accounts():
            ours = account is not None  # also under an older key of the account
            shown = f"{webhook.url.partition(ACCOUNT_PATH)[0]}{ACCOUNT_PATH}/..." if ours else webhook.url
            listed.append(_Listed(evolve(webhook, url=shown), ours))
        return listed


async def _remove(gateway: Gateway, path: Location, chosen: Sequence[_Listed]) -> int:
    async with _opened(gateway, path) as webhooks:
        return sum([await webhooks.remove(each.webhook.id) for each in chosen])


def _some(names: Sequence[str], limit: int = 96) -> str:
    """Return the first names, each cut at the limit, and how many there are more: a gateway may list a thousand."""
    more = f" and {len(names) - SHOWN_IDS} more" if len(names) > SHOWN_IDS else ""
    return f"{', '.join(shorten(name, limit) for name in names[:SHOWN_IDS])}{more}" if names else "none"


def _table(listed: Sequence[_Listed]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for title in _TITLES:
        table.add_column(title, overflow="fold", justify="right" if title in ("sent", "failed") else "left")
    for each in listed:
        table.add_row(*(Text(shorten(cell, LONGEST_CELL)) for cell in each.cells))
    return table


_commands = _Commands(find_gateway)
webhooks = App(name="webhooks", default_command=_commands.webhooks)
webhooks.command(_commands.remove)

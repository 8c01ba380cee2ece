"""`nanobanana ledger`: create or migrate a ledger, and check that this host can use it."""

import asyncio

from cyclopts import App

from nanobanana_async.cli.jobs.actions import open_read_only
from nanobanana_async.cli.options import DEFAULT_LEDGER, LedgerOption
from nanobanana_async.errors import ConfigurationError, LedgerError
from nanobanana_async.formatting import count
from nanobanana_async.ledger.location import Location, ledger_at
from nanobanana_async.ledger.postgres.ledger import PostgresLedger


def migrate(*, ledger: LedgerOption = DEFAULT_LEDGER) -> int:
    """Create the tables of a ledger, or migrate those of an older version. A session does so, too, if it may.

    For example: `nanobanana ledger migrate --ledger postgresql://studio@db.example/studio`

    Parameters
    ----------
    ledger
        The ledger: a file, or postgresql://user@host/database.
    """
    asyncio.run(_migrate(ledger))
    print(f"ledger {ledger} is up to date")
    return 0


def check(*, ledger: LedgerOption = DEFAULT_LEDGER) -> int:
    """Check that a ledger can be read, and print what is in it and which hosts use it. Nothing is changed.

    Parameters
    ----------
    ledger
        The ledger: a file, or postgresql://user@host/database.
    """
    print(asyncio.run(_facts(ledger)))
    return 0


async def _migrate(location: Location) -> None:
    ledger = ledger_at(location)
    try:
        await ledger.open()
    except LedgerError as error:
        raise ConfigurationError(str(error)) from error
    await ledger.aclose()


async def _facts(location: Location) -> str:
    async with open_read_only(location) as ledger:
        counts, unowned = await ledger.count_by_state(), await ledger.count_unowned()
        lines = [f"ledger {location} can be read"]
        if isinstance(ledger, PostgresLedger):
            owners = await ledger.owners()
            lines += [
                f"owner {owner.number}: process {owner.process} on {owner.host}, nanobanana_async {owner.client}"
                f"{', silent: dead or cut off' if owner.is_silent else ''}"
                for owner in owners
            ]
            lines.append(f"{count(len(owners), 'owner')}, {sum(owner.is_silent for owner in owners)} silent")
    lines.append(f"{count(counts.total(), 'job')}, {unowned.total()} unfinished without an owner")
    return "\n".join(lines)


def ledger_commands() -> App:
    """Return the group of commands."""
    app = App(name="ledger", help="Create, migrate or check a ledger.")
    app.command(migrate)
    app.command(check)
    return app

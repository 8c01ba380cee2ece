"""`nanobanana ledger`: create or migrate a ledger, and check that this host can use it."""

import asyncio

from cyclopts import App

from nanobanana_async.cli.jobs.actions import open_read_only
from nanobanana_async.cli.options import DEFAULT_LEDGER, LedgerOption
from nanobanana_async.errors import ConfigurationError, LedgerError
from nanobanana_async.formatting import plural
from nanobanana_async.ledger.location import Location, ledger_at
from nanobanana_async.ledger.postgres.ledger import PostgresLedger
from nanobanana_async.ledger.stored import MISSING_PARTS_ADVICE, describe_missing


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
    """Check that a ledger can be read and lacks no part; print what is in it and who uses it. Nothing is changed.

    Parameters
    ----------
    ledger
        The ledger: a file, or postgresql://user@host/database.
    """
    print(asyncio.run(_facts(ledger)))
    return 0


async def _migrate(location: Location) -> None:
    opened = ledger_at(location)
    try:
        await opened.open()
    except LedgerError as error:
        raise ConfigurationError(str(error)) from error
    await opened.aclose()


async def _facts(location: Location) -> str:
    async with open_read_only(location) as opened:
        if missing := await opened.missing_parts():
            raise ConfigurationError(f"ledger {describe_missing(location, missing)}: {MISSING_PARTS_ADVICE}")
        counts, unowned = await opened.count_by_state(), await opened.count_unowned()
        lines = [f"ledger {location} can be read"]
        if isinstance(opened, PostgresLedger):
            owners = await opened.owners()
            lines += [
                f"owner {owner.number}: process {owner.process} on {owner.host}, nanobanana_async {owner.client}"
                f"{', silent: dead or cut off' if owner.is_silent else ''}"
                for owner in owners
            ]
            lines.append(f"{plural(len(owners), 'owner')}, {sum(owner.is_silent for owner in owners)} silent")
    lines.append(f"{plural(counts.total(), 'job')}, {unowned.total()} unfinished without an owner")
    return "\n".join(lines)


ledger = App(name="ledger", help="Create, migrate or check a ledger.")
ledger.command(migrate)
ledger.command(check)

"""The gateway of a dry run without an API key: it reads the file and states prices, and can send nothing."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

from nanobanana_async import Gateway
from nanobanana_async.cli.batch.folder import LEDGER
from nanobanana_async.cli.jobs.actions import open_read_only
from nanobanana_async.cli.settings.sources import current
from nanobanana_async.gateways import registry
from nanobanana_async.jobs import JobRecord

UNSENT_KEY = "sk-unsent-0123456789"
"""The API key of a gateway that only reads and checks rows."""


def gateway_without_key(name: str | None, base_url: str | None, folder: object) -> Gateway | None:
    """Return the gateway whose key is not set, with the account that bought the jobs in the folder's ledger.

    None if its key is set, if a profile names several accounts, or if the environment names a gateway that does not
    exist. Without a name it is the gateway of the newest job there, or else API Mall.
    """
    if current().accounts:
        return None
    chosen = name or os.environ.get("NANOBANANA_GATEWAY", "").strip().lower()
    kinds: dict[str, Any] = dict(registry.GATEWAYS)
    if chosen not in ("", *kinds):
        return None
    if any(os.environ.get(kind.key_variable) for kind in ([kinds[chosen]] if chosen else kinds.values())):
        return None
    newest: JobRecord | None = None
    if isinstance(folder, Path) and (ledger := folder / LEDGER).is_file() and ledger.stat().st_size:
        newest = asyncio.run(_newest_job(ledger))
    if not chosen:
        chosen = newest.gateway if newest is not None and newest.gateway in kinds else next(iter(kinds))
    kind = kinds[chosen]
    if newest is not None and newest.gateway == chosen:
        account = newest.account
        kind = type(kind.__name__, (kind,), {"account": property(lambda _: account)})
    environ = {**os.environ, kind.key_variable: UNSENT_KEY}
    if base_url is not None:
        environ["NANOBANANA_BASE_URL"] = base_url
    print(
        f"nanobanana: no API key is set: the estimate is for {kind.title}, and the balance is unknown", file=sys.stderr
    )
    gateway: Gateway = kind.from_env(environ)
    return gateway


async def _newest_job(ledger: Path) -> JobRecord | None:
    async with open_read_only(ledger) as opened:
        return await anext(opened.jobs(limit=1), None)

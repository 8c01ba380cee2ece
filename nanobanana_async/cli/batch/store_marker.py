"""An object beside the images in a store names the ledger of their batch: with another, all rows are bought again.

It is put before anything is bought, and never over another one: of two hosts that begin the same batch one goes on.
"""

import hashlib
import json
import socket
from contextlib import suppress
from typing import Any

from nanobanana_async.cli.batch.run_options import RunOptions
from nanobanana_async.errors import ConfigurationError, SaveError
from nanobanana_async.images.store_destination import LISTS
from nanobanana_async.ledger.base import StoredLedger


async def claim_store(options: RunOptions, ledger: StoredLedger) -> None:
    """Mark the store as that of this ledger's batch. Raises `ConfigurationError` if another ledger has begun it there.

    Nothing is marked by a rehearsal. A store that fails is left to the batch, which checks it before it buys.
    """
    store = options.store
    if store is None or options.emulated:
        return
    ledger_id = hashlib.sha256(await ledger.callback_secret()).hexdigest()[:32]
    place = {"host": socket.gethostname(), "folder": str(options.folder.absolute())}
    content = json.dumps({"batch": options.file.batch, "ledger": ledger_id, **place}).encode()
    name = f"{LISTS}/batch-{hashlib.sha256(options.file.batch.encode()).hexdigest()[:32]}.json"
    with suppress(SaveError):
        known = await store.get(name)
        if known is None and await store.put(name, content, "application/json"):
            return
        found = _facts_in(known or await store.get(name))
        if found.get("ledger") == ledger_id:
            return
        if not options.new_ledger:
            raise ConfigurationError(_refusal(options, found))
        await store.put(name, content, "application/json", overwrite=True)


def _facts_in(content: bytes | None) -> dict[str, Any]:
    with suppress(ValueError, RecursionError):
        facts = json.loads(content or b"{}")
        if isinstance(facts, dict):
            return facts
    return {}


def _refusal(options: RunOptions, found: dict[str, Any]) -> str:
    folder, host = (str(found.get(part) or "unknown")[:200] for part in ("folder", "host"))
    return (
        f"{options.store} holds images of the batch {options.file.batch!r}, whose ledger is in the folder {folder} of"
        f" host {host}, and not in {options.folder}: with this one its rows would be bought again. Pass that folder"
        " with --folder, on that host or copied from it; or --new-ledger if it is lost or the rows are to be bought"
        " again"
    )

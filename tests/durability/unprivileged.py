"""Buy an image as a user who may not write the ledger: `python -m tests.durability.unprivileged GATEWAY URL LEDGER`."""

import asyncio
import os
import sys

from nanobanana_async import LedgerError, Session
from nanobanana_async.ledger.file import current_schema
from tests.durability.worker import GatewayName, gateway_at


async def buy(name: GatewayName, url: str, path: str) -> None:
    """Print the result, or the error of the ledger."""
    try:
        async with Session(gateway_at(name, url), ledger=path) as session:
            print(await session.generate("a fox"))
    except LedgerError as error:
        print("LedgerError", error)


async def open_once(name: GatewayName, url: str) -> None:
    """Open a session, and close it."""
    async with Session(gateway_at(name, url)):
        pass


def main(name: GatewayName, url: str, path: str) -> None:
    """Become a user without rights, and buy."""
    if os.geteuid() == 0:
        # That user may be unable to read the package or its lazy imports, so load them now.
        current_schema()
        asyncio.run(open_once(name, url))
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    asyncio.run(buy(name, url, path))


if __name__ == "__main__":
    main(*sys.argv[1:])  # type: ignore[arg-type]

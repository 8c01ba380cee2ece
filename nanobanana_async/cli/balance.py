"""`nanobanana balance`: print how many credits the API may spend."""

import asyncio
import json as json_format
import sys
from collections.abc import Sequence
from contextlib import suppress
from decimal import Decimal
from typing import Protocol

from attrs import frozen

from nanobanana_async import Gateway, NanoBananaError, Session
from nanobanana_async.cli.find_gateway import find_gateway, find_gateways
from nanobanana_async.cli.options import BaseUrl, Flag, GatewayFinder, GatewayName
from nanobanana_async.formatting import credit_count, plain_number
from nanobanana_async.gateways.capabilities import HasBalance
from nanobanana_async.models import json_number

FIRST_S, AGAIN_S = 3.0, 60.0


@frozen
class BalanceCommand:
    """The command `balance`."""

    find_gateway: GatewayFinder

    def balance(self, *, gateway: GatewayName = None, base_url: BaseUrl = None, json: Flag = False) -> int:
        """Print the credits that the API may spend, as the gateway states them; in a pipe the number alone.

        With a profile of several accounts it prints a line for each.

        Examples:

        nanobanana balance

        nanobanana balance --gateway defapi --json

        Parameters
        ----------
        gateway
            The gateway; by default the one whose API key is set.
        base_url
            The gateway's URL, if not the usual one.
        json
            Print a JSON object with gateway, account and credits, one for each account.
        """
        selected = find_gateways(self.find_gateway, gateway, base_url)
        problem: NanoBananaError | None = None
        for each, balance in zip(selected, asyncio.run(read_balances(selected)), strict=True):
            if isinstance(balance, NanoBananaError):
                if len(selected) > 1:
                    balance.message = f"account {each.account}: {balance.message}"
                problem = problem or balance
            elif json:
                facts = {"gateway": each.name, "account": each.account, "credits": json_number(balance)}
                print(json_format.dumps(facts))
            else:
                shown = credit_count(balance) if sys.stdout.isatty() else plain_number(balance)
                print(shown if len(selected) == 1 else f"{each.account}\t{shown}")
        if problem is not None:
            raise problem
        return 0


async def read_balances(gateways: Sequence[Gateway]) -> list[Decimal | NanoBananaError]:
    """Return the balance of each account, or why it can't be read, in a session of their own."""
    found: list[Decimal | NanoBananaError] = []
    async with Session(gateways, trust_env=True) as session:
        for gateway in gateways:
            try:
                found.append(await session.balance(gateway.account))
            except NanoBananaError as error:
                found.append(error)
    return found


class ShowsBalance(Protocol):
    """A display that may show a balance."""

    balance: Decimal | None

    @property
    def shows_credits(self) -> bool: ...


async def watch_balance(session: Session, display: ShowsBalance) -> None:
    """Read the balance for a display now and then, unless the answers to creates state it."""
    while display.shows_credits and isinstance(session.gateway, HasBalance):
        await asyncio.sleep(FIRST_S if display.balance is None else AGAIN_S)
        if session.stats().credits_remaining is not None:
            return
        with suppress(NanoBananaError):  # it is only shown
            display.balance = sum([await session.balance(each.account) for each in session.gateways], Decimal(0))


balance = BalanceCommand(find_gateway).balance

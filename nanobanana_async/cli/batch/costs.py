"""What rows cost: by the last price of their class in the ledger, or else by an estimate."""

from collections.abc import Iterable
from decimal import Decimal

from attrs import define

from nanobanana_async import Gateway, ImageRequest
from nanobanana_async.cli.batch.input_file import FileRow
from nanobanana_async.cli.jobs.actions import Prices, prices_in
from nanobanana_async.formatting import plain_number
from nanobanana_async.ledger.base import StoredLedger

NOTHING = Decimal(0)


@define
class Costs:
    """Adds up what rows cost. An estimate is `expected`, or the example of the gateway's reference."""

    gateway: Gateway
    prices: Prices
    expected: Decimal | None = None
    left: Decimal | None = None
    """The credits below the cap; None without a cap."""
    total: Decimal = NOTHING
    estimated: bool = False
    affordable: int = 0
    """How many of the rows, in their order, the credits below the cap buy."""
    _rows: int = 0

    def add(self, request: ImageRequest) -> None:
        """Add a row that is to be bought."""
        price = self.prices.get(self.gateway.price_class(request))
        if price is None:
            self.estimated = True
            price = self.gateway.example_credits(request) if self.expected is None else self.expected
        self.total += price
        if self.affordable == self._rows and (self.left is None or self.total <= self.left):
            self.affordable += 1
        self._rows += 1

    def __str__(self) -> str:
        if not self._rows:
            return "0"
        return f"about {plain_number(self.total)}{' (estimate)' if self.estimated else ''}"


async def cost_of(rows: Iterable[FileRow], ledger: StoredLedger, gateway: Gateway, expected: Decimal | None) -> Costs:
    """Return what rows cost by the prices in an open ledger."""
    costs = Costs(gateway, await prices_in(ledger, gateway), expected)
    for row in rows:
        if row.request is not None:
            costs.add(row.request)
    return costs

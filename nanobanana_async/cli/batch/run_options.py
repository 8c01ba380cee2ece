"""What a run of a batch is to do."""

from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

from attrs import field, frozen

from nanobanana_async import ConcurrencyPolicy, Gateway
from nanobanana_async.cli.batch.input_file import InputFile
from nanobanana_async.cli.turns import NO_TURN, TurnOptions
from nanobanana_async.images.object_store import StoreUrl
from nanobanana_async.ledger.postgres.url import PostgresUrl


@frozen(kw_only=True)
class RunOptions:
    """The options of a run."""

    file: InputFile
    total: int
    accounts: Sequence[Gateway] = ()
    """The accounts of the run; none in a rehearsal."""
    folder: Path
    ledger: PostgresUrl | None = None
    """The ledger that hosts share; None: the one in the folder."""
    emulated: bool = False
    """Whether it is a rehearsal, whose emulator ends with the command."""
    store: StoreUrl | None = None
    """Where the images go; None: into the folder."""
    sidecar: bool = False
    max_credits: Decimal | None = None
    expected_credits: Decimal | None = None
    turn: TurnOptions = NO_TURN
    concurrency: ConcurrencyPolicy = field(factory=ConcurrencyPolicy)
    max_budget_wait_s: float | None = None
    retry_failed: bool = False
    buy_changed: bool = False
    new_ledger: bool = False
    """The rows may be bought again though another ledger has bought them."""
    ordered: bool = False
    results_delimiter: str = ","
    """What separates the cells of `results.csv`."""

    @property
    def ours(self) -> frozenset[str]:
        """The identifiers of the accounts in ledgers."""
        return frozenset(gateway.account for gateway in self.accounts)

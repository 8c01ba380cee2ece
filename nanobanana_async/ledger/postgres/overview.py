"""What happens on a ledger on PostgreSQL now, read from the views of its schema: owners, shares, accounts, batches."""

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from attrs import fields_dict, frozen

from nanobanana_async.ledger.postgres.columns import from_text
from nanobanana_async.ledger.postgres.pipeline import Row, Statement, Work
from nanobanana_async.ledger.postgres.statements import PostgresTable


@frozen(kw_only=True)
class OwnerMetrics:
    """An owner that is not buried, with its share of one account; without share it has not bought yet."""

    owner: int
    host: str
    process: int
    client: str
    open_s: float
    silent_s: float
    """Since its last beat."""
    lease_s: float
    refused: int
    """Its writes of jobs that were another owner's by then, because it was buried before."""
    account: str | None
    granted: int | None
    target: int | None
    held: int | None
    in_flight: int | None
    queued: int | None
    interactive: bool | None
    reserve: int | None

    @property
    def is_silent(self) -> bool:
        """Whether it is dead or cut off: others will bury it."""
        return self.silent_s > self.lease_s


@frozen(kw_only=True)
class AccountMetrics:
    """An account that was used, or has unfinished jobs."""

    account: str
    job_limit: float | None
    """The learned limit of jobs at once; None while it is unknown."""
    gate_s: float | None
    """For how long the gateway has asked for a pause."""
    waiting: int
    running: int
    orphans: int
    """Of the running jobs, those that no owner follows at present."""
    orphan_slots: int
    """The slots that these take."""
    uncertain: int
    oldest_uncertain_s: float | None


@frozen(kw_only=True)
class BatchMetrics:
    """A batch with a name: its cap, and the credits that were spent or are reserved."""

    batch: str
    """The prefix of the keys of its jobs, a hash of its name."""
    name: str | None
    """None for a batch that was bought without feeding: the ledger knows the prefix only."""
    account: str | None
    fed: int | None
    """The rows that were fed; None for a batch that was bought without feeding."""
    max_credits: Decimal | None
    credits: Decimal


@frozen(kw_only=True)
class LedgerMetrics:
    """The ledger as a whole."""

    burials: int
    last_burial_s: float | None
    dead_rows: int | None
    """Of the table of jobs, until the next vacuum."""
    oldest_transaction_s: float | None
    """A long one keeps dead rows from being removed."""


@frozen(kw_only=True)
class Overview:
    """All of it, read in one transaction."""

    owners: Sequence[OwnerMetrics]
    accounts: Sequence[AccountMetrics]
    batches: Sequence[BatchMetrics]
    ledger: LedgerMetrics


def read_overview(table: PostgresTable) -> Work[Overview]:
    """Read the views."""
    owners, accounts, batches, ledgers = yield [
        _select(OwnerMetrics, "owner_metrics ORDER BY owner, account"),
        _select(AccountMetrics, "account_metrics ORDER BY account"),
        _select(BatchMetrics, "batch_metrics ORDER BY name, batch"),
        _select(LedgerMetrics, "ledger_metrics"),
    ]
    return Overview(
        owners=[OwnerMetrics(**_row_fields(OwnerMetrics, row)) for row in owners],
        accounts=[AccountMetrics(**_row_fields(AccountMetrics, row)) for row in accounts],
        batches=[BatchMetrics(**_row_fields(BatchMetrics, row)) for row in batches],
        ledger=LedgerMetrics(**_row_fields(LedgerMetrics, ledgers[0])),
    )


def _select(kind: type, source: str) -> Statement:
    return Statement(f"SELECT {', '.join(fields_dict(kind))} FROM {source}")


def _row_fields(kind: type, row: Row) -> dict[str, Any]:
    fields = dict(zip(fields_dict(kind), row, strict=True))
    for name in ("account", "batch", "name"):
        if fields.get(name) is not None:
            fields[name] = from_text(fields[name])
    return fields

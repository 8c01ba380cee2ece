"""What a connection of a ledger on PostgreSQL must know."""

import threading
from collections.abc import Callable

from attrs import frozen

from nanobanana_async.ledger.postgres.leases import Lease, Tenure
from nanobanana_async.ledger.postgres.outage import ServerOutage
from nanobanana_async.ledger.postgres.url import PostgresUrl


@frozen(kw_only=True)
class Settings:
    """What a connection must know. `clock` returns seconds, and never goes back."""

    url: PostgresUrl
    read_only: bool
    patience_s: float
    lease: Lease
    clock: Callable[[], float]
    tenure: Tenure
    outage: ServerOutage
    closing: threading.Event
    """Set when the ledger is being closed: calls do not wait long any more."""
    on_enlisted_again: Callable[[int, int | None], None]
    """Gets the new number of an owner; and how many records it has written again after a fail-over, None if buried.

    It is called in the writer's thread.
    """

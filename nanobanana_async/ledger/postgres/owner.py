"""An open ledger on PostgreSQL as an owner of jobs: its connection, its lease, and what the session learns of them."""

import asyncio
import importlib
import math
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from nanobanana_async.errors import LedgerError
from nanobanana_async.events import log
from nanobanana_async.formatting import plural
from nanobanana_async.ledger.postgres.leases import Lease, Tenure
from nanobanana_async.ledger.postgres.outage import ServerOutage
from nanobanana_async.ledger.postgres.settings import Settings
from nanobanana_async.ledger.postgres.url import PostgresUrl
from nanobanana_async.ledger.stored import WriterLedger
from nanobanana_async.ledger.writer import Writer, WriterConnection
from nanobanana_async.validators import as_number

MAX_PATIENCE_S = 1e6

_BURIED_WARNING = (
    "this process gave no sign of life for longer than its lease, so its jobs went to other owners: it goes on as a new"
    " owner, and follows them"
)

_FAILED_OVER_WARNING = (
    "the server's timeline has moved (a standby was promoted, or a backup restored): {} that it had lost were written"
    " again; nothing is bought until all hosts had the time for that"
)


class OwnerLedger(WriterLedger):
    """A `LeasedLedger` whose writer thread keeps a lease. The calls of a ledger are in `PostgresLedger`."""

    def __init__(self, url: PostgresUrl, *, read_only: bool, patience_s: float | None, lease: Lease | None) -> None:
        self._url = url
        self._read_only = read_only
        self._patience_s = math.inf
        if patience_s is not None:
            self._patience_s = as_number("patience_s", patience_s, most=MAX_PATIENCE_S)
        self._lease = lease or Lease()
        self._tenure = Tenure(self._lease)
        self._outage: ServerOutage | None = None
        self._closing = threading.Event()
        self._notify_burial: Callable[[], None] | None = None
        super().__init__()

    @property
    def surely_owns(self) -> bool:
        """Whether this owner certainly lives: its last beat that got through is younger than its lease."""
        return self._tenure.is_sure

    @property
    def outage(self) -> str | None:
        """Why the server can't be reached at present, so that calls wait; None if it can."""
        return None if self._outage is None else self._outage.reason

    def on_burial(self, notify: Callable[[], None]) -> None:
        """Call `notify` each time that this owner was buried and goes on under a new number."""
        self._notify_burial = notify

    async def open(self) -> None:
        """Open the ledger, creating or migrating it if needed, and become an owner of jobs.

        Raises `LedgerError` when that fails; nothing is changed then.
        """
        await super().open()
        self._tenure.owner = self._tenure.number

    async def aclose(self) -> None:
        """Finish the queued work, close the ledger, and release all jobs; idempotent.

        If the server is away, it waits for some seconds; its jobs are adopted by others when its lease ends.
        """
        self._closing.set()
        await super().aclose()

    def _start_writer(self) -> Writer:
        loop = asyncio.get_running_loop()
        self._tenure, self._outage = Tenure(self._lease), ServerOutage(loop.time)
        self._closing, self._notify_burial = threading.Event(), None
        return Writer(partial(self._connect, loop, self._tenure, self._outage), name="ledger on PostgreSQL")

    def _connect(self, loop: asyncio.AbstractEventLoop, tenure: Tenure, outage: ServerOutage) -> WriterConnection:
        try:
            connection = importlib.import_module("nanobanana_async.ledger.postgres.connection")
        except ImportError as error:
            if (error.name or "psycopg").split(".")[0] != "psycopg":
                raise
            raise LedgerError(
                "a PostgreSQL ledger needs the extra `postgres`: pip install 'nanobanana-async[postgres]'"
            ) from None

        def on_burial(owner: int, written: int | None) -> None:
            with suppress(RuntimeError):  # the event loop is closed, so no session waits
                loop.call_soon_threadsafe(self._buried, tenure, owner, written)

        settings = Settings(
            url=self._url,
            read_only=self._read_only,
            patience_s=self._patience_s,
            lease=self._lease,
            clock=loop.time,
            tenure=tenure,
            outage=outage,
            closing=self._closing,
            on_enlisted_again=on_burial,
        )
        opened: WriterConnection = connection.connect(settings)
        return opened

    def _buried(self, tenure: Tenure, owner: int, written: int | None) -> None:
        """Take note of the new number, and notify the session; called in the event loop."""
        tenure.owner = owner
        if written is None:
            log.warning("ledger.buried ledger %s: %s", self.location, _BURIED_WARNING)
        else:
            log.warning(
                "ledger.failed_over ledger %s: %s",
                self.location,
                _FAILED_OVER_WARNING.format(plural(written, "record")),
            )
        if self._notify_burial is not None:
            self._notify_burial()

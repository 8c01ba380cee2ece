"""The driver's connection as a ledger uses it: how it is opened, the settings of a transaction, and the longest wait.

A server, and a user of it, may have settings of their own for locks, timeouts and writing; none of them counts here.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import psycopg
from psycopg import capabilities, sql
from psycopg.conninfo import conninfo_to_dict
from psycopg.waiting import Ready, Wait

from nanobanana_async.ledger.postgres.leases import Lease
from nanobanana_async.ledger.postgres.pipeline import Row
from nanobanana_async.ledger.postgres.url import PostgresUrl

T = TypeVar("T")

# libpq's own settings, which a URL may override: a dead network is noticed before the lease ends.
_CONNECT = {
    "connect_timeout": "3",
    "application_name": "nanobanana_async",
    "keepalives_idle": "3",
    "keepalives_interval": "2",
    "keepalives_count": "2",
    "tcp_user_timeout": "7000",
}
LOCK_TIMEOUT_S = 4.0
"""How long a statement waits for a row, or a beat if that is less: an owner that waits does not beat.

One that beats too seldom never finds the owner dead for whose flush it waits (`leases.BEATS_WITHOUT_ANSWER`).
"""

BULK_TIMEOUT_S = 120.0
"""How long a statement may take that works on many rows: a migration, or the release of all jobs of an owner."""

CANCEL_S = 1.0

SETTINGS = (
    "SELECT set_config('search_path', %(search_path)s, true), set_config('synchronous_commit', %(commit)s, true),"
    " set_config('lock_timeout', %(lock_ms)s, true), set_config('statement_timeout', '0', true),"
    " set_config('idle_in_transaction_session_timeout', %(silent_ms)s, true),"
    " set_config('tcp_user_timeout', %(silent_ms)s, true), set_config('tcp_keepalives_idle', '3', true),"
    " set_config('tcp_keepalives_interval', '2', true), set_config('tcp_keepalives_count', '2', true)"
)
"""The first statement of each transaction; its values are those of `transaction_settings`."""


def longest_silence_s(lease: Lease) -> float:
    """Return how long either end of a connection waits for the other: half a lease, so that there is time for another.

    A flush holds the row of its owner. If its process is suspended or cut off between two parts of it, the server so
    ends the flush, and the owner can be buried; amid a part others end it (`leases.END_FLUSHES_OF_SILENT`). If only its
    connection is cut off, the owner beats over another one before its lease ends.
    """
    return lease.silence_s / 2


def transaction_settings(
    url: PostgresUrl, lease: Lease, *, durable: bool = True, lock_s: float = LOCK_TIMEOUT_S
) -> dict[str, str]:
    """Return the settings of one transaction. Not those of a connection: behind a pooler it may serve others too."""
    silence_s = longest_silence_s(lease)
    return {
        "search_path": sql.Identifier(url.schema).as_string(None),
        "commit": "on" if durable else "off",
        "lock_ms": str(round(1000 * min(lock_s, lease.beat_s))),
        "silent_ms": str(round(1000 * silence_s)),
    }


class NoAnswer(psycopg.OperationalError):
    """The server said nothing for too long, and the connection was closed."""


class FailedOver(psycopg.Error):
    """The server has failed over a moment ago: its owners write again what it has lost, before anything else."""


class Connection(psycopg.Connection[Row]):
    """A connection that is closed when the server says nothing for `answer_s` while an answer is awaited.

    libpq would wait for ever: behind a pooler or a load balancer the network may be alive when the server is not.
    """

    clock: Callable[[], float]
    answer_s: float
    cancels: bool = True
    """Whether the statement may be cancelled. A commit may not: while it waits for a replica, that would forget it."""

    def wait(self, gen: Generator[Any, Any, T], *args: Any, **options: Any) -> T:
        """Wait for an answer."""
        return super().wait(self._attend(gen, self.answer_s), *args, **options)

    def _attend(self, gen: Generator[Any, Any, T], answer_s: float) -> Generator[Any, Any, T]:
        """Run one of the driver's steps, which yield what they wait for, and get what the socket is ready for.

        In a pipeline the driver waits for an answer also while a part of a long statement is not sent yet, which then
        never comes. So the rest is sent here first.
        """
        until, ready = self.clock() + answer_s, None
        while True:
            try:
                awaited = gen.send(ready)
            except StopIteration as end:
                value: T = end.value
                return value
            unsent = awaited == Wait.R and self.pgconn.flush()
            ready = yield Wait.RW if unsent else awaited  # several times in a second without being ready for anything
            if ready:
                until = self.clock() + answer_s
            elif self.clock() > until:
                self._break_off()
                raise NoAnswer(f"the server said nothing for {answer_s:g} s")
            if unsent:
                ready = Ready(ready & Ready.R)

    def _break_off(self) -> None:
        """Close the connection; cancel the statement, if the server still works at it, since it holds locks."""
        with suppress(psycopg.Error):
            if self.cancels and capabilities.has_cancel_safe():
                self.cancel_safe(timeout=CANCEL_S)
        self.close()


@contextmanager
def pipeline_of(db: Connection) -> Iterator[psycopg.Pipeline]:
    """Give a pipeline, and leave it as if without an error: after one, the driver logs what it can't end any more."""
    context = db.pipeline()
    pipeline = context.__enter__()
    try:
        yield pipeline
    except BaseException:
        with suppress(psycopg.Error):
            context.__exit__(None, None, None)
        raise
    context.__exit__(None, None, None)


def connect(url: PostgresUrl, clock: Callable[[], float], answer_s: float, *, read_only: bool) -> Connection:
    """Open a connection; raises `psycopg.Error`."""
    given = conninfo_to_dict(url.url)
    defaults: dict[str, Any] = dict(_CONNECT)
    if url.has_several_hosts and not read_only:
        defaults["target_session_attrs"] = "read-write"
    db = Connection.connect(
        **{**defaults, **given, "client_encoding": "utf8"},
        autocommit=True,
        prepare_threshold=None,  # a pooler may give each transaction another server connection
    )
    db.clock, db.answer_s = clock, answer_s
    db.read_only = read_only
    db.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
    return db

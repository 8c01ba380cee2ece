"""The transactions of one owner on its server: each is one pipeline, and a fenced one finds out that it may not write.

An owner may not write any more when it was buried, or when the server's timeline has moved (`failover.py`).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import psycopg
from psycopg import pq

from nanobanana_async.ledger.postgres import driver, leases
from nanobanana_async.ledger.postgres.failover import NO_TIMELINE
from nanobanana_async.ledger.postgres.pipeline import Row, Rows, SqlRequest, Statement
from nanobanana_async.ledger.postgres.settings import Settings

Send = Callable[[Sequence[SqlRequest]], list[Rows]]
"""Executes requests in their order."""


class Buried(Exception):
    """This owner was buried, or the server has failed over: a transaction under its number is refused."""


class Transactions:
    """The connection, which is made again when it broke; used by one thread. `owner` is None if it only reads."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._url = settings.url
        self._db: driver.Connection | None = None
        self.owner: int | None = None
        self._timeline = ""
        """The server's timeline when this owner began."""
        self._timeline_sql = NO_TIMELINE

    @contextmanager
    def _transaction(
        self,
        committing: list[bool] | None = None,
        *,
        fenced: bool = False,
        durable: bool = True,
        lock_s: float = driver.LOCK_TIMEOUT_S,
        answer_s: float | None = None,
    ) -> Iterator[Send]:
        """Give a function that executes requests in one transaction, and commit at the end.

        All goes through one pipeline. A fenced transaction raises `Buried` if this owner may not write any more.
        `committing` is filled before the commit, whose answer may be lost.
        """
        db = self._connected()
        db.answer_s, db.cancels = answer_s or self._answer_s, True
        local = driver.transaction_settings(self._url, self._settings.lease, durable=durable, lock_s=lock_s)
        mode = "READ ONLY" if self._settings.read_only else "READ WRITE"
        try:
            with driver.pipeline_of(db) as pipeline:
                db.execute(f"BEGIN ISOLATION LEVEL READ COMMITTED {mode}".encode())
                db.execute(driver.SETTINGS.encode(), local)
                db.execute(leases.SIGN.encode(), {"me": self.owner})
                me = {"me": self.owner, "timeline": self._timeline}
                fence = [db.execute(leases.FENCE.format(self._timeline_sql).encode(), me)] if fenced else []

                def send(requests: Sequence[SqlRequest]) -> list[Rows]:
                    cursors = [self._execute(db, request) for request in requests]
                    pipeline.sync()  # only after it the server sees a transaction that stands idle, and may end it
                    if fence and not fence.pop().fetchall():
                        raise Buried
                    return [cursor.fetchall() if returns else [] for cursor, returns in cursors]

                yield send
                if committing is not None:
                    committing.append(True)
                db.cancels = False
                commit = db.execute(b"COMMIT")
            if commit.statusmessage != "COMMIT":  # a failed statement made it a rollback
                raise psycopg.InternalError("the transaction was rolled back")
        finally:
            if not db.closed and db.info.transaction_status is not pq.TransactionStatus.IDLE:
                with suppress(psycopg.Error):
                    db.execute(b"ROLLBACK")

    def _execute(self, db: driver.Connection, request: SqlRequest) -> "tuple[psycopg.Cursor[Row], bool]":
        assert isinstance(request, Statement)
        values = {"me": self.owner, **request.values}
        return db.execute(request.sql.encode(), values, binary=True), request.returns_rows

    @property
    def _answer_s(self) -> float:
        return driver.longest_silence_s(self._settings.lease)

    def _connected(self) -> driver.Connection:
        if self._db is None or self._db.closed:
            settings = self._settings
            self._db = driver.connect(self._url, settings.clock, self._answer_s, read_only=settings.read_only)
        return self._db

    def _disconnect(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            with suppress(Exception):
                db.close()

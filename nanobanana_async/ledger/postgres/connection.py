"""An open ledger on PostgreSQL: one connection in the writer's thread, and the lease of its owner.

A flush is one transaction in one pipeline. It is repeated while the server is away, until the patience of its calls
ends. Whether a commit counted whose answer was lost is decided by reading again what the calls would have written.
"""

import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
from attrs import frozen
from psycopg import errors, pq

from nanobanana_async._version import __version__
from nanobanana_async.errors import LedgerError
from nanobanana_async.ledger.base import OwnershipLost
from nanobanana_async.ledger.postgres import driver, leases
from nanobanana_async.ledger.postgres.leases import Beat, Lease, Watch
from nanobanana_async.ledger.postgres.pipeline import Request, Row, Rows, Statement, run_calls
from nanobanana_async.ledger.postgres.problems import breaks_connection, is_transient, to_ledger_error
from nanobanana_async.ledger.postgres.schema import Tables, current_tables, prepare
from nanobanana_async.ledger.postgres.statements import PostgresTable
from nanobanana_async.ledger.postgres.url import PostgresUrl
from nanobanana_async.ledger.writer import Result, WorkItem

FIRST_PAUSE_S = 0.05
MAX_PAUSE_S = 1.0
"""The pauses between tries while the server is away double from the first to the longest."""

REPORT_AFTER_S = 2.0
REPORT_EVERY_S = 30.0
"""Calls that wait are reported after a short time, so that no restart of a pooler is, then every so many seconds."""

_log = logging.getLogger("nanobanana_async")


@frozen(kw_only=True)
class Settings:
    """What a connection must know. `clock` returns seconds, and never goes back."""

    url: PostgresUrl
    read_only: bool
    patience_s: float
    lease: Lease
    clock: Callable[[], float]


def connect(settings: Settings, tables: Tables | None = None) -> "PostgresConnection":
    """Open a ledger; raises only `LedgerError`."""
    try:
        return PostgresConnection(settings, tables or current_tables())
    except Exception as error:
        # Without its cause: the driver's errors may show parts of the URL.
        raise to_ledger_error(error, settings.url, connecting=True) from None


class PostgresConnection:
    """An open ledger, used by one thread. `owner` is None if it was opened read-only."""

    def __init__(self, settings: Settings, tables: Tables) -> None:
        self._settings = settings
        self._url = settings.url
        self._db: driver.Connection | None = None
        self._watch = Watch(settings.lease)
        self._beat_at = settings.clock()
        self._lost = False
        self._waits = _Waits(settings)
        self.owner: int | None = None
        try:
            self._open(tables)
        except BaseException:
            self._disconnect()
            raise

    def _open(self, tables: Tables) -> None:
        """Prepare the tables and become an owner; while another host migrates them, wait."""
        until = self._settings.clock() + self._settings.patience_s
        local = driver.transaction_settings(self._url, self._settings.lease)
        while True:
            try:
                prepare(self._connected(), self._url, tables, local, may_write=not self._settings.read_only)
                if not self._settings.read_only:
                    self.owner = self.owner or self._enlist()
                    self._beat()
                return
            except errors.LockNotAvailable as error:
                self._waits.report(to_ledger_error(error, self._url))
                if self._settings.clock() > until:
                    raise

    def run(self, batch: Sequence[WorkItem[Any]]) -> Iterator[list[Result]]:
        """Run work items in one transaction, again if the server is away; yield results as they become final."""
        yield from self._run(list(batch), commit_in_doubt=False)

    def wait_s(self) -> float | None:
        """Return after how long the next beat is due."""
        if self.owner is None or self._lost:
            return None
        return max(0.0, self._beat_at - self._settings.clock())

    def tend(self) -> None:
        """Beat if it is time, and bury the owners that are dead."""
        if (wait_s := self.wait_s()) is None or wait_s > 0.0:
            return
        try:
            self._beat()
        except Exception as error:  # the next beat tries again, over another connection
            self._watch.beat_failed()
            if not isinstance(error, psycopg.Error) or breaks_connection(error):
                self._disconnect()
        finally:
            self._beat_at = self._settings.clock() + self._settings.lease.beat_s

    def close(self) -> None:
        """Release all jobs and end the lease; if the server is away, the others find this owner silent."""
        if self.owner is not None and not self._lost:
            with suppress(Exception), self._transaction(answer_s=driver.LONG_ANSWER_S) as send:
                send([Statement(resign, returns_rows=False) for resign in leases.RESIGN])
        self._disconnect()

    # The flush

    def _run(self, items: list[WorkItem[Any]], *, commit_in_doubt: bool) -> Iterator[list[Result]]:
        pause_s, answer_s, repeated = FIRST_PAUSE_S, self._answer_s, False
        while items:
            self.tend()
            if self._lost and (writes := [item for item in items if item.writes]):
                yield [item.failed(self._ownership_lost()) for item in writes]
                items = [item for item in items if not item.writes]
                continue
            committing: list[bool] = []
            try:
                results = self._flush(items, committing, answer_s, commit_in_doubt=commit_in_doubt)
            except OwnershipLost:
                self._lost = True
            except Exception as error:
                commit_in_doubt = commit_in_doubt or bool(committing)
                if is_transient(error):
                    if breaks_connection(error):
                        self._disconnect()
                    if isinstance(error, driver.NoAnswer):  # perhaps these statements need more time than most do
                        answer_s *= 2
                    failed, items = self._impatient(items, error)
                    yield failed
                    time.sleep(pause_s)
                    pause_s = min(2 * pause_s, MAX_PAUSE_S)
                elif isinstance(error, errors.UniqueViolation) and not repeated:
                    repeated = True  # another host wrote the same task id at the same time: now it is seen, and refused
                elif len(items) == 1:
                    yield [items[0].failed(to_ledger_error(error, self._url))]
                    return
                else:  # the values of one item are at fault: each runs alone, so that the others are written
                    for item in items:
                        yield from self._run([item], commit_in_doubt=commit_in_doubt)
                    return
            else:
                self._waits.end()
                yield results
                return

    def _flush(
        self, items: Sequence[WorkItem[Any]], committing: list[bool], answer_s: float, *, commit_in_doubt: bool
    ) -> list[Result]:
        """Run work items in one transaction; `committing` is filled before the commit, whose answer may be lost."""
        table = PostgresTable(self.owner, commit_in_doubt=commit_in_doubt)
        fenced = any(item.writes for item in items)
        with self._transaction(committing, fenced=fenced, answer_s=answer_s) as send:
            outcomes = run_calls([item.work for item in items], table, send)  # type: ignore[misc]
        return [(item.future, value, error) for item, (value, error) in zip(items, outcomes, strict=True)]

    def _impatient(self, items: Sequence[WorkItem[Any]], error: Exception) -> tuple[list[Result], list[WorkItem[Any]]]:
        """Return the errors of the items whose patience has ended, and the other items."""
        patience_s = self._settings.patience_s
        until = self._settings.clock() - patience_s
        failure = to_ledger_error(error, self._url, connecting=self._db is None)
        self._waits.report(failure)
        message = f"{failure.message}; no success within {patience_s:g} s"
        failed = [item.failed(LedgerError(message)) for item in items if item.queued_at <= until]
        return failed, [item for item in items if item.queued_at > until]

    @contextmanager
    def _transaction(
        self,
        committing: list[bool] | None = None,
        *,
        fenced: bool = False,
        durable: bool = True,
        answer_s: float | None = None,
    ) -> Iterator[Callable[[Sequence[Request]], list[Rows]]]:
        """Give a function that executes requests in one transaction, and commit at the end.

        All goes through one pipeline. A fenced transaction raises `OwnershipLost` if this owner is buried.
        """
        db = self._connected()
        db.answer_s, db.cancels = answer_s or self._answer_s, True
        local = driver.transaction_settings(self._url, self._settings.lease, durable=durable)
        mode = "READ ONLY" if self._settings.read_only else "READ WRITE"
        try:
            with db.pipeline() as pipeline:
                db.execute(f"BEGIN ISOLATION LEVEL READ COMMITTED {mode}".encode())
                db.execute(driver.SETTINGS.encode(), local)
                fence = [db.execute(leases.FENCE.encode(), {"me": self.owner})] if fenced else []

                def send(requests: Sequence[Request]) -> list[Rows]:
                    cursors = [self._execute(db, request) for request in requests]
                    pipeline.sync()  # only after it the server sees a transaction that stands idle, and may end it
                    if fence and not fence.pop().fetchall():
                        raise OwnershipLost("buried")
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

    def _execute(self, db: driver.Connection, request: Request) -> "tuple[psycopg.Cursor[Row], bool]":
        assert isinstance(request, Statement)
        values = {**request.values, "me": self.owner}
        return db.execute(request.sql.encode(), values, binary=True), request.returns_rows

    @property
    def _answer_s(self) -> float:
        return driver.longest_silence_s(self._settings.lease)

    # The lease

    def _enlist(self) -> int:
        values = {
            "host": socket.gethostname(),
            "process": os.getpid(),
            "client": __version__,
            "lease_s": self._settings.lease.silence_s,
        }
        with self._transaction() as send:
            (((owner,),),) = send([Statement(leases.ENLIST, values)])
        return int(owner)

    def _beat(self) -> None:
        # Without a disk flush: a beat that a crash of the server forgets has done its work.
        with self._transaction(durable=False) as send:
            mine, others = send([Statement(leases.BEAT), Statement(leases.OTHERS)])
        if not mine:
            self._lost = True
            return
        for dead in self._watch.observe([Beat(*row) for row in others], self._settings.clock()):
            self._bury(dead)

    def _bury(self, dead: Beat) -> None:
        """Bury an owner, unless it has beaten since, and release its jobs in the same transaction."""
        values = {"dead": dead.owner, "count": dead.count}
        releases = [
            Statement(sql_text, values, returns_rows=False)
            for sql_text in (leases.RELEASE_OF_BURIED, leases.FORGET_NOTICES)
        ]
        with self._transaction(fenced=True, answer_s=driver.LONG_ANSWER_S) as send:
            send([Statement(leases.BURY, values), *releases])

    def _ownership_lost(self) -> OwnershipLost:
        return OwnershipLost(
            f"ledger {self._url}: this process gave no sign of life for {self._settings.lease.silence_s:g} s, so its"
            " jobs went to other owners, and it writes nothing more: close the session and open another one"
        )

    # The connection

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


class _Waits:
    """Logs that calls wait for the server, since their callers learn it only when their patience ends."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._since: float | None = None
        self._report_at = 0.0

    def report(self, error: LedgerError) -> None:
        """Take note that a try failed."""
        now = self._settings.clock()
        if self._since is None:
            self._since, self._report_at = now, now + REPORT_AFTER_S
        if now >= self._report_at:
            self._report_at = now + REPORT_EVERY_S
            _log.warning("ledger.waits at_most_s=%g error=%s", self._settings.patience_s, error.message)

    def end(self) -> None:
        """Take note that a try succeeded."""
        self._since = None

"""An open ledger on PostgreSQL: one connection in the writer's thread, and the lease of its owner.

A flush is one transaction in one pipeline. It is repeated while the server is away, until the patience of its calls
ends. Whether a commit counted whose answer was lost is decided by reading again what the calls would have written.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
from psycopg import errors, pq

from nanobanana_async.errors import LedgerError
from nanobanana_async.ledger.postgres import driver, leases
from nanobanana_async.ledger.postgres.leases import Beat, Watch
from nanobanana_async.ledger.postgres.pipeline import Request, Row, Rows, Statement, run_calls
from nanobanana_async.ledger.postgres.problems import breaks_connection, is_transient, to_ledger_error
from nanobanana_async.ledger.postgres.schema import Tables, current_tables, prepare
from nanobanana_async.ledger.postgres.settings import Settings
from nanobanana_async.ledger.postgres.sharing import LOCK_TIMEOUT_S as EXCHANGE_LOCK_TIMEOUT_S
from nanobanana_async.ledger.postgres.sharing import Exchange
from nanobanana_async.ledger.postgres.statements import PostgresTable
from nanobanana_async.ledger.writer import Result, WorkItem

FIRST_PAUSE_S, MAX_PAUSE_S = 0.05, 1.0
"""The pauses between tries while the server is away double from the first to the longest."""

CLOSING_PATIENCE_S = 5.0
"""How long calls wait at most for a server that is away once the ledger is being closed."""


class _Buried(Exception):
    """This owner was buried: a transaction of it is refused."""


def connect(settings: Settings, tables: Tables | None = None) -> "PostgresConnection":
    """Open a ledger; raises only `LedgerError`."""
    try:
        return PostgresConnection(settings, tables or current_tables())
    except Exception as error:
        failure = to_ledger_error(error, settings.url, connecting=True)
    raise failure  # here, so that no other is chained to it: the driver's errors and frames show the URL


class PostgresConnection:
    """An open ledger, used by one thread. `owner` is None if it was opened read-only."""

    def __init__(self, settings: Settings, tables: Tables) -> None:
        self._settings = settings
        self._url = settings.url
        self._db: driver.Connection | None = None
        self._watch = Watch(settings.lease)
        self._beat_at = settings.clock()
        self._buried, self._gives_up_at = False, math.inf
        self.owner: int | None = None
        try:
            self._open(tables)
        except BaseException:
            self._disconnect()
            raise

    def _open(self, tables: Tables) -> None:
        """Prepare the tables and become an owner: wait while another host migrates, replace one broken connection."""
        settings, replaced = self._settings, False
        until = settings.clock() + settings.patience_s
        local = driver.transaction_settings(self._url, settings.lease)
        while True:
            try:
                prepare(self._connected(), self._url, tables, local, may_write=not settings.read_only)
                if not settings.read_only:
                    if self.owner is None:
                        self._enlist()
                    self._beat()
                settings.outage.on_answer()
                return
            except psycopg.Error as error:
                # A broken connection may be a pooler's restart. A server that can't be reached is said at once.
                breaks = breaks_connection(error) and self._db is not None and not replaced
                if settings.clock() > until or not (breaks or isinstance(error, errors.LockNotAvailable)):
                    raise
                self._failed(error)
                if breaks:
                    self._disconnect()
                    replaced = True

    def run(self, batch: Sequence[WorkItem[Any]]) -> Iterator[list[Result]]:
        """Run work items in one transaction, again if the server is away; yield results as they become final."""
        exchanges = [item for item in batch if isinstance(item.work, Exchange)]
        yield from self._run([item for item in batch if not isinstance(item.work, Exchange)], commit_in_doubt=False)
        for item in exchanges:
            yield [self._exchange(item)]

    def wait_s(self) -> float | None:
        """Return after how long the next beat is due."""
        if self.owner is None:
            return None
        return max(0.0, self._beat_at - self._settings.clock())

    def tend(self) -> None:
        """Beat if it is time, and bury the owners that are dead; an owner that was buried goes on as another one."""
        if (wait_s := self.wait_s()) is None or wait_s > 0.0:
            return
        try:
            if self._buried:
                self._enlist_again()
            self._beat()
            self._settings.outage.on_answer()
        except _Buried:
            self._buried = True
        except Exception as error:  # the next beat tries again, over another connection
            self._watch.beat_failed()
            if not isinstance(error, psycopg.Error) or breaks_connection(error):
                self._disconnect()
            if isinstance(error, errors.LockNotAvailable):  # perhaps by a flush over a connection that broke
                with suppress(psycopg.Error):
                    self._end_flushes(leases.END_OWN_FLUSHES, {})
            if is_transient(error):
                self._failed(error)
        finally:
            self._beat_at = self._settings.clock() + self._settings.lease.beat_s

    def close(self) -> None:
        """Release all jobs and end the lease; if the server is away, the others find this owner silent."""
        if self.owner is not None and not self._buried:
            with suppress(Exception), self._transaction(answer_s=driver.LONG_ANSWER_S) as send:
                send([Statement(resign, returns_rows=False) for resign in leases.RESIGN])
        self._disconnect()

    # The flush

    def _run(self, items: list[WorkItem[Any]], *, commit_in_doubt: bool) -> Iterator[list[Result]]:
        pause_s, answer_s, repeated = FIRST_PAUSE_S, self._answer_s, False
        while items:
            self.tend()
            committing: list[bool] = []
            try:
                if self._buried:  # what the buried owner may not write any more is refused by its new number
                    self._enlist_again()
                results = self._flush(items, committing, answer_s, commit_in_doubt=commit_in_doubt)
            except _Buried:
                self._buried = True
            except Exception as error:
                commit_in_doubt = commit_in_doubt or bool(committing)
                if is_transient(error):
                    if breaks_connection(error):
                        self._disconnect()
                    if isinstance(error, driver.NoAnswer):  # perhaps these statements need more time than most do
                        answer_s *= 2
                    self._failed(error)
                    failed, items = self._time_out(items, error)
                    yield failed
                    time.sleep(pause_s)
                    pause_s = min(2 * pause_s, MAX_PAUSE_S, self._settings.lease.beat_s)
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
                self._settings.outage.on_answer()
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

    def _exchange(self, item: WorkItem[Any]) -> Result:
        """Run an exchange (`sharing.py`) in a transaction of its own, once."""
        try:
            if self._buried:
                raise _Buried
            with self._transaction(fenced=True, durable=False, lock_s=EXCHANGE_LOCK_TIMEOUT_S) as send:
                ((value, error),) = run_calls([item.work], PostgresTable(self.owner), send)  # type: ignore[list-item]
        except _Buried:
            self._buried = True
            return item.failed(LedgerError("this owner was buried: its new number has no share yet"))
        except Exception as failure:
            if breaks_connection(failure):
                self._disconnect()
            return item.failed(to_ledger_error(failure, self._url, connecting=self._db is None))
        return item.future, value, error

    def _failed(self, error: Exception) -> None:
        self._settings.outage.on_failure(to_ledger_error(error, self._url, connecting=self._db is None).message)

    def _time_out(self, items: Sequence[WorkItem[Any]], error: Exception) -> tuple[list[Result], list[WorkItem[Any]]]:
        """Return the errors of the items whose patience has ended, and the other items."""
        patience_s, now = self._settings.patience_s, self._settings.clock()
        if self._settings.closing.is_set():
            self._gives_up_at = min(self._gives_up_at, now + CLOSING_PATIENCE_S)
        until = now - patience_s if now < self._gives_up_at else now
        why = to_ledger_error(error, self._url, connecting=self._db is None).message
        waited = "before the ledger was closed" if now >= self._gives_up_at else f"within {patience_s:g} s"
        failed = [item.failed(LedgerError(f"{why}; no success {waited}")) for item in items if item.queued_at <= until]
        return failed, [item for item in items if item.queued_at > until]

    @contextmanager
    def _transaction(
        self,
        committing: list[bool] | None = None,
        *,
        fenced: bool = False,
        durable: bool = True,
        lock_s: float = driver.LOCK_TIMEOUT_S,
        answer_s: float | None = None,
    ) -> Iterator[Callable[[Sequence[Request]], list[Rows]]]:
        """Give a function that executes requests in one transaction, and commit at the end.

        All goes through one pipeline. A fenced transaction raises `_Buried` if this owner is buried.
        """
        db = self._connected()
        db.answer_s, db.cancels = answer_s or self._answer_s, True
        local = driver.transaction_settings(self._url, self._settings.lease, durable=durable, lock_s=lock_s)
        mode = "READ ONLY" if self._settings.read_only else "READ WRITE"
        try:
            with db.pipeline() as pipeline:
                db.execute(f"BEGIN ISOLATION LEVEL READ COMMITTED {mode}".encode())
                db.execute(driver.SETTINGS.encode(), local)
                db.execute(leases.SIGN.encode(), {"me": self.owner})
                fence = [db.execute(leases.FENCE.encode(), {"me": self.owner})] if fenced else []

                def send(requests: Sequence[Request]) -> list[Rows]:
                    cursors = [self._execute(db, request) for request in requests]
                    pipeline.sync()  # only after it the server sees a transaction that stands idle, and may end it
                    if fence and not fence.pop().fetchall():
                        raise _Buried
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
        """Become an owner under a new number, which counts as a beat; return it."""
        sent_at = self._settings.tenure.clock()
        with self._transaction() as send:
            (((owner,),),) = send([Statement(leases.ENLIST, self._settings.lease.owner_facts())])
        self.owner = number = int(owner)
        self._settings.tenure.on_beat(number, sent_at)
        return number

    def _enlist_again(self) -> None:
        """Go on under a new number after a burial. The jobs of the old one stay with those who have them now."""
        owner = self._enlist()
        self._buried, self._watch = False, Watch(self._settings.lease)
        self._settings.on_burial(owner)

    def _beat(self) -> None:
        sent_at = self._settings.tenure.clock()
        # Without a disk flush: a beat that a crash of the server forgets has done its work.
        with self._transaction(durable=False) as send:
            mine, others = send([Statement(leases.BEAT), Statement(leases.OTHERS)])
        if not mine:
            self._buried = True  # also if the next line fails: it is tried again then
            self._enlist_again()
            return
        self._settings.tenure.on_beat(int(mine[0][0]), sent_at)
        for dead in self._watch.observe([Beat(*row) for row in others], self._settings.clock()):
            self._bury(dead)

    def _bury(self, dead: Beat) -> None:
        """Bury an owner, unless it has beaten since, and release its jobs in the same transaction."""
        values = {"dead": dead.owner, "count": dead.count}
        releases = [Statement(sql_text, values, returns_rows=False) for sql_text in leases.RELEASES_OF_BURIED]
        with self._transaction(fenced=True, answer_s=driver.LONG_ANSWER_S) as send:
            buried, *_ = send([Statement(leases.BURY, values), *releases])
        if not buried:
            self._end_flushes(leases.END_FLUSHES_OF_SILENT, values)

    def _end_flushes(self, statement: str, values: Mapping[str, object]) -> None:
        """End what stands open at the server and waits for its client, so that it does not keep its owner's row."""
        with suppress(errors.InsufficientPrivilege), self._transaction(durable=False) as send:  # another user's
            send([Statement(statement, values, returns_rows=False)])

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

"""An open ledger on PostgreSQL: one connection in the writer's thread, and the lease of its owner.

A flush is one transaction in one pipeline. It is repeated while the server is away, until the patience of its calls
ends. Whether a commit counted whose answer was lost is decided by reading again what the calls would have written.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import psycopg
from psycopg import errors

from nanobanana_async.errors import LedgerError
from nanobanana_async.ledger.postgres import driver, leases
from nanobanana_async.ledger.postgres.failover import NOTE_TIMELINE, held_back_s, timeline_sql, write_again
from nanobanana_async.ledger.postgres.known import KnownJobs
from nanobanana_async.ledger.postgres.leases import Beat, Watch
from nanobanana_async.ledger.postgres.pipeline import Call, Statement, run_calls
from nanobanana_async.ledger.postgres.problems import breaks_connection, is_transient, to_ledger_error
from nanobanana_async.ledger.postgres.schema import Tables, current_tables, prepare
from nanobanana_async.ledger.postgres.settings import Settings
from nanobanana_async.ledger.postgres.sharing import LOCK_TIMEOUT_S as EXCHANGE_LOCK_TIMEOUT_S
from nanobanana_async.ledger.postgres.sharing import Exchange
from nanobanana_async.ledger.postgres.statements import PostgresTable
from nanobanana_async.ledger.postgres.transactions import Buried, Transactions
from nanobanana_async.ledger.writer import Result, WorkItem

FIRST_PAUSE_S, MAX_PAUSE_S = 0.05, 1.0
"""The pauses between tries while the server is away double from the first to the longest."""

CLOSING_PATIENCE_S = 5.0
"""How long calls wait at most for a server that is away once the ledger is being closed."""


def connect(settings: Settings, tables: Tables | None = None) -> "PostgresConnection":
    """Open a ledger; raises only `LedgerError`."""
    try:
        return PostgresConnection(settings, tables or current_tables())
    except Exception as error:
        failure = to_ledger_error(error, settings.url, connecting=True)
    raise failure  # here, so that no other is chained to it: the driver's errors and frames show the URL


class PostgresConnection(Transactions):
    """An open ledger, used by one thread. `owner` is None if it was opened read-only."""

    def __init__(self, settings: Settings, tables: Tables) -> None:
        super().__init__(settings)
        self._watch = Watch(settings.lease)
        self._beat_at = settings.clock()
        self._buried, self._gives_up_at = False, math.inf
        self._known = KnownJobs(settings.clock)
        self._answers_at = -math.inf
        """Until when no call is answered, after a fail-over."""
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
                        self._timeline_sql = timeline_sql(self._connected())
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
            self._known.forget_old()
            if self._answers_calls:
                self._settings.outage.on_answer()
        except Buried:
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
        for _ in range(2):
            try:
                if self._buried:
                    self._enlist_again()
                if self.owner is not None:
                    self._resign()
            except Buried:  # after a fail-over it first writes again what it knows
                self._buried = True
            except Exception:
                break
            else:
                break
        self._disconnect()

    def _resign(self) -> None:
        with self._transaction(fenced=True, answer_s=driver.BULK_TIMEOUT_S) as send:
            send([Statement(resign, returns_rows=False) for resign in leases.RESIGN])

    # The flush

    def _run(self, items: list[WorkItem[Any]], *, commit_in_doubt: bool) -> Iterator[list[Result]]:
        pause_s, answer_s, repeated = FIRST_PAUSE_S, self._answer_s, False
        while items:
            self.tend()
            committing: list[bool] = []
            try:
                if self._buried:  # what the buried owner may not write any more is refused by its new number
                    self._enlist_again()
                if not self._answers_calls:
                    raise driver.FailedOver("some seconds are left")
                results = self._flush(items, committing, answer_s, commit_in_doubt=commit_in_doubt)
            except Buried:
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
        self._known.add(table.written)
        return [(item.future, value, error) for item, (value, error) in zip(items, outcomes, strict=True)]

    def _exchange(self, item: WorkItem[Any]) -> Result:
        """Run an exchange (`sharing.py`) in a transaction of its own, once."""
        try:
            if self._buried:
                raise Buried
            with self._transaction(fenced=True, durable=False, lock_s=EXCHANGE_LOCK_TIMEOUT_S) as send:
                ((value, error),) = run_calls([item.work], PostgresTable(self.owner), send)  # type: ignore[list-item]
        except Buried:
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

    # The lease

    def _enlist(self) -> int | None:
        """Become an owner under a new number, which counts as a beat.

        If the server has failed over since the last one, write again what it has lost; return how many records.
        """
        sent_at = self._settings.tenure.clock()
        written: int | None = None
        with self._transaction(answer_s=None if self.owner is None else driver.BULK_TIMEOUT_S) as send:
            facts = self._settings.lease.owner_row()
            (((owner, timeline),),) = send([Statement(leases.ENLIST.format(self._timeline_sql), facts)])
            (((earlier, age_s),),) = send([Statement(NOTE_TIMELINE, {"timeline": timeline})])
            if self.owner is not None and timeline != self._timeline:
                call = Call(partial(write_again, known=self._known.all(), before=self.owner, timeline=timeline))
                ((written, error),) = run_calls([call], PostgresTable(owner), send)
                if error is not None:
                    raise error
        self.owner, self._timeline = int(owner), timeline
        self._answers_at = self._settings.clock() + held_back_s(self._settings.lease, earlier, age_s)
        self._settings.tenure.on_beat(self.owner, sent_at)
        return written

    def _enlist_again(self) -> None:
        """Go on under a new number after a burial or a fail-over. Jobs that others have now stay theirs."""
        written = self._enlist()
        if written is None:
            self._known.disown_all()
        assert self.owner is not None
        self._buried, self._watch = False, Watch(self._settings.lease)
        self._settings.on_enlisted_again(self.owner, written)

    @property
    def _answers_calls(self) -> bool:
        return self._settings.read_only or self._settings.clock() >= self._answers_at

    def _beat(self) -> None:
        sent_at = self._settings.tenure.clock()
        # Without a disk flush: a beat that a crash of the server forgets has done its work.
        with self._transaction(durable=False) as send:
            beat = Statement(leases.BEAT.format(self._timeline_sql), {"timeline": self._timeline})
            mine, others = send([beat, Statement(leases.SELECT_OTHER_OWNERS)])
        if not mine:
            self._buried = True  # also if the next line fails: it is tried again then
            self._enlist_again()
            return
        self._settings.tenure.on_beat(int(mine[0][0]), sent_at)
        for dead in self._watch.observe([Beat(*row) for row in others], self._settings.clock()):
            self._bury(dead)

    def _bury(self, dead: Beat) -> None:
        """Bury an owner, unless it has beaten since, and release its jobs in the same transaction."""
        values = {"dead": dead.owner, "count": dead.count, "timeline": self._timeline}
        releases = [
            Statement(sql_text, values, returns_rows=False)
            for sql_text in (leases.SEND_IN_DOUBT, *leases.RELEASES_OF_BURIED)
        ]
        with self._transaction(fenced=True, answer_s=driver.BULK_TIMEOUT_S) as send:
            buried, *_ = send([Statement(leases.BURY, values), *releases])
        if not buried:
            self._end_flushes(leases.END_FLUSHES_OF_SILENT, values)

    def _end_flushes(self, statement: str, values: Mapping[str, object]) -> None:
        """End what stands open at the server and waits for its client, so that it does not keep its owner's row."""
        with suppress(errors.InsufficientPrivilege), self._transaction(durable=False) as send:  # another user's
            send([Statement(statement, values, returns_rows=False)])

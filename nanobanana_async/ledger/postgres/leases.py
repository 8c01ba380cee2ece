"""Ownership by leases: each owner counts its beats up in its row, and is dead when others see no beat for too long.

No clock of one host is compared with that of another, and silence counts only while the observer's own beats get
through: when the server is down, all are silent and none is buried. Death is a write, at the row that the beat writes
too, so that an owner either beats or is buried. It needs no file lock and no session of the database: it holds for
owners behind a pooler, and for a host that was suspended or cut off, which finds itself buried when it comes back.
"""

import os
import socket
import time
from collections.abc import Callable, Iterable

from attrs import frozen

from nanobanana_async._version import __version__
from nanobanana_async.errors import ConfigurationError
from nanobanana_async.gateways.apimall import ApiMall

BEAT_S = 2.0
"""How often an owner beats. A beat is one small write without a disk flush: 100 hosts make 50 in a second."""

LEASE_S = 10.0
"""How long an owner may be silent. Five beats: a lost one, a reconnect or a full disk for some seconds is no death.

Longer: the slots of a killed process stand idle for longer. Shorter: hosts that are only slow are buried.
"""

BEATS_WITHOUT_ANSWER = 2.5
"""After so many beats without one of our own that got through, all silences count from zero again."""


@frozen(kw_only=True)
class Lease:
    """How often an owner beats, and how long it may be silent. Others go by what the owner itself wrote in its row."""

    beat_s: float = BEAT_S
    silence_s: float = LEASE_S

    def __attrs_post_init__(self) -> None:
        if not 0 < 3 * self.beat_s <= self.silence_s * (1 + 1e-9):  # 3 * 0.4 is more than 1.2
            raise ConfigurationError("a lease must be at least three beats long, or one lost beat would end it")

    def owner_row(self) -> dict[str, object]:
        """Return what an owner states in its row."""
        return {
            "host": socket.gethostname(),
            "process": os.getpid(),
            "client": __version__,
            "lease_s": self.silence_s,
        }


@frozen
class Beat:
    """What the ledger shows of another owner: its count of beats, and how long it may be silent."""

    owner: int
    count: int
    lease_s: float


class Watch:
    """Watches the beats of the other owners, by the clock of this process."""

    def __init__(self, lease: Lease) -> None:
        self._gap_s = BEATS_WITHOUT_ANSWER * lease.beat_s
        self._seen: dict[int, tuple[int, float]] = {}
        """Owner -> the count of its beats, and since when it has not changed."""
        self._answered_at: float | None = None

    def beat_failed(self) -> None:
        """Forget all silences: our own beat did not get through, so that others may have been unable to beat too."""
        self._seen.clear()

    def observe(self, beats: Iterable[Beat], now: float) -> list[Beat]:
        """Take note of all owners at the time of a beat of our own that got through; return those that are dead."""
        if self._answered_at is not None and now - self._answered_at > self._gap_s:
            self._seen.clear()
        self._answered_at = now
        seen, dead = self._seen, []
        self._seen = {}
        for beat in beats:
            count, since = seen.get(beat.owner, (beat.count, now))
            if count != beat.count:
                since = now
            self._seen[beat.owner] = beat.count, since
            if now - since > beat.lease_s:
                dead.append(beat)
        return dead


def awake_or_not_s() -> float:
    """Return the seconds of a clock that also counts while the machine is suspended, as the clocks of others do."""
    clock = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", None))
    return time.perf_counter() if clock is None else time.clock_gettime(clock)  # on Windows it counts so


class Tenure:
    """Whether this owner certainly lives. The writer's thread writes it, and the event loop reads it.

    No observer can find an owner silent before a lease has passed since it sent its last beat that got through.
    """

    def __init__(self, lease: Lease, clock: Callable[[], float] = awake_or_not_s) -> None:
        self._sure_s = lease.silence_s - lease.beat_s  # a beat less: time for the bytes to leave
        self.clock = clock
        self._sure: tuple[int | None, float] = (None, 0.0)
        """The owner, and until when it certainly lives."""
        self.owner: int | None = None
        """The owner as the session knows it: it hears of a burial later than the thread does."""

    def on_beat(self, owner: int, sent_at: float) -> None:
        """Record that a beat got through which was sent at this time of `clock`."""
        self._sure = owner, sent_at + self._sure_s

    @property
    def number(self) -> int | None:
        """The number of the owner whose beat got through last."""
        return self._sure[0]

    @property
    def is_sure(self) -> bool:
        """Whether the owner that the session knows certainly lives."""
        owner, until = self._sure
        return owner is not None and owner == self.owner and self.clock() < until


# In the braces stands the SQL of the server's timeline: after a fail-over the number of an owner says nothing.
ENLIST = (
    "INSERT INTO owners (host, process, client, lease_s, timeline)"
    " VALUES (%(host)s, %(process)s, %(client)s, %(lease_s)s, {}) RETURNING id, timeline"
)
# Its row is locked until the commit: a burial waits for the flush, and then releases also what the flush wrote.
FENCE = "SELECT id FROM owners WHERE id = %(me)s AND buried_by IS NULL AND {} = %(timeline)s FOR SHARE"
BEAT = (
    "UPDATE owners SET beat = beat + 1, beat_at = clock_timestamp() WHERE id = %(me)s AND buried_by IS NULL"
    " AND {} = %(timeline)s RETURNING id"
)
SELECT_OTHER_OWNERS = "SELECT id, beat, lease_s FROM owners WHERE buried_by IS NULL AND id <> %(me)s"
# No transaction waits for this lock, which is shared: it shows whose transaction a connection of the server runs.
SIGN = "SELECT pg_advisory_xact_lock_shared('owners'::regclass::oid::int, (%(me)s::bigint & 2147483647)::int)"
# Of a process that was suspended while it sent a flush the server waits for the rest without end: no timeout of
# PostgreSQL before 17 covers that. Only what waits for its client is ended: a commit that waits for a replica is not.
_END_FLUSHES = (
    "SELECT pg_terminate_backend(l.pid) FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid)"
    " WHERE l.locktype = 'advisory' AND a.datname = current_database() AND l.database = a.datid"
    " AND l.classid = 'owners'::regclass AND l.objid = ({}::bigint & 2147483647)::oid"
    " AND l.pid <> pg_backend_pid() AND a.wait_event_type = 'Client'"
)
END_OWN_FLUSHES = _END_FLUSHES.format("%(me)s")
END_FLUSHES_OF_SILENT = (
    f"{_END_FLUSHES.format('%(dead)s')}"
    " AND EXISTS (SELECT FROM owners WHERE id = %(dead)s AND beat = %(count)s AND buried_by IS NULL)"
)
# An owner whose flush stands open is passed over, until that is ended.
BURY = (
    "UPDATE owners SET buried_by = %(me)s, buried_at = clock_timestamp() WHERE id = (SELECT id FROM owners"
    " WHERE id = %(dead)s AND beat = %(count)s AND buried_by IS NULL FOR UPDATE SKIP LOCKED) RETURNING id"
)
_IS_BURIED = "EXISTS (SELECT FROM owners WHERE id = %(dead)s AND buried_by = %(me)s)"
# Of an owner that died across a fail-over: what waits at the new server may have been sent after its last beat that is
# left. It then counts as sent, at the price of the dearest purchase that counts under the same names, if there is one.
# Not on API Mall: there the same key buys it once, as long as the gateway remembers it.
_LAST_BEAT = "(SELECT beat_at - make_interval(secs => lease_s) FROM owners WHERE id = %(dead)s)"
SEND_IN_DOUBT = (
    "WITH sent AS (UPDATE jobs AS j SET state = 'submitting', revision = revision + 1, owner = NULL,"
    f" first_sent_at = coalesce(first_sent_at, {_LAST_BEAT}), sent_at = {_LAST_BEAT} WHERE state = 'pending'"
    f" AND gateway <> '{ApiMall.short_name}'"
    " AND (owner = %(dead)s OR id IN (SELECT job FROM fed_rows WHERE worker = %(dead)s AND delivered IS NULL))"
    " AND EXISTS (SELECT FROM owners WHERE id = %(dead)s AND buried_by = %(me)s AND timeline <> %(timeline)s)"
    " RETURNING id, generation, account, batch, budget, sent_at),"
    " counts AS (SELECT id, generation, account, batch AS name FROM sent WHERE batch IS NOT NULL"
    " UNION ALL SELECT s.id, s.generation, s.account, 'budget ' || CASE b.per WHEN 'day'"
    " THEN to_char(s.sent_at AT TIME ZONE 'UTC', 'YYYY-MM-DD') ELSE 'all' END || ' ' || b.name"
    " FROM sent AS s JOIN budgets AS b ON b.name = s.budget),"
    " dearest AS (SELECT DISTINCT ON (batch) batch, price_class, credits, basis FROM charges"
    " WHERE batch IN (SELECT name FROM counts) ORDER BY batch, credits DESC)"
    " INSERT INTO charges (job, generation, account, batch, price_class, credits, basis)"
    " SELECT c.id, c.generation, c.account, c.name, coalesce(d.price_class, ''), coalesce(d.credits, 0),"
    " coalesce(d.basis, 'example') FROM counts AS c LEFT JOIN dearest AS d ON d.batch = c.name"
    " ON CONFLICT (job, generation, batch) DO NOTHING"
)
RELEASES_OF_BURIED = (
    "UPDATE jobs SET owner = NULL WHERE owner = %(dead)s AND state IN ('pending', 'submitting', 'running')"
    f" AND {_IS_BURIED}",
    f"DELETE FROM callback_notices WHERE owner = %(dead)s AND {_IS_BURIED}",
    f"DELETE FROM shares WHERE owner = %(dead)s AND {_IS_BURIED}",
)
RESIGN = (
    "UPDATE jobs SET owner = NULL WHERE owner = %(me)s AND state IN ('pending', 'submitting', 'running')",
    "DELETE FROM callback_notices WHERE owner = %(me)s",
    "DELETE FROM shares WHERE owner = %(me)s",
    "DELETE FROM owners WHERE id = %(me)s AND buried_by IS NULL",
)

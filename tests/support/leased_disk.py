"""Leases on virtual time: hosts on one ledger whose owners are buried when they are silent for longer than a lease.

The rows, the ownership rules and the writes are those of the real SQLite ledger. What PostgreSQL adds is simulated: an
owner that is silent loses its jobs in one step, its next write finds that out, and it goes on under a new number.
"""

import random
from collections.abc import Callable
from contextvars import copy_context

from nanobanana_async import SqliteLedger
from nanobanana_async.jobs import ACTIVE_STATES
from nanobanana_async.ledger.columns import sql_list
from nanobanana_async.ledger.connection import LedgerConnection
from nanobanana_async.ledger.owners import Owners
from nanobanana_async.ledger.postgres.leases import BEAT_S, LEASE_S
from tests.support.disk import Disk, InlineWriter
from tests.support.machine import Process

RELEASE = f"UPDATE jobs SET owner = NULL WHERE owner = ? AND state IN ({sql_list(ACTIVE_STATES)})"


class Lease:
    """The lease of one process."""

    def __init__(self, disk: Disk, process: Process) -> None:
        self._disk = disk
        self._process = process
        self._context = copy_context()
        self._file: LedgerConnection | None = None
        self._known = ""
        """The owner as the session knows it."""
        self._silent_since: float | None = None
        self.notify: Callable[[], None] | None = None
        self.burials = 0
        self.buried = False

    def opened(self, file: LedgerConnection) -> None:
        """Begin with the owner of a ledger that was opened."""
        self._file, self._known = file, self._process.owner

    @property
    def is_silent(self) -> bool:
        """Whether no beat gets through, and no write."""
        return self._silent_since is not None

    @property
    def is_sure(self) -> bool:
        """Whether the owner that the session knows certainly lives."""
        since, now = self._silent_since, self._disk.machine.time()
        return self._known == self._process.owner and (since is None or now < since + LEASE_S - BEAT_S)

    def be_silent(self, for_s: float, chance: random.Random, *, suspended: bool) -> None:
        """Suspend the process, or cut it off from the ledger; it is buried if that is longer than its lease."""
        machine, process = self._disk.machine, self._process
        if self._silent_since is not None or self._file is None:
            return
        machine.note(process.name, f"{'suspended' if suspended else 'cut off'} for {for_s:.1f} s")
        self._silent_since = machine.time()
        if suspended:
            process.freeze()
        if for_s > LEASE_S:
            machine.after(LEASE_S + chance.uniform(0.0, for_s - LEASE_S), self._bury)
        machine.after(for_s, lambda: self._go_on(chance))

    def _go_on(self, chance: random.Random) -> None:
        machine, late_s = self._disk.machine, chance.choice((0.0, chance.uniform(0.0, 1.0)))
        machine.note(self._process.name, "goes on")
        # The thread that beats, or the event loop: one of them is first.
        steps: list[Callable[[], None]] = [self._process.go_on, lambda: machine.after(late_s, self.beat)]
        chance.shuffle(steps)
        for step in steps:
            step()

    def _bury(self) -> None:
        if self._file is None or not self._process.alive or self._process.ended.done():
            return
        self._disk.execute(RELEASE, self._process.owner)
        self._disk.execute("DELETE FROM callback_notices WHERE owner = ?", self._process.owner)
        self._disk.machine.note(self._process.name, "is buried")
        self._disk.buried.add(self._process.owner)
        self.buried, self.burials = True, self.burials + 1

    def beat(self) -> None:
        """Get through to the ledger again: an owner that was buried goes on under a new number."""
        if self._process.frozen or self._file is None:
            return
        self._silent_since = None
        if not self.buried or not self._process.alive:
            return
        self.buried = False
        before, owner = self._file._owner, Owners(self._disk.path).acquire()
        if before is not None:
            self._file._identities.pop(before.file, None)
            before.release()
        self._file._owner = owner
        self._file._identities[owner.file] = owner.file.stat()
        self._file.table._owner = self._file.table.charges._owner = self._process.owner = owner.id
        self._disk.machine.call_soon(self._notify, owner.id, context=self._context)

    def _notify(self, owner: str) -> None:
        self._known = owner
        if self.notify is not None:
            self.notify()


class LeasedWriter(InlineWriter):
    """A writer whose commits wait while its process is silent, and which finds out that it was buried."""

    def __init__(self, disk: Disk, open_file: Callable[[], LedgerConnection]) -> None:
        super().__init__(disk, open_file)
        self.lease = self._process.lease = Lease(disk, self._process)

    def _open(self) -> None:
        super()._open()
        if self._file is not None:
            self.lease.opened(self._file)

    def _is_held_up(self, again: Callable[[], None]) -> bool:
        silent = self._process.alive and (self.lease.is_silent or self._process.frozen)
        if silent:
            self._disk.machine.after(0.1, again)
        elif self._process.alive:
            self.lease.beat()  # the fence of a flush sees a burial as the beat does
        return silent


class LeasedLedger(SqliteLedger):
    """The ledger of a host, as `LeasedLedger` of the library wants it."""

    outage: str | None = None

    @property
    def _lease(self) -> Lease:
        writer = self._writer
        assert isinstance(writer, LeasedWriter)
        return writer.lease

    @property
    def surely_owns(self) -> bool:
        """Whether this owner certainly lives."""
        return self._lease.is_sure

    def on_burial(self, notify: Callable[[], None]) -> None:
        """Call `notify` after each burial."""
        self._lease.notify = notify

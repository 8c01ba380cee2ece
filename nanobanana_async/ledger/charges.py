"""What was ever spent under a name: the charges of named batches, kept with the jobs and longer than them.

The statements run inside the transaction of the job's transition, so that several processes share one cap.
"""

import sqlite3
from collections.abc import Callable
from decimal import Decimal

from nanobanana_async.jobs import JobRecord, JobState
from nanobanana_async.ledger.base import Allowance, Refusal
from nanobanana_async.policy.prices import Basis, Price, charge_of, credits_in, price_in, units

_ESTIMATED = "basis IN ('expected', 'example')"  # word for word as the indexes have it
_UNDER_WAY = "state IN ('submitting', 'running')"

_STANDING = (
    "SELECT (SELECT credits FROM prices WHERE account = ? AND price_class = ?),"
    " (SELECT credits FROM spending WHERE batch = ?), (SELECT untold FROM spending WHERE batch = ?)"
)
_IS_ESTIMATED = f"SELECT 1 FROM charges WHERE batch = ? AND {_ESTIMATED}"
_OPEN = (
    f"SELECT j.key, j.owner, c.{_ESTIMATED} FROM jobs AS j JOIN charges AS c"
    " ON c.job = j.id AND c.generation = j.generation"
    f" WHERE j.account = ? AND j.{_UNDER_WAY} AND j.batch = ?"
)
_ADD = (
    "INSERT INTO charges SELECT id, ?, ?, ?, ?, ?, ? FROM jobs WHERE key = ?"
    " ON CONFLICT (job, generation) DO UPDATE SET price_class = excluded.price_class, credits = excluded.credits,"
    " basis = excluded.basis"
)
_THIS = "job = (SELECT id FROM jobs WHERE key = ?) AND generation = ?"
_KNOWN = f"UPDATE charges SET credits = ?, basis = 'told' WHERE {_THIS}"
# The gateway has said its last word, and nothing of the price: the user's own word stands, an example does not.
_AGREE = f"UPDATE charges SET basis = 'agreed' WHERE {_THIS} AND basis = 'expected'"
_LEARN = (
    f"INSERT INTO prices SELECT account, price_class, ? FROM charges WHERE {_THIS}"
    " ON CONFLICT (account, price_class) DO UPDATE SET credits = excluded.credits"
    " WHERE credits <> excluded.credits"
)
_CLASS = f"SELECT account, price_class FROM charges WHERE {_THIS}"
_NOTE = "INSERT INTO prices VALUES (?, ?, ?)"
_REPRICE = f"UPDATE charges SET credits = ?, basis = 'told' WHERE account = ? AND price_class = ? AND {_ESTIMATED}"
_USERS_WORD = (
    f"UPDATE charges SET credits = ?, basis = 'agreed' WHERE batch = ? AND {_ESTIMATED} AND NOT EXISTS (SELECT 1 FROM"
    f" jobs WHERE jobs.id = charges.job AND jobs.generation = charges.generation AND jobs.{_UNDER_WAY})"
)
_SPENT = "SELECT credits FROM spending WHERE batch = ?"


class Charges:
    """The charges of named batches. `free` tells whether nobody follows what an owner followed."""

    def __init__(self, connection: sqlite3.Connection, owner: str | None, free: Callable[[str | None], bool]) -> None:
        self._run = connection.execute
        self._owner = owner
        self._free = free
        self._priced: dict[tuple[str, int], int] = {}
        """Purchases that were sent at a known price: where the gateway states the same, nothing needs writing."""

    def allowance(self, job: JobRecord, price: Price, max_credits: Decimal | None) -> Allowance:
        """Tell whether a purchase fits under the cap of its batch, at the price that is known here."""
        amount, this_class = units(price.credits), (job.account, price.price_class)
        if price.is_users_word:
            self._run(_USERS_WORD, (amount, job.batch))
        known, total, untold = self._run(_STANDING, (*this_class, job.batch, job.batch)).fetchone()
        if known is None and price.basis is Basis.TOLD:  # by a job outside of any named batch
            self._run(_NOTE, (*this_class, amount))
            self._run(_REPRICE, (amount, *this_class))
            return self.allowance(job, price, max_credits)
        spent = credits_in(total or 0)
        if known is not None and (price.estimated or known > amount):
            learned = Price(price.price_class, credits_in(known))
            return Allowance(refusal=None if max_credits is None else Refusal.PRICE, price=learned, spent=spent)
        if max_credits is None:
            return Allowance(price=price, spent=spent)
        blocked = price.estimated and self._has_estimates(job.batch, price, untold)
        if not blocked and (total or 0) + amount <= units(max_credits):
            return Allowance(price=price, spent=spent)
        ours, others = self._under_way(job, estimated_only=blocked)
        refusal = Refusal.ESTIMATE if blocked else Refusal.SUM
        return Allowance(refusal=refusal, price=price, spent=spent, ours=ours, others=others)

    def add(self, job: JobRecord, price: Price) -> None:
        """Set a price aside for a purchase that is about to be sent."""
        amount = units(price.credits)
        facts = (job.generation, job.batch, job.account, price.price_class, amount, price.basis.value, job.key)
        self._run(_ADD, facts)
        if price.basis is Basis.TOLD:
            self._priced[job.key, job.generation] = amount

    def follow(self, before: JobRecord, job: JobRecord) -> None:
        """Keep the charge of a job's purchase up to date with its record."""
        this = (job.key, job.generation)
        priced = self._priced.pop(this, None)
        if job.state is JobState.RUNNING and job.credits_used and units(job.credits_used) == priced:
            return
        if before.state is JobState.RUNNING and before.credits_used and job.credits == before.credits:
            return  # it was stated before
        charge = charge_of(job)
        amount = None if charge is None or charge.credits is None else units(charge.credits)
        if charge is None:
            if before.state is not JobState.PENDING or before.in_doubt:
                self._run(_KNOWN, (0, *this))
        elif amount is None:
            if charge.over:
                self._run(_AGREE, this)
            elif priced is not None:
                self._priced[this] = priced
        else:
            self._run(_KNOWN, (amount, *this))
        price = price_in(job)
        if price is not None and price != price_in(before):
            self._learn(units(price), this)

    def spent(self, batch: str) -> Decimal:
        """Return the sum of all charges under a name."""
        found = self._run(_SPENT, (batch,)).fetchone()
        return Decimal(0) if found is None else credits_in(found[0])

    def _learn(self, amount: int, this: tuple[str, int]) -> None:
        """Note the price of a class, and take it for all that was set aside at an estimate of it."""
        if self._run(_LEARN, (amount, *this)).rowcount > 0:
            for account, price_class in self._run(_CLASS, this).fetchall():
                self._run(_REPRICE, (amount, account, price_class))

    def _has_estimates(self, batch: str | None, price: Price, untold: int | None) -> bool:
        """Whether another charge under the name is an estimate; of forgotten jobs the user's own word is known."""
        if untold and price.basis is Basis.EXAMPLE:
            return True
        return self._run(_IS_ESTIMATED, (batch,)).fetchone() is not None

    def _under_way(self, job: JobRecord, *, estimated_only: bool) -> tuple[tuple[str, ...], bool]:
        """Return our jobs under the name that may free credits, and whether others who live follow such."""
        ours, owners = [], set()
        for key, owner, estimated in self._run(_OPEN, (job.account, job.batch)).fetchall():
            if estimated or not estimated_only:
                if owner == self._owner:
                    ours.append(key)
                else:
                    owners.add(owner)
        return tuple(ours), any(not self._free(owner) for owner in owners)

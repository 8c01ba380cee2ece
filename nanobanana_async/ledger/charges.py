"""What was ever spent under a name: the charges of named batches, kept with the jobs and longer than them.

The statements run inside the transaction of the job's transition, so that several processes share one cap.
"""

import sqlite3
from collections.abc import Callable
from decimal import Decimal

from nanobanana_async.jobs import JobRecord, JobState
from nanobanana_async.ledger.base import Allowance, Refusal
from nanobanana_async.policy.credits import Basis, Price, charge_of, credits_in, price_in, units

_ESTIMATED = "basis IN ('expected', 'example')"  # word for word as the indexes have it

_STANDING = (
    "SELECT (SELECT credits FROM prices WHERE account = ? AND price_class = ?),"
    " (SELECT credits FROM spending WHERE batch = ?), (SELECT untold FROM spending WHERE batch = ?)"
)
_OPEN = (
    "SELECT j.key, j.owner, c.basis, c.under_way FROM charges AS c LEFT JOIN jobs AS j ON j.id = c.job"
    f" WHERE c.batch = ? AND (c.under_way OR c.{_ESTIMATED})"
)
_ADD = (
    "INSERT INTO charges SELECT id, ?, ?, ?, ?, ?, ?, 1 FROM jobs WHERE key = ?"
    " ON CONFLICT (job, generation) DO UPDATE SET price_class = excluded.price_class, credits = excluded.credits,"
    " basis = excluded.basis, under_way = 1"
)
_THIS = "job = (SELECT id FROM jobs WHERE key = ?) AND generation = ?"
_KNOWN = f"UPDATE charges SET credits = ?, basis = 'told', under_way = ? WHERE {_THIS}"
_UNKNOWN = f"UPDATE charges SET under_way = ? WHERE {_THIS}"
# The gateway has said its last word, and nothing of the price: the user's own word stands, an example does not.
_UNTOLD = (
    f"UPDATE charges SET under_way = 0, basis = CASE basis WHEN 'expected' THEN 'agreed' ELSE basis END WHERE {_THIS}"
)
_LEARN = (
    f"INSERT INTO prices SELECT account, price_class, ? FROM charges WHERE {_THIS}"
    " ON CONFLICT (account, price_class) DO UPDATE SET credits = excluded.credits"
    " WHERE credits <> excluded.credits"
)
_CLASS = f"SELECT account, price_class FROM charges WHERE {_THIS}"
_NOTE = "INSERT INTO prices VALUES (?, ?, ?)"
_REPRICE = f"UPDATE charges SET credits = ?, basis = 'told' WHERE account = ? AND price_class = ? AND {_ESTIMATED}"
_USERS_WORD = f"UPDATE charges SET credits = ?, basis = 'agreed' WHERE batch = ? AND {_ESTIMATED} AND NOT under_way"
_SPENT = "SELECT credits FROM spending WHERE batch = ?"


_ESTIMATES = frozenset(basis.value for basis in (Basis.EXPECTED, Basis.EXAMPLE))


class Charges:
    """The charges of named batches. `free` tells whether nobody follows what an owner followed."""

    def __init__(self, connection: sqlite3.Connection, owner: str | None, free: Callable[[str | None], bool]) -> None:
        self._run = connection.execute
        self._owner = owner
        self._free = free

    def allowance(self, job: JobRecord, price: Price, max_credits: Decimal | None) -> Allowance:
        """Tell whether a purchase fits under the cap of its batch, at the price that is known here."""
        if price.is_users_word:
            self._run(_USERS_WORD, (units(price.credits), job.batch))
        known, total, untold = self._run(_STANDING, (job.account, price.price_class, job.batch, job.batch)).fetchone()
        if known is None and price.basis is Basis.TOLD:  # by a job outside of any named batch
            this = (job.account, price.price_class)
            self._run(_NOTE, (*this, units(price.credits)))
            self._run(_REPRICE, (units(price.credits), *this))
            return self.allowance(job, price, max_credits)
        learned = None if known is None else Price(price.price_class, credits_in(known))
        spent = credits_in(total or 0)
        if max_credits is None:
            return Allowance(price=learned or price, spent=spent)
        if learned is not None and (price.estimated or learned.credits > price.credits):
            return Allowance(refusal=Refusal.PRICE, price=learned, spent=spent)
        blocked = price.estimated and self._has_estimates(job.batch, price, untold)
        fits = units(max_credits) >= (total or 0) + units(price.credits)
        if fits and not blocked:
            return Allowance(price=price, spent=spent)
        ours, others = self._under_way(job.batch, estimated_only=blocked)
        refusal = Refusal.ESTIMATE if blocked else Refusal.SUM
        return Allowance(refusal=refusal, price=price, spent=spent, ours=ours, others=others)

    def add(self, job: JobRecord, price: Price) -> None:
        """Set a price aside for a purchase that is about to be sent."""
        amount = units(price.credits)
        facts = (job.generation, job.batch, job.account, price.price_class, amount, price.basis.value, job.key)
        self._run(_ADD, facts)

    def follow(self, before: JobRecord, job: JobRecord) -> None:
        """Keep the charge of a job's purchase up to date with its record."""
        charge, this = charge_of(job), (job.key, job.generation)
        if charge is None:
            if before.state is not JobState.PENDING or before.in_doubt:
                self._run(_KNOWN, (0, 0, *this))
            return
        if charge.credits is not None:
            self._run(_KNOWN, (units(charge.credits), charge.under_way, *this))
        elif charge.over:
            self._run(_UNTOLD, this)
        elif charge.under_way is not (before.state in (JobState.SUBMITTING, JobState.RUNNING)):
            self._run(_UNKNOWN, (charge.under_way, *this))
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
        """Whether another charge under the name is an estimate; after the user's own word only jobs under way are."""
        if untold and price.basis is Basis.EXAMPLE:
            return True
        return any(basis in _ESTIMATES for _, _, basis, _ in self._run(_OPEN, (batch,)))

    def _under_way(self, batch: str | None, *, estimated_only: bool) -> tuple[tuple[str, ...], bool]:
        """Return our jobs under the name that may free credits, and whether others who live follow such."""
        ours, owners = [], set()
        for key, owner, basis, under_way in self._run(_OPEN, (batch,)).fetchall():
            if under_way and (basis in _ESTIMATES or not estimated_only):
                if owner == self._owner:
                    ours.append(key)
                else:
                    owners.add(owner)
        return tuple(ours), any(not self._free(owner) for owner in owners)

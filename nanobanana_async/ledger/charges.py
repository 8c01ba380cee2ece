"""The charges of named batches and budgets in SQL: what was reserved and spent, also for pruned jobs.

The statements run in the transaction of the job's transition, so that several processes share one cap.
"""

import sqlite3
from collections.abc import Callable, Collection
from datetime import datetime
from decimal import Decimal
from typing import Any

from attrs import evolve

from nanobanana_async.jobs import JobRecord, JobState
from nanobanana_async.ledger.base import Allowance, Refusal
from nanobanana_async.ledger.counts import Count, counts_of, no_budget_error
from nanobanana_async.policy.named_budget import Budget, BudgetState, state_of
from nanobanana_async.policy.prices import Basis, Price, charge_of, from_billionths, price_in, to_billionths

_ESTIMATED = "basis IN ('expected', 'example')"  # the same text as in the indexes, or SQLite does not use them
_UNDER_WAY = "state IN ('submitting', 'running')"

_SELECT_PRICE_AND_SPENDING = (
    "SELECT (SELECT credits FROM prices WHERE account = ? AND price_class = ?),"
    " (SELECT credits FROM spending WHERE batch = ?), (SELECT unpriced FROM spending WHERE batch = ?)"
)
_SELECT_ESTIMATES = f"SELECT 1 FROM charges WHERE batch = ? AND {_ESTIMATED}"
_SELECT_UNDER_WAY = (  # of all accounts: a budget may count several
    f"SELECT j.key, j.owner, c.{_ESTIMATED} FROM jobs AS j JOIN charges AS c"
    " ON c.job = j.id AND c.generation = j.generation"
    f" WHERE j.{_UNDER_WAY} AND c.batch = ?"
)
_INSERT_CHARGE = (
    "INSERT INTO charges SELECT id, ?, ?, ?, ?, ?, ? FROM jobs WHERE key = ?"
    " ON CONFLICT (job, generation, batch) DO UPDATE SET price_class = excluded.price_class,"
    " credits = excluded.credits, basis = excluded.basis"
)
_OF_PURCHASE = "job = (SELECT id FROM jobs WHERE key = ?) AND generation = ?"
_SET_CREDITS = f"UPDATE charges SET credits = ?, basis = 'reported' WHERE {_OF_PURCHASE}"
# The job ended without a price: the user's expected price becomes final, the gateway's example stays an estimate.
_ACCEPT_EXPECTED = f"UPDATE charges SET basis = 'agreed' WHERE {_OF_PURCHASE} AND basis = 'expected'"
_UPSERT_PRICE = (
    f"INSERT INTO prices SELECT account, price_class, ? FROM charges WHERE {_OF_PURCHASE}"
    " ON CONFLICT (account, price_class) DO UPDATE SET credits = excluded.credits"
    " WHERE credits <> excluded.credits"
)
_SELECT_PRICE_CLASS = f"SELECT account, price_class FROM charges WHERE {_OF_PURCHASE}"
_INSERT_PRICE = "INSERT INTO prices VALUES (?, ?, ?)"
_MOVE_CHARGES = "UPDATE charges SET account = ? WHERE job IN (SELECT id FROM jobs WHERE gateway = ? AND account = ?)"
# Copied, not moved: the same name may be an account of another gateway too. A price that the new account knows stays.
_COPY_PRICES = (
    "INSERT INTO prices SELECT ?, price_class, credits FROM prices WHERE account = ?"
    " ON CONFLICT (account, price_class) DO NOTHING"
)
_SELECT_PRICES = "SELECT credits, account, price_class FROM prices WHERE account = ?"
_REPRICE_ESTIMATES = (
    f"UPDATE charges SET credits = ?, basis = 'reported' WHERE account = ? AND price_class = ? AND {_ESTIMATED}"
)
_APPLY_USERS_PRICE = (
    f"UPDATE charges SET credits = ?, basis = 'agreed' WHERE batch = ? AND {_ESTIMATED} AND NOT EXISTS (SELECT 1 FROM"
    f" jobs WHERE jobs.id = charges.job AND jobs.generation = charges.generation AND jobs.{_UNDER_WAY})"
)
_RELEASE_OTHERS = f"UPDATE charges SET credits = 0, basis = 'reported' WHERE {_OF_PURCHASE} AND batch NOT IN (?, ?)"
_DELETE_OTHERS = f"DELETE FROM charges WHERE {_OF_PURCHASE} AND batch NOT IN (?, ?)"
_UPSERT_BUDGET = (
    "INSERT INTO budgets VALUES (?, ?, ?)"
    " ON CONFLICT (name) DO UPDATE SET max_credits = excluded.max_credits WHERE per IS excluded.per"
)
_SELECT_BUDGETS = "SELECT name, max_credits, per FROM budgets"
_SELECT_SPENT = "SELECT credits FROM spending WHERE batch = ?"
_SELECT_RESERVED = (
    "SELECT coalesce(sum(c.credits), 0) FROM jobs AS j JOIN charges AS c"
    " ON c.job = j.id AND c.generation = j.generation"
    " WHERE j.state IN ('pending', 'submitting', 'running', 'uncertain') AND c.batch = ?"
    " AND (j.state <> 'running' OR CAST(coalesce(j.credits_used, '0') AS REAL) = 0)"
)


class Charges:
    """The charges of named batches and budgets. `is_unowned` says whether an owner id has no living owner."""

    def __init__(
        self, connection: sqlite3.Connection, owner: str | None, is_unowned: Callable[[str | None], bool]
    ) -> None:
        self._execute = connection.execute
        self._owner = owner
        self._is_unowned = is_unowned
        self._price_when_sent: dict[tuple[str, int], int] = {}
        """Purchases sent at a known price. If the gateway reports the same price, no write is needed."""

    def allowance(self, job: JobRecord, price: Price, max_credits: Decimal | None) -> Allowance:
        """Return whether a purchase fits under the cap of its batch and under its budget, at the known price."""
        allowance = Allowance(price=price, other_charges=Decimal(0))
        for counted_by, cap, budget in self._counts_of(job, max_credits):
            allowance = self._allowance_under(counted_by, cap, job, price)
            if allowance.refusal is not None:
                return evolve(allowance, budget=budget)
            price = allowance.price
        return allowance

    def _counts_of(self, job: JobRecord, max_credits: Decimal | None) -> list[Count]:
        """Return the names under which a purchase counts, each with its cap."""
        budget = None if job.budget is None else self.find_budget(job.budget)
        return counts_of(job, max_credits, budget)

    def _allowance_under(self, counted_by: str, max_credits: Decimal | None, job: JobRecord, price: Price) -> Allowance:
        amount, price_class = to_billionths(price.credits), (job.account, price.price_class)
        if price.is_user_stated:
            self._execute(_APPLY_USERS_PRICE, (amount, counted_by))
        found = self._execute(_SELECT_PRICE_AND_SPENDING, (*price_class, counted_by, counted_by)).fetchone()
        known, total, unpriced = found
        if known is None and price.basis is Basis.REPORTED:  # learned from a job outside any named batch
            self._execute(_INSERT_PRICE, (*price_class, amount))
            self._execute(_REPRICE_ESTIMATES, (amount, *price_class))
            return self._allowance_under(counted_by, max_credits, job, price)
        spent = from_billionths(total or 0)
        if known is not None and (price.is_estimate or known > amount):
            learned = Price(price.price_class, from_billionths(known))
            return Allowance(refusal=None if max_credits is None else Refusal.PRICE, price=learned, other_charges=spent)
        if max_credits is None:
            return Allowance(price=price, other_charges=spent)
        blocked = price.is_estimate and self._has_estimates(counted_by, price, unpriced)
        if not blocked and (total or 0) + amount <= to_billionths(max_credits):
            return Allowance(price=price, other_charges=spent)
        ours, others = self._jobs_that_may_free_credits(counted_by, estimated_only=blocked)
        refusal = Refusal.ESTIMATE if blocked else Refusal.SUM
        return Allowance(refusal=refusal, price=price, other_charges=spent, ours_may_free=ours, others_may_free=others)

    def reserve(self, job: JobRecord, price: Price) -> None:
        """Reserve the price of a purchase that is about to be sent."""
        amount = to_billionths(price.credits)
        names = [counted_by for counted_by, _, _ in self._counts_of(job, None)]
        for counted_by in names:
            row = (job.generation, counted_by, job.account, price.price_class, amount, price.basis.value, job.key)
            self._execute(_INSERT_CHARGE, row)
        if job.budget is not None:  # an earlier create of the purchase may have counted on another day
            for statement in (_RELEASE_OTHERS, _DELETE_OTHERS):
                self._execute(statement, (job.key, job.generation, names[0], names[-1]))
        if price.basis is Basis.REPORTED:
            self._price_when_sent[job.key, job.generation] = amount

    def update_from_record(self, before: JobRecord, job: JobRecord) -> None:
        """Update the charge of a job's purchase from its record."""
        purchase = (job.key, job.generation)
        sent_at_price = self._price_when_sent.pop(purchase, None)
        if job.state is JobState.RUNNING and job.credits_used and to_billionths(job.credits_used) == sent_at_price:
            return
        if before.state is JobState.RUNNING and before.credits_used and job.credits == before.credits:
            return  # this price was recorded before
        charge = charge_of(job)
        amount = None if charge is None or charge.credits is None else to_billionths(charge.credits)
        if charge is None:
            if before.state is not JobState.PENDING or before.in_doubt:
                self._execute(_SET_CREDITS, (0, *purchase))
        elif amount is None:
            if charge.is_final:
                self._execute(_ACCEPT_EXPECTED, purchase)
            elif sent_at_price is not None:
                self._price_when_sent[purchase] = sent_at_price
        else:
            self._execute(_SET_CREDITS, (amount, *purchase))
        price = price_in(job)
        if price is not None and price != price_in(before):
            self._learn_price(to_billionths(price), purchase)

    def hand_over(self, gateway: str, old: str, new: str) -> None:
        """Move the charges of one account's jobs to another account, which also gets to know the old one's prices."""
        self._execute(_MOVE_CHARGES, (new, gateway, old))
        self._execute(_COPY_PRICES, (new, old))
        for price in self._execute(_SELECT_PRICES, (new,)).fetchall():
            self._execute(_REPRICE_ESTIMATES, price)

    def spent_or_reserved(self, batch: str) -> Decimal:
        """Return the sum of the charges of a batch or budget."""
        found = self._execute(_SELECT_SPENT, (batch,)).fetchone()
        return Decimal(0) if found is None else from_billionths(found[0])

    def reserved(self, batch: str) -> Decimal:
        """Return the sum of the charges of purchases that have not ended and whose price the gateway has not stated."""
        return from_billionths(self._execute(_SELECT_RESERVED, (batch,)).fetchone()[0])

    def set_budget(self, budget: Budget) -> Budget:
        """Store a budget unless the stored one of the name counts in another way; return it as it is stored then."""
        self._execute(_UPSERT_BUDGET, (budget.name, to_billionths(budget.max_credits), budget.per))
        return self.find_budget(budget.name)

    def find_budget(self, name: str) -> Budget:
        """Return the budget with this name."""
        found = self._execute(f"{_SELECT_BUDGETS} WHERE name = ?", (name,)).fetchone()
        if found is None:
            raise no_budget_error(name)
        return _budget_of(found)

    def budgets(self, now: datetime, names: Collection[str] | None) -> list[BudgetState]:
        """Return the state of each budget at a time, or of those of these names, by name."""
        if names is None:
            rows = self._execute(f"{_SELECT_BUDGETS} ORDER BY name").fetchall()
        else:
            of_name = f"{_SELECT_BUDGETS} WHERE name = ?"
            rows = [row for name in sorted(names) for row in self._execute(of_name, (name,)).fetchall()]
        budgets = [_budget_of(row) for row in rows]
        return [
            state_of(
                budget,
                now,
                counted=self.spent_or_reserved(budget.count_name_at(now)),
                reserved=self.reserved(budget.count_name_at(now)),
            )
            for budget in budgets
        ]

    def _learn_price(self, amount: int, purchase: tuple[str, int]) -> None:
        """Store the price of the purchase's class, and apply it to all charges that are estimates of the class."""
        if self._execute(_UPSERT_PRICE, (amount, *purchase)).rowcount > 0:
            for account, price_class in self._execute(_SELECT_PRICE_CLASS, purchase).fetchall():
                self._execute(_REPRICE_ESTIMATES, (amount, account, price_class))

    def _has_estimates(self, batch: str, price: Price, unpriced: int | None) -> bool:
        """Return whether another charge of the batch or budget is an estimate.

        Estimates of pruned jobs count only against the gateway's example: a price that the user gave covers them.
        """
        if unpriced and price.basis is Basis.EXAMPLE:
            return True
        return self._execute(_SELECT_ESTIMATES, (batch,)).fetchone() is not None

    def _jobs_that_may_free_credits(self, counted_by: str, *, estimated_only: bool) -> tuple[tuple[str, ...], bool]:
        """Return our jobs under a cap that may free credits, and whether another living owner has such jobs."""
        ours, owners = [], set()
        for key, owner, estimated in self._execute(_SELECT_UNDER_WAY, (counted_by,)).fetchall():
            if estimated or not estimated_only:
                if owner == self._owner:
                    ours.append(key)
                else:
                    owners.add(owner)
        return tuple(ours), any(not self._is_unowned(owner) for owner in owners)


def _budget_of(row: tuple[Any, ...]) -> Budget:
    name, max_credits, per = row
    return Budget(name=name, max_credits=from_billionths(max_credits), per=per)

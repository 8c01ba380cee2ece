"""The charges of named batches and budgets on PostgreSQL: the same rules as `ledger/charges.py` has in SQLite.

Several hosts share one cap: a reservation locks the row of the price and then that of the batch until its commit, so
that the sum it compares is the sum it adds to. Reading and adding in one statement would not do: at the isolation level
READ COMMITTED it would compare a sum from before the wait for the lock.
"""

import json
from collections.abc import Collection
from datetime import datetime
from decimal import Decimal
from typing import Any

from attrs import evolve

from nanobanana_async.jobs import JobRecord, JobState
from nanobanana_async.ledger.base import Allowance, Refusal
from nanobanana_async.ledger.counts import Count, counts_of, no_budget_error
from nanobanana_async.ledger.postgres.columns import as_text, from_text, recordset
from nanobanana_async.ledger.postgres.pipeline import Rows, Statement, StatementRow, Work
from nanobanana_async.policy.named_budget import Budget, BudgetState, state_of
from nanobanana_async.policy.prices import Basis, Price, charge_of, from_billionths, price_in, to_billionths

_ESTIMATED = "basis IN ('expected', 'example')"
_UNDER_WAY = "state IN ('submitting', 'running')"

# The row that all who reserve at an estimate hold, so that the one who learns the price waits for their charges.
_ADD_PRICE = (
    "INSERT INTO prices (account, price_class) VALUES (%(account)s, %(price_class)s)"
    " ON CONFLICT (account, price_class) DO NOTHING"
)
_SELECT_PRICE = "SELECT credits FROM prices WHERE account = %(account)s AND price_class = %(price_class)s"
_ADD_BATCH = "INSERT INTO spending (batch) VALUES (%(batch)s) ON CONFLICT (batch) DO NOTHING"
_LOCK_SPENDING = "SELECT credits, unpriced FROM spending WHERE batch = %(batch)s FOR UPDATE"
_SELECT_SPENDING = "SELECT credits, unpriced FROM spending WHERE batch = %(batch)s"
_SELECT_ESTIMATES = f"SELECT 1 FROM charges WHERE batch = %(batch)s AND {_ESTIMATED} LIMIT 1"
_SELECT_UNDER_WAY = (  # of all accounts: a budget may count several
    f"SELECT j.key, j.owner, c.{_ESTIMATED} FROM jobs AS j JOIN charges AS c"
    " ON c.job = j.id AND c.generation = j.generation"
    f" WHERE j.{_UNDER_WAY} AND c.batch = %(batch)s ORDER BY j.id"
)
CHARGES = "charges"
"""The parameter with the charges of a job: JSON, since they may be several."""

INSERT_CHARGES = (
    "INSERT INTO charges (job, generation, account, batch, price_class, credits, basis, cap)"
    f" SELECT s.id, s.generation, s.account, c.* FROM swapped AS s CROSS JOIN LATERAL json_to_recordset(s.{CHARGES})"
    " AS c(batch text, price_class text, credits numeric, basis text, cap numeric)"
    " ON CONFLICT (job, generation, batch) DO UPDATE SET price_class = excluded.price_class,"
    " credits = excluded.credits, basis = excluded.basis, cap = excluded.cap"
)
"""Add the charges of jobs that are about to be sent, the rows of `swapped`."""

_OF_PURCHASE = "job = (SELECT id FROM jobs WHERE key = %(key)s) AND generation = %(generation)s"
# A charge that stands as it should is not written again: that would lock the batch for nothing.
SET_CREDITS = (
    "UPDATE charges AS c SET credits = u.credits, basis = 'reported', cap = NULL"
    f" FROM {recordset('key', 'generation', 'credits')} JOIN jobs AS j ON j.key = u.key"
    " WHERE c.job = j.id AND c.generation = u.generation AND (c.credits <> u.credits OR c.basis <> 'reported')"
    " RETURNING u.key"
)
# The job ended without a price: the user's expected price becomes final, the gateway's example stays an estimate.
_ACCEPT_EXPECTED = (
    f"UPDATE charges AS c SET basis = 'agreed' FROM {recordset('key', 'generation')} JOIN jobs AS j ON j.key = u.key"
    " WHERE c.job = j.id AND c.generation = u.generation AND c.basis = 'expected' RETURNING u.key"
)
# Read before it is written: a write would lock the price until the commit, although it rarely changes.
_SELECT_CHANGED_PRICE = (
    f"SELECT u.key, c.account, c.price_class FROM {recordset('key', 'generation', 'credits')}"
    " JOIN jobs AS j ON j.key = u.key JOIN charges AS c ON c.job = j.id AND c.generation = u.generation"
    " LEFT JOIN prices AS p ON p.account = c.account AND p.price_class = c.price_class"
    " WHERE p.credits IS DISTINCT FROM u.credits"
)
_LEARN_PRICE = (
    "INSERT INTO prices VALUES (%(account)s, %(price_class)s, %(credits)s::numeric)"
    " ON CONFLICT (account, price_class) DO UPDATE SET credits = excluded.credits"
)
_SET_PRICE = (
    "INSERT INTO prices VALUES (%(account)s, %(price_class)s, %(credits)s::numeric)"
    " ON CONFLICT (account, price_class) DO UPDATE SET credits = excluded.credits WHERE prices.credits IS NULL"
)
_REPRICE_ESTIMATES = (
    "UPDATE charges SET credits = %(credits)s, basis = 'reported', cap = NULL"
    f" WHERE account = %(account)s AND price_class = %(price_class)s AND {_ESTIMATED}"
)
_APPLY_USERS_PRICE = (
    f"UPDATE charges SET credits = %(credits)s, basis = 'agreed', cap = NULL WHERE batch = %(batch)s AND {_ESTIMATED}"
    " AND NOT EXISTS (SELECT FROM jobs WHERE jobs.id = charges.job AND jobs.generation = charges.generation"
    f" AND jobs.{_UNDER_WAY})"
)
_SELECT_CHARGE = f"SELECT price_class, credits, basis FROM charges WHERE {_OF_PURCHASE} AND batch = %(batch)s"
_SELECT_RESERVED = (
    "SELECT coalesce(sum(c.credits), 0) FROM jobs AS j JOIN charges AS c"
    " ON c.job = j.id AND c.generation = j.generation"
    " WHERE j.state IN ('pending', 'submitting', 'running', 'uncertain') AND c.batch = %(batch)s"
    " AND (j.state <> 'running' OR coalesce(j.credits_used, 0) = 0)"
)
_OTHERS = f"{_OF_PURCHASE} AND batch <> ALL(%(counts)s::text[])"
_RELEASE_OTHERS = f"UPDATE charges SET credits = 0, basis = 'reported', cap = NULL WHERE {_OTHERS}"
_DELETE_OTHERS = f"DELETE FROM charges WHERE {_OTHERS}"
_SET_BUDGET = (
    "INSERT INTO budgets VALUES (%(name)s, %(max_credits)s::numeric, %(per)s::text)"
    " ON CONFLICT (name) DO UPDATE SET max_credits = excluded.max_credits"
    " WHERE budgets.per IS NOT DISTINCT FROM excluded.per"
)
_SELECT_BUDGETS = "SELECT name, max_credits, per FROM budgets"
_MOVE_CHARGES = (
    "UPDATE charges SET account = %(new)s"
    " WHERE job IN (SELECT id FROM jobs WHERE gateway = %(gateway)s AND account = %(old)s)"
)
# Copied, not moved: the same name may be an account of another gateway too. A price that the new account knows stays.
_COPY_PRICES = (
    "INSERT INTO prices SELECT %(new)s, price_class, credits FROM prices WHERE account = %(old)s"
    " ON CONFLICT (account, price_class) DO UPDATE SET credits = excluded.credits WHERE prices.credits IS NULL"
)
_REPRICE_ACCOUNT_ESTIMATES = (
    "UPDATE charges AS c SET credits = p.credits, basis = 'reported', cap = NULL FROM prices AS p"
    f" WHERE p.account = %(new)s AND c.account = p.account AND c.price_class = p.price_class AND c.{_ESTIMATED}"
    " AND p.credits IS NOT NULL"
)


def charges_row(counts: list[Count], price: Price) -> dict[str, Any]:
    """Return the value of the parameter `CHARGES` for a purchase at this price."""
    rows = [
        {
            "batch": as_text(counted_by),
            "price_class": as_text(price.price_class),
            "credits": str(from_billionths(to_billionths(price.credits))),
            "basis": price.basis.value,
            "cap": None if cap is None else str(from_billionths(to_billionths(cap))),
        }
        for counted_by, cap, _ in counts
    ]
    return {CHARGES: json.dumps(rows)}


def _write(sql: str, values: dict[str, Any]) -> Statement:
    return Statement(sql, values, returns_rows=False)


class Charges:
    """The charges of named batches and budgets as one owner sees them."""

    def __init__(self, owner: int | None) -> None:
        self._owner = owner

    def allowance(self, job: JobRecord, price: Price, counts: list[Count]) -> Work[Allowance]:
        """Return whether a purchase fits under its caps; lock what counts it until the end of the flush."""
        allowance = Allowance(price=price, other_charges=Decimal(0))
        for counted_by, cap, budget in counts:
            allowance = yield from self._allowance_under(counted_by, cap, job, price)
            if allowance.refusal is not None:
                return evolve(allowance, budget=budget)
            price = allowance.price
        return allowance

    def counts_of(self, job: JobRecord, max_credits: Decimal | None) -> Work[list[Count]]:
        """Return the names under which a purchase counts, each with its cap."""
        budget = None if job.budget is None else (yield from self._find_budget(job.budget))
        return counts_of(job, max_credits, budget)

    def _allowance_under(
        self, counted_by: str, max_credits: Decimal | None, job: JobRecord, price: Price
    ) -> Work[Allowance]:
        amount = from_billionths(to_billionths(price.credits))
        values: dict[str, Any] = {
            "account": as_text(job.account),
            "price_class": as_text(price.price_class),
            "batch": as_text(counted_by),
            "credits": amount,
        }
        price_requests = [Statement(_SELECT_PRICE, values)]
        if price.is_estimate:
            price_requests = [_write(_ADD_PRICE, values), Statement(f"{_SELECT_PRICE} FOR SHARE", values)]
        batch_requests = [Statement(_LOCK_SPENDING, values)]
        if price.is_user_stated:
            batch_requests += [_write(_APPLY_USERS_PRICE, values), *batch_requests]
        answers = yield [*price_requests, *batch_requests]
        prices, spending = answers[len(price_requests) - 1], answers[-1]
        if not spending:
            yield [_write(_ADD_BATCH, values)]
            return (yield from self._allowance_under(counted_by, max_credits, job, price))
        ((total, unpriced),) = spending
        known = prices[0][0] if prices else None
        if known is None and price.basis is Basis.REPORTED:  # learned from a job outside any named batch
            yield [_write(_SET_PRICE, values), _write(_REPRICE_ESTIMATES, values)]
            return (yield from self._allowance_under(counted_by, max_credits, job, price))
        if known is not None and (price.is_estimate or known > amount):
            learned = Price(price.price_class, known)
            return Allowance(refusal=None if max_credits is None else Refusal.PRICE, price=learned, other_charges=total)
        if max_credits is None:
            return Allowance(price=price, other_charges=total)
        blocked = price.is_estimate and (yield from self._has_estimates(values, price, unpriced))
        if not blocked and total + amount <= from_billionths(to_billionths(max_credits)):
            return Allowance(price=price, other_charges=total)
        ours, others = yield from self._jobs_that_may_free_credits(values, estimated_only=blocked)
        refusal = Refusal.ESTIMATE if blocked else Refusal.SUM
        return Allowance(refusal=refusal, price=price, other_charges=total, ours_may_free=ours, others_may_free=others)

    def reserved_before(self, job: JobRecord) -> Work[Allowance]:
        """Return the allowance of a purchase whose reservation is stored already: only its answer was lost."""
        *_, (counted_by, _, _) = yield from self.counts_of(job, None)
        values = {**_purchase(job), "batch": as_text(counted_by)}
        ((price_class, amount, basis),), ((total, _),) = yield [
            Statement(_SELECT_CHARGE, values),
            Statement(_SELECT_SPENDING, values),
        ]
        return Allowance(price=Price(from_text(price_class), amount, Basis(basis)), other_charges=total - amount)

    def update_from_record(self, before: JobRecord, job: JobRecord) -> Work[None]:
        """Update the charge of a job's purchase from its record."""
        if before.state is JobState.RUNNING and before.credits_used and job.credits == before.credits:
            return  # this price was recorded before
        purchase = _purchase(job)
        charge, price = charge_of(job), price_in(job)
        if price is not None and price != price_in(before):  # before the charge: locks in the order of `allowance`
            amount = from_billionths(to_billionths(price))
            (changed,) = yield [StatementRow(_SELECT_CHANGED_PRICE, {**purchase, "credits": amount})]
            for _, account, price_class in changed:
                values = {"account": account, "price_class": price_class, "credits": amount}
                yield [_write(_LEARN_PRICE, values), _write(_REPRICE_ESTIMATES, values)]
        if charge is None:
            if before.state is not JobState.PENDING or before.in_doubt:
                yield [StatementRow(SET_CREDITS, {**purchase, "credits": Decimal(0)})]
        elif charge.credits is not None:
            yield [StatementRow(SET_CREDITS, {**purchase, "credits": from_billionths(to_billionths(charge.credits))})]
        elif charge.is_final:
            yield [StatementRow(_ACCEPT_EXPECTED, purchase)]

    def hand_over(self, gateway: str, old: str, new: str) -> Work[None]:
        """Move the charges of one account's jobs to another account, which also gets to know the old one's prices."""
        values = {"gateway": as_text(gateway), "old": as_text(old), "new": as_text(new)}
        yield [_write(sql, values) for sql in (_MOVE_CHARGES, _COPY_PRICES, _REPRICE_ACCOUNT_ESTIMATES)]

    def spent_or_reserved(self, batch: str) -> Work[Decimal]:
        """Return the sum of the charges of a batch or budget."""
        (found,) = yield [Statement(_SELECT_SPENDING, {"batch": as_text(batch)})]
        return found[0][0] if found else Decimal(0)

    def reserved(self, batch: str) -> Work[Decimal]:
        """Return the sum of the charges of purchases that have not ended and whose price the gateway has not stated."""
        (found,) = yield [Statement(_SELECT_RESERVED, {"batch": as_text(batch)})]
        return Decimal(found[0][0])

    def release_other_days(self, job: JobRecord, counts: list[Count]) -> Work[None]:
        """Drop the charges of an earlier create of the purchase, which may have counted on another day."""
        if job.budget is not None:
            values = {**_purchase(job), "counts": [as_text(counted_by) for counted_by, _, _ in counts]}
            yield [_write(_RELEASE_OTHERS, values), _write(_DELETE_OTHERS, values)]

    def set_budget(self, budget: Budget) -> Work[Budget]:
        """Store a budget unless the stored one of the name counts in another way; return it as it is stored then."""
        max_credits = from_billionths(to_billionths(budget.max_credits))
        yield [_write(_SET_BUDGET, {"name": as_text(budget.name), "max_credits": max_credits, "per": budget.per})]
        return (yield from self._find_budget(budget.name))

    def _find_budget(self, name: str) -> Work[Budget]:
        (found,) = yield [Statement(f"{_SELECT_BUDGETS} WHERE name = %(name)s", {"name": as_text(name)})]
        if not found:
            raise no_budget_error(name)
        return _budget_of(found[0])

    def budgets(self, now: datetime, names: Collection[str] | None) -> Work[list[BudgetState]]:
        """Return the state of each budget at a time, or of those of these names, by name."""
        statement = Statement(f"{_SELECT_BUDGETS} ORDER BY name")
        if names is not None:
            values = {"names": [as_text(name) for name in names]}
            statement = Statement(f"{_SELECT_BUDGETS} WHERE name = ANY(%(names)s::text[]) ORDER BY name", values)
        (rows,) = yield [statement]
        budgets = [_budget_of(row) for row in rows]
        counts = [{"batch": as_text(budget.count_name_at(now))} for budget in budgets]
        both = (_SELECT_SPENDING, _SELECT_RESERVED)
        sums: list[Rows] = yield [Statement(sql, each) for each in counts for sql in both]
        return [
            state_of(budget, now, counted=spent[0][0] if spent else Decimal(0), reserved=Decimal(reserved[0][0]))
            for budget, spent, reserved in zip(budgets, sums[::2], sums[1::2], strict=True)
        ]

    def _has_estimates(self, values: dict[str, Any], price: Price, unpriced: int) -> Work[bool]:
        """Return whether another charge of the batch or budget is an estimate.

        Estimates of pruned jobs count only against the gateway's example: a price that the user gave covers them.
        """
        if unpriced and price.basis is Basis.EXAMPLE:
            return True
        (found,) = yield [Statement(_SELECT_ESTIMATES, values)]
        return bool(found)

    def _jobs_that_may_free_credits(
        self, values: dict[str, Any], *, estimated_only: bool
    ) -> Work[tuple[tuple[str, ...], bool]]:
        """Return our jobs under a cap that may free credits, and whether another living owner has such jobs."""
        (found,) = yield [Statement(_SELECT_UNDER_WAY, values)]
        rows = [(key, owner) for key, owner, estimated in found if estimated or not estimated_only]
        ours = tuple(from_text(key) for key, owner in rows if owner == self._owner)
        return ours, any(owner not in (None, self._owner) for _, owner in rows)


def _purchase(job: JobRecord) -> dict[str, Any]:
    return {"key": as_text(job.key), "generation": job.generation}


def _budget_of(row: tuple[Any, ...]) -> Budget:
    name, max_credits, per = row
    return Budget(name=from_text(name), max_credits=max_credits, per=per)

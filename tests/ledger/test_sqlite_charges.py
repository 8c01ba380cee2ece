"""Charges in the file: they outlive pruned jobs, all owners share them, and queries use indexes."""

from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from nanobanana_async.jobs import JobState
from nanobanana_async.ledger import charges
from nanobanana_async.ledger.base import Refusal
from nanobanana_async.policy.prices import MAX_CREDITS, Basis, Price
from tests.ledger.test_sqlite_file import asked, ledger_at
from tests.support.ledger_contract import EIGHT, GUESS, NOON, OWL_GUESS, about_to_be_sent, moved


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.sqlite"


async def test_charges_of_a_pruned_job_stay_and_the_next_is_added(path: Path) -> None:
    async with ledger_at(path) as ledger:
        for spent in (8, 16, 24):
            first, allowance = await about_to_be_sent(ledger, "b-1", EIGHT, 24)
            assert allowance.refusal is None
            first = await moved(ledger, first, JobState.RUNNING, task_id="t1", credits_used=Decimal(8))
            await moved(ledger, first, JobState.FAILED, ended_at=NOON)
            assert await ledger.prune(NOON + timedelta(days=1)) == 1
            assert await ledger.spent_or_reserved("b") == spent
        assert (await about_to_be_sent(ledger, "b-1", EIGHT, 24))[1].refusal is Refusal.SUM
    assert asked(path, "SELECT count(*) FROM charges") == [(0,)]


async def test_estimate_of_a_pruned_job_still_blocks_estimates(path: Path) -> None:
    async with ledger_at(path) as ledger:
        first, _ = await about_to_be_sent(ledger, "b-1", GUESS, 100)
        first = await moved(ledger, first, JobState.RUNNING, task_id="t1")
        await moved(ledger, first, JobState.FAILED, ended_at=NOON)
        await ledger.prune(NOON + timedelta(days=1))
        _, allowance = await about_to_be_sent(ledger, "b-2", OWL_GUESS, 100)
        assert allowance.refusal is Refusal.ESTIMATE
        assert allowance.other_charges == 8
        expected = Price("owl", Decimal(2), Basis.EXPECTED)
        assert (await about_to_be_sent(ledger, "b-2", expected, 100))[1].refusal is None


async def test_charges_of_other_owners_count_as_under_way_while_they_live(path: Path) -> None:
    async with ledger_at(path) as ours:
        async with ledger_at(path) as theirs:
            await about_to_be_sent(theirs, "b-1", GUESS, 8)
            for price, refusal in ((OWL_GUESS, Refusal.ESTIMATE), (Price("crow", Decimal(1)), Refusal.SUM)):
                _, allowance = await about_to_be_sent(ours, "b-2", price, 8)
                assert (allowance.refusal, allowance.ours_may_free, allowance.others_may_free) == (refusal, (), True)
        _, allowance = await about_to_be_sent(ours, "b-2", OWL_GUESS, 8)
        assert (allowance.refusal, allowance.ours_may_free, allowance.others_may_free) == (Refusal.ESTIMATE, (), False)


async def test_huge_sums_are_capped(path: Path) -> None:
    async with ledger_at(path) as ledger:
        for number in range(12):
            await about_to_be_sent(ledger, f"b-{number}", Price("fox", MAX_CREDITS))
        assert await ledger.spent_or_reserved("b") == 9 * MAX_CREDITS
        assert (await about_to_be_sent(ledger, "b-x", EIGHT, 10**9))[1].refusal is not None


async def test_charge_statements_use_an_index(path: Path) -> None:
    async with ledger_at(path):
        pass
    for statement, index in (
        (charges._SELECT_UNDER_WAY, "jobs_state"),
        (charges._SELECT_ESTIMATES, "charges_estimates"),
        (charges._APPLY_USERS_PRICE, "charges_estimates"),
        (charges._REPRICE_ESTIMATES, "charges_of_class"),
        (charges._SET_CREDITS, "PRIMARY KEY"),
    ):
        plan = asked(path, f"EXPLAIN QUERY PLAN {statement.replace('?', '1')}")
        assert any(index in str(step) for step in plan), plan
        assert not any("SCAN" in str(step) for step in plan), plan

"""What the commands need of a ledger on PostgreSQL: lists, counts, handing over, pruning; notices between hosts."""

from collections.abc import AsyncIterator
from datetime import timedelta
from decimal import Decimal

import psycopg
import pytest
from psycopg import sql

from nanobanana_async.errors import ConfigurationError, LedgerError
from nanobanana_async.jobs import JobState
from nanobanana_async.keys import batch_key_prefix
from nanobanana_async.ledger import stored
from nanobanana_async.ledger.base import Refusal, Upload
from nanobanana_async.ledger.postgres import ledger as ledger_module
from nanobanana_async.ledger.postgres.ledger import PostgresLedger
from tests.support.ledger_contract import EIGHT, GUESS, NOON, about_to_be_sent, job, moved, running, sent
from tests.support.postgres import Server, new_schema

pytestmark = pytest.mark.slow


@pytest.fixture
async def pair(postgres: Server) -> AsyncIterator[tuple[PostgresLedger, PostgresLedger]]:
    """Two hosts with one ledger."""
    schema = new_schema()
    ledgers = PostgresLedger(postgres.url, schema=schema), PostgresLedger(postgres.url, schema=schema)
    for ledger in ledgers:
        await ledger.open()
    yield ledgers
    for ledger in ledgers:
        await ledger.aclose()


Pair = tuple[PostgresLedger, PostgresLedger]


async def test_jobs_are_listed_newest_first_by_state_and_limit(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "PAGE_SIZE", 3)
    one, two = pair
    for number in range(8):
        await (one if number % 2 else two).claim(job(f"k{number}") if number % 3 else sent(f"k{number}"))
    newest = [f"k{number}" for number in range(7, -1, -1)]
    assert [record.key async for record in one.jobs()] == newest
    assert [record.key async for record in one.jobs(limit=4)] == newest[:4]
    assert [record.key async for record in one.jobs(JobState.SUBMITTING)] == ["k6", "k3", "k0"]
    both = {JobState.SUBMITTING, JobState.PENDING}
    assert [record.key async for record in one.jobs(both)] == newest
    assert [record.key async for record in one.jobs(())] == []
    assert await one.count_by_state() == {JobState.SUBMITTING: 3, JobState.PENDING: 5}
    assert await one.count_by_account() == {("apimall", "mine"): 8}
    assert await one.count_foreign_slots("mine") == 2  # k0 and k6 are sent by the other host
    assert await one.count_foreign_slots("mine", since=NOON + timedelta(seconds=1)) == 0
    assert await one.has_owner("k0")
    assert (await one.count_unowned()).total() == 0
    assert len(await one.owners()) == 2


async def test_notice_reaches_the_owner_on_another_host(pair: Pair) -> None:
    one, two = pair
    await one.claim(running())
    await two.notify_owner("order-1", "t1")
    await two.notify_owner("order-1", None)
    await two.notify_owner("order-2", "t2")  # not known
    assert list(await two.take_notices()) == []
    assert list(await one.take_notices()) == [("order-1", None)]
    assert list(await one.take_notices()) == []


async def test_job_of_another_host_is_neither_written_nor_adopted_nor_released(pair: Pair) -> None:
    one, two = pair
    await one.claim(running())
    with pytest.raises(LedgerError, match="is not owned by"):
        await two.advance(running(), running().transition_to(JobState.SUCCEEDED))
    claim = await two.claim(running())
    assert not claim.is_ours
    await two.release("order-1")
    adopted = await two.adopt("order-1")
    assert adopted is not None
    assert not adopted.is_ours
    await one.release("order-1")
    assert (await two.claim(running())).is_ours


async def test_cap_names_the_jobs_of_others_that_may_free_credits(pair: Pair) -> None:
    one, two = pair
    await about_to_be_sent(one, "b-1", EIGHT, 10)
    _, allowance = await about_to_be_sent(two, "b-2", EIGHT, 10)
    assert (allowance.refusal, allowance.ours_may_free, allowance.others_may_free) == (Refusal.SUM, (), True)
    assert await two.reserved("b") == 8
    assert await two.batch_prefixes() == [batch_key_prefix("b")]


async def test_account_is_handed_over_once_no_session_owns_its_jobs(pair: Pair) -> None:
    one, two = pair
    first, _ = await about_to_be_sent(one, "b-1", GUESS, 100)
    await two.remember("mine", "{}")
    with pytest.raises(LedgerError, match="still owns jobs of account mine"):
        await two.hand_over("apimall", "mine", "theirs")
    doubt = await moved(one, first, JobState.UNCERTAIN, in_doubt=True)
    assert await two.hand_over("apimall", "mine", "theirs") == 1
    with pytest.raises(LedgerError, match="was changed by another owner"):
        await one.advance(doubt, doubt.transition_to(JobState.REFUSED))
    assert [record.key async for record in two.uncertain("theirs")] == ["b-1"]
    assert await two.recall("theirs") == "{}"
    assert await two.spent_or_reserved("b") == 8


async def test_pruned_jobs_still_count_as_spent(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "PRUNE_BATCH", 2)
    one, _ = pair
    for number in range(5):
        first, _ = await about_to_be_sent(one, f"b-{number}", EIGHT, 100)
        sold = await moved(one, first, JobState.RUNNING, task_id=f"t{number}", credits_used=Decimal(8))
        await moved(one, sold, JobState.SUCCEEDED, ended_at=NOON + timedelta(days=number))
    await one.remember_upload("mine", Upload(digest="a", url="u", size=1, uploaded_at=NOON))
    limit = NOON + timedelta(days=2, seconds=1)
    assert await one.count_prunable(limit) == 3
    assert await one.prune(limit) == 3
    assert [record.key async for record in one.jobs()] == ["b-4", "b-3"]
    assert await one.spent_or_reserved("b") == 40
    assert await one.find_upload("mine", "a") is None
    with pytest.raises(ConfigurationError, match="time zone"):
        await one.prune(limit.replace(tzinfo=None))


async def test_charges_and_fed_rows_go_with_a_pruned_job(postgres: Server) -> None:
    schema = new_schema()
    ledger = PostgresLedger(postgres.url, schema=schema)
    await ledger.open()
    for number in range(2):
        first, _ = await about_to_be_sent(ledger, f"b-{number}", EIGHT, 100)
        first = await moved(ledger, first, JobState.RUNNING, task_id=f"t{number}", credits_used=Decimal(8))
        await moved(ledger, first, JobState.SUCCEEDED, ended_at=NOON + timedelta(days=number))
    with psycopg.connect(postgres.url, autocommit=True) as db:
        db.execute(sql.SQL("SET search_path TO {}").format(sql.Identifier(schema)))
        db.execute(
            "INSERT INTO fed_rows (job, batch, row_index, digest, name) SELECT id, 'b', id, '', '' FROM jobs",
        )
        assert await ledger.prune(NOON + timedelta(hours=1)) == 1
        for table in ("charges", "fed_rows"):
            kept = sql.SQL("SELECT key FROM {} JOIN jobs ON jobs.id = job").format(sql.Identifier(table))
            assert db.execute(kept).fetchall() == [("b-1",)]
            assert db.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table))).fetchone() == (1,)
    await ledger.aclose()


async def test_pruned_estimate_still_blocks_another_one(pair: Pair) -> None:
    one, _ = pair
    first, _ = await about_to_be_sent(one, "b-1", GUESS, 100)
    first = await moved(one, first, JobState.RUNNING, task_id="t1")
    await moved(one, first, JobState.FAILED, ended_at=NOON)
    assert await one.prune(NOON + timedelta(days=1)) == 1
    assert (await about_to_be_sent(one, "b-2", GUESS, 100))[1].refusal is Refusal.ESTIMATE


async def test_jobs_are_found_by_the_range_of_their_keys(pair: Pair) -> None:
    one, two = pair
    for key in ("b-2", "a-9", "b-1", "B-1", "b-3", "c-1"):
        await one.claim(job(key))
    found = await two.jobs_in_key_range("b-", "b-~")
    assert [record.key for record in found] == ["b-1", "b-2", "b-3"]
    assert found[0] == await two.find("b-1")
    assert [record.key for record in await two.jobs_in_key_range("b-2", "b-2")] == ["b-2"]

"""The queries of the command line: lists, counts, pruning, and read-only use."""

from datetime import timedelta
from pathlib import Path

import pytest

from nanobanana_async.errors import LedgerError
from nanobanana_async.jobs import JobState
from nanobanana_async.ledger import sqlite, stored
from nanobanana_async.ledger.base import Upload
from nanobanana_async.ledger.sqlite import SqliteLedger
from nanobanana_async.ledger.statements import SELECT_BETWEEN
from tests.ledger.test_sqlite_file import ledger_at
from tests.support.ledger_contract import NOON, adopted, job, keys_left, running

LONG_AGO = NOON - timedelta(days=90)
YESTERDAY = NOON - timedelta(days=1)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(stored, "PAGE_SIZE", 3)
    monkeypatch.setattr(sqlite, "PRUNE_BATCH", 4)
    return tmp_path / "jobs.sqlite"


async def keys(ledger: SqliteLedger, state: JobState | None = None, limit: int | None = None) -> str:
    return "".join([record.key async for record in ledger.jobs(state, limit)])


async def test_jobs_are_listed_newest_first(path: Path) -> None:
    async with ledger_at(path) as ledger:
        for key in "abcdefg":
            await ledger.claim(running(key) if key in "bcef" else job(key))
        assert await keys(ledger) == "gfedcba"
        assert await keys(ledger, limit=4) == "gfed"
        assert await keys(ledger, limit=3) == "gfe"
        assert await keys(ledger, limit=0) == ""
        assert await keys(ledger, JobState.RUNNING) == "fecb"
        assert await keys(ledger, JobState.RUNNING, limit=2) == "fe"
        assert await keys(ledger, JobState.FAILED) == ""
        assert await ledger.count_by_state() == {JobState.RUNNING: 4, JobState.PENDING: 3}


async def test_unfinished_jobs_are_read_in_pages(path: Path) -> None:
    async with ledger_at(path) as mine, ledger_at(path) as theirs:
        for number in range(10):
            await (theirs if number % 2 else mine).claim(job(f"k{number}"))
        await mine.aclose()
        await mine.open()
        assert await keys_left(mine) == ["k0", "k2", "k4", "k6", "k8"]
        found = []
        async for record in mine.adoptable_jobs("mine"):
            found.append(record.key)
            if record.key == "k4":  # meanwhile another owner adopts one
                assert await adopted(theirs, "k6") is not None
        assert found == ["k0", "k2", "k4", "k8"]


async def test_owner_opened_during_the_listing_keeps_its_job(path: Path) -> None:
    async with ledger_at(path) as mine, ledger_at(path) as late:
        for number in range(8):
            await mine.claim(job(f"k{number}"))
            await mine.release(f"k{number}")
        listing = mine.adoptable_jobs("mine")
        assert (await anext(listing)).key == "k0"
        await adopted(late, "k5")
        assert [record.key async for record in listing] == ["k1", "k2", "k3", "k4", "k6", "k7"]


async def test_only_jobs_ended_before_the_time_are_pruned(path: Path) -> None:
    endings = [state for state in JobState if state.value not in ("pending", "submitting", "running", "uncertain")]
    async with ledger_at(path) as ledger:
        for state in JobState:
            await ledger.claim(job(f"old-{state.value}", state=state, created_at=LONG_AGO, ended_at=LONG_AGO))
            await ledger.claim(job(f"new-{state.value}", state=state, created_at=LONG_AGO, ended_at=YESTERDAY))
        await ledger.claim(job("undated", state=JobState.FAILED, created_at=LONG_AGO))
        assert await ledger.prune(NOON - timedelta(days=30)) == len(endings) + 1
        left = {record.key async for record in ledger.jobs()}
        assert left == {f"new-{state.value}" for state in JobState} | {
            f"old-{state.value}" for state in JobState if state not in endings
        }
        assert await ledger.prune(NOON - timedelta(days=30)) == 0


async def test_old_uploads_are_pruned(path: Path) -> None:
    async with ledger_at(path) as ledger:
        for digest, days in (("a" * 64, 31), ("b" * 64, 29)):
            at = NOON - timedelta(days=days)
            await ledger.remember_upload(
                "mine", Upload(digest=digest, url="https://a.example/", size=1, uploaded_at=at)
            )
        await ledger.prune(NOON - timedelta(days=30))
        found = [await ledger.find_upload("mine", letter * 64) for letter in "ab"]
        assert [upload is not None for upload in found] == [False, True]


async def test_empty_ledger_prunes_nothing(path: Path) -> None:
    async with ledger_at(path) as ledger:
        assert await ledger.prune(NOON) == 0
        assert await ledger.count_by_state() == {}


async def test_read_only_ledger_changes_and_owns_nothing(path: Path) -> None:
    async with ledger_at(path) as live:
        await live.claim(running())
        await live.claim(job("released"))
        await live.release("released")
        beside = sorted(path.parent.rglob("*"))
        async with ledger_at(path, read_only=True) as reader:
            assert sorted(path.parent.rglob("*")) == beside
            assert await reader.find("order-1") == running()
            assert await reader.find_task("mine", "t1") == running()
            assert await reader.count_foreign_slots("mine") == 1
            assert await keys_left(reader) == ["released"]
            assert await keys(reader) == "releasedorder-1"
            for write in (
                reader.claim(job("new")),
                reader.advance(job("released"), job("released").transition_to(JobState.WITHDRAWN)),
                reader.adopt("released"),
                reader.release("order-1"),
                reader.prune(NOON),
            ):
                with pytest.raises(LedgerError, match="was opened read-only"):
                    await write
            await live.claim(job("later"))
            assert await reader.find("later") == job("later")


async def test_jobs_are_found_by_the_range_of_their_keys(path: Path) -> None:
    async with ledger_at(path) as ledger:
        for key in ("b-2", "a-9", "b-1", "b-3", "c-1", "b"):
            await ledger.claim(job(key))
        found = await ledger.jobs_in_key_range("b-1", "b-2")
        assert [record.key for record in found] == ["b-1", "b-2"]
        assert found[0] == await ledger.find("b-1")
        assert [record.key for record in await ledger.jobs_in_key_range("b-", "b-~")] == ["b-1", "b-2", "b-3"]
        assert list(await ledger.jobs_in_key_range("d", "e")) == []
        plan = await ledger._submit(
            lambda table: table.connection.execute(f"EXPLAIN QUERY PLAN {SELECT_BETWEEN}", ("a", "b")).fetchall()
        )
        assert "USING INDEX" in str(plan)
        assert "SCAN" not in str(plan)

"""The writer thread: writes are batched and ordered; a cancelled caller cancels no write."""

import asyncio
import gc
import sqlite3
import threading
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest
from attrs import evolve

from nanobanana_async.errors import LedgerError
from nanobanana_async.jobs import JobState
from nanobanana_async.ledger import connection as connection_module
from nanobanana_async.ledger import writer as writer_module
from nanobanana_async.ledger.sqlite import SqliteLedger
from tests.support.ledger_contract import adopted, job


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.sqlite"


@pytest.fixture
async def ledger(path: Path) -> AsyncIterator[SqliteLedger]:
    ledger = SqliteLedger(path, busy_timeout_s=5.0)
    await ledger.open()
    yield ledger
    await ledger.aclose()


def threads_of(path: Path) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == f"ledger {path.name}"]


async def ended(path: Path) -> None:
    async with asyncio.timeout(5):
        while threads_of(path):  # noqa: ASYNC110 - a thread sets no event
            await asyncio.sleep(0.01)


@pytest.fixture
def commits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of work items in each transaction."""
    sizes: list[int] = []
    run = connection_module.run_in_transaction

    def counted(*args: object) -> object:
        sizes.append(len(args[1]))  # type: ignore[arg-type]
        return run(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(connection_module, "run_in_transaction", counted)
    return sizes


async def test_concurrent_writes_share_one_transaction(ledger: SqliteLedger, commits: list[int]) -> None:
    async with asyncio.TaskGroup() as group:
        for number in range(200):
            group.create_task(ledger.claim(job(f"k{number}")))
    assert commits == [200]


async def test_transaction_has_a_maximum_size(
    ledger: SqliteLedger, commits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "MAX_BATCH", 80)
    async with asyncio.TaskGroup() as group:
        for number in range(200):
            group.create_task(ledger.claim(job(f"k{number}")))
    assert commits == [80, 80, 40]


async def test_writes_during_a_commit_share_the_next_one(path: Path, ledger: SqliteLedger, commits: list[int]) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        async with asyncio.TaskGroup() as group:
            for number in range(30):
                group.create_task(ledger.claim(job(f"k{number}")))
                await asyncio.sleep(0.001)
            other.execute("COMMIT")
    assert sum(commits) == 30
    assert len(commits) <= 3


async def test_failed_write_does_not_fail_others_in_the_batch(ledger: SqliteLedger, commits: list[int]) -> None:
    first = job("a")
    await ledger.claim(first)
    results = await asyncio.gather(  # noqa: TID251
        ledger.claim(job("b")),
        ledger.advance(evolve(first, revision=9), first.transition_to(JobState.WITHDRAWN)),
        ledger.claim(evolve(job("c"), attempts=2**64)),  # too large for SQLite
        ledger.claim(evolve(job("d"), model="\ud83e")),  # not encodable
        ledger.advance(first, first.transition_to(JobState.SUBMITTING)),
        ledger.find("b"),
        return_exceptions=True,
    )
    assert commits == [1, 6]
    assert [isinstance(result, LedgerError) for result in results] == [False, True, True, True, False, False]
    assert results[5] == job("b")  # a read sees the writes queued before it
    assert "can't be stored" in str(results[2])
    assert [await ledger.find(key) for key in "cd"] == [None, None]
    found = await ledger.find("a")
    assert found is not None
    assert found.state is JobState.SUBMITTING


async def test_cancelled_caller_cancels_no_write(ledger: SqliteLedger) -> None:
    leaving, staying = (asyncio.Task(ledger.claim(job(key))) for key in "ab")
    await asyncio.sleep(0)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    async with asyncio.timeout(5):
        assert (await staying).is_new
    assert await ledger.find("a") == job("a")


async def test_close_finishes_queued_writes(path: Path) -> None:
    ledger = SqliteLedger(path)
    await ledger.open()
    writing = [asyncio.Task(ledger.claim(job(f"k{number}"))) for number in range(50)]
    await asyncio.sleep(0)
    await ledger.aclose()
    assert all(task.done() and task.result().is_new for task in writing)
    assert not threads_of(path)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM jobs").fetchone() == (50,)


async def test_cancelled_close_still_finishes(path: Path) -> None:
    ledger = SqliteLedger(path)
    await ledger.open()
    writing = asyncio.Task(ledger.claim(job()))
    await asyncio.sleep(0)
    closing_it = asyncio.Task(ledger.aclose())
    await asyncio.sleep(0)
    closing_it.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing_it
    assert (await writing).is_new
    await ledger.aclose()
    await ended(path)


async def test_closed_ledger_refuses_calls_and_reopens(ledger: SqliteLedger) -> None:
    await ledger.aclose()
    await ledger.aclose()
    with pytest.raises(LedgerError, match="is not open") as caught:
        await ledger.claim(job())
    assert (caught.value.key, caught.value.safe_to_repeat) == ("order-1", True)
    with pytest.raises(LedgerError, match="is not open"):
        await anext(ledger.adoptable_jobs("mine"))
    await ledger.open()
    assert (await ledger.claim(job())).is_new


async def test_open_ledger_refuses_a_second_open(ledger: SqliteLedger) -> None:
    with pytest.raises(LedgerError, match="a SqliteLedger of its own"):
        await ledger.open()
    assert (await ledger.claim(job())).is_new


async def test_cancelled_open_leaves_nothing_open(path: Path) -> None:
    ledger = SqliteLedger(path)
    opening = asyncio.Task(ledger.open())
    await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    await ended(path)
    assert not path.with_name("jobs.sqlite-owners").exists()
    await ledger.open()
    await ledger.aclose()


async def test_garbage_collected_ledger_releases_its_jobs(path: Path) -> None:
    lost = SqliteLedger(path)
    await lost.open()
    await lost.claim(job())
    del lost
    gc.collect()
    await ended(path)
    ledger = SqliteLedger(path)
    await ledger.open()
    assert await adopted(ledger) == job()
    await ledger.aclose()


def test_ledger_outliving_its_event_loop_closes_cleanly(path: Path) -> None:
    ledger = SqliteLedger(path)
    asyncio.run(ledger.open())
    threads = threads_of(path)
    del ledger
    gc.collect()
    for thread in threads:
        thread.join()
    assert not path.with_name("jobs.sqlite-owners").exists()


async def test_bug_in_a_flush_fails_its_calls_and_ends_no_thread(
    ledger: SqliteLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(connection_module.LedgerConnection, "run", broken)
        with pytest.raises(LedgerError, match="the ledger failed: ZeroDivisionError: a bug") as caught:
            await asyncio.wait_for(ledger.claim(job("a")), 10)
        assert (caught.value.key, caught.value.safe_to_repeat) == ("a", True)
    assert (await ledger.claim(job("a"))).is_new

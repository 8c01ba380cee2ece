"""What is special of the ledger that lives with the process: it forgets what has ended."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from nanobanana_async import LedgerError, MemoryLedger
from nanobanana_async.jobs import JobRecord, JobState
from nanobanana_async.models import ImageRequest
from tests.engine.scenes import virtually

NOON = datetime(2026, 3, 12, 12, tzinfo=UTC)


def job(key: str = "order-1", **facts: Any) -> JobRecord:
    usual: dict[str, Any] = {"gateway": "apimall", "account": "mine", "body": b"{}", "created_at": NOON}
    return JobRecord(**{**usual, "key": key, "request": ImageRequest("x"), **facts})


def running(key: str = "order-1", task_id: str = "t1", **facts: Any) -> JobRecord:
    return job(key, state=JobState.RUNNING, task_id=task_id, **facts)


@pytest.mark.parametrize("end", [JobState.SUCCEEDED, JobState.FAILED])
@virtually
async def test_a_finished_job_is_forgotten_and_so_is_its_task(end: JobState) -> None:
    ledger, at_work = MemoryLedger(), running()
    await ledger.claim(at_work)
    await ledger.advance(at_work, at_work.to(end))
    assert await ledger.find("order-1") is None
    assert await ledger.find_task("mine", "t1") is None


@virtually
async def test_a_job_that_ended_without_a_task_is_forgotten_too() -> None:
    ledger, first = MemoryLedger(), job()
    await ledger.claim(first)
    await ledger.advance(first, first.to(JobState.WITHDRAWN))
    assert await ledger.find("order-1") is None


@virtually
async def test_two_sessions_at_once_are_refused() -> None:
    ledger = MemoryLedger()
    await ledger.open()
    with pytest.raises(LedgerError, match="already open"):
        await ledger.open()
    await ledger.aclose()
    await ledger.open()


@virtually
async def test_jobs_that_began_long_ago_hold_no_slot() -> None:
    ledger = MemoryLedger()
    for record in (running("a", running_since=NOON), running("b", "t2"), job("c", state=JobState.PENDING)):
        await ledger.claim(record)
        await ledger.release(record.key)
    assert await ledger.held("mine") == 2
    assert await ledger.held("mine", since=NOON + timedelta(seconds=1)) == 0

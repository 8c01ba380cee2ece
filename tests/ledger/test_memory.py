"""The ledger that lives with the process: the contract of every ledger, kept in a dict."""

from datetime import UTC, datetime
from typing import Any

import pytest

from nanobanana_async import Ledger, LedgerError, MemoryLedger
from nanobanana_async.jobs import JobRecord, JobState
from nanobanana_async.models import ImageRequest
from tests.engine.scenes import virtually

NOON = datetime(2026, 3, 12, 12, tzinfo=UTC)


def job(key: str = "order-1", **facts: Any) -> JobRecord:
    usual: dict[str, Any] = {"gateway": "apimall", "account": "mine", "body": b"{}", "created_at": NOON}
    return JobRecord(**{**usual, "key": key, "request": ImageRequest("x"), **facts})


def running(key: str = "order-1", task_id: str = "t1", **facts: Any) -> JobRecord:
    return job(key, state=JobState.RUNNING, task_id=task_id, **facts)


def test_it_keeps_the_protocol_of_ledgers() -> None:
    assert isinstance(MemoryLedger(), Ledger)


@virtually
async def test_a_new_job_is_claimed_and_a_known_one_is_given_back() -> None:
    ledger, first = MemoryLedger(), job()
    assert await ledger.claim(first) is first
    assert await ledger.claim(job()) is first
    assert await ledger.find("order-1") is first
    assert await ledger.find("order-2") is None


@virtually
async def test_a_write_replaces_only_what_the_writer_saw() -> None:
    ledger, first = MemoryLedger(), job()
    await ledger.claim(first)
    sent = first.to(JobState.SUBMITTING)
    await ledger.advance(first, sent)
    with pytest.raises(LedgerError, match="changed by somebody else") as caught:
        await ledger.advance(first, first.to(JobState.WITHDRAWN))
    assert caught.value.key == "order-1"
    assert not caught.value.safe_to_repeat
    assert await ledger.find("order-1") is sent


@virtually
async def test_a_job_that_nobody_claimed_cannot_be_written() -> None:
    with pytest.raises(LedgerError):
        await MemoryLedger().advance(job(), job().to(JobState.SUBMITTING))


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
async def test_an_uncertain_job_is_kept() -> None:
    ledger, sent = MemoryLedger(), job(state=JobState.SUBMITTING)
    await ledger.claim(sent)
    await ledger.advance(sent, sent.to(JobState.UNCERTAIN, in_doubt=True))
    found = await ledger.find("order-1")
    assert found is not None
    assert found.state is JobState.UNCERTAIN


@virtually
async def test_a_task_is_found_by_its_id_within_its_account_only() -> None:
    ledger, sent = MemoryLedger(), job(state=JobState.SUBMITTING)
    await ledger.claim(sent)
    await ledger.advance(sent, sent.to(JobState.RUNNING, task_id="t9"))
    found = await ledger.find_task("mine", "t9")
    assert found is not None
    assert found.key == "order-1"
    assert await ledger.find_task("theirs", "t9") is None
    assert await ledger.find_task("mine", "t8") is None


@virtually
async def test_unfinished_jobs_of_an_account_come_oldest_first() -> None:
    ledger = MemoryLedger()
    for record in (job("a"), running("b", "t2", account="theirs"), running("c", "t3")):
        await ledger.claim(record)
    assert [record.key async for record in ledger.unfinished("mine")] == ["a", "c"]
    assert [record.key async for record in ledger.unfinished("theirs")] == ["b"]


@virtually
async def test_it_survives_being_opened_and_closed() -> None:
    ledger = MemoryLedger()
    await ledger.open()
    await ledger.claim(job())
    await ledger.aclose()
    await ledger.open()
    assert await ledger.find("order-1") is not None

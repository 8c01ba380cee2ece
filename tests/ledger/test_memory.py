"""MemoryLedger: which jobs it forgets, and how few bytes it keeps of the others."""

import tracemalloc
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from attrs import evolve

from nanobanana_async import IdempotencyConflict, LedgerError, MemoryLedger
from nanobanana_async.failures import Failure
from nanobanana_async.jobs import JobRecord, JobState
from nanobanana_async.keys import generate_key
from nanobanana_async.ledger.base import TaskTaken, Upload
from nanobanana_async.ledger.memory import TASKS_KEPT, UPLOADS_KEPT
from nanobanana_async.models import ImageRequest
from tests.support.fakes import virtually

NOON = datetime(2026, 3, 12, 12, tzinfo=UTC)


def job(key: str = "order-1", **facts: Any) -> JobRecord:
    usual: dict[str, Any] = {"gateway": "apimall", "account": "mine", "body": b"{}", "created_at": NOON}
    return JobRecord(**{**usual, "key": key, "request": ImageRequest("x"), **facts})


def running(key: str = "order-1", task_id: str = "t1", **facts: Any) -> JobRecord:
    return job(key, state=JobState.RUNNING, task_id=task_id, **facts)


@pytest.mark.parametrize("end", [JobState.SUCCEEDED, JobState.FAILED, JobState.REFUSED])
@virtually
async def test_ended_job_with_a_generated_key_is_forgotten(end: JobState) -> None:
    ledger, at_work = MemoryLedger(), running(generate_key())
    await ledger.claim(at_work)
    await ledger.advance(at_work, at_work.transition_to(end))
    assert await ledger.find(at_work.key) is None
    assert await ledger.find_task("mine", "t1") is None
    assert await ledger.adopt(at_work.key) is None


@virtually
async def test_withdrawn_job_with_a_generated_key_is_forgotten() -> None:
    ledger, first = MemoryLedger(), job(generate_key())
    await ledger.claim(first)
    await ledger.advance(first, first.transition_to(JobState.WITHDRAWN))
    assert await ledger.find(first.key) is None


@pytest.mark.parametrize("key", ["order-1", "8226712590aec3453a2864dd146b60ad"])
@pytest.mark.parametrize("end", [JobState.SUCCEEDED, JobState.FAILED])
@virtually
async def test_ended_job_with_a_callers_key_is_kept_without_body(key: str, end: JobState) -> None:
    ledger, at_work = MemoryLedger(), running(key, first_sent_at=NOON)
    await ledger.claim(at_work)
    after = at_work.transition_to(end, images=("https://cdn.example/1.png",), credits_used=Decimal(8), ended_at=NOON)
    await ledger.advance(at_work, after)
    kept = evolve(after, body=b"")
    assert await ledger.find(key) == kept
    assert await ledger.find_task("mine", "t1") == kept
    claim = await ledger.claim(job(key))
    assert (claim.record, claim.is_new, claim.is_ours) == (kept, False, False)
    adopted = await ledger.adopt(key)
    assert adopted is not None
    assert (adopted.record, adopted.is_ours) == (kept, False)


@virtually
async def test_kept_refused_job_starts_a_new_generation() -> None:
    ledger, first = MemoryLedger(), job(state=JobState.SUBMITTING, first_sent_at=NOON)
    await ledger.claim(first)
    refused = first.transition_to(JobState.REFUSED)
    await ledger.advance(first, refused)
    again = refused.next_generation(body=b"{}", created_at=NOON)
    await ledger.advance(refused, again)
    assert await ledger.find("order-1") == again
    with pytest.raises(LedgerError, match="was changed by another owner"):
        await ledger.advance(refused, again)
    sent = again.transition_to(JobState.SUBMITTING)
    await ledger.advance(again, sent)
    assert await ledger.find("order-1") == sent


@virtually
async def test_long_request_is_kept_as_digest_and_conflicts_are_found() -> None:
    ledger, prompt = MemoryLedger(), "a fox " * 5000
    at_work = running(request=ImageRequest(prompt, model="m"))
    await ledger.claim(at_work)
    await ledger.advance(
        at_work, at_work.transition_to(JobState.SUCCEEDED, images=("https://cdn.example/" + "x" * 9000,))
    )
    found = await ledger.find("order-1")
    assert found is not None
    assert (found.request, found.images) == (None, ("",))
    again = ImageRequest(prompt, model="m", callback_url="https://app.example/callbacks/1")
    assert (await ledger.claim(job(request=again))).record.request == again
    for other in (ImageRequest(prompt, model="n"), ImageRequest(f"{prompt}!", model="m")):
        with pytest.raises(IdempotencyConflict, match="another request") as caught:
            await ledger.claim(job(request=other))
        assert (caught.value.key, caught.value.safe_to_repeat) == ("order-1", False)


@pytest.mark.parametrize(("characters", "most"), [(100, 3072), (100_000, 8192)])
@virtually
async def test_kept_job_stays_within_its_memory_limit(characters: int, most: int) -> None:
    ledger, jobs = MemoryLedger(), 200
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(jobs):
            request = ImageRequest(f"{number} " + "x" * characters, model="nano-banana-pro")
            facts: dict[str, Any] = {"request": request, "body": bytes(characters), "created_at": NOON.replace()}
            at_work = running(f"order-{number}", f"task-{number}", **facts)
            await ledger.claim(at_work)
            failure = Failure(kind="JobFailed", message=f"{number} " + "x" * characters)
            urls = tuple(f"https://cdn.example/{number}/{image}" + "x" * characters for image in range(6))
            await ledger.advance(at_work, at_work.transition_to(JobState.FAILED, images=urls, failure=failure))
            del request, facts, at_work, failure, urls
        taken = (tracemalloc.get_traced_memory()[0] - before) / jobs
    finally:
        tracemalloc.stop()
    assert taken < most


@virtually
async def test_last_task_ids_of_forgotten_jobs_are_remembered() -> None:
    ledger = MemoryLedger()
    for number in range(TASKS_KEPT + 1):
        at_work = running(generate_key(), f"t{number}", first_sent_at=NOON)
        await ledger.claim(at_work)
        await ledger.advance(at_work, at_work.transition_to(JobState.SUCCEEDED))
    sent = job(state=JobState.SUBMITTING, first_sent_at=NOON)
    await ledger.claim(sent)
    with pytest.raises(TaskTaken):
        await ledger.advance(sent, sent.transition_to(JobState.RUNNING, task_id=f"t{TASKS_KEPT}"))
    await ledger.advance(sent, sent.transition_to(JobState.RUNNING, task_id="t0"))  # the oldest is forgotten


@virtually
async def test_second_open_at_once_is_refused() -> None:
    ledger = MemoryLedger()
    await ledger.open()
    with pytest.raises(LedgerError, match="already open"):
        await ledger.open()
    await ledger.aclose()
    await ledger.open()


@virtually
async def test_jobs_begun_before_since_count_no_slot() -> None:
    ledger = MemoryLedger()
    for record in (running("a", running_since=NOON), running("b", "t2"), job("c", state=JobState.PENDING)):
        await ledger.claim(record)
        await ledger.release(record.key)
    assert await ledger.count_foreign_slots("mine") == 2
    assert await ledger.count_foreign_slots("mine", since=NOON + timedelta(seconds=1)) == 0


async def test_oldest_of_very_many_uploads_is_forgotten() -> None:
    ledger = MemoryLedger()
    for number in range(UPLOADS_KEPT + 1):
        upload = Upload(digest=str(number), url="https://a.example/", size=1, uploaded_at=NOON)
        await ledger.remember_upload("mine", upload)
    assert await ledger.find_upload("mine", "0") is None
    assert await ledger.find_upload("mine", "1") is not None


async def test_long_request_with_newer_signatures_is_the_same_request() -> None:
    ledger = MemoryLedger()
    await ledger.open()

    def signed(signature: str) -> JobRecord:
        query = f"X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=K&X-Amz-Signature={signature * 64}"
        url = f"https://b.example/cat.png?{'v' * 1200}&{query}"
        return job(request=ImageRequest("x", images=[url]))

    first = signed("a")
    await ledger.claim(first)
    await ledger.advance(first, first.transition_to(JobState.WITHDRAWN))
    assert (await ledger.claim(signed("b"))).record.state is JobState.WITHDRAWN

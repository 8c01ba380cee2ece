"""The contract of every ledger, as scenes that any of them must play: each takes an open, empty ledger."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from nanobanana_async.errors import LedgerError
from nanobanana_async.jobs import Failure, JobRecord, JobState
from nanobanana_async.ledger.base import Ledger, TaskTaken
from nanobanana_async.models import ImageRequest

NOON = datetime(2026, 3, 12, 12, tzinfo=UTC)

Scene = Callable[[Ledger], Awaitable[None]]
SCENES: list[Scene] = []


def job(key: str = "order-1", **facts: Any) -> JobRecord:
    usual: dict[str, Any] = {"gateway": "apimall", "account": "mine", "body": b"{}", "created_at": NOON}
    return JobRecord(**{**usual, "key": key, "request": ImageRequest("a fox"), **facts})


def sent(key: str = "order-1", **facts: Any) -> JobRecord:
    return job(key, state=JobState.SUBMITTING, first_sent_at=NOON, **facts)


def running(key: str = "order-1", task_id: str = "t1", **facts: Any) -> JobRecord:
    return job(key, state=JobState.RUNNING, task_id=task_id, running_since=NOON, **facts)


async def keys_left(ledger: Ledger, account: str = "mine") -> list[str]:
    return [record.key async for record in ledger.unfinished(account)]


async def adopted(ledger: Ledger, key: str = "order-1") -> JobRecord | None:
    claim = await ledger.adopt(key)
    return claim.record if claim is not None and claim.ours else None


def scene(play: Scene) -> Scene:
    SCENES.append(play)
    return play


@scene
async def it_keeps_the_protocol(ledger: Ledger) -> None:
    assert isinstance(ledger, Ledger)


@scene
async def a_new_job_is_claimed_and_is_ours(ledger: Ledger) -> None:
    first = job()
    claim = await ledger.claim(first)
    assert claim.record is first
    assert (claim.new, claim.ours) == (True, True)
    assert await ledger.find("order-1") == first
    assert await ledger.find("order-2") is None


@scene
async def a_known_key_gives_back_what_stands_there(ledger: Ledger) -> None:
    first = job()
    await ledger.claim(first)
    claim = await ledger.claim(job(request=ImageRequest("a crow"), body=b"{crow}"))
    assert claim.record == first
    assert (claim.new, claim.ours) == (False, True)


@scene
async def a_write_replaces_only_what_the_writer_saw(ledger: Ledger) -> None:
    first = job()
    await ledger.claim(first)
    after = first.to(JobState.SUBMITTING, first_sent_at=NOON)
    await ledger.advance(first, after)
    with pytest.raises(LedgerError, match="changed by somebody else") as caught:
        await ledger.advance(first, first.to(JobState.WITHDRAWN))
    assert caught.value.key == "order-1"
    assert not caught.value.safe_to_repeat
    assert await ledger.find("order-1") == after


@scene
async def a_job_that_nobody_claimed_cannot_be_written(ledger: Ledger) -> None:
    with pytest.raises(LedgerError) as caught:
        await ledger.advance(job(), job().to(JobState.SUBMITTING))
    assert caught.value.key == "order-1"
    assert await ledger.find("order-1") is None


@scene
async def a_write_may_catch_up_over_several_moves(ledger: Ledger) -> None:
    first = sent()
    await ledger.claim(first)
    doubtful = first.to(JobState.SUBMITTING, in_doubt=True)
    after = doubtful.to(JobState.RUNNING, task_id="t1", in_doubt=False)
    await ledger.advance(first, after)
    assert await ledger.find("order-1") == after


@scene
async def every_field_comes_back(ledger: Ledger) -> None:
    first = sent(
        request=ImageRequest("ein Fuchs, 狐", images=["https://x.example/a.png"], resolution="2K"), body=b"\0\xff"
    )
    await ledger.claim(first)
    after = first.to(
        JobState.UNCERTAIN,
        attempts=3,
        in_doubt=True,
        first_sent_at=NOON + timedelta(microseconds=1),
        task_id="t1",
        running_since=NOON,
        images=("https://cdn.example/1.png", "https://cdn.example/2.png"),
        credits_used=Decimal("0.10"),
        credits_refunded=Decimal("1E-7"),
        model="gempix2",
        failure=Failure(kind="TransportError", message="lost \ud83e", status=502, code="bad", request_id="r1"),
    )
    await ledger.advance(first, after)
    assert await ledger.find("order-1") == after


@scene
async def an_uncertain_job_is_kept_and_is_nobodys(ledger: Ledger) -> None:
    first = sent()
    await ledger.claim(first)
    doubtful = first.to(JobState.UNCERTAIN, in_doubt=True)
    await ledger.advance(first, doubtful)
    assert await keys_left(ledger) == []
    assert await adopted(ledger) is None
    assert not (await ledger.claim(job())).ours
    found = doubtful.to(JobState.RUNNING, task_id="t1")
    await ledger.advance(doubtful, found)  # settled: whoever does it owns it
    assert await adopted(ledger) == found


@scene
async def a_task_is_found_by_its_id_within_its_account_only(ledger: Ledger) -> None:
    first = sent()
    await ledger.claim(first)
    after = first.to(JobState.RUNNING, task_id="t9")
    await ledger.advance(first, after)
    assert await ledger.find_task("mine", "t9") == after
    assert await ledger.find_task("theirs", "t9") is None
    assert await ledger.find_task("mine", "t8") is None


@scene
async def a_task_belongs_to_one_job_that_was_bought(ledger: Ledger) -> None:
    first, second = sent("a"), sent("b")
    await ledger.claim(first)
    await ledger.claim(second)
    bought = first.to(JobState.RUNNING, task_id="t1")
    await ledger.advance(first, bought)
    with pytest.raises(TaskTaken, match="task t1 belongs to job a already") as caught:
        await ledger.advance(second, second.to(JobState.RUNNING, task_id="t1"))
    assert (caught.value.holder, caught.value.key, caught.value.safe_to_repeat) == ("a", "b", False)
    assert await ledger.find("b") == second
    await ledger.advance(second, second.to(JobState.RUNNING, task_id="t2"))
    await ledger.advance(bought, bought.to(JobState.RUNNING, attempts=7))  # its own is no trouble
    theirs = sent("c", account="theirs")
    await ledger.claim(theirs)
    await ledger.advance(theirs, theirs.to(JobState.RUNNING, task_id="t1"))


@scene
async def a_task_that_was_only_attached_may_be_a_bought_jobs_too(ledger: Ledger) -> None:
    first = sent("b")
    await ledger.claim(running("a", "t1"))  # by its id: nothing was sent for it
    await ledger.claim(first)
    await ledger.advance(first, first.to(JobState.RUNNING, task_id="t1"))


@scene
async def what_was_let_go_is_found_oldest_first_within_its_account(ledger: Ledger) -> None:
    for record in (job("b"), running("c", "t2", account="theirs"), sent("a"), running("d", "t3"), job("e")):
        await ledger.claim(record)
    assert await keys_left(ledger) == []  # we follow them ourselves
    for key in "dcab":
        await ledger.release(key)
    assert await keys_left(ledger) == ["b", "a", "d"]
    assert await keys_left(ledger, "theirs") == ["c"]


@scene
async def what_was_let_go_is_written_by_nobody_until_it_is_adopted(ledger: Ledger) -> None:
    first = job()
    await ledger.claim(first)
    await ledger.release("order-1")
    after = first.to(JobState.SUBMITTING)
    with pytest.raises(LedgerError, match="changed by somebody else"):
        await ledger.advance(first, after)
    assert await adopted(ledger) == first
    assert await adopted(ledger) == first  # it is ours already
    assert await keys_left(ledger) == []
    await ledger.advance(first, after)


@scene
async def a_claim_takes_over_what_was_let_go(ledger: Ledger) -> None:
    await ledger.claim(running())
    await ledger.release("order-1")
    claim = await ledger.claim(job())
    assert claim.record == running()
    assert (claim.new, claim.ours) == (False, True)
    assert await keys_left(ledger) == []


@scene
async def what_is_not_there_can_be_neither_adopted_nor_let_go(ledger: Ledger) -> None:
    assert await adopted(ledger) is None
    await ledger.release("order-1")


@scene
async def slots_that_others_hold_are_counted(ledger: Ledger) -> None:
    for record in (job("a"), sent("b"), running("c"), running("d", "t2"), running("e", "t3", account="theirs")):
        await ledger.claim(record)
    assert await ledger.held("mine") == 0  # all are ours
    for key in "abce":
        await ledger.release(key)
    assert await ledger.held("mine") == 2  # what waits holds none
    assert await ledger.held("theirs") == 1


@scene
async def what_a_batch_has_cost_is_summed_up(ledger: Ledger) -> None:
    for record in (
        running("b-1", "t1", credits_used=Decimal(8)),
        running("b-2", "t2", credits_used=Decimal(8), credits_refunded=Decimal(3), request=ImageRequest("a crow")),
        running("b-3", "t3", credits_used=Decimal(16), request=ImageRequest("a crow", resolution="4K")),
        running("b-4", "t4"),
        sent("b-5"),
        job("b-6"),
        running("c-1", "t5", credits_used=Decimal(8)),
    ):
        await ledger.claim(record)
    spent = await ledger.spent("b-")
    assert spent.credits == Decimal(29)
    assert {record.key for record in spent.unpriced} == {"b-4", "b-5"}
    prices = {(record.request and record.request.resolution, record.credits_used) for record in spent.priced}
    assert prices == {(None, Decimal(8)), ("4K", Decimal(16))}
    assert (await ledger.spent("d-")).credits == 0


@scene
async def it_keeps_a_secret(ledger: Ledger) -> None:
    secret = await ledger.secret()
    assert len(secret) == 32
    assert await ledger.secret() == secret


@scene
async def nobody_leaves_word_for_himself(ledger: Ledger) -> None:
    await ledger.claim(running())
    await ledger.nudge("order-1", "t1")
    await ledger.nudge("order-2", None)
    assert list(await ledger.nudges()) == []


@scene
async def closing_lets_go_of_all_and_it_can_be_opened_again(ledger: Ledger) -> None:
    await ledger.claim(running())
    await ledger.aclose()
    await ledger.aclose()
    await ledger.open()
    assert await keys_left(ledger) == ["order-1"]
    assert await adopted(ledger) == running()

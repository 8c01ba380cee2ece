"""The contract of every ledger, as test functions that each take an open, empty ledger."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest

from nanobanana_async.candidates import Candidate
from nanobanana_async.errors import ConfigurationError, LedgerError
from nanobanana_async.failures import Failure
from nanobanana_async.jobs import JobRecord, JobState
from nanobanana_async.keys import batch_key_prefix, generate_key
from nanobanana_async.ledger.base import Allowance, Ledger, Refusal, TaskTaken, Upload
from nanobanana_async.models import ImageRequest
from nanobanana_async.policy.named_budget import Budget
from nanobanana_async.policy.prices import Basis, Price

NOON = datetime(2026, 3, 12, 12, tzinfo=UTC)
CONFLICT = "was changed by|is not owned by"

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
    return [record.key async for record in ledger.adoptable_jobs(account)]


async def adopted(ledger: Ledger, key: str = "order-1") -> JobRecord | None:
    claim = await ledger.adopt(key)
    return claim.record if claim is not None and claim.is_ours else None


def scene(play: Scene) -> Scene:
    SCENES.append(play)
    return play


@scene
async def ledger_implements_the_protocol(ledger: Ledger) -> None:
    assert isinstance(ledger, Ledger)


@scene
async def new_job_is_claimed_and_owned(ledger: Ledger) -> None:
    first = job()
    claim = await ledger.claim(first)
    assert claim.record is first
    assert (claim.is_new, claim.is_ours) == (True, True)
    assert await ledger.find("order-1") == first
    assert await ledger.find("order-2") is None


@scene
async def claim_of_a_known_key_returns_the_stored_record(ledger: Ledger) -> None:
    first = job()
    await ledger.claim(first)
    claim = await ledger.claim(job(request=ImageRequest("a crow"), body=b"{crow}"))
    assert claim.record == first
    assert (claim.is_new, claim.is_ours) == (False, True)


@scene
async def write_with_a_stale_record_is_rejected(ledger: Ledger) -> None:
    first = job()
    await ledger.claim(first)
    after = first.transition_to(JobState.SUBMITTING, first_sent_at=NOON)
    await ledger.advance(first, after)
    with pytest.raises(LedgerError, match=CONFLICT) as caught:
        await ledger.advance(first, first.transition_to(JobState.WITHDRAWN))
    assert caught.value.key == "order-1"
    assert not caught.value.safe_to_repeat
    assert await ledger.find("order-1") == after


@scene
async def unclaimed_job_can_not_be_written(ledger: Ledger) -> None:
    with pytest.raises(LedgerError) as caught:
        await ledger.advance(job(), job().transition_to(JobState.SUBMITTING))
    assert caught.value.key == "order-1"
    assert await ledger.find("order-1") is None


@scene
async def one_write_may_cover_several_transitions(ledger: Ledger) -> None:
    first = sent()
    await ledger.claim(first)
    doubtful = first.transition_to(JobState.SUBMITTING, in_doubt=True)
    after = doubtful.transition_to(JobState.RUNNING, task_id="t1", in_doubt=False)
    await ledger.advance(first, after)
    assert await ledger.find("order-1") == after


@scene
async def every_field_is_stored_and_read(ledger: Ledger) -> None:
    first = sent(
        request=ImageRequest("ein Fuchs, 狐", images=["https://x.example/a.png"], resolution="2K"), body=b"\0\xff"
    )
    await ledger.claim(first)
    after = first.transition_to(
        JobState.UNCERTAIN,
        attempts=3,
        in_doubt=True,
        first_sent_at=NOON + timedelta(microseconds=1),
        sent_at=NOON + timedelta(seconds=1),
        lost_at=NOON + timedelta(seconds=2),
        conflict_at=NOON + timedelta(seconds=3),
        candidates=(Candidate(task_id="t2", created_at=NOON, image_url="https://cdn.example/2.png"),),
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
async def uncertain_job_is_kept_without_an_owner(ledger: Ledger) -> None:
    first = sent()
    await ledger.claim(first)
    doubtful = first.transition_to(JobState.UNCERTAIN, in_doubt=True)
    await ledger.advance(first, doubtful)
    assert await keys_left(ledger) == []
    assert await adopted(ledger) is None
    assert not (await ledger.claim(job())).is_ours
    found = doubtful.transition_to(JobState.RUNNING, task_id="t1")
    await ledger.advance(doubtful, found)  # the owner that resolves the job then owns it
    assert await adopted(ledger) == found


@scene
async def uncertain_jobs_are_listed_by_account(ledger: Ledger) -> None:
    for key, account in (("order-1", "mine"), ("order-2", "theirs"), ("order-3", "mine"), ("order-4", "mine")):
        first = sent(key, account=account)
        await ledger.claim(first)
        if key != "order-4":
            await ledger.advance(first, first.transition_to(JobState.UNCERTAIN, in_doubt=True))
    assert [record.key async for record in ledger.uncertain("mine")] == ["order-1", "order-3"]


@scene
async def tasks_of_jobs_are_known_even_after_their_end(ledger: Ledger) -> None:
    for number, account in ((1, "mine"), (2, "theirs"), (3, "mine")):
        first = sent(generate_key() if number == 3 else f"order-{number}", account=account)
        await ledger.claim(first)
        after = first.transition_to(JobState.RUNNING, task_id=f"t{number}")
        await ledger.advance(first, after)
        await ledger.advance(after, after.transition_to(JobState.SUCCEEDED))
    known = await ledger.known_tasks("mine", ["t0", "t1", "t2", "t3"])
    assert sorted(known) == ["t1", "t3"]
    assert known["t1"] is not None
    assert known["t1"].key == "order-1"


@scene
async def task_is_found_within_its_account_only(ledger: Ledger) -> None:
    first = sent()
    await ledger.claim(first)
    after = first.transition_to(JobState.RUNNING, task_id="t9")
    await ledger.advance(first, after)
    assert await ledger.find_task("mine", "t9") == after
    assert await ledger.find_task("theirs", "t9") is None
    assert await ledger.find_task("mine", "t8") is None


@scene
async def next_generation_may_belong_to_another_account(ledger: Ledger) -> None:
    for key, state in (("a", JobState.PENDING), ("b", JobState.WITHDRAWN)):
        first = job(key)
        await ledger.claim(first)
        if state is not JobState.PENDING:
            first, before = first.transition_to(state), first
            await ledger.advance(before, first)
        again = first.next_generation(account="theirs", body=b"{}", created_at=NOON)
        await ledger.advance(first, again)
        with pytest.raises(LedgerError, match=CONFLICT):
            await ledger.advance(first, first.next_generation(body=b"{}", created_at=NOON))
        assert await ledger.find(key) == again
        await ledger.release(key)
    assert (await keys_left(ledger), await keys_left(ledger, "theirs")) == ([], ["a", "b"])


@scene
async def task_id_belongs_to_one_bought_job(ledger: Ledger) -> None:
    first, second = sent("a"), sent("b")
    await ledger.claim(first)
    await ledger.claim(second)
    bought = first.transition_to(JobState.RUNNING, task_id="t1")
    await ledger.advance(first, bought)
    with pytest.raises(TaskTaken, match="task t1 belongs to job a already") as caught:
        await ledger.advance(second, second.transition_to(JobState.RUNNING, task_id="t1"))
    assert (caught.value.holder, caught.value.key, caught.value.safe_to_repeat) == ("a", "b", False)
    assert await ledger.find("b") == second
    await ledger.advance(second, second.transition_to(JobState.RUNNING, task_id="t2"))
    await ledger.advance(bought, bought.transition_to(JobState.RUNNING, attempts=7))  # its own task id is no conflict
    theirs = sent("c", account="theirs")
    await ledger.claim(theirs)
    await ledger.advance(theirs, theirs.transition_to(JobState.RUNNING, task_id="t1"))


@scene
async def attached_task_may_also_belong_to_a_bought_job(ledger: Ledger) -> None:
    first = sent("b")
    await ledger.claim(running("a", "t1"))  # attached by its id: nothing was sent
    await ledger.claim(first)
    await ledger.advance(first, first.transition_to(JobState.RUNNING, task_id="t1"))


@scene
async def released_jobs_are_listed_oldest_first_by_account(ledger: Ledger) -> None:
    for record in (job("b"), running("c", "t2", account="theirs"), sent("a"), running("d", "t3"), job("e")):
        await ledger.claim(record)
    assert await keys_left(ledger) == []  # this ledger owns them
    for key in "dcab":
        await ledger.release(key)
    assert await keys_left(ledger) == ["b", "a", "d"]
    assert await keys_left(ledger, "theirs") == ["c"]


@scene
async def released_job_is_not_writable_until_adopted(ledger: Ledger) -> None:
    first = job()
    await ledger.claim(first)
    await ledger.release("order-1")
    after = first.transition_to(JobState.SUBMITTING)
    with pytest.raises(LedgerError, match=CONFLICT):
        await ledger.advance(first, after)
    assert await adopted(ledger) == first
    assert await adopted(ledger) == first  # already owned
    assert await keys_left(ledger) == []
    await ledger.advance(first, after)


@scene
async def claim_adopts_a_released_job(ledger: Ledger) -> None:
    await ledger.claim(running())
    await ledger.release("order-1")
    claim = await ledger.claim(job())
    assert claim.record == running()
    assert (claim.is_new, claim.is_ours) == (False, True)
    assert await keys_left(ledger) == []


@scene
async def unknown_job_is_neither_adopted_nor_released(ledger: Ledger) -> None:
    assert await adopted(ledger) is None
    await ledger.release("order-1")


@scene
async def slots_of_other_owners_are_counted(ledger: Ledger) -> None:
    three = running("c", slots=3)
    for record in (job("a", slots=9), sent("b"), three, running("d", "t2"), running("e", "t3", account="theirs")):
        await ledger.claim(record)
    assert await ledger.count_foreign_slots("mine") == 0  # this ledger owns all
    for key in "abce":
        await ledger.release(key)
    assert await ledger.count_foreign_slots("mine") == 4  # a pending job holds no slot
    assert await ledger.count_foreign_slots("theirs") == 1


EIGHT = Price("fox", Decimal(8))
GUESS = Price("fox", Decimal(8), Basis.EXAMPLE)
OWL_GUESS = Price("owl", Decimal(2), Basis.EXAMPLE)


async def about_to_be_sent(
    ledger: Ledger,
    key: str,
    price: Price,
    cap: int | None = None,
    *,
    batch: str | None = batch_key_prefix("b"),
    **facts: Any,
) -> tuple[JobRecord, Allowance]:
    """Claim a job of a batch, and try to reserve its price for a create."""
    first = (await ledger.claim(job(key, batch=batch, **facts))).record
    after = first.transition_to(JobState.SUBMITTING, first_sent_at=NOON)
    allowance = await ledger.advance_and_reserve(first, after, price, None if cap is None else Decimal(cap))
    assert await ledger.find(key) == (first if allowance.refusal else after)
    return (first if allowance.refusal else after), allowance


async def moved(ledger: Ledger, before: JobRecord, state: JobState, **facts: Any) -> JobRecord:
    after = before.transition_to(state, **facts)
    await ledger.advance(before, after)
    return after


@scene
async def charge_is_reserved_within_the_cap_and_refused_beyond(ledger: Ledger) -> None:
    for number, spent in ((1, 0), (2, 8)):
        _, allowance = await about_to_be_sent(ledger, f"b-{number}", EIGHT, 20)
        assert (allowance.refusal, allowance.other_charges, allowance.price) == (None, Decimal(spent), EIGHT)
    _, allowance = await about_to_be_sent(ledger, "b-3", EIGHT, 20)
    assert (allowance.refusal, allowance.other_charges) == (Refusal.SUM, Decimal(16))
    assert (set(allowance.ours_may_free), allowance.others_may_free) == ({"b-1", "b-2"}, False)
    _, allowance = await about_to_be_sent(ledger, "c-1", EIGHT, 8, batch=batch_key_prefix("c"))
    assert allowance.refusal is None  # another batch
    assert [await ledger.spent_or_reserved(name) for name in ("b", "c", "d")] == [16, 8, 0]


@scene
async def charge_follows_its_jobs_transitions(ledger: Ledger) -> None:
    sent_job, _ = await about_to_be_sent(ledger, "b-1", GUESS, 100)
    back = await moved(ledger, sent_job, JobState.PENDING)
    assert await ledger.spent_or_reserved("b") == 0
    again = back.transition_to(JobState.SUBMITTING)
    assert (await ledger.advance_and_reserve(back, again, GUESS, Decimal(100))).refusal is None
    assert await ledger.spent_or_reserved("b") == 8
    doubt = await moved(ledger, again, JobState.UNCERTAIN, in_doubt=True)
    assert await ledger.spent_or_reserved("b") == 8
    found = await moved(ledger, doubt, JobState.RUNNING, task_id="t1", in_doubt=False, credits_used=Decimal(12))
    assert await ledger.spent_or_reserved("b") == 12
    await moved(ledger, found, JobState.FAILED, credits_refunded=Decimal("2.5"))
    assert await ledger.spent_or_reserved("b") == Decimal("9.5")


@scene
async def charge_stays_when_the_job_is_bought_again(ledger: Ledger) -> None:
    doubt, _ = await about_to_be_sent(ledger, "b-1", EIGHT)
    doubt = await moved(ledger, doubt, JobState.UNCERTAIN, in_doubt=True)
    for generation in (2, 3):
        next_generation = doubt.next_generation(body=b"{}", created_at=NOON)
        await ledger.advance(doubt, next_generation)
        assert next_generation.batch == batch_key_prefix("b")
        sent_job = next_generation.transition_to(JobState.SUBMITTING)
        assert (
            await ledger.advance_and_reserve(next_generation, sent_job, EIGHT, Decimal(8 * generation))
        ).refusal is None
        doubt = await moved(ledger, sent_job, JobState.UNCERTAIN, in_doubt=True)
        assert await ledger.spent_or_reserved("b") == 8 * generation


@scene
async def one_estimate_is_reserved_at_a_time_across_classes(ledger: Ledger) -> None:
    first, _ = await about_to_be_sent(ledger, "b-1", GUESS, 100)
    _, allowance = await about_to_be_sent(ledger, "b-2", OWL_GUESS, 100)
    assert (allowance.refusal, allowance.ours_may_free, allowance.others_may_free) == (
        Refusal.ESTIMATE,
        ("b-1",),
        False,
    )
    assert (await about_to_be_sent(ledger, "b-3", Price("crow", Decimal(1)), 100))[1].refusal is None
    assert (await about_to_be_sent(ledger, "c-1", OWL_GUESS, 100, batch=batch_key_prefix("c")))[1].refusal is None
    await moved(ledger, first, JobState.RUNNING, task_id="t1", credits_used=Decimal(8))
    assert (await about_to_be_sent(ledger, "b-4", OWL_GUESS, 100))[1].refusal is None


@scene
async def learned_price_is_returned_instead_of_a_reservation(ledger: Ledger) -> None:
    first, _ = await about_to_be_sent(ledger, "b-1", GUESS, 100)
    await moved(ledger, first, JobState.RUNNING, task_id="t1", credits_used=Decimal(24))
    for asked in (
        GUESS,
        EIGHT,
        Price("fox", Decimal(8), Basis.EXPECTED),
        Price("fox", Decimal(8), Basis.CHARGED_AS_EXPECTED),
    ):
        _, allowance = await about_to_be_sent(ledger, "b-2", asked, 100)
        assert (allowance.refusal, allowance.price) == (Refusal.PRICE, Price("fox", Decimal(24)))
    assert (await about_to_be_sent(ledger, "b-2", Price("fox", Decimal(24)), 100))[1].refusal is None
    assert await ledger.spent_or_reserved("b") == 48
    _, allowance = await about_to_be_sent(ledger, "c-1", GUESS, batch=batch_key_prefix("c"))  # no cap
    assert allowance.refusal is None
    assert await ledger.spent_or_reserved("c") == 24


@scene
async def learned_price_replaces_all_estimates_of_the_class(ledger: Ledger) -> None:
    doubt, _ = await about_to_be_sent(ledger, "b-1", GUESS)
    await moved(ledger, doubt, JobState.UNCERTAIN, in_doubt=True)
    second, _ = await about_to_be_sent(ledger, "b-2", GUESS)
    await moved(ledger, second, JobState.RUNNING, task_id="t1", credits_used=Decimal(24))
    assert await ledger.spent_or_reserved("b") == 48
    third, _ = await about_to_be_sent(ledger, "d-1", OWL_GUESS, batch=batch_key_prefix("d"))
    await moved(ledger, third, JobState.UNCERTAIN, in_doubt=True)
    known = Price("owl", Decimal(3))  # learned from jobs outside any batch
    assert (await about_to_be_sent(ledger, "d-2", known, 100, batch=batch_key_prefix("d")))[1].refusal is None
    assert await ledger.spent_or_reserved("d") == 6


@scene
async def unknown_price_blocks_estimates_until_the_user_gives_one(ledger: Ledger) -> None:
    doubt, _ = await about_to_be_sent(ledger, "b-1", GUESS, 100)
    await moved(ledger, doubt, JobState.UNCERTAIN, in_doubt=True)
    _, allowance = await about_to_be_sent(ledger, "b-2", GUESS, 100)
    assert (allowance.refusal, allowance.ours_may_free, allowance.others_may_free) == (Refusal.ESTIMATE, (), False)
    expected = Price("fox", Decimal(30), Basis.EXPECTED)
    second, allowance = await about_to_be_sent(ledger, "b-2", expected, 60)
    assert allowance.refusal is None
    assert await ledger.spent_or_reserved("b") == 60
    second = await moved(ledger, second, JobState.RUNNING, task_id="t1")
    assert (await about_to_be_sent(ledger, "b-3", expected, 100))[1].refusal is Refusal.ESTIMATE  # b-2 still runs
    await moved(ledger, second, JobState.SUCCEEDED)  # without a price: the user's expected price becomes final
    assert (await about_to_be_sent(ledger, "b-3", OWL_GUESS, 100))[1].refusal is None
    assert await ledger.spent_or_reserved("b") == 62


@scene
async def job_that_ends_without_a_price_keeps_its_estimate(ledger: Ledger) -> None:
    first, _ = await about_to_be_sent(ledger, "b-1", GUESS, 100)
    first = await moved(ledger, first, JobState.RUNNING, task_id="t1")
    await moved(ledger, first, JobState.FAILED)
    _, allowance = await about_to_be_sent(ledger, "b-2", OWL_GUESS, 100)
    assert (allowance.refusal, allowance.ours_may_free) == (Refusal.ESTIMATE, ())
    assert allowance.other_charges == 8


@scene
async def stale_writer_reserves_nothing(ledger: Ledger) -> None:
    first = job("b-1", batch=batch_key_prefix("b"))
    await ledger.claim(first)
    await ledger.release("b-1")
    with pytest.raises(LedgerError, match=CONFLICT):
        await ledger.advance_and_reserve(first, first.transition_to(JobState.SUBMITTING), EIGHT, Decimal(100))
    assert await ledger.spent_or_reserved("b") == 0


ALICE = Budget(name="alice", max_credits=20)
DAILY = Budget(name="daily", max_credits=20, per="day")


async def counted(ledger: Ledger, name: str, now: datetime = NOON) -> tuple[Any, Any, Any]:
    """Return what is spent, reserved and left of a budget."""
    (state,) = [state for state in await ledger.budgets(now) if state.name == name]
    return state.spent, state.reserved, state.left


@scene
async def budget_counts_jobs_of_several_batches_and_of_none(ledger: Ledger) -> None:
    await ledger.set_budget(ALICE)
    for key, batch in (("b-1", batch_key_prefix("b")), ("order-1", None)):
        _, allowance = await about_to_be_sent(ledger, key, EIGHT, 100, batch=batch, budget="alice")
        assert (allowance.refusal, allowance.budget) == (None, None)
    _, allowance = await about_to_be_sent(ledger, "c-1", EIGHT, 100, batch=batch_key_prefix("c"), budget="alice")
    assert (allowance.refusal, allowance.budget) == (Refusal.SUM, ALICE)
    assert allowance.other_charges == 16
    assert (set(allowance.ours_may_free), allowance.others_may_free) == ({"b-1", "order-1"}, False)
    assert [await ledger.spent_or_reserved(name) for name in ("b", "c")] == [8, 0]
    assert await counted(ledger, "alice") == (0, 16, 4)


@scene
async def cap_of_a_batch_refuses_what_its_budget_allows(ledger: Ledger) -> None:
    await ledger.set_budget(ALICE)
    _, allowance = await about_to_be_sent(ledger, "b-1", EIGHT, 7, budget="alice")
    assert (allowance.refusal, allowance.budget) == (Refusal.SUM, None)
    assert await counted(ledger, "alice") == (0, 0, 20)


@scene
async def charge_under_a_budget_follows_its_jobs_transitions(ledger: Ledger) -> None:
    await ledger.set_budget(ALICE)
    sent_job, _ = await about_to_be_sent(ledger, "b-1", GUESS, 100, budget="alice")
    assert await counted(ledger, "alice") == (0, 8, 12)
    back = await moved(ledger, sent_job, JobState.PENDING)
    assert await counted(ledger, "alice") == (0, 0, 20)
    again = back.transition_to(JobState.SUBMITTING)
    assert (await ledger.advance_and_reserve(back, again, GUESS, Decimal(100))).refusal is None
    doubt = await moved(ledger, again, JobState.UNCERTAIN, in_doubt=True)
    assert await counted(ledger, "alice") == (0, 8, 12)
    found = await moved(ledger, doubt, JobState.RUNNING, task_id="t1", in_doubt=False, credits_used=Decimal(12))
    assert await counted(ledger, "alice") == (12, 0, 8)
    await moved(ledger, found, JobState.FAILED, credits_refunded=Decimal("2.5"))
    assert await counted(ledger, "alice") == (Decimal("9.5"), 0, Decimal("10.5"))
    assert await ledger.spent_or_reserved("b") == Decimal("9.5")


@scene
async def one_estimate_is_reserved_at_a_time_under_a_budget(ledger: Ledger) -> None:
    await ledger.set_budget(ALICE)
    first, _ = await about_to_be_sent(ledger, "b-1", GUESS, budget="alice")
    other_batch: dict[str, Any] = {"batch": batch_key_prefix("c"), "budget": "alice"}
    _, allowance = await about_to_be_sent(ledger, "c-1", OWL_GUESS, **other_batch)
    assert (allowance.refusal, allowance.budget) == (Refusal.ESTIMATE, ALICE)
    assert (allowance.ours_may_free, allowance.others_may_free) == (("b-1",), False)
    await moved(ledger, first, JobState.RUNNING, task_id="t1", credits_used=Decimal(16))
    await about_to_be_sent(ledger, "c-1", OWL_GUESS, **other_batch)
    assert await counted(ledger, "alice") == (16, 2, 2)
    _, allowance = await about_to_be_sent(ledger, "order-1", GUESS, batch=None, budget="alice")
    assert (allowance.refusal, allowance.price) == (Refusal.PRICE, Price("fox", Decimal(16)))


@scene
async def budget_of_a_day_counts_in_the_utc_day_of_the_reservation(ledger: Ledger) -> None:
    await ledger.set_budget(DAILY)
    evening = datetime(2026, 3, 12, 23, 59, tzinfo=timezone(timedelta(hours=-3)))  # 13 March in UTC
    facts: dict[str, Any] = {"batch": None, "budget": "daily"}
    first, _ = await about_to_be_sent(ledger, "order-1", EIGHT, **facts)
    await about_to_be_sent(ledger, "order-2", EIGHT, **facts)
    assert (await about_to_be_sent(ledger, "order-3", EIGHT, **facts))[1].budget == DAILY
    later = evening.astimezone(UTC)
    assert (await about_to_be_sent(ledger, "order-4", EIGHT, created_at=later, **facts))[1].refusal is None
    running_job = await moved(ledger, first, JobState.RUNNING, task_id="t1", credits_used=Decimal(7))
    await moved(ledger, running_job, JobState.SUCCEEDED, ended_at=NOON + timedelta(days=1))
    assert await counted(ledger, "daily") == (7, 8, 5)
    assert await counted(ledger, "daily", evening) == (0, 8, 12)
    (state,) = await ledger.budgets(NOON)
    assert (state.per, state.resets_at) == ("day", datetime(2026, 3, 13, tzinfo=UTC))
    assert state.max_credits == 20


@scene
async def create_sent_again_on_the_next_day_counts_in_that_day_only(ledger: Ledger) -> None:
    await ledger.set_budget(DAILY)
    for number, in_doubt in enumerate((False, True)):
        sent_job, _ = await about_to_be_sent(ledger, f"b-{number}", EIGHT, budget="daily")
        back = await moved(ledger, sent_job, JobState.PENDING, in_doubt=in_doubt)
        again = back.transition_to(JobState.SUBMITTING, sent_at=NOON + timedelta(days=1))
        assert (await ledger.advance_and_reserve(back, again, EIGHT, None)).refusal is None
        facts = {"task_id": f"t{number}", "credits_used": Decimal(8), "in_doubt": False}
        await moved(ledger, again, JobState.RUNNING, **facts)
    assert await counted(ledger, "daily") == (0, 0, 20)
    assert await counted(ledger, "daily", NOON + timedelta(days=1)) == (16, 0, 4)
    assert await ledger.spent_or_reserved("b") == 16


@scene
async def budgets_are_read_by_name(ledger: Ledger) -> None:
    for budget in (DAILY, ALICE, Budget(name="bob", max_credits=5)):
        await ledger.set_budget(budget)
    await about_to_be_sent(ledger, "b-1", EIGHT, budget="alice")
    assert [state.name for state in await ledger.budgets(NOON)] == ["alice", "bob", "daily"]
    found = await ledger.budgets(NOON, ["daily", "alice", "no such budget"])
    assert [(state.name, state.left) for state in found] == [("alice", Decimal(12)), ("daily", Decimal(20))]
    assert list(await ledger.budgets(NOON, [])) == []


@scene
async def newest_value_of_a_budget_holds_and_its_period_stays(ledger: Ledger) -> None:
    await ledger.set_budget(ALICE)
    await about_to_be_sent(ledger, "b-1", EIGHT, budget="alice")
    await ledger.set_budget(Budget(name="alice", max_credits=6))
    assert await counted(ledger, "alice") == (0, 8, 0)
    _, allowance = await about_to_be_sent(ledger, "b-2", EIGHT, budget="alice")
    assert (allowance.refusal, allowance.budget) == (Refusal.SUM, Budget(name="alice", max_credits=6))
    with pytest.raises(ConfigurationError, match="counts all that was ever spent in this ledger, not each day"):
        await ledger.set_budget(Budget(name="alice", max_credits=100, per="day"))
    await ledger.set_budget(Budget(name="alice", max_credits=16))
    assert (await about_to_be_sent(ledger, "b-2", EIGHT, budget="alice"))[1].refusal is None
    assert [state.name for state in await ledger.budgets(NOON)] == ["alice"]


@scene
async def job_of_an_unknown_budget_is_not_sent(ledger: Ledger) -> None:
    first = (await ledger.claim(job("b-1", batch=batch_key_prefix("b"), budget="alice"))).record
    with pytest.raises(LedgerError, match="budget alice is not in the ledger"):
        await ledger.advance_and_reserve(first, first.transition_to(JobState.SUBMITTING), EIGHT, None)
    assert await ledger.find("b-1") == first


@scene
async def job_that_is_bought_again_may_count_under_another_budget(ledger: Ledger) -> None:
    await ledger.set_budget(ALICE)
    await ledger.set_budget(DAILY)
    lost, _ = await about_to_be_sent(ledger, "b-1", EIGHT, budget="alice")
    lost = await moved(ledger, lost, JobState.UNCERTAIN, in_doubt=True)
    again = lost.next_generation(body=b"{}", created_at=NOON, budget="daily")
    await ledger.advance(lost, again)
    assert await ledger.find("b-1") == again
    sent_job = again.transition_to(JobState.SUBMITTING)
    assert (await ledger.advance_and_reserve(again, sent_job, EIGHT, None)).refusal is None
    await moved(ledger, sent_job, JobState.RUNNING, task_id="t1", credits_used=Decimal(8))
    assert (await counted(ledger, "alice"))[2] == 12
    assert await counted(ledger, "daily") == (8, 0, 12)


@scene
async def callback_secret_is_stable(ledger: Ledger) -> None:
    secret = await ledger.callback_secret()
    assert len(secret) == 32
    assert await ledger.callback_secret() == secret


@scene
async def what_was_learned_is_kept_by_account_and_the_last_writer_wins(ledger: Ledger) -> None:
    assert await ledger.recall("mine") is None
    await ledger.remember("mine", '{"classes": {}}')
    await ledger.remember("theirs", "{}")
    await ledger.remember("mine", '{"limits": "größer"}')
    assert await ledger.recall("mine") == '{"limits": "größer"}'
    await ledger.aclose()
    await ledger.open()
    assert await ledger.recall("mine") == '{"limits": "größer"}'
    assert await ledger.recall("theirs") == "{}"


@scene
async def owner_leaves_no_notice_for_itself(ledger: Ledger) -> None:
    await ledger.claim(running())
    await ledger.notify_owner("order-1", "t1")
    await ledger.notify_owner("order-2", None)
    assert list(await ledger.take_notices()) == []


@scene
async def close_releases_all_jobs_and_ledger_reopens(ledger: Ledger) -> None:
    await ledger.claim(running())
    await ledger.aclose()
    await ledger.aclose()
    await ledger.open()
    assert await keys_left(ledger) == ["order-1"]
    assert await adopted(ledger) == running()


@scene
async def upload_is_found_by_account_and_content(ledger: Ledger) -> None:
    upload = Upload(digest="a" * 64, url="https://cdn.example/a.png", size=7, uploaded_at=NOON)
    await ledger.remember_upload("mine", upload)
    assert await ledger.find_upload("mine", upload.digest) == upload
    assert await ledger.find_upload("mine", "b" * 64) is None
    assert await ledger.find_upload("yours", upload.digest) is None


@scene
async def later_upload_replaces_the_earlier_one(ledger: Ledger) -> None:
    upload = Upload(digest="a" * 64, url="https://cdn.example/a.png", size=7, uploaded_at=NOON)
    later = Upload(digest="a" * 64, url="https://cdn.example/b.png", size=7, uploaded_at=NOON + timedelta(hours=1))
    await ledger.remember_upload("mine", upload)
    await ledger.remember_upload("mine", later)
    assert await ledger.find_upload("mine", upload.digest) == later

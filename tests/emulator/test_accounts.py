"""Slots, rates, credits and idempotency keys."""

from decimal import Decimal
from typing import Any

import pytest

from nanobanana_async.emulator import EmulatedResponse, RandomFault, faults
from nanobanana_async.emulator.settings import Idempotency
from tests.emulator.calling import Caller, body_of


def code(answer: EmulatedResponse) -> str:
    return str(body_of(answer)["error"]["code"])


def test_job_limit_refuses_creates_until_a_job_ends() -> None:
    caller = Caller(job_limit=2)
    assert [caller.buy(f"{n}").status for n in range(3)] == [200, 200, 429]
    caller.now = 9.99
    assert caller.buy("4").status == 429
    caller.now = 10.0
    assert [caller.buy(f"{n}").status for n in range(5, 8)] == [200, 200, 429]
    stats = caller.stats()
    assert (stats.running_now, stats.running_max, stats.creates_accepted) == (2, 2, 4)
    assert stats.refusals_429 == {"jobs": 3}
    assert stats.creates_refused == {429: 3}


def test_the_limit_can_count_images() -> None:
    caller = Caller(job_limit=6, limit_counts="images")
    assert [caller.buy(f"{n}", num_images=n).status for n in (4, 3, 2)] == [200, 429, 200]


def test_both_gateways_share_the_slots_by_default() -> None:
    shared, apart = Caller(job_limit=1), Caller(job_limit=1, separate_accounts=True)
    assert [shared.buy().status, shared.buy_defapi().status] == [200, 429]
    assert [apart.buy().status, apart.buy_defapi().status] == [200, 200]


def test_the_limit_can_be_changed_while_jobs_run() -> None:
    caller = Caller(job_limit=1)
    caller.buy("1")
    caller.simulator.set_job_limit(2)
    assert [caller.buy(f"{n}").status for n in (2, 3)] == [200, 429]
    caller.simulator.set_job_limit(None, "apimall")
    assert caller.buy("4").status == 200
    caller.simulator.set_job_limit(0)
    assert caller.buy_defapi("5").status == 429


def test_the_limit_can_follow_a_schedule() -> None:
    caller = Caller(job_limit=1, limit_schedule=[(5.0, 2), (6.0, 0)])
    assert [caller.buy("1").status, caller.buy("2").status] == [200, 429]
    caller.now = 5.0
    assert caller.buy("3").status == 200
    caller.now = 60.0
    assert caller.buy("4").status == 429
    caller.simulator.set_limit_schedule([(70.0, None)])
    caller.now = 70.0
    assert caller.buy("5").status == 200


def test_unsorted_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="sorted"):
        Caller(limit_schedule=[(5.0, 2), (1.0, 0)])


def test_slot_can_be_freed_later_than_the_job_ends() -> None:
    caller = Caller(job_limit=1, slot_freed_after_s=3.0)
    task_id = caller.bought("1")
    caller.now = 12.9
    assert caller.polled(task_id)["status"] == "completed"
    assert caller.buy("2").status == 429
    caller.now = 13.0
    assert caller.buy("3").status == 200


def test_creates_have_a_rate() -> None:
    caller = Caller(creates_per_minute=60, rate_burst=2)
    assert [caller.buy(f"{n}").status for n in range(3)] == [200, 200, 429]
    caller.now = 1.0
    assert [caller.buy("4").status, code(caller.buy("5"))] == [200, "rate_limit_exceeded"]
    assert caller.stats().refusals_429 == {"creates": 2}


def test_queries_have_a_rate_of_their_own() -> None:
    caller = Caller(queries_per_minute=1)
    task_id = caller.bought()
    assert [caller.poll(task_id).status, caller.poll(task_id).status] == [200, 429]
    assert caller.buy_defapi().status == 200
    assert caller.stats().refusals_429 == {"queries": 1}


def test_a_429_states_its_kind_or_hides_it() -> None:
    stated, hidden = Caller(job_limit=0), Caller(job_limit=0, states_429_kind=False)
    assert code(stated.buy()) == "too_many_concurrent_jobs"
    assert body_of(stated.buy_defapi())["detail"] == "Too many concurrent jobs"
    assert code(hidden.buy()) == "too_many_requests"
    assert hidden.stats().refusals_429 == {"jobs": 1}


def test_retry_after_is_absent_or_seconds_or_a_date() -> None:
    absent = Caller(creates_per_minute=2, rate_burst=1)
    seconds = Caller(creates_per_minute=2, rate_burst=1, retry_after="seconds")
    date = Caller(creates_per_minute=2, rate_burst=1, retry_after="date")
    fixed = Caller(job_limit=0, retry_after="seconds", retry_after_s=7)
    said: list[str | None] = []
    for caller in (absent, seconds, date, fixed):
        caller.buy("1")
        said.append(caller.buy("2").headers.get("Retry-After"))
    assert said == [None, "30", "Thu, 01 Jan 2026 00:00:30 GMT", "7"]


def test_price_depends_on_resolution_and_images() -> None:
    caller = Caller(credits=50)
    variants: list[dict[str, Any]] = [{}, {"resolution": "4K"}, {"num_images": 2}]
    used = [body_of(caller.buy(f"{n}", **fields))["data"]["credits_used"] for n, fields in enumerate(variants)]
    assert used == [8, 16, 16]
    response = caller.buy("too much", num_images=2)
    assert (response.status, code(response)) == (402, "insufficient_credits")
    caller.simulator.add_credits("0.5")
    stats = caller.stats()
    assert (stats.credits_charged, stats.credits_remaining) == (Decimal(40), Decimal("10.5"))


def test_prices_need_not_be_whole() -> None:
    caller = Caller(credits="1", apimall_prices={"1K": Decimal("0.25")})
    data = body_of(caller.buy())["data"]
    assert (data["credits_used"], data["remaining_credits"]) == (0.25, 0.75)


def test_a_failed_job_is_refunded_when_it_ends() -> None:
    caller = Caller(credits=100)
    task_id = caller.bought("a [fail] fox")
    assert caller.stats().credits_remaining == 92
    caller.now = 10.0
    seen = caller.polled(task_id)
    assert (seen["credits_used"], seen["credits_refunded"]) == (8, 8)
    stats = caller.stats()
    assert (stats.credits_remaining, stats.credits_refunded, stats.failed) == (Decimal(100), Decimal(8), 1)


def test_failed_job_stays_charged_without_refunds() -> None:
    caller = Caller(credits=100, refund_on_failure=False)
    task_id = caller.bought("a [fail] fox")
    caller.now = 10.0
    assert caller.polled(task_id)["credits_refunded"] == 0
    assert caller.stats().credits_remaining == 92


def test_a_repeated_key_gets_the_same_bytes_again() -> None:
    caller = Caller(credits=100)
    first = caller.buy(key="k")
    caller.buy("other", key="other")
    caller.now = 500.0
    assert caller.buy(key="k").body == first.body
    stats = caller.stats()
    assert (stats.creates_accepted, stats.replays, stats.double_charges) == (2, 1, 0)


@pytest.mark.parametrize("manner", ["replay", "conflict", "refuse", "forget"])
def test_a_key_with_another_body_is_a_conflict(manner: Idempotency) -> None:
    caller = Caller(idempotency=manner)
    caller.buy(key="k", num_images=1)
    response = caller.buy(key="k", num_images=2)
    assert (response.status, code(response)) == (409, "idempotency_conflict")


def test_field_order_does_not_change_a_body() -> None:
    caller = Caller()
    caller.post("/api/v1/images/generate", b'{"model":"nano-banana-pro","prompt":"x"}', Idempotency_Key="k")
    response = caller.post("/api/v1/images/generate", b'{"prompt":"x", "model":"nano-banana-pro"}', Idempotency_Key="k")
    assert (response.status, caller.stats().replays) == (200, 1)


def test_key_conflicts_while_its_job_runs_then_replays() -> None:
    caller = Caller(idempotency="conflict")
    first = caller.buy(key="k")
    assert caller.buy(key="k").status == 409
    caller.now = 10.0
    assert caller.buy(key="k").body == first.body


def test_repeated_key_may_be_refused_for_ever_without_its_task() -> None:
    caller = Caller(
        idempotency="refuse", random_faults=[RandomFault(1.0, faults.reset(processed=True), "apimall.create")]
    )
    caller.buy(key="k")
    (job,) = caller.simulator.jobs(0.0)
    caller.simulator.queue_faults("apimall.create", faults.delay(0), faults.delay(0))
    for caller.now in (1.0, 100.0):
        response = caller.buy(key="k")
        assert (response.status, code(response)) == (409, "idempotency_conflict")
        assert job.task_id.encode() not in response.body
    assert (caller.stats().creates_accepted, caller.stats().lost_creates) == (1, 1)


def test_forgotten_key_charges_again_and_counts_as_double() -> None:
    caller = Caller(idempotency="forget", forget_keys_after_s=30)
    first = caller.bought(key="k")
    caller.now = 29.9
    assert caller.bought(key="k") == first
    caller.now = 30.0
    assert caller.bought(key="k") != first
    stats = caller.stats()
    assert (stats.creates_accepted, stats.double_charges, stats.credits_charged) == (2, 1, Decimal(16))


def test_a_refused_create_leaves_no_key_behind() -> None:
    caller = Caller(job_limit=0, credits=8)
    assert caller.buy(key="k").status == 429
    caller.simulator.set_job_limit(5)
    assert caller.buy("other", key="k").status == 200
    assert caller.buy(key="k2").status == 402
    caller.simulator.add_credits(8)
    assert caller.buy("again other", key="k2").status == 200


def test_defapi_ignores_keys_and_counts_equal_bodies_as_double() -> None:
    caller = Caller()
    first, second = caller.bought_defapi(), caller.bought_defapi()
    assert first != second
    assert caller.stats().double_charges == 1


def test_uniqueness_can_be_judged_by_the_prompt() -> None:
    caller = Caller(double_charges_by="prompt")
    caller.buy(key="1")
    caller.buy(key="2")
    assert caller.stats().double_charges == 1

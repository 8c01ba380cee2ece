"""Caps, prices, charges, and amounts as users write them."""

from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from typing import Any

import pytest

from nanobanana_async.errors import ConfigurationError
from nanobanana_async.jobs import JobRecord, JobState
from nanobanana_async.models import ImageRequest
from nanobanana_async.policy.budget import NEVER_ASK_AGAIN, Affordable, LedgerCap, MemoryCap
from nanobanana_async.policy.prices import (
    MAX_CREDITS,
    Basis,
    Charge,
    Price,
    Prices,
    charge_of,
    format_amount,
    from_billionths,
    parse_credits,
    refusal_reason,
    to_billionths,
)
from tests.support.rows import each_row

NOW, LATER, NEVER = Affordable.NOW, Affordable.LATER, Affordable.NEVER
EIGHT = Decimal(8)
FOX = Price("fox", EIGHT)
GUESS = Price("fox", EIGHT, Basis.EXAMPLE)
EXPECTED = Price("fox", EIGHT, Basis.EXPECTED)
AGREED = Price("fox", EIGHT, Basis.CHARGED_AS_EXPECTED)


def a_budget(limit: str) -> tuple[MemoryCap, Prices]:
    prices = Prices()
    return MemoryCap(Decimal(limit), prices), prices


def test_jobs_fit_up_to_the_cap_and_the_next_waits() -> None:
    budget, _ = a_budget("24")
    for key in "abc":
        assert budget.affordability_of(FOX) is NOW
        budget.reserve(key, FOX)
    assert budget.affordability_of(FOX) is LATER
    assert budget.reserved == 24
    for key in "abc":
        budget.charge(key, EIGHT)
    assert budget.spent == 24
    assert budget.reserved == 0
    assert budget.affordability_of(FOX) is NEVER
    assert budget.explain_refusal(FOX) == "max_credits is 24, 24 are spent, and a job for 8 would pass it"


@each_row(("cost", "spent"), [(EIGHT, 8), (Decimal(0), 0), (Decimal(3), 3), (None, 8)])
@each_row("price", [FOX, EXPECTED, AGREED])
def test_ended_job_is_charged_its_cost_or_its_reservation(price: Price, cost: Decimal | None, spent: int) -> None:
    budget, _ = a_budget("8")
    budget.reserve("a", price)
    budget.charge("a", cost)
    budget.charge("a", cost)
    assert budget.spent == spent
    assert budget.reserved == 0


def test_released_reservation_is_free_again() -> None:
    budget, _ = a_budget("8")
    budget.reserve("a", FOX)
    budget.release("a")
    budget.release("a")
    assert budget.spent == 0
    assert budget.reserved == 0
    assert budget.affordability_of(FOX) is NOW


@pytest.mark.parametrize("price", [GUESS, EXPECTED], ids=["example", "expected"])
def test_estimates_run_one_at_a_time_across_classes(price: Price) -> None:
    budget, prices = a_budget("80")
    owl = Price("owl", EIGHT, price.basis)
    assert budget.affordability_of(price) is NOW
    budget.reserve("a", price)
    assert (budget.affordability_of(price), budget.affordability_of(owl)) == (LATER, LATER)
    assert budget.affordability_of(Price("crow", EIGHT)) is NOW  # a known price
    prices.learn("fox", EIGHT)
    budget.set_price("a", EIGHT)
    assert budget.affordability_of(owl) is NOW
    assert budget.reserved == 8


def test_estimate_above_the_cap_is_refused() -> None:
    budget, _ = a_budget("7")
    assert budget.affordability_of(GUESS) is NEVER
    assert budget.explain_refusal(GUESS) == (
        "max_credits is 7, 0 are spent, and a job estimated at 8 would pass it: the estimate is what such jobs cost"
        " earlier or in the gateway's reference, their price is not known yet; raise max_credits, or in a batch"
        " expected_credits sets another estimate"
    )
    assert "the estimate is expected_credits" in budget.explain_refusal(EXPECTED)
    assert "the gateway does not state what such jobs cost" in budget.explain_refusal(AGREED)


@pytest.mark.parametrize("end", ["suspend", "charge"])
def test_unknown_cost_blocks_estimates_until_expected_credits_is_set(end: str) -> None:
    budget, prices = a_budget("80")
    budget.reserve("a", GUESS)
    if end == "suspend":
        budget.suspend("a")
    else:
        budget.charge("a", None)
    assert budget.affordability_of(GUESS) is NEVER
    assert "a job estimated at 8 is not bought: an earlier job was bought at an estimate" in budget.explain_refusal(
        GUESS
    )
    assert budget.affordability_of(Price("fox", Decimal(30), Basis.EXPECTED)) is NOW
    assert budget.spent + budget.reserved == 30  # the user's estimate counts for the first job too
    assert budget.affordability_of(Price("owl", Decimal(51))) is NEVER
    assert prices.price_of("fox") is None


@pytest.mark.parametrize("end", ["suspend", "charge"])
def test_price_learned_later_applies_to_earlier_jobs(end: str) -> None:
    budget, prices = a_budget("16")
    budget.reserve("a", Price("fox", Decimal(2), Basis.EXAMPLE))
    if end == "suspend":
        budget.suspend("a")
    else:
        budget.charge("a", None)
    assert budget.reserved == 2
    prices.learn("fox", EIGHT)
    assert budget.reserved + budget.spent == 8 or budget.spent == 8
    assert budget.affordability_of(FOX) is NOW
    budget.reserve("b", FOX)
    budget.charge("b", EIGHT)
    assert budget.affordability_of(FOX) is NEVER
    assert budget.explain_refusal(FOX).startswith(
        "max_credits is 16, 16 are spent" if end == "charge" else "max_credits is 16, 8"
    )


def test_job_in_doubt_stays_reserved_and_is_not_awaited() -> None:
    budget, _ = a_budget("8")
    budget.reserve("a", FOX)
    budget.suspend("a")
    assert budget.affordability_of(FOX) is NEVER
    assert budget.reserved == 8
    assert "8 are reserved for jobs in doubt" in budget.explain_refusal(FOX)
    budget.resume("a")
    assert budget.affordability_of(FOX) is LATER
    budget.suspend("a")
    budget.set_price("a", EIGHT)
    assert budget.affordability_of(FOX) is LATER
    budget.suspend("a")
    budget.reserve("a", FOX)
    assert budget.affordability_of(FOX) is LATER
    assert budget.reserved == 8


def test_unknown_jobs_do_not_change_the_budget() -> None:
    budget, _ = a_budget("8")
    budget.set_price("b", EIGHT)
    budget.suspend("b")
    budget.resume("b")
    budget.charge("b", EIGHT)
    budget.release("b")
    assert budget.spent == 0
    assert budget.reserved == 0
    assert budget.affordability_of(FOX) is NOW


def test_price_above_its_estimate_passes_the_cap_once() -> None:
    budget, prices = a_budget("10")
    budget.reserve("a", GUESS)
    prices.learn("fox", Decimal(28))
    budget.set_price("a", Decimal(28))
    assert budget.reserved == 28
    assert budget.affordability_of(prices.estimate("fox", EIGHT, None)) is LATER
    budget.charge("a", Decimal(28))
    assert budget.affordability_of(prices.estimate("fox", EIGHT, None)) is NEVER


@pytest.mark.parametrize(("price", "answer"), [(GUESS, NEVER), (FOX, NEVER), (Price("fox", Decimal(0)), NOW)])
def test_cap_of_zero_allows_only_free_jobs(price: Price, answer: Affordable) -> None:
    budget, _ = a_budget("0")
    assert budget.affordability_of(price) is answer


def test_prices_start_as_estimates_and_are_learned() -> None:
    prices = Prices()
    assert prices.estimate("fox", EIGHT, None) == GUESS
    assert prices.estimate("fox", Decimal(1), EIGHT) == EXPECTED
    prices.learn("fox", None)  # a job has ended, and the gateway did not say what it cost
    assert prices.estimate("fox", EIGHT, None) == GUESS
    assert prices.estimate("fox", Decimal(1), EIGHT) == AGREED
    prices.learn("fox", EIGHT)
    assert prices.estimate("fox", Decimal(1), Decimal(2)) == FOX
    prices.learn("fox", None)
    assert prices.price_of("fox") == 8


def test_batch_budget_asks_the_ledger_until_a_refusal() -> None:
    cap = LedgerCap(Decimal(80))
    assert cap.affordability_of(GUESS) is NOW
    cap.reserve("a", GUESS)
    assert cap.affordability_of(GUESS) is LATER  # the first job makes the price known
    assert cap.affordability_of(FOX) is NOW
    cap.resume("a")
    cap.set_price("a", EIGHT)
    assert cap.affordability_of(GUESS) is NOW
    cap.on_refused(FOX, NEVER, "no room", ask_again_at=7.0)
    assert (cap.affordability_of(FOX), cap.explain_refusal(FOX), cap.ask_again_at) == (NEVER, "no room", 7.0)
    assert cap.affordability_of(Price("owl", EIGHT)) is NOW
    changes: list[Callable[[], None]] = [
        partial(cap.charge, "a", None),
        partial(cap.suspend, "a"),
        partial(cap.release, "a"),
        cap.forget_refusals,
    ]
    for change in changes:
        cap.on_refused(FOX, LATER, "no room", ask_again_at=7.0)
        assert cap.affordability_of(FOX) is LATER
        change()
        assert (cap.affordability_of(FOX), cap.ask_again_at) == (NOW, NEVER_ASK_AGAIN)
    cap.reserve("b", FOX)
    assert cap.affordability_of(GUESS) is NOW


def test_job_that_the_ledger_refused_leaves_the_refusals_of_others() -> None:
    cap = LedgerCap(Decimal(80))
    cap.on_refused(FOX, LATER, "no room", ask_again_at=7.0)
    cap.reserve("owl", GUESS)
    cap.take_back("owl")
    cap.on_refused(Price("owl", EIGHT), LATER, "no room", ask_again_at=9.0)
    assert (cap.affordability_of(FOX), cap.affordability_of(Price("owl", EIGHT))) == (LATER, LATER)
    assert cap.ask_again_at == 7.0
    session_cap, _ = a_budget("16")
    session_cap.reserve("owl", FOX)
    session_cap.take_back("owl")
    assert session_cap.reserved == 0


def a_record(state: JobState, **facts: Any) -> JobRecord:
    amounts: dict[str, Any] = {
        name: Decimal(value) if isinstance(value, int) and name != "in_doubt" else value
        for name, value in facts.items()
    }
    return JobRecord(
        key="k",
        gateway="apimall",
        account="mine",
        request=ImageRequest("a fox"),
        body=b"",
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        state=state,
        **amounts,
    )


@each_row(
    ("record", "charge"),
    [
        (a_record(JobState.PENDING), None),
        (a_record(JobState.PENDING, in_doubt=True), (None, False, False)),
        (a_record(JobState.REFUSED), None),
        (a_record(JobState.WITHDRAWN), None),
        (a_record(JobState.SUBMITTING), (None, True, False)),
        (a_record(JobState.UNCERTAIN, in_doubt=True), (None, False, False)),
        (a_record(JobState.RUNNING), (None, True, False)),
        (a_record(JobState.RUNNING, credits_used=0), (None, True, False)),
        (a_record(JobState.RUNNING, credits_used=8), (8, True, False)),
        (a_record(JobState.SUCCEEDED), (None, False, True)),
        (a_record(JobState.SUCCEEDED, credits_used=0), (0, False, True)),
        (a_record(JobState.SUCCEEDED, credits_used=8, credits_refunded=3), (5, False, True)),
        (a_record(JobState.FAILED), (None, False, True)),
        (a_record(JobState.FAILED, credits_used=8), (8, False, True)),
        (a_record(JobState.FAILED, credits_used=8, credits_refunded=8), (0, False, True)),
        (a_record(JobState.FAILED, credits_used=0), (0, False, True)),
    ],
)
def test_charge_follows_from_the_record(record: JobRecord, charge: tuple[int | None, bool, bool] | None) -> None:
    if charge is None:
        assert charge_of(record) is None
    else:
        cost, under_way, over = charge
        wanted = None if cost is None else Decimal(cost)
        assert charge_of(record) == Charge(credits=wanted, under_way=under_way, is_final=over)


def test_decimal_amounts_add_up_exactly() -> None:
    limit = parse_credits("max_credits", 0.3)
    assert limit is not None
    budget, price = MemoryCap(limit, Prices()), Price("fox", Decimal("0.100000"))
    for key in "abc":
        assert budget.affordability_of(price) is NOW
        budget.reserve(key, price)
        budget.charge(key, Decimal("0.100000"))
    assert budget.spent == Decimal("0.3")
    assert budget.affordability_of(price) is NEVER


@each_row(
    ("value", "amount"),
    [
        (80, "80"),
        (0.1, "0.1"),
        (0.1 + 0.2, "0.3"),
        (Decimal("0.500000"), "0.5"),
        (Decimal("1.25"), "1.25"),
        (0, "0"),
        (-0.0, "0"),
        (1e9, "1e9"),
        (Decimal("1e-9"), "0.000000001"),
    ],
)
def test_amount_is_kept_as_written_to_the_billionth(value: Any, amount: str) -> None:
    assert parse_credits("max_credits", value) == Decimal(amount)


@each_row("zero", [-0.0, Decimal("-0"), Decimal("-0.00"), Decimal("0E+30")])
def test_negative_zero_becomes_zero(zero: Any) -> None:
    assert str(parse_credits("expected_credits", zero)) == "0"


def test_refused_decimal_is_shown_as_written() -> None:
    with pytest.raises(ConfigurationError, match=r"max_credits must be a number of at least 0, not NaN$"):
        parse_credits("max_credits", Decimal("NaN"))


def test_none_is_no_limit() -> None:
    assert parse_credits("max_credits", None) is None


@each_row(
    "bad", [-1, "5", "-0.01", "eight", "", True, False, float("nan"), float("-inf"), "sNaN", "Infinity", [8], b"8"]
)
def test_invalid_amount_is_refused_by_name(bad: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_credits("expected_credits", bad)
    assert str(caught.value) == f"expected_credits must be a number of at least 0, not {bad!r}"


def repr_of(value: object) -> str:
    return type(value).__name__


@each_row(
    "bad",
    [10**5000, 1e21, Decimal("1000000000.1"), Decimal("1E+1000000"), Decimal("1E-1000000"), Decimal("1e-10")],
)
def test_amount_out_of_range_gives_a_short_message(bad: Any) -> None:
    with pytest.raises(
        ConfigurationError, match=r"max_credits must be 0, or from 0\.000000001 to 1000000000"
    ) as caught:
        parse_credits("max_credits", bad)
    assert len(str(caught.value)) < 200


def test_long_text_is_cut_in_the_message() -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_credits("max_credits", "8" * 500 + "x")  # type: ignore[arg-type]
    assert len(str(caught.value)) < 200


@each_row(
    ("amount", "whole"),
    [("0", 0), ("0.5", 500_000_000), ("1e-9", 1), ("1e-12", 1), ("-3", 0), ("1e20", 10**18)],
)
def test_units_count_billionths_rounded_up(amount: str, whole: int) -> None:
    assert to_billionths(Decimal(amount)) == whole
    assert from_billionths(10**18) == MAX_CREDITS


@pytest.mark.parametrize(("amount", "text"), [("0.500000", "0.5"), ("8", "8"), ("1e9", "1000000000"), ("0.000", "0")])
def test_plain_shows_amounts_without_exponent(amount: str, text: str) -> None:
    assert format_amount(Decimal(amount)) == text


def test_message_of_a_passed_cap() -> None:
    assert refusal_reason(FOX, limit=Decimal(10), spent=Decimal(28)) == (
        "max_credits is 10, 28 are spent, and a job for 8 would pass it"
    )

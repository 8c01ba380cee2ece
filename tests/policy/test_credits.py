"""What may be spent, as arithmetic: caps in any order of events, prices, charges, and amounts as people write them."""

from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from typing import Any

import pytest

from nanobanana_async.errors import ConfigurationError
from nanobanana_async.jobs import JobRecord, JobState
from nanobanana_async.models import ImageRequest
from nanobanana_async.policy.budget import NEVER_ASK_AGAIN, Affordable, BatchBudget, Budget
from nanobanana_async.policy.prices import (
    MAX_CREDITS,
    Basis,
    Charge,
    Price,
    Prices,
    as_credits,
    charge_of,
    credits_in,
    plain,
    units,
    why_not,
)

NOW, LATER, NEVER = Affordable.NOW, Affordable.LATER, Affordable.NEVER
EIGHT = Decimal(8)
FOX = Price("fox", EIGHT)
GUESS = Price("fox", EIGHT, Basis.EXAMPLE)
HOPE = Price("fox", EIGHT, Basis.EXPECTED)
WORD = Price("fox", EIGHT, Basis.AGREED)


def a_budget(limit: str) -> tuple[Budget, Prices]:
    prices = Prices()
    return Budget(Decimal(limit), prices), prices


def test_as_many_as_fit_may_be_bought_and_the_next_waits_for_them() -> None:
    budget, _ = a_budget("24")
    for key in "abc":
        assert budget.check(FOX) is NOW
        budget.reserve(key, FOX)
    assert budget.check(FOX) is LATER
    assert budget.reserved == 24
    for key in "abc":
        budget.charge(key, EIGHT)
    assert budget.spent == 24
    assert budget.reserved == 0
    assert budget.check(FOX) is NEVER
    assert budget.explain(FOX) == "max_credits is 24, 24 are spent, and a job for 8 would pass it"


@pytest.mark.parametrize(("cost", "spent"), [(EIGHT, 8), (Decimal(0), 0), (Decimal(3), 3), (None, 8)])
@pytest.mark.parametrize("price", [FOX, HOPE, WORD], ids=["told", "expected", "agreed"])
def test_a_job_is_settled_by_its_cost_or_by_what_was_set_aside(price: Price, cost: Decimal | None, spent: int) -> None:
    budget, _ = a_budget("8")
    budget.reserve("a", price)
    budget.charge("a", cost)
    budget.charge("a", cost)
    assert budget.spent == spent
    assert budget.reserved == 0


def test_what_was_not_bought_is_given_back() -> None:
    budget, _ = a_budget("8")
    budget.reserve("a", FOX)
    budget.release("a")
    budget.release("a")
    assert budget.spent == 0
    assert budget.reserved == 0
    assert budget.check(FOX) is NOW


@pytest.mark.parametrize("price", [GUESS, HOPE], ids=["example", "expected"])
def test_estimates_go_one_at_a_time_across_all_classes(price: Price) -> None:
    budget, prices = a_budget("80")
    owl = Price("owl", EIGHT, price.basis)
    assert budget.check(price) is NOW
    budget.reserve("a", price)
    assert (budget.check(price), budget.check(owl)) == (LATER, LATER)
    assert budget.check(Price("crow", EIGHT)) is NOW  # its price is known
    prices.learn("fox", EIGHT)
    budget.set_price("a", EIGHT)
    assert budget.check(owl) is NOW
    assert budget.reserved == 8


def test_nothing_is_bought_whose_estimate_passes_the_cap() -> None:
    budget, _ = a_budget("7")
    assert budget.check(GUESS) is NEVER
    assert budget.explain(GUESS) == (
        "max_credits is 7, 0 are spent, and a job estimated at 8 would pass it: the estimate is the example of the gateway's"
        " reference, the price of such jobs is not known yet; expected_credits sets another estimate"
    )
    assert "the estimate is expected_credits" in budget.explain(HOPE)
    assert "the gateway does not state what such jobs cost" in budget.explain(WORD)


@pytest.mark.parametrize("end", ["park", "settle"])
def test_an_estimate_that_nobody_will_tell_stops_the_others_until_the_user_says_what_it_is(end: str) -> None:
    budget, prices = a_budget("80")
    budget.reserve("a", GUESS)
    if end == "park":
        budget.suspend("a")
    else:
        budget.charge("a", None)
    assert budget.check(GUESS) is NEVER
    assert "a job estimated at 8 is not bought while the cost of an earlier job" in budget.explain(GUESS)
    assert budget.check(Price("fox", Decimal(30), Basis.EXPECTED)) is NOW
    assert budget.spent + budget.reserved == 30  # the user's word stands for the first one, too
    assert budget.check(Price("owl", Decimal(51))) is NEVER
    assert prices.of("fox") is None


@pytest.mark.parametrize("end", ["park", "settle"])
def test_a_price_told_later_counts_for_what_was_bought_before(end: str) -> None:
    budget, prices = a_budget("16")
    budget.reserve("a", Price("fox", Decimal(2), Basis.EXAMPLE))
    if end == "park":
        budget.suspend("a")
    else:
        budget.charge("a", None)
    assert budget.reserved == 2
    prices.learn("fox", EIGHT)
    assert budget.reserved + budget.spent == 8 or budget.spent == 8
    assert budget.check(FOX) is NOW
    budget.reserve("b", FOX)
    budget.charge("b", EIGHT)
    assert budget.check(FOX) is NEVER
    assert budget.explain(FOX).startswith(
        "max_credits is 16, 16 are spent" if end == "settle" else "max_credits is 16, 8"
    )


def test_what_is_in_doubt_stays_set_aside_and_is_not_waited_for() -> None:
    budget, _ = a_budget("8")
    budget.reserve("a", FOX)
    budget.suspend("a")
    assert budget.check(FOX) is NEVER
    assert budget.reserved == 8
    assert "8 are reserved for jobs in doubt" in budget.explain(FOX)
    budget.resume("a")
    assert budget.check(FOX) is LATER
    budget.suspend("a")
    budget.set_price("a", EIGHT)
    assert budget.check(FOX) is LATER
    budget.suspend("a")
    budget.reserve("a", FOX)
    assert budget.check(FOX) is LATER
    assert budget.reserved == 8


def test_jobs_that_draw_on_something_else_change_nothing() -> None:
    budget, _ = a_budget("8")
    budget.set_price("b", EIGHT)
    budget.suspend("b")
    budget.resume("b")
    budget.charge("b", EIGHT)
    budget.release("b")
    assert budget.spent == 0
    assert budget.reserved == 0
    assert budget.check(FOX) is NOW


def test_a_price_above_its_estimate_passes_the_cap_once() -> None:
    budget, prices = a_budget("10")
    budget.reserve("a", GUESS)
    prices.learn("fox", Decimal(28))
    budget.set_price("a", Decimal(28))
    assert budget.reserved == 28
    assert budget.check(prices.estimate("fox", EIGHT, None)) is LATER
    budget.charge("a", Decimal(28))
    assert budget.check(prices.estimate("fox", EIGHT, None)) is NEVER


@pytest.mark.parametrize(("price", "answer"), [(GUESS, NEVER), (FOX, NEVER), (Price("fox", Decimal(0)), NOW)])
def test_of_nothing_only_what_is_free_may_be_bought(price: Price, answer: Affordable) -> None:
    budget, _ = a_budget("0")
    assert budget.check(price) is answer


def test_prices_begin_as_estimates_and_are_learned() -> None:
    prices = Prices()
    assert prices.estimate("fox", EIGHT, None) == GUESS
    assert prices.estimate("fox", Decimal(1), EIGHT) == HOPE
    prices.learn("fox", None)  # a job has ended, and the gateway did not say what it cost
    assert prices.estimate("fox", EIGHT, None) == GUESS
    assert prices.estimate("fox", Decimal(1), EIGHT) == WORD
    prices.learn("fox", EIGHT)
    assert prices.estimate("fox", Decimal(1), Decimal(2)) == FOX
    prices.learn("fox", None)
    assert prices.of("fox") == 8


def test_the_cap_of_a_named_batch_asks_the_ledger_until_it_says_no() -> None:
    cap = BatchBudget(Decimal(80))
    assert cap.check(GUESS) is NOW
    cap.reserve("a", GUESS)
    assert cap.check(GUESS) is LATER  # the first one will tell
    assert cap.check(FOX) is NOW
    cap.resume("a")
    cap.set_price("a", EIGHT)
    assert cap.check(GUESS) is NOW
    cap.refused(FOX, NEVER, "no room", asks_at=7.0)
    assert (cap.check(FOX), cap.explain(FOX), cap.asks_at) == (NEVER, "no room", 7.0)
    assert cap.check(Price("owl", EIGHT)) is NOW
    changes: list[Callable[[], None]] = [
        partial(cap.charge, "a", None),
        partial(cap.suspend, "a"),
        partial(cap.release, "a"),
        cap.ask_again,
    ]
    for change in changes:
        cap.refused(FOX, LATER, "no room", asks_at=7.0)
        assert cap.check(FOX) is LATER
        change()
        assert (cap.check(FOX), cap.asks_at) == (NOW, NEVER_ASK_AGAIN)
    cap.reserve("b", FOX)
    assert cap.check(GUESS) is NOW


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


@pytest.mark.parametrize(
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
def test_what_a_purchase_has_cost_by_its_record(
    record: JobRecord, charge: tuple[int | None, bool, bool] | None
) -> None:
    if charge is None:
        assert charge_of(record) is None
    else:
        cost, under_way, over = charge
        wanted = None if cost is None else Decimal(cost)
        assert charge_of(record) == Charge(credits=wanted, under_way=under_way, over=over)


def test_three_times_a_tenth_is_three_tenths() -> None:
    limit = as_credits("max_credits", 0.3)
    assert limit is not None
    budget, price = Budget(limit, Prices()), Price("fox", Decimal("0.100000"))
    for key in "abc":
        assert budget.check(price) is NOW
        budget.reserve(key, price)
        budget.charge(key, Decimal("0.100000"))
    assert budget.spent == Decimal("0.3")
    assert budget.check(price) is NEVER


@pytest.mark.parametrize(
    ("value", "amount"),
    [
        (80, "80"),
        (0.1, "0.1"),
        (0.1 + 0.2, "0.3"),
        ("0.500000", "0.5"),
        (Decimal("1.25"), "1.25"),
        (0, "0"),
        (-0.0, "0"),
        (1e9, "1e9"),
        ("1e-9", "0.000000001"),
    ],
)
def test_an_amount_is_taken_as_it_was_written_to_the_billionth(value: Any, amount: str) -> None:
    assert as_credits("max_credits", value) == Decimal(amount)


def test_no_limit_is_no_limit() -> None:
    assert as_credits("max_credits", None) is None


@pytest.mark.parametrize(
    "bad", [-1, "-0.01", "eight", "", True, False, float("nan"), float("-inf"), "sNaN", "Infinity", [8], b"8"]
)
def test_what_is_no_amount_is_refused_by_its_name(bad: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        as_credits("expected_credits", bad)
    assert str(caught.value) == f"expected_credits must be a number of at least 0, not {bad!r}"


def repr_of(value: object) -> str:
    return type(value).__name__


@pytest.mark.parametrize(
    "bad", [10**5000, 1e21, "1000000000.1", Decimal("1E+1000000"), "1E-1000000", "1e-10"], ids=repr_of
)
def test_an_amount_that_nobody_means_is_refused_in_a_short_sentence(bad: Any) -> None:
    with pytest.raises(
        ConfigurationError, match=r"max_credits must be 0, or from 0\.000000001 to 1000000000"
    ) as caught:
        as_credits("max_credits", bad)
    assert len(str(caught.value)) < 200


def test_a_long_text_is_cut_in_the_message() -> None:
    with pytest.raises(ConfigurationError) as caught:
        as_credits("max_credits", "8" * 500 + "x")
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("amount", "whole"),
    [("0", 0), ("0.5", 500_000_000), ("1e-9", 1), ("1e-12", 1), ("-3", 0), ("1e20", 10**18)],
)
def test_amounts_are_summed_in_billionths_and_rounded_against_the_spender(amount: str, whole: int) -> None:
    assert units(Decimal(amount)) == whole
    assert credits_in(10**18) == MAX_CREDITS


@pytest.mark.parametrize(("amount", "text"), [("0.500000", "0.5"), ("8", "8"), ("1e9", "1000000000"), ("0.000", "0")])
def test_amounts_are_shown_plainly(amount: str, text: str) -> None:
    assert plain(Decimal(amount)) == text


def test_a_cap_that_was_passed_says_so() -> None:
    assert why_not(FOX, limit=Decimal(10), spent=Decimal(28)) == (
        "max_credits is 10, 28 are spent, and a job for 8 would pass it"
    )

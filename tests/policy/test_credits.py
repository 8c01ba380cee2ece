"""What may be spent, as arithmetic: budgets in any order of events, prices, and amounts as people write them."""

from decimal import Decimal
from typing import Any

import pytest

from nanobanana_async.errors import ConfigurationError
from nanobanana_async.policy.credits import Budget, Consent, Prices, as_credits

NOW, LATER, NEVER = Consent.NOW, Consent.LATER, Consent.NEVER
EIGHT = Decimal(8)


def a_budget(limit: str, price: str | None = None, **facts: Any) -> tuple[Budget, Prices]:
    prices = Prices()
    if price is not None:
        prices.learn("fox", Decimal(price))
    return Budget(Decimal(limit), prices, **facts), prices


def test_as_many_as_fit_may_be_bought_and_the_next_waits_for_them() -> None:
    budget, _ = a_budget("24", "8")
    for key in "abc":
        assert budget.consent("fox") is NOW
        budget.reserve(key, "fox")
    assert budget.consent("fox") is LATER
    assert budget.reserved == 24
    for key in "abc":
        budget.settle(key, "fox", EIGHT)
    assert budget.spent == 24
    assert budget.reserved == 0
    assert budget.consent("fox") is NEVER


def test_what_earlier_runs_have_spent_counts() -> None:
    budget, _ = a_budget("24", "8", spent=Decimal(17))
    assert budget.consent("fox") is NEVER
    assert budget.why("fox") == "max_credits is 24, 17 are spent, and a job for 8 would pass it"


@pytest.mark.parametrize(("cost", "spent"), [(EIGHT, 8), (Decimal(0), 0), (Decimal(3), 3), (None, 8), (Decimal(-8), 0)])
def test_a_job_is_settled_by_its_cost_or_by_what_was_set_aside(cost: Decimal | None, spent: int) -> None:
    budget, _ = a_budget("8", "8")
    budget.reserve("a", "fox")
    budget.settle("a", "fox", cost)
    budget.settle("a", "fox", cost)
    assert budget.spent == spent
    assert budget.reserved == 0


def test_what_was_not_bought_is_given_back() -> None:
    budget, _ = a_budget("8", "8")
    budget.reserve("a", "fox")
    budget.release("a", "fox")
    budget.release("a", "fox")
    assert budget.spent == 0
    assert budget.reserved == 0
    assert budget.consent("fox") is NOW


def test_an_unknown_price_is_learned_by_one_alone() -> None:
    budget, prices = a_budget("80")
    assert budget.consent("fox") is NOW
    budget.reserve("a", "fox")
    assert (budget.consent("fox"), budget.consent("owl")) == (LATER, NOW)
    prices.learn("fox", EIGHT)
    budget.told("a", "fox", EIGHT)
    assert budget.consent("fox") is NOW
    assert budget.reserved == 8


@pytest.mark.parametrize("end", ["release", "park", "settle"])
def test_the_next_goes_alone_when_the_first_did_not_tell(end: str) -> None:
    budget, _ = a_budget("80")
    budget.reserve("a", "fox")
    if end == "release":
        budget.release("a", "fox")
    elif end == "park":
        budget.park("a")
    else:
        budget.settle("a", "fox", None)
    assert budget.consent("fox") is NOW
    budget.reserve("b", "fox")
    assert budget.consent("fox") is LATER


@pytest.mark.parametrize("end", ["park", "settle"])
def test_a_price_told_later_counts_for_what_was_bought_before(end: str) -> None:
    budget, prices = a_budget("16")
    budget.reserve("a", "fox")
    if end == "park":
        budget.park("a")
    else:
        budget.settle("a", "fox", None)
    prices.learn("fox", EIGHT)
    assert budget.reserved == 8
    assert budget.consent("fox") is NOW
    budget.reserve("b", "fox")
    budget.settle("b", "fox", EIGHT)
    assert budget.consent("fox") is NEVER
    assert budget.why("fox") == (
        "max_credits is 16, 8 are spent, 8 are set aside for jobs in doubt, and a job for 8 would pass it"
    )


def test_what_is_in_doubt_stays_set_aside_and_is_not_waited_for() -> None:
    budget, _ = a_budget("8", "8")
    budget.reserve("a", "fox")
    budget.park("a")
    assert budget.consent("fox") is NEVER
    assert budget.reserved == 8
    budget.follow("a")
    assert budget.consent("fox") is LATER
    budget.park("a")
    budget.told("a", "fox", EIGHT)
    assert budget.consent("fox") is LATER
    budget.park("a")
    budget.reserve("a", "fox")
    assert budget.consent("fox") is LATER
    assert budget.reserved == 8


def test_jobs_that_draw_on_something_else_change_nothing() -> None:
    budget, _ = a_budget("8", "8")
    budget.told("b", "fox", EIGHT)
    budget.park("b")
    budget.follow("b")
    budget.settle("b", "fox", EIGHT)
    budget.release("b", "fox")
    assert budget.spent == 0
    assert budget.reserved == 0
    assert budget.consent("fox") is NOW


def test_what_was_expected_stands_for_an_unknown_price_and_goes_when_the_true_one_comes() -> None:
    budget, prices = a_budget("24", expected=EIGHT)
    for key in "abc":
        assert budget.consent("fox") is NOW
        budget.reserve(key, "fox")
    assert budget.consent("fox") is LATER
    assert budget.reserved == 24
    prices.learn("fox", Decimal(6))
    assert budget.reserved == 18
    assert budget.consent("fox") is NOW
    budget.settle("a", "fox", None)
    assert budget.spent == 6


def test_an_expectation_of_another_limit_may_be_handed_in() -> None:
    budget, prices = a_budget("15")
    assert budget.consent("fox", EIGHT) is NOW
    budget.reserve("a", "fox", EIGHT)
    assert budget.reserved == 8
    assert budget.consent("fox", EIGHT) is LATER
    budget.settle("a", "fox", EIGHT)
    prices.learn("fox", None)
    assert budget.consent("fox", EIGHT) is NEVER
    assert budget.why("fox", EIGHT) == "max_credits is 15, 8 are spent, and a job for 8 would pass it"
    assert budget.why("fox") == "the gateway does not say what such a job costs: say it in expected_credits"


def test_a_gateway_that_does_not_say_the_price_is_believed_only_until_it_does() -> None:
    budget, prices = a_budget("80")
    prices.learn("fox", None)
    assert prices.is_silent("fox")
    assert budget.consent("fox") is NEVER
    prices.learn("fox", EIGHT)
    assert not prices.is_silent("fox")
    assert budget.consent("fox") is NOW
    prices.learn("fox", None)
    assert prices.of("fox") == 8
    assert prices.is_silent("fox") is False


@pytest.mark.parametrize(("price", "answer"), [(None, NEVER), ("8", NEVER), ("0", NOW)])
def test_of_nothing_only_what_is_free_may_be_bought(price: str | None, answer: Consent) -> None:
    budget, _ = a_budget("0", price)
    assert budget.consent("fox") is answer
    if price is None:
        assert budget.why("fox") == "max_credits is 0, 0 are spent, and the next job would pass it"


def test_three_times_a_tenth_is_three_tenths() -> None:
    budget, _ = a_budget(str(as_credits("max_credits", 0.3)), "0.100000")
    for key in "abc":
        assert budget.consent("fox") is NOW
        budget.reserve(key, "fox")
        budget.settle(key, "fox", Decimal("0.100000"))
    assert budget.spent == Decimal("0.3")
    assert budget.consent("fox") is NEVER


@pytest.mark.parametrize(
    ("value", "amount"),
    [(80, "80"), (0.1, "0.1"), ("0.500000", "0.5"), (Decimal("1.25"), "1.25"), (0, "0"), (-0.0, "0"), (1e21, "1e21")],
)
def test_an_amount_is_taken_exactly_as_it_was_written(value: Any, amount: str) -> None:
    assert as_credits("max_credits", value) == Decimal(amount)


def test_no_limit_is_no_limit_and_a_very_large_one_is_one() -> None:
    assert as_credits("max_credits", None) is None
    assert as_credits("max_credits", 10**5000) == Decimal("1e5000")


@pytest.mark.parametrize(
    "bad", [-1, "-0.01", "eight", "", True, False, float("nan"), float("-inf"), "sNaN", "Infinity", [8], b"8"]
)
def test_what_is_no_amount_is_refused_by_its_name(bad: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        as_credits("expected_credits", bad)
    assert str(caught.value) == f"expected_credits must be a number of at least 0, not {bad!r}"

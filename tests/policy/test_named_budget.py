"""`Budget` and `BudgetState`: what is accepted, which day counts, what a refusal says."""

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest

from nanobanana_async import Budget, BudgetState, ConfigurationError
from nanobanana_async.policy.budget import Affordable, LedgerCap
from nanobanana_async.policy.named_budget import check_names_apart, check_same_period, parse_budget, state_of
from nanobanana_async.policy.prices import Basis, Price
from tests.support.rows import each_row

NOON = datetime(2026, 3, 12, 12, tzinfo=UTC)
ALICE = Budget(name="alice", max_credits=20)
DAILY = Budget(name="alice", max_credits=20, per="day")


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"name": ""}, "name of a Budget must be printable text of 1 to 100 characters"),
        ({"name": " alice"}, "without spaces around it, not ' alice'"),
        ({"name": "al\nice"}, "name of a Budget"),
        ({"name": "a" * 101}, "name of a Budget"),
        ({"name": 7}, "not 7"),
        ({"max_credits": None}, "max_credits of a Budget must be a number of at least 0, not None"),
        ({"max_credits": -1}, "max_credits must be a number of at least 0, not -1"),
        ({"max_credits": "20"}, "max_credits must be a number of at least 0, not '20'"),
        ({"per": "week"}, "per of a Budget must be \"day\" or None, not 'week'"),
        ({"per": 1}, 'per of a Budget must be "day" or None, not 1'),
    ],
    ids=str,
)
def test_wrong_setting_is_named(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Budget(**{"name": "alice", "max_credits": 20, **settings})
    assert why in str(caught.value)


def test_budget_has_its_credits_as_written() -> None:
    assert Budget(name="alice", max_credits=0.3).max_credits == Decimal("0.3")
    assert Budget(name="a" * 100, max_credits=0).max_credits == 0


@pytest.mark.parametrize("zero", [-0.0, Decimal("-0"), Decimal("-0.00")])
def test_negative_zero_is_shown_as_zero(zero: Any) -> None:
    assert str(Budget(name="alice", max_credits=zero).max_credits) == "0"
    assert str(parse_budget("budget", "alice=-0").max_credits) == "0"


def test_each_day_in_utc_counts_under_its_own_name() -> None:
    evening = datetime(2026, 3, 12, 21, tzinfo=timezone(timedelta(hours=-3)))
    assert DAILY.count_name_at(NOON) == "budget 2026-03-12 alice"
    assert DAILY.count_name_at(evening) == "budget 2026-03-13 alice"
    assert ALICE.count_name_at(NOON) == ALICE.count_name_at(evening) == "budget all alice"
    assert DAILY.resets_at(evening) == datetime(2026, 3, 14, tzinfo=UTC)
    assert ALICE.resets_at(evening) is None


def test_refusal_says_what_is_left_and_what_to_do() -> None:
    refusal = ALICE.explain_refusal(Price("fox", Decimal(8)), Decimal("12.50"), NOON, blocked=False)
    assert refusal == (
        "budget alice: its cap is 20, 12.5 are spent, and a job for 8 would pass it; 7.5 are left; raise it to buy more"
    )
    guess = Price("fox", Decimal(8), Basis.EXPECTED)
    refusal = DAILY.explain_refusal(guess, Decimal(28), NOON, blocked=True)
    assert refusal.startswith("budget alice: its cap is 20, and a job estimated at 8 is not bought: an earlier job")
    assert refusal.endswith("; 0 are left; it counts from 0 again at 2026-03-13 00:00 UTC; raise it to buy more")


def test_state_splits_what_is_counted() -> None:
    state = state_of(DAILY, NOON, counted=Decimal(12), reserved=Decimal(8))
    assert state == BudgetState(
        name="alice",
        max_credits=Decimal(20),
        per="day",
        spent=Decimal(4),
        reserved=Decimal(8),
        resets_at=datetime(2026, 3, 13, tzinfo=UTC),
    )
    assert state.left == 8
    billionths = state_of(DAILY, NOON, counted=Decimal("12.500000000"), reserved=Decimal("0E-9"))
    assert (str(billionths.spent), str(billionths.reserved), str(billionths.left)) == ("12.5", "0", "7.5")
    assert state_of(ALICE, NOON, counted=Decimal(24), reserved=Decimal(0)).left == 0


def test_name_that_counts_in_another_way_is_refused() -> None:
    check_same_period(DAILY, Budget(name="alice", max_credits=7, per="day"))
    with pytest.raises(ConfigurationError, match="counts each day for itself in this ledger, not all that was ever"):
        check_same_period(DAILY, ALICE)
    with pytest.raises(ConfigurationError, match="pass per=None, or use another name"):
        check_same_period(ALICE, DAILY)


def test_cap_of_a_budget_leaves_its_value_to_the_ledger() -> None:
    cap = LedgerCap(None, "alice")
    assert (cap.max_credits, cap.budget, cap.left) == (None, "alice", None)


@each_row(
    ("text", "budget"),
    [
        ("alice=20", ALICE),
        ("alice=20/day", DAILY),
        ("alice=2e1/ day", DAILY),
        ("a=b=0.5", Budget(name="a=b", max_credits=0.5)),
        ("the team=0", Budget(name="the team", max_credits=0)),
    ],
)
def test_budget_is_read_as_people_write_it(text: str, budget: Budget) -> None:
    assert parse_budget("--budget", text) == budget


@each_row("text", ["", "alice", "=20", "20", "alice=", "alice=many", "alice=20/", "alice=20/week", "alice=/day"])
def test_text_that_is_no_budget_is_refused_with_the_form(text: str) -> None:
    with pytest.raises(ConfigurationError, match="--budget must be NAME=CREDITS or NAME=CREDITS/day, such as alice="):
        parse_budget("--budget", text)


@each_row(("text", "why"), [("alice=-1", "not -1"), ("alice=nan", "at least 0"), ("alice =1", "without spaces")])
def test_value_that_no_budget_may_have_is_refused_as_in_python(text: str, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        parse_budget("--budget", text)


def test_budgets_with_one_name_must_be_the_same() -> None:
    check_names_apart("budgets", [ALICE, Budget(name="bob", max_credits=1), ALICE])
    with pytest.raises(ConfigurationError, match="budgets: there are two different ones with the name 'alice'"):
        check_names_apart("budgets", [ALICE, DAILY])


def test_state_has_the_budget_as_it_is_stored() -> None:
    assert state_of(DAILY, NOON, counted=Decimal(3), reserved=Decimal(1)).budget == DAILY


FOX = Price("fox", Decimal(8))
TOMORROW = NOON + timedelta(days=1)


@each_row(
    ("read", "asks"),
    [
        ((DAILY, NOON, "20", "8"), False),
        ((DAILY, NOON, "20", None), False),
        ((DAILY, NOON, "12", "8"), True),  # another host's job was refunded
        ((DAILY, TOMORROW, "20", "8"), True),
        ((Budget(name="alice", max_credits=40, per="day"), NOON, "20", "8"), True),
        ((DAILY, NOON, "20", "4"), True),  # the price of a job that runs was stated
    ],
)
def test_jobs_ask_again_once_what_the_ledger_has_of_the_budget_has_changed(
    read: tuple[Budget, datetime, str, str | None], asks: bool
) -> None:
    cap = LedgerCap(None, "alice")
    cap.on_read(DAILY, DAILY.count_name_at(NOON), Decimal(20))
    cap.on_refused(FOX, Affordable.LATER, "no room", ask_again_at=7.0)
    cap.on_read(DAILY, DAILY.count_name_at(NOON), Decimal(20), Decimal(8))  # the first that states what is reserved
    assert cap.is_awaited
    budget, now, counted, reserved = read
    cap.on_read(budget, budget.count_name_at(now), Decimal(counted), None if reserved is None else Decimal(reserved))
    assert cap.is_awaited is not asks
    assert (cap.affordability_of(FOX) is Affordable.NOW) is asks


def test_refusal_at_an_estimate_does_not_hold_at_a_known_price() -> None:
    cap, guess = LedgerCap(None, "alice"), Price("fox", Decimal(8), Basis.EXAMPLE)
    cap.on_refused(guess, Affordable.LATER, "an earlier job has an estimate", ask_again_at=7.0)
    assert (cap.affordability_of(guess), cap.affordability_of(FOX)) == (Affordable.LATER, Affordable.NOW)
    cap.on_refused(guess, Affordable.NEVER, "an earlier job has an estimate", ask_again_at=7.0)
    assert not cap.is_awaited

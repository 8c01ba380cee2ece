"""`Budget` and `BudgetState`: what is accepted, which day counts, what a refusal says."""

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest

from nanobanana_async import Budget, BudgetState, ConfigurationError
from nanobanana_async.policy.budget import LedgerCap
from nanobanana_async.policy.named_budget import check_same_period, state_of

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


def test_each_day_in_utc_counts_under_its_own_name() -> None:
    evening = datetime(2026, 3, 12, 21, tzinfo=timezone(timedelta(hours=-3)))
    assert DAILY.count_at(NOON) == "budget 2026-03-12 alice"
    assert DAILY.count_at(evening) == "budget 2026-03-13 alice"
    assert ALICE.count_at(NOON) == ALICE.count_at(evening) == "budget all alice"
    assert DAILY.resets_at(evening) == datetime(2026, 3, 14, tzinfo=UTC)
    assert ALICE.resets_at(evening) is None


def test_refusal_says_what_is_left_and_what_to_do() -> None:
    advice = "; a budget of that name with a higher max_credits buys more"
    assert ALICE.explain_refusal("why", Decimal("12.50"), NOON) == f"budget alice: why; 7.5 are left{advice}"
    assert (
        DAILY.explain_refusal("why", Decimal(28), NOON)
        == f"budget alice: why; 0 are left; it counts from 0 again at 2026-03-13 00:00 UTC{advice}"
    )


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

"""Short campaigns and the mutation control.

The long forms are `python -m tests.credits --campaigns 2000` and `python -m tests.credits --mutations`.
"""

import pytest

from tests.credits import __main__ as command
from tests.credits import budget_campaign
from tests.credits.campaign import plan_of, play
from tests.credits.mutations import MUTATIONS, CampaignMutation

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(180),  # on a busy machine
    pytest.mark.usefixtures("quiet_log"),
]

CAMPAIGNS = (3, 4, 5, 6, 8, 13, 18, 33)
"""Short ones that have every fault together."""
REPEATED = (3, 18)
OF_BUDGETS = (0, 1, 3, 4, 8, 10, 15, 18, 33)
"""As many of budgets, each of two processes and three restarts."""


def test_no_cap_is_exceeded_by_more_than_one_job() -> None:
    said: list[str] = []
    broken = command.run(CAMPAIGNS, said.append)
    assert not broken, "\n".join(said)


def test_no_budget_is_exceeded_by_more_than_one_job() -> None:
    said: list[str] = []
    broken = command.run(OF_BUDGETS, said.append, "budgets")
    assert not broken, "\n".join(said)


def test_campaigns_of_budgets_cover_every_fault() -> None:
    plans = [budget_campaign.plan_of(number) for number in OF_BUDGETS]
    budgets = [budget for plan in plans for budget in plan.budgets[0].values()]
    assert {budget.per for budget in budgets} == {None, "day"}
    assert any(len(set(map(tuple, (each.items() for each in plan.budgets)))) > 1 for plan in plans)
    assert {plan.caps.gateway for plan in plans} == {"apimall", "defapi"}
    for met in ("lost", "kills", "by_hand", "prunes", "refunds", "failing"):
        assert len({bool(getattr(plan.caps, met)) for plan in plans}) == 2, met


def test_campaigns_cover_every_fault() -> None:
    plans = [plan_of(number) for number in CAMPAIGNS]
    assert {plan.says for plan in plans} == {"at create", "at end", "never"}
    assert {size for plan in plans for size in plan.factors} == {1, 2, 3, 4, 5, 6}
    assert any(3 in plan.factors.values() for plan in plans)
    for met in ("lost", "kills", "session_cap", "expected", "by_hand", "prunes", "refunds", "calm"):
        assert len({bool(getattr(plan, met)) for plan in plans}) == 2, met


def test_the_same_campaign_ends_the_same_way() -> None:
    assert [play(number) for number in REPEATED] == [play(number) for number in REPEATED]
    of_budgets = [budget_campaign.play(number) for number in REPEATED]
    assert of_budgets == [budget_campaign.play(number) for number in REPEATED]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=[mutation.name for mutation in MUTATIONS])
def test_a_deliberate_bug_is_caught(mutation: CampaignMutation) -> None:
    said: list[str] = []
    assert command.check(mutation, said.append, first=mutation.campaign), said


def test_harmless_mutation_is_reported_as_not_caught() -> None:
    said: list[str] = []
    assert not command.check(CampaignMutation("no bug", list, within=2), said.append)
    assert said == ["no bug: NOT CAUGHT within 2 campaigns"]

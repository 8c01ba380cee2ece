"""A budget beside a simple model of it: the sums agree after any sequence of events."""

from decimal import Decimal

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nanobanana_async.policy.budget import Affordable, MemoryCap
from nanobanana_async.policy.prices import Basis, Price, Prices

pytestmark = pytest.mark.slow

NOW, LATER, NEVER = Affordable.NOW, Affordable.LATER, Affordable.NEVER
EIGHT = Decimal(8)

COSTS = {"fox": Decimal("0.1"), "owl": Decimal(8), "crow": Decimal("12.5")}
CLASSES = st.sampled_from(sorted(COSTS))


def reported_price(name: str) -> Price:
    return Price(name, COSTS[name])


class Spending(RuleBasedStateMachine):
    """A budget beside a model: each job's class, whether it is in doubt, and what was really taken for it."""

    def __init__(self) -> None:
        super().__init__()
        self.budget = MemoryCap(Decimal(40), Prices())
        self.under_way: dict[str, str] = {}
        self.in_doubt: dict[str, str] = {}
        self.taken = Decimal(0)
        self.bought = 0

    def _any(self, data: st.DataObject, *, doubtful: bool = True) -> tuple[str, str]:
        jobs = {**self.under_way, **(self.in_doubt if doubtful else {})}
        key = data.draw(st.sampled_from(sorted(jobs)))
        self.under_way.pop(key, None)
        self.in_doubt.pop(key, None)
        return key, jobs[key]

    @rule(name=CLASSES)
    def buy(self, name: str) -> None:
        consent = self.budget.affordability_of(reported_price(name))
        open_sum = sum((COSTS[other] for other in (*self.under_way.values(), *self.in_doubt.values())), Decimal(0))
        fits = self.taken + open_sum + COSTS[name] <= 40
        assert consent is (NOW if fits else LATER if self.under_way else NEVER)
        if fits:
            self.bought += 1
            self.under_way[f"job {self.bought}"] = name
            self.budget.reserve(f"job {self.bought}", reported_price(name))

    @precondition(lambda self: self.under_way or self.in_doubt)
    @rule(data=st.data(), share=st.sampled_from([0, 1, 2, None]))
    def end(self, data: st.DataObject, share: int | None) -> None:
        key, name = self._any(data)
        cost = None if share is None else COSTS[name] * share / 2
        self.taken += COSTS[name] if cost is None else cost
        self.budget.charge(key, cost)

    @precondition(lambda self: self.under_way or self.in_doubt)
    @rule(data=st.data())
    def turn_out_unsold(self, data: st.DataObject) -> None:
        self.budget.release(self._any(data)[0])

    @precondition(lambda self: self.under_way)
    @rule(data=st.data())
    def fall_into_doubt(self, data: st.DataObject) -> None:
        key, name = self._any(data, doubtful=False)
        self.in_doubt[key] = name
        self.budget.suspend(key)

    @precondition(lambda self: self.under_way or self.in_doubt)
    @rule(data=st.data(), way=st.sampled_from(["reported", "follow", "reserve"]))
    def go_on(self, data: st.DataObject, way: str) -> None:
        key, name = self._any(data)
        self.under_way[key] = name
        if way == "reported":
            self.budget.set_price(key, COSTS[name])
        elif way == "follow":
            self.budget.resume(key)
        else:
            self.budget.reserve(key, reported_price(name))

    @invariant()
    def the_sums_are_those_of_the_model(self) -> None:
        open_jobs = {**self.under_way, **self.in_doubt}
        assert self.budget.spent == self.taken
        assert self.budget.reserved == sum((COSTS[name] for name in open_jobs.values()), Decimal(0))
        assert self.budget.spent + self.budget.reserved <= 40

    @invariant()
    def nothing_is_remembered_of_jobs_that_are_over(self) -> None:
        assert set(self.budget._reservations) == {*self.under_way, *self.in_doubt}
        assert self.budget._under_way == set(self.under_way)
        assert not self.budget._estimated


TestSpending = Spending.TestCase
TestSpending.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


class Learning(RuleBasedStateMachine):
    """Two classes without a price: their jobs run one by one until each reports it; one job may exceed the cap."""

    TRUE, GUESS = {"owl": Decimal(24), "fox": Decimal(3)}, {"owl": EIGHT, "fox": Decimal(1)}
    NAMES = st.sampled_from(sorted(TRUE))

    def __init__(self) -> None:
        super().__init__()
        self.prices = Prices()
        self.budget = MemoryCap(Decimal(100), self.prices)
        self.jobs: dict[str, str] = {}
        self.under_way: set[str] = set()
        self.bought = 0

    def _price(self, name: str) -> Price:
        return self.prices.estimate(name, self.GUESS[name], None)

    @property
    def unknown(self) -> list[str]:
        return [key for key, name in self.jobs.items() if self.prices.price_of(name) is None]

    @rule(name=NAMES)
    def buy(self, name: str) -> None:
        price = self._price(name)
        consent = self.budget.affordability_of(price)
        if price.is_estimate and self.unknown:
            assert consent is (LATER if set(self.unknown) & self.under_way else NEVER)
        if consent is NOW:
            self.bought += 1
            key = f"job {self.bought}"
            self.jobs[key] = name
            self.under_way.add(key)
            self.budget.reserve(key, price)

    @precondition(lambda self: self.under_way)
    @rule(data=st.data(), way=st.sampled_from(["park", "release", "silent", "reported"]))
    def one_goes_on(self, data: st.DataObject, way: str) -> None:
        key = data.draw(st.sampled_from(sorted(self.under_way)))
        name = self.jobs[key]
        if way == "reported":
            self.prices.learn(name, self.TRUE[name])
            self.budget.set_price(key, self.TRUE[name])
            return
        self.under_way.remove(key)
        if way == "release":
            del self.jobs[key]
            self.budget.release(key)
        elif way == "park":
            self.budget.suspend(key)
        else:
            self.budget.charge(key, None)

    @invariant()
    def at_most_one_is_at_an_estimate(self) -> None:
        assert len(self.unknown) <= 1

    @invariant()
    def the_cap_is_passed_by_the_difference_of_one_job(self) -> None:
        assert sum((self.TRUE[name] for name in self.jobs.values()), Decimal(0)) <= 100 + 16

    @invariant()
    def all_that_was_perhaps_bought_counts_at_its_price(self) -> None:
        counted = sum((self.prices.price_of(name) or self.GUESS[name] for name in self.jobs.values()), Decimal(0))
        assert self.budget.spent + self.budget.reserved == counted


TestLearning = Learning.TestCase
TestLearning.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_expected_credits_are_an_estimate() -> None:
    assert Prices().estimate("owl", EIGHT, Decimal(2)) == Price("owl", Decimal(2), Basis.EXPECTED)

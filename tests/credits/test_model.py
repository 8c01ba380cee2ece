"""A budget beside a simple model of it: whatever happens to its jobs, in whatever order, the sums are right."""

from decimal import Decimal

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nanobanana_async.policy.credits import Budget, Consent, Prices

NOW, LATER, NEVER = Consent.NOW, Consent.LATER, Consent.NEVER
EIGHT = Decimal(8)

COSTS = {"fox": Decimal("0.1"), "owl": Decimal(8), "crow": Decimal("12.5")}
CLASSES = st.sampled_from(sorted(COSTS))


class Spending(RuleBasedStateMachine):
    """A budget beside a model: each job's class, whether it is in doubt, and what was really taken for it."""

    def __init__(self) -> None:
        super().__init__()
        self.prices = Prices()
        for name, price in COSTS.items():
            self.prices.learn(name, price)
        self.budget = Budget(Decimal(40), self.prices)
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
        consent = self.budget.consent(name)
        open_sum = sum((COSTS[other] for other in (*self.under_way.values(), *self.in_doubt.values())), Decimal(0))
        fits = self.taken + open_sum + COSTS[name] <= 40
        assert consent is (NOW if fits else LATER if self.under_way else NEVER)
        if fits:
            self.bought += 1
            self.under_way[f"job {self.bought}"] = name
            self.budget.reserve(f"job {self.bought}", name)

    @precondition(lambda self: self.under_way or self.in_doubt)
    @rule(data=st.data(), share=st.sampled_from([0, 1, 2, None]))
    def end(self, data: st.DataObject, share: int | None) -> None:
        key, name = self._any(data)
        cost = None if share is None else COSTS[name] * share / 2
        self.taken += COSTS[name] if cost is None else cost
        self.budget.settle(key, name, cost)

    @precondition(lambda self: self.under_way or self.in_doubt)
    @rule(data=st.data())
    def turn_out_unsold(self, data: st.DataObject) -> None:
        self.budget.release(*self._any(data))

    @precondition(lambda self: self.under_way)
    @rule(data=st.data())
    def fall_into_doubt(self, data: st.DataObject) -> None:
        key, name = self._any(data, doubtful=False)
        self.in_doubt[key] = name
        self.budget.park(key)

    @precondition(lambda self: self.under_way or self.in_doubt)
    @rule(data=st.data(), way=st.sampled_from(["told", "follow", "reserve"]))
    def go_on(self, data: st.DataObject, way: str) -> None:
        key, name = self._any(data)
        self.under_way[key] = name
        if way == "told":
            self.budget.told(key, name, COSTS[name])
        elif way == "follow":
            self.budget.follow(key)
        else:
            self.budget.reserve(key, name)

    @invariant()
    def the_sums_are_those_of_the_model(self) -> None:
        open_jobs = {**self.under_way, **self.in_doubt}
        assert self.budget.spent == self.taken
        assert self.budget.reserved == sum((COSTS[name] for name in open_jobs.values()), Decimal(0))
        assert self.budget.spent + self.budget.reserved <= 40

    @invariant()
    def nothing_is_remembered_of_jobs_that_are_over(self) -> None:
        open_jobs = {*self.under_way, *self.in_doubt}
        assert (set(self.budget._reserved), self.budget._parked) == (open_jobs, set(self.in_doubt))
        assert not self.budget._unpriced


TestSpending = Spending.TestCase
TestSpending.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


class Learning(RuleBasedStateMachine):
    """A budget that begins without a price: the jobs of the class go one by one until one of them tells it."""

    def __init__(self) -> None:
        super().__init__()
        self.prices = Prices()
        self.budget = Budget(Decimal(40), self.prices)
        self.under_way: set[str] = set()
        self.unsettled: set[str] = set()
        """In doubt, or over without a word about what it cost."""
        self.ended = self.bought = 0

    @property
    def known(self) -> bool:
        return self.prices.of("owl") is not None

    @rule()
    def buy(self) -> None:
        together = len(self.under_way) + len(self.unsettled) + self.ended
        consent = self.budget.consent("owl")
        if self.known:
            assert (consent is NOW) == (8 * (together + 1) <= 40)
        else:
            assert consent is (LATER if self.under_way else NOW)
        assert consent is not NEVER or not self.under_way
        assert consent is not LATER or self.under_way
        if consent is NOW:
            self.bought += 1
            self.under_way.add(f"job {self.bought}")
            self.budget.reserve(f"job {self.bought}", "owl")

    @precondition(lambda self: self.under_way)
    @rule(data=st.data(), way=st.sampled_from(["park", "release", "silent", "told"]))
    def one_goes_on(self, data: st.DataObject, way: str) -> None:
        key = data.draw(st.sampled_from(sorted(self.under_way)))
        if way == "told":
            self.prices.learn("owl", EIGHT)
            self.budget.told(key, "owl", EIGHT)
            return
        self.under_way.remove(key)
        if way == "release":
            self.budget.release(key, "owl")
        elif way == "park":
            self.unsettled.add(key)
            self.budget.park(key)
        elif self.known:
            self.ended += 1
            self.budget.settle(key, "owl", None)
        else:
            self.unsettled.add(key)
            self.budget.settle(key, "owl", None)

    @invariant()
    def all_that_was_perhaps_bought_counts_as_soon_as_the_price_is_known(self) -> None:
        together = len(self.under_way) + len(self.unsettled) + self.ended
        assert self.budget.spent + self.budget.reserved == (8 * together if self.known else 0)
        assert set(self.budget._reserved) == self.under_way | self.unsettled


TestLearning = Learning.TestCase
TestLearning.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)

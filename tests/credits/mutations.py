"""Deliberate bugs in the handling of credits, which the campaigns must detect."""

from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from typing import Any

from attrs import evolve, frozen

from nanobanana_async.jobs import JobRecord, JobState
from nanobanana_async.ledger import charges
from nanobanana_async.ledger.base import Allowance
from nanobanana_async.ledger.charges import Charges
from nanobanana_async.ledger.statements import JobTable
from nanobanana_async.policy.budget import Affordable, LedgerCap, MemoryCap
from nanobanana_async.policy.named_budget import Budget
from nanobanana_async.policy.prices import Basis, Charge, Price, Prices, charge_of
from tests.credits.campaign import Plan
from tests.support.mutations import Change, Mutation


@frozen
class CampaignMutation(Mutation):
    """A bug that must be caught within `within` campaigns."""

    among: Callable[[Any], bool] = lambda plan: True
    """In which campaigns it can show."""
    within: int = 60
    """How many of these are played."""
    kind: str = "caps"
    """Of caps, or of budgets."""
    campaign: int = 0
    """The first campaign that catches it: the suite begins there, `--mutations` at 0."""


def _unknown_price_counts_as_nothing() -> list[Change]:
    estimate = Prices.estimate

    def estimated(self: Prices, price_class: str, example: Decimal, expected: Decimal | None) -> Price:
        price = estimate(self, price_class, example, expected)
        return evolve(price, credits=Decimal(0)) if price.basis is Basis.EXAMPLE else price

    return [(Prices, "estimate", estimated)]


def _estimates_go_side_by_side() -> list[Change]:
    def consent(self: LedgerCap, price: Price) -> Affordable:
        no = self._refusals.get(price.price_class)
        return Affordable.NOW if no is None else no.answer

    return [(Charges, "_has_estimates", lambda *_: False), (LedgerCap, "affordability_of", consent)]


def _estimates_of_a_session_go_side_by_side() -> list[Change]:
    consent = MemoryCap.affordability_of

    def careless(self: MemoryCap, price: Price) -> Affordable:
        return consent(self, evolve(price, basis=Basis.REPORTED))

    return [(MemoryCap, "affordability_of", careless)]


def _forgotten_on_rebirth() -> list[Change]:
    follow = Charges.update_from_record

    def forgetful(self: Charges, before: JobRecord, job: JobRecord) -> None:
        if job.generation != before.generation:
            self._execute(charges._SET_CREDITS, (0, before.key, before.generation))
        follow(self, before, job)

    return [(Charges, "update_from_record", forgetful)]


def _forgotten_on_prune() -> list[Change]:
    prune = JobTable.prune

    def forgetful(self: JobTable, older_than: datetime, after: int, until: int) -> int:
        gone = prune(self, older_than, after, until)
        self.connection.execute("UPDATE spending SET credits = (SELECT coalesce(sum(credits), 0) FROM charges)")
        return gone

    return [(JobTable, "prune", forgetful)]


def _each_process_counts_for_itself() -> list[Change]:
    allowance = Charges.allowance
    begun: dict[Charges, tuple[Decimal, Decimal]] = {}

    def alone(self: Charges, job: JobRecord, price: Price, max_credits: Decimal | None) -> Allowance:
        spent_before, own = begun.setdefault(self, (self.spent_or_reserved(job.batch or ""), Decimal(0)))
        if max_credits is None or spent_before + own + price.credits > max_credits:
            return allowance(self, job, price, max_credits)
        begun[self] = spent_before, own + price.credits
        return Allowance(price=evolve(price, basis=Basis.REPORTED), other_charges=spent_before)

    return [(Charges, "allowance", alone)]


def _not_set_aside() -> list[Change]:
    return [(Charges, "reserve", lambda *_: None)]


def _doubt_gives_back() -> list[Change]:
    def hopeful(record: JobRecord) -> Charge | None:
        return None if record.state is JobState.UNCERTAIN else charge_of(record)

    return [(charges, "charge_of", hopeful)]


def _failures_are_taken_to_be_refunded() -> list[Change]:
    def hopeful(record: JobRecord) -> Charge | None:
        charge = charge_of(record)
        return evolve(charge, credits=Decimal(0)) if charge and record.state is JobState.FAILED else charge

    return [(charges, "charge_of", hopeful)]


def _reported_prices_are_not_counted() -> list[Change]:
    def deaf(record: JobRecord) -> Charge | None:
        charge = charge_of(record)
        return evolve(charge, credits=None) if charge and charge.credits else charge

    return [(charges, "charge_of", deaf)]


def _session_forgets_doubt() -> list[Change]:
    return [(MemoryCap, "suspend", MemoryCap.release)]


def _budget_is_not_checked() -> list[Change]:
    allowance = Charges.allowance

    def unchecked(self: Charges, job: JobRecord, price: Price, max_credits: Decimal | None) -> Allowance:
        if job.batch is None:
            return Allowance(price=price, other_charges=Decimal(0))
        return allowance(self, evolve(job, budget=None), price, max_credits)

    return [(Charges, "allowance", unchecked)]


def _budget_counts_calls_only() -> list[Change]:
    reserve = Charges.reserve

    def partial(self: Charges, job: JobRecord, price: Price) -> None:
        reserve(self, job if job.batch is None else evolve(job, budget=None), price)

    return [(Charges, "reserve", partial)]


def _each_process_counts_a_budget_for_itself() -> list[Change]:
    own: dict[tuple[Charges, str], Decimal] = {}

    def alone(self: Charges, batch: str) -> Decimal:
        return own.get((self, batch), Decimal(0))

    under, reserve = Charges._allowance_under, Charges.reserve

    def allowed(self: Charges, counted_by: str, cap: Decimal | None, job: JobRecord, price: Price) -> Allowance:
        if counted_by != job.batch and cap is not None and alone(self, counted_by) + price.credits <= cap:
            return Allowance(price=evolve(price, basis=Basis.REPORTED), other_charges=Decimal(0))
        return under(self, counted_by, cap, job, price)

    def reserved(self: Charges, job: JobRecord, price: Price) -> None:
        reserve(self, job, price)
        for counted_by, _, _ in self._counts_of(job, None):
            own[self, counted_by] = alone(self, counted_by) + price.credits

    return [(Charges, "_allowance_under", allowed), (Charges, "reserve", reserved)]


def _new_value_begins_from_nothing() -> list[Change]:
    set_budget = Charges.set_budget

    def forgetful(self: Charges, budget: Budget) -> Budget:
        self._execute("UPDATE spending SET credits = 0 WHERE batch LIKE 'budget %' || ?", (budget.name,))
        return set_budget(self, budget)

    return [(Charges, "set_budget", forgetful)]


def _expected_price_counts_as_reported() -> list[Change]:
    estimate = Prices.estimate

    def believed(self: Prices, price_class: str, example: Decimal, expected: Decimal | None) -> Price:
        price = estimate(self, price_class, example, expected)
        return evolve(price, basis=Basis.REPORTED) if price.basis is Basis.EXPECTED else price

    return [(Prices, "estimate", believed)]


def _dear(plan: Plan) -> bool:
    """Whether jobs cost more than the library takes them to, and many are wanted at once."""
    dear = [plan.price(images) > plan.estimate(images) for images in plan.factors]
    return any(dear) and plan.says != "at create" and len(plan.rows) > 3


MUTATIONS = (
    CampaignMutation("an unknown price counts as nothing", _unknown_price_counts_as_nothing, campaign=8),
    CampaignMutation("estimates go side by side", _estimates_go_side_by_side, _dear, campaign=12),
    CampaignMutation(
        "estimates of a session go side by side",
        _estimates_of_a_session_go_side_by_side,
        lambda plan: _dear(plan) and plan.beside > 0,
        campaign=67,
    ),
    CampaignMutation(
        "charges are forgotten on a rebirth",
        _forgotten_on_rebirth,
        lambda plan: plan.failing > 0 and not plan.refunds and plan.rounds > 1,
        campaign=5,
    ),
    CampaignMutation(
        "charges are forgotten on a prune",
        _forgotten_on_prune,
        lambda plan: plan.prunes and plan.rounds > 1,
        campaign=2,
    ),
    CampaignMutation(
        "each process counts for itself", _each_process_counts_for_itself, lambda plan: len(plan.rows) > 3, campaign=7
    ),
    CampaignMutation("nothing is set aside", _not_set_aside, campaign=0),
    CampaignMutation(
        "a job in doubt gives its credits back", _doubt_gives_back, lambda plan: plan.gateway == "defapi", campaign=5
    ),
    CampaignMutation(
        "a failure is taken to be refunded",
        _failures_are_taken_to_be_refunded,
        lambda plan: plan.failing > 0 and not plan.refunds,
        campaign=5,
    ),
    CampaignMutation("a reported price is not counted", _reported_prices_are_not_counted, _dear, campaign=29),
    CampaignMutation(
        "a session forgets what is in doubt",
        _session_forgets_doubt,
        lambda plan: plan.gateway == "defapi" and plan.lost > 0 and plan.beside > 0,
        campaign=109,
    ),
    CampaignMutation(
        "expected_credits counts as reported",
        _expected_price_counts_as_reported,
        lambda plan: _dear(plan) and bool(plan.expected),
        campaign=17,
    ),
    CampaignMutation("a budget is not checked", _budget_is_not_checked, kind="budgets", campaign=1),
    CampaignMutation("a budget counts single calls only", _budget_counts_calls_only, kind="budgets"),
    CampaignMutation(
        "each process counts a budget for itself",
        _each_process_counts_a_budget_for_itself,
        kind="budgets",
        campaign=1,
    ),
    CampaignMutation("a new value begins from nothing", _new_value_begins_from_nothing, kind="budgets"),
    CampaignMutation("a budget forgets what is in doubt", _doubt_gives_back, kind="budgets", campaign=15),
)

"""The credits of a session: the prices it knows, what it has spent, and what its jobs reserve under caps."""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal

from attrs import frozen

from nanobanana_async.engine.tracked_job import TrackedJob
from nanobanana_async.errors import CreditLimitReached
from nanobanana_async.gateways.contract import Gateway
from nanobanana_async.jobs import JobRecord, JobState
from nanobanana_async.ledger.base import Allowance, Refusal
from nanobanana_async.policy.budget import NEVER_ASK_AGAIN, Affordable, Cap, LedgerCap
from nanobanana_async.policy.named_budget import BudgetState
from nanobanana_async.policy.prices import ZERO_CREDITS, Price, Prices, charge_of, price_in, refusal_reason

# How often the ledger is asked again while jobs of other processes may free credits. Of the budgets that jobs wait for
# it is read as often, all in one call: a new day may have begun, or another process may have given one more.
ASK_AGAIN_S = 1.0

# When a job asks again in any case: that the owner of the last job under the budget has died changes nothing in it.
ASK_IN_ANY_CASE_S = 10.0


@frozen
class _Reservation:
    credit_caps: tuple[Cap, ...]
    price: Price


class CreditAccount:
    """The prices that this session knows, the credits it has spent, and the reservations on its caps.

    A reservation belongs to a key and generation, not to a `TrackedJob`: an uncertain job may be resolved later
    through another `TrackedJob` of the same key.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self.prices = Prices()
        self.spent = ZERO_CREDITS
        self.remaining: Decimal | None = None
        """The balance of the account as the gateway last stated it; only a hint."""
        self.tracked: Mapping[str, TrackedJob] = {}
        """`Scheduler.tracked`."""
        self.tracked_in_session: Mapping[str, TrackedJob] = {}
        """The tracked jobs of all accounts of the session, which a batch or a budget counts together."""
        self._reservations: dict[str, _Reservation] = {}
        """Key -> the caps and the price of a job's reservation, until its charge is final."""
        self._budgets: dict[str, LedgerCap] = {}
        """Name -> the answers of the ledger about a budget."""
        self.waits_for_budget = asyncio.Event()
        """A job has to wait for a budget."""

    def cap_of_budget(self, name: str) -> LedgerCap:
        """Return the cap of the budget with this name, which the ledger counts."""
        return self._budgets.setdefault(name, LedgerCap(None, name))

    def affordability_of(self, job: TrackedJob, now: float) -> Affordable:
        """Return whether all caps of the job allow it. A job that may have been bought is always allowed to go on."""
        if job.record.key in self._reservations or job.record.possibly_bought:
            return Affordable.NOW
        return self.affordability_of_another_purchase(job, now)

    def affordability_of_another_purchase(self, job: TrackedJob, now: float) -> Affordable:
        """Return whether all caps of the job allow another purchase of it, beside the last one."""
        if not (caps := self._present_caps_of(job)):
            return Affordable.NOW
        for cap in caps:
            if isinstance(cap, LedgerCap) and now >= cap.ask_again_at:
                cap.forget_refusals()
        price = self.price_of(job)
        return max(cap.affordability_of(price) for cap in caps)

    def cap_exceeded_error(self, job: TrackedJob) -> CreditLimitReached:
        """Return the error of a job that a cap does not allow."""
        price = self.price_of(job)
        cap = next(cap for cap in self._present_caps_of(job) if cap.affordability_of(price) is Affordable.NEVER)
        error = CreditLimitReached(cap.explain_refusal(price))
        if isinstance(cap, LedgerCap):
            error.budget, error.left = cap.budget, cap.left
        return error

    def ask_again_at(self, job: TrackedJob) -> float:
        """Return when to ask the ledger again about a job that has to wait."""
        caps = self._present_caps_of(job)
        return min((cap.ask_again_at for cap in caps if isinstance(cap, LedgerCap)), default=NEVER_ASK_AGAIN)

    def price_of(self, job: TrackedJob) -> Price:
        """Return the price of a job, or the estimate of it."""
        request = job.record.request
        if request is None:  # attached by its task id, and never bought
            return Price("", ZERO_CREDITS)
        example = self._gateway.example_credits(request)
        return self.prices.estimate(self._gateway.price_class(request), example, job.rare.expected_credits)

    def batch_cap_of(self, job: TrackedJob) -> Decimal | None:
        """Return the cap that the ledger counts for a job's batch."""
        return next((cap.max_credits for cap in job.caps if isinstance(cap, LedgerCap)), None)

    def reserve(self, job: TrackedJob) -> None:
        """Reserve the job's price before its create leaves."""
        if self._present_caps_of(job):
            price = self.price_of(job)
            self._reservations[job.key] = reservation = _Reservation(self._caps_of(job), price)
            for cap in reservation.credit_caps:
                cap.reserve(_purchase_id(job.record), price)

    def on_ledger_refused(self, job: TrackedJob, allowance: Allowance, now: float, wall_clock: datetime) -> None:
        """Release the reservation, because the ledger does not allow the job to be sent."""
        price = allowance.price
        for cap in self._caps_of(job):
            cap.take_back(_purchase_id(job.record))
        self._reservations.pop(job.key, None)
        if allowance.refusal is Refusal.PRICE:
            self.prices.learn(price.price_class, price.credits)
            return
        blocked = allowance.refusal is Refusal.ESTIMATE
        waits = allowance.others_may_free or any(
            key in self.tracked_in_session for key in allowance.ours_may_free if key != job.key
        )
        answer, spent = Affordable.LATER if waits else Affordable.NEVER, allowance.other_charges
        if (budget := allowance.budget) is not None:
            cap = self.cap_of_budget(budget.name)
            cap.left = budget.left_after(spent)
            why = budget.explain_refusal(price, spent, wall_clock, blocked=blocked)
            cap.on_read(budget, budget.count_name_at(wall_clock), spent)
            asks_at = now + (ASK_IN_ANY_CASE_S if waits else ASK_AGAIN_S)
            cap.on_refused(price, answer, why, ask_again_at=asks_at)
            if waits:
                self.waits_for_budget.set()
            return
        for cap in job.caps:
            if isinstance(cap, LedgerCap) and cap.max_credits is not None:
                why = refusal_reason(price, limit=cap.max_credits, spent=spent, blocked=blocked)
                asks_at = now + ASK_AGAIN_S if waits else NEVER_ASK_AGAIN
                cap.on_refused(price, answer, why, ask_again_at=asks_at)

    def awaited_budgets(self, now: float) -> list[str]:
        """Return the names of the budgets that jobs wait for, without those that they ask about again by now."""
        for cap in self._budgets.values():
            if cap.is_awaited and now >= cap.ask_again_at:
                cap.forget_refusals()
        return [name for name, cap in self._budgets.items() if cap.is_awaited]

    def on_budgets_read(self, states: Sequence[BudgetState], wall_clock: datetime) -> None:
        """Let jobs ask the ledger again whose budget has changed since it refused them."""
        for state in states:
            counted_by, counted = state.budget.count_name_at(wall_clock), state.spent + state.reserved
            self._budgets[state.name].on_read(state.budget, counted_by, counted, state.reserved)

    def on_transition(self, before: JobRecord, job: TrackedJob) -> Price | None:
        """Update prices, spending and reservations after a transition of the record.

        Returns the price that was reserved if the job costs more than that.
        """
        record = job.record
        if record.generation == before.generation:
            self.spent += (record.credits or 0) - (before.credits or 0)
        else:  # a new purchase counts beside the last one, and under the same caps
            of_budgets = self._budgets.values()
            job.caps = tuple(cap for cap in self._caps_of(job) if cap not in of_budgets)
            self._reservations.pop(record.key, None)
        price = price_in(record)
        if price is not None or record.state is JobState.SUCCEEDED:
            self.prices.learn(self._price_class_of(record), price)
        reservation = self._reservations.get(record.key)
        self._update_reservations(job)
        dearer = (
            reservation is not None
            and price is not None
            and price != price_in(before)
            and price > reservation.price.credits
        )
        return reservation.price if reservation is not None and dearer else None

    def mark_under_way(self, job: TrackedJob) -> None:
        """Let the caps wait for a job again that is followed once more."""
        for cap in self._caps_of(job):
            cap.resume(_purchase_id(job.record))

    def mark_not_under_way(self, job: TrackedJob) -> None:
        """Update the reservation from the record, which others may have changed; the caps stop waiting for it."""
        self._update_reservations(job)
        for cap in self._caps_of(job):
            cap.suspend(_purchase_id(job.record))

    def _update_reservations(self, job: TrackedJob) -> None:
        caps = self._caps_of(job)
        if not caps:
            return
        purchase, charge = _purchase_id(job.record), charge_of(job.record)
        for cap in caps:
            if charge is None:
                cap.release(purchase)
            elif charge.is_final:
                cap.charge(purchase, charge.credits)
            elif charge.credits is not None:
                cap.set_price(purchase, charge.credits)
        if charge is None or charge.is_final:
            self._reservations.pop(job.key, None)

    def _price_class_of(self, record: JobRecord) -> str:
        return "" if record.request is None else self._gateway.price_class(record.request)

    def _caps_of(self, job: TrackedJob) -> tuple[Cap, ...]:
        caps = self._present_caps_of(job)
        if not self._reservations:
            return caps
        reservation = self._reservations.get(job.key)
        return caps if reservation is None else tuple(dict.fromkeys((*reservation.credit_caps, *caps)))

    def _present_caps_of(self, job: TrackedJob) -> tuple[Cap, ...]:
        """Return the caps for the next purchase of a job; its record names its budget, also after a restart."""
        budget = job.record.budget
        return job.caps if budget is None else (*job.caps, self.cap_of_budget(budget))


def _purchase_id(record: JobRecord) -> tuple[str, int]:
    return record.key, record.generation

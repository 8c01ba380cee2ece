"""The limiter and the budget of a session that shares its account: they keep to its allotment, and report."""

from datetime import datetime
from typing import Literal

from attrs import define, field

from nanobanana_async.errors import LimitKind
from nanobanana_async.policy.concurrency import AnsweredCreate, Load
from nanobanana_async.policy.learned import LearnedLimits
from nanobanana_async.policy.limiter import AdmissionLimiter
from nanobanana_async.policy.rate import Pacer
from nanobanana_async.policy.request_budget import RequestKind
from nanobanana_async.policy.session_budget import SessionBudget
from nanobanana_async.policy.shared_account import SharedAccount
from nanobanana_async.policy.sharing import Allotment, RequestEvent


@define
class SharedBudget(SessionBudget):
    """The budget of requests of such a session. Its pacers learn nothing: the account's do."""

    shared: SharedAccount = field(factory=SharedAccount, kw_only=True)

    @property
    def is_limited(self) -> bool:
        """Whether any request of the account was refused for its rate."""
        return self.shared.is_limited

    def pacer(self, kind: RequestKind) -> Pacer:
        """Return a pacer with the rate of the account."""
        return Pacer(rate=self.shared.allotment.rate)

    def admits(self, kind: RequestKind, now: float, in_flight: int) -> bool:
        """Return whether a request may leave now."""
        held_until = max(self.cap_and_pause_end_at, self.shared.foreign_gate_until(kind))
        return now >= held_until and self.shared.may_leave(kind, now)

    def opens_at(self, kind: RequestKind) -> float:
        """Return when a request may leave by the passing of time."""
        return max(self.cap_and_pause_end_at, self.shared.opens_at(kind))

    def on_sent(self, kind: RequestKind, now: float) -> None:
        """Record that a request left."""
        self.count_unpaced(now)
        self.shared.on_sent(kind, now)

    def on_accepted(self, kind: RequestKind, now: float, sent_at: float) -> None:
        """Record that a poll was answered, and not with a 429 for its rate."""
        self.long_pause.on_answered(sent_at)
        self.shared.note(RequestEvent(what="accepted", at=now, kind=kind, sent_at=sent_at))

    def on_throttled(self, kind: RequestKind, now: float, sent_at: float, wait_s: float | None = None) -> None:
        """Record a 429 to a poll for the rate; it shows that no budget of a day is used up any more."""
        self.long_pause.on_answered(sent_at)
        self.shared.note(RequestEvent(what="throttled", at=now, kind=kind, sent_at=sent_at, wait_s=wait_s))
        self.shared.on_throttled()


@define
class SharedLimiter(AdmissionLimiter):
    """The limiter of such a session: it admits by the allotment, and reports what becomes of each create."""

    budget: SharedBudget = field(factory=SharedBudget)  # pyright: ignore[reportIncompatibleVariableOverride]

    @property
    def undecided_since(self) -> float | None:
        """Since when the account's learner is in doubt about a 429."""
        return self.budget.shared.undecided_since()

    def admits(self, now: float, load: Load, weight: int = 1) -> bool:
        """Return whether a job that takes `weight` slots may be sent under this load."""
        fits = self.job_limit.fits_max_jobs(load.held + load.slots_in_flight, weight)
        shared = self.budget.shared
        return fits and shared.admits(load, weight) and self.budget.admits("create", now, load.slots_in_flight)

    def opens_at(self, now: float) -> float:
        """Return when a create may leave by the passing of time; a past time if other events are awaited."""
        return self.budget.opens_at("create")

    def on_ended(self) -> None:
        """Record that the end of a job was noticed, which makes room for another."""
        self.budget.shared.note(RequestEvent(what="ended"))

    def on_accepted(self, now: float, create: AnsweredCreate, load: Load) -> None:
        """Record that a create was accepted; `load.held` includes its job."""
        self._report("accepted", now, create, load)
        if self.budget.shared.allotment.learning:
            self.budget.shared.want_exchange_at(now)

    def on_throttled(
        self, now: float, create: AnsweredCreate, load: Load, kind: LimitKind | None = None, wait_s: float | None = None
    ) -> None:
        """Record a 429 to a create; `kind` and `wait_s` are what the gateway stated, if it did."""
        self.throttled += 1
        self._report("throttled", now, create, load, kind, wait_s)
        self.budget.shared.on_throttled()

    def take_allotment(self, allotment: Allotment, asked_at: float, now: float) -> None:
        """Take what an exchange gave that was asked for at a time."""
        self.budget.shared.take_allotment(allotment, asked_at, now)
        self.job_limit.cap, self.rate_log_odds = allotment.cap, allotment.rate_log_odds

    def learned(self, *, now: float, at: datetime) -> LearnedLimits | None:
        """Return None: what is learned is kept with the shares."""
        return None

    def restore(self, limits: LearnedLimits, *, now: float, at: datetime) -> None:
        """Ignore what a session learned that shared nothing."""

    def _report(
        self,
        what: Literal["accepted", "throttled"],
        now: float,
        create: AnsweredCreate,
        load: Load,
        kind: LimitKind | None = None,
        wait_s: float | None = None,
    ) -> None:
        shared = self.budget.shared
        known_at = shared.knowledge_at(create.sent_at)
        shared.note(
            RequestEvent(
                what=what,
                at=now,
                sent_at=known_at,
                load=load,
                slots_needed=create.weight,
                limit_kind=kind,
                wait_s=wait_s,
            )
        )

"""Job slots: what is held, what may be held, and the gate through which creates leave."""

from collections.abc import Callable

from nanobanana_async.engine.entry import Entry
from nanobanana_async.errors import LimitKind
from nanobanana_async.observe import LimitMoved
from nanobanana_async.policy.concurrency import ConcurrencyPolicy
from nanobanana_async.policy.retry import Gate, RetryBudget, RetryPolicy
from nanobanana_async.policy.throttle import Throttle


class Slots:
    """Counts job slots from the POST until the job is known to have ended, against what was learned.

    `likely_ends` tells how many of the followed jobs have probably ended, unseen, since a moment.
    """

    def __init__(
        self,
        concurrency: ConcurrencyPolicy,
        retry: RetryPolicy,
        *,
        target_delay_s: float,
        likely_ends: Callable[[float], float],
    ) -> None:
        self.throttle = Throttle(concurrency)
        self.throttle.jobs.delay_s = target_delay_s
        self.gate = Gate(retry)
        self.budget = RetryBudget()
        self._likely_ends = likely_ends
        self.held = 0
        """Weight of jobs accepted, or perhaps accepted, and not known to have ended."""
        self.elsewhere = 0
        """Jobs of this account that others began, counted when we opened, and not known to have ended."""
        self.sending = 0
        """Weight of first sends on the wire: they count against the cap, but not as held when a refusal comes."""
        self.on_wire = 0
        """Creates on the wire, first sends and repeats."""

    def admits(self, entry: Entry, now: float) -> bool:
        """Tell whether this job's create may leave now."""
        if not self.gate.admits(now, self.on_wire):
            return False
        if entry.slots:  # a repeat: it holds its slot, and draws from the budget if it adds to an outage
            return not entry.after_trouble or self.budget.draw(now)
        return self.throttle.admits(now, self._taken, self.sending, entry.weight)

    def opens_at(self, now: float) -> float:
        """When time alone may let a first send leave; in the past if it waits for something else."""
        return max(self.gate.opens_at, self.throttle.opens_at(now))

    def sent(self, entry: Entry, now: float) -> None:
        """Note that a create left."""
        self.on_wire += 1
        self.budget.earn()
        entry.sent_at = now
        if not entry.slots:
            self.sending += entry.weight
            self.throttle.sent(now)

    def answered(self, entry: Entry) -> None:
        """Note that the create is off the wire; what it brought is told next."""
        self.on_wire -= 1
        if not entry.slots:
            self.sending -= entry.weight

    def hold(self, entry: Entry) -> None:
        """Let the job hold its slots: it was accepted, or may have been."""
        if not entry.slots:
            entry.slots = entry.weight
            self.held += entry.weight

    def adopted(self) -> None:
        """Note that a job which counted among those of others is ours now."""
        self.elsewhere = max(0, self.elsewhere - 1)

    def accepted(self, entry: Entry, now: float) -> None:
        """Note that the gateway took the job."""
        first = not entry.slots
        self.hold(entry)
        if first:  # a repeat of what was perhaps taken long ago says nothing about the limit
            self.throttle.accepted(now, entry.sent_at, self._taken, self.sending, self._in_question(), entry.weight)

    def refused(self, entry: Entry, now: float, kind: LimitKind | None, wait_s: float | None) -> None:
        """Note that the gateway refused a job for now: for want of a slot, or for its rate."""
        self.throttle.refused(now, entry.sent_at, self._taken, kind, wait_s, self._in_question())

    def ended(self, mean_s: float) -> None:
        """Note that a job was seen to have ended, and how long jobs take in the mean."""
        self.throttle.jobs.mean_s = mean_s
        self.throttle.ended()

    def standing(self, now: float) -> LimitMoved:
        """Return what is known of the account's limits."""
        pacer = self.throttle.pacer
        return LimitMoved(
            job_limit=self.throttle.jobs.whole,
            rate_limit=pacer.rate if pacer.paces else None,
            limit_kind=self.throttle.verdict,
            gate_open=self.gate.admits(now, self.on_wire),
            held=self.held,
            refusals=self.throttle.refusals,
        )

    def release(self, entry: Entry) -> None:
        """Give back what the job held."""
        self.held -= entry.slots
        entry.slots = 0

    @property
    def _taken(self) -> int:
        return self.held + self.elsewhere

    def _in_question(self) -> float:
        since = self.throttle.wonders_since
        return 0.0 if since is None else self._likely_ends(since)

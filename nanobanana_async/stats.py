"""How a session stands: the numbers behind a progress display."""

from decimal import Decimal

from attrs import frozen

from nanobanana_async.engine.engine import Engine
from nanobanana_async.jobs import JobState
from nanobanana_async.notebook_html import amount, card, seconds, table


@frozen(kw_only=True)
class SessionStats:
    """How a session stands at this moment."""

    job_limit: int | None
    """The learned cap on job slots; None until a refusal told of one."""
    creates_per_s: float | None
    """The learned creates per second; None unless a rate was met."""
    limit_kind: str | None
    """What 429s that do not say it themselves are taken to be about: "jobs" or "rate"."""
    gate_open: bool
    """False while Retry-After, or an outage, keeps creates back."""
    slots_held: int
    """Job slots taken: accepted, or perhaps accepted, and not known to have ended."""
    queued: int
    """Jobs written down that wait for a slot."""
    requests_in_flight: int
    """Requests on the wire."""
    polls: int
    throttled: int
    """429s to creates."""
    job_duration_median_s: float | None
    """How long jobs take, of the class that was seen most; None until one has ended."""
    job_duration_sigma: float | None
    """Sigma of the logarithm of that."""
    succeeded: int
    failed: int
    refused: int
    uncertain: int
    withdrawn: int
    credits_spent: Decimal
    """After refunds, as far as the gateway said."""
    credits_remaining: Decimal | None
    """The gateway's last word on it; a hint."""

    def _repr_html_(self) -> str:
        ended = {
            "succeeded": self.succeeded,
            "failed": self.failed,
            "refused": self.refused,
            "uncertain": self.uncertain,
            "withdrawn": self.withdrawn,
        }
        remaining = "" if self.credits_remaining is None else f", {amount(self.credits_remaining)} left"
        rows = [
            ("jobs ended", ", ".join(f"{count} {how}" for how, count in ended.items() if count) or None),
            ("job slots", f"{self.slots_held} of {self.job_limit or 'a limit not yet known'}"),
            ("waiting for a slot", self.queued),
            ("creates a second", None if self.creates_per_s is None else f"{self.creates_per_s:.2g}"),
            ("gate", "open" if self.gate_open else "closed: the gateway asked for a pause, or is in trouble"),
            ("refusals (429)", self.throttled),
            ("queries", self.polls),
            ("a job takes", None if self.job_duration_median_s is None else seconds(self.job_duration_median_s)),
            ("credits", f"{amount(self.credits_spent)} spent{remaining}"),
        ]
        return card(None, (), table(row for row in rows if row[1] is not None))


def collect_stats(engine: Engine) -> SessionStats:
    """Return how a session with this engine stands."""
    books = engine.store
    limits, learned = engine.slots.snapshot(engine.clock()), engine.estimates.best_known
    return SessionStats(
        job_limit=limits.job_limit,
        creates_per_s=limits.creates_per_s,
        limit_kind=limits.limit_kind,
        gate_open=limits.gate_open,
        slots_held=limits.slots_held,
        queued=engine.scheduler.dispatcher.queued,
        requests_in_flight=engine.scheduler.workers.busy,
        polls=engine.poller.polls,
        throttled=limits.throttled,
        job_duration_median_s=None if learned is None else learned.median_s,
        job_duration_sigma=None if learned is None else learned.sigma,
        succeeded=books.ended[JobState.SUCCEEDED],
        failed=books.ended[JobState.FAILED],
        refused=books.ended[JobState.REFUSED],
        uncertain=books.ended[JobState.UNCERTAIN],
        withdrawn=books.ended[JobState.WITHDRAWN],
        credits_spent=books.credits.spent,
        credits_remaining=books.credits.remaining,
    )

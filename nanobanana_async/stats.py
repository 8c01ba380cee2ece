"""How a session stands: the numbers behind a progress display."""

from decimal import Decimal

from attrs import frozen

from nanobanana_async.display import amount, card, seconds, table
from nanobanana_async.engine.core import Engine
from nanobanana_async.jobs import JobState


@frozen(kw_only=True)
class SessionStats:
    """How a session stands at this moment."""

    job_limit: int | None
    """The learned cap on job slots; None until a refusal told of one."""
    rate_limit: float | None
    """The learned creates per second; None unless a rate was met."""
    limit_kind: str | None
    """What 429s that do not say it themselves are taken to be about: "jobs" or "rate"."""
    gate_open: bool
    """False while Retry-After, or an outage, keeps creates back."""
    held: int
    """Job slots taken: accepted, or perhaps accepted, and not known to have ended."""
    queued: int
    """Jobs written down that wait for a slot."""
    on_wire: int
    """Requests on the wire."""
    queries: int
    refusals: int
    """429s to creates."""
    median_job_s: float | None
    """How long jobs take, of the class that was seen most; None until one has ended."""
    spread_of_jobs: float | None
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
            ("job slots", f"{self.held} of {self.job_limit or 'a limit not yet known'}"),
            ("waiting for a slot", self.queued),
            ("creates a second", None if self.rate_limit is None else f"{self.rate_limit:.2g}"),
            ("gate", "open" if self.gate_open else "closed: the gateway asked for a pause, or is in trouble"),
            ("refusals (429)", self.refusals),
            ("queries", self.queries),
            ("a job takes", None if self.median_job_s is None else seconds(self.median_job_s)),
            ("credits", f"{amount(self.credits_spent)} spent{remaining}"),
        ]
        return card(None, (), table(row for row in rows if row[1] is not None))


def stats_of(engine: Engine) -> SessionStats:
    """Return how a session with this engine stands."""
    books = engine.books
    limits, learned = engine.slots.standing(engine.clock()), engine.follower.learned
    return SessionStats(
        job_limit=limits.job_limit,
        rate_limit=limits.rate_limit,
        limit_kind=limits.limit_kind,
        gate_open=limits.gate_open,
        held=limits.held,
        queued=engine.runner.feed.queued,
        on_wire=engine.runner.wire.busy,
        queries=engine.follower.looks,
        refusals=limits.refusals,
        median_job_s=None if learned is None else learned.median_s,
        spread_of_jobs=None if learned is None else learned.sigma,
        succeeded=books.ended[JobState.SUCCEEDED],
        failed=books.ended[JobState.FAILED],
        refused=books.ended[JobState.REFUSED],
        uncertain=books.ended[JobState.UNCERTAIN],
        withdrawn=books.ended[JobState.WITHDRAWN],
        credits_spent=books.purse.spent,
        credits_remaining=books.purse.remaining,
    )

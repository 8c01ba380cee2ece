"""A snapshot of a session: limits, requests, jobs and credits."""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import TypeVar

from attrs import field, frozen

from nanobanana_async.engine.engine import Engine
from nanobanana_async.formatting import duration, moment, number
from nanobanana_async.jobs import JobState
from nanobanana_async.notebook_html import card, table

Number = TypeVar("Number", int, float, Decimal)

SHOWN_GROUPS = 5
"""How many of the groups that wait a notebook shows, those with the most jobs."""


@frozen(kw_only=True)
class SessionStats:
    """A snapshot of a session."""

    job_limit: int | None
    """The learned limit of job slots; None until a 429 showed one, in this session or a recent one on its ledger."""
    max_creates_per_s: float | None
    """The learned rate of creates per second; None until a 429 showed one, as above."""
    limit_kind: str | None
    """The limit that 429s without a stated kind are attributed to: "jobs" or "rate"; None while undecided."""
    creates_paused: bool
    """True while Retry-After or an outage holds creates back."""
    outage: str | None
    """Why the last request got no usable answer, or the ledger's server can't be reached; None while both answer."""
    paused_until: datetime | None = None
    """When the gateway takes requests again, by its own words, if the budget of a day or of hours is used up."""
    rests_for_s: float | None = None
    """How long one of several accounts gets no new jobs, since it has refused to buy one; None: it gets some."""
    rests_because: str | None = None
    """What it said then."""
    slots_held: int
    """Job slots in use: by jobs accepted or possibly accepted, and not known to have ended."""
    queued: int
    """Stored jobs that wait for a slot."""
    queued_by_group: Mapping[str, int] = field(factory=dict)
    """The same by group; of a named batch without one by what its keys begin with, of all other jobs under ""."""
    requests_in_flight: int
    """HTTP requests in flight."""
    polls: int  # polls so far
    throttled: int
    """429s to creates."""
    job_duration_median_s: float | None
    """Median duration of the most frequent class of jobs; None until a job has ended, as above."""
    job_duration_sigma: float | None
    """Standard deviation of the logarithm of these durations."""
    succeeded: int  # jobs that ended so in this session
    failed: int  # as above
    refused: int  # as above
    uncertain: int  # as above
    withdrawn: int  # as above
    credits_spent: Decimal
    """After refunds, as far as the gateway has reported prices."""
    credits_remaining: Decimal | None
    """As the gateway last reported it; only a hint."""

    def _repr_html_(self) -> str:
        ended = {
            "succeeded": self.succeeded,
            "failed": self.failed,
            "refused": self.refused,
            "uncertain": self.uncertain,
            "withdrawn": self.withdrawn,
        }
        remaining = "" if self.credits_remaining is None else f", {number(self.credits_remaining)} left"
        rows = [
            ("jobs ended", ", ".join(f"{count} {how}" for how, count in ended.items() if count) or None),
            ("job slots", f"{self.slots_held} of {self.job_limit or 'an unknown limit'}"),
            ("waiting for a slot", self._queued_text()),
            ("creates a second", None if self.max_creates_per_s is None else f"{self.max_creates_per_s:.2g}"),
            (
                "used up",
                None if self.paused_until is None else f"a daily budget, until {moment(self.paused_until)}",
            ),
            ("no answer", self.outage),
            ("rests", None if self.rests_for_s is None else f"for {duration(self.rests_for_s)}: {self.rests_because}"),
            ("creates", "paused: the gateway asked for it" if self.creates_paused and not self.outage else None),
            ("throttled (429)", self.throttled),
            ("polls", self.polls),
            ("a job takes", None if self.job_duration_median_s is None else duration(self.job_duration_median_s)),
            ("credits", f"{number(self.credits_spent)} spent{remaining}"),
        ]
        return card(None, (), table(row for row in rows if row[1] is not None))

    def _queued_text(self) -> str:
        named = [(group or "no group", count) for group, count in self.queued_by_group.items()]
        shown = [f"{group} {count:,}" for group, count in named[:SHOWN_GROUPS]]
        if len(named) < 2:
            return f"{self.queued:,}"
        more = f", {len(named) - SHOWN_GROUPS:,} more groups" if len(named) > SHOWN_GROUPS else ""
        return f"{self.queued:,} ({', '.join(shown)}{more})"


def stats_by_account(engine: Engine) -> dict[str, SessionStats]:
    """Return a snapshot of each account of the session of this engine."""
    return {each.account: _collect_stats(each) for each in engine.members}


def _collect_stats(engine: Engine) -> SessionStats:
    store, queued = engine.store, engine.scheduler.dispatcher.count_unsent()
    now = engine.clock()
    limits, learned = engine.slots.snapshot(now), engine.estimates.best_known_durations
    rest = None if engine.rest is None or engine.rest.until <= now else engine.rest
    return SessionStats(
        job_limit=limits.job_limit,
        max_creates_per_s=limits.max_creates_per_s,
        limit_kind=limits.limit_kind,
        creates_paused=limits.creates_paused,
        paused_until=engine.poller.used_up_budgets.until,
        rests_for_s=None if rest is None else rest.until - now,
        rests_because=None if rest is None else rest.error.message,
        outage=_outage(engine),
        slots_held=limits.slots_held,
        queued=queued.total(),
        queued_by_group=dict(queued.most_common()),
        requests_in_flight=engine.scheduler.workers.requests_in_flight,
        polls=engine.poller.polls,
        throttled=limits.throttled,
        job_duration_median_s=None if learned is None else learned.median_s,
        job_duration_sigma=None if learned is None else learned.sigma,
        succeeded=store.ended_counts[JobState.SUCCEEDED],
        failed=store.ended_counts[JobState.FAILED],
        refused=store.ended_counts[JobState.REFUSED],
        uncertain=store.ended_counts[JobState.UNCERTAIN],
        withdrawn=store.ended_counts[JobState.WITHDRAWN],
        credits_spent=store.credits.spent,
        credits_remaining=store.credits.remaining,
    )


def why_paused(stats: SessionStats) -> str | None:
    """Return why an account sends no creates now; None if it does."""
    if stats.paused_until is not None:
        return f"the account's daily budget is used up; goes on at {moment(stats.paused_until)}"
    if stats.outage:
        return stats.outage
    if stats.rests_for_s is not None:
        return f"rests for {duration(stats.rests_for_s, tenths=False)}: {stats.rests_because}"
    return "paused by the gateway" if stats.creates_paused else None


def sum_stats(accounts: Sequence[SessionStats]) -> SessionStats:
    """Return the sums over the accounts of a session. What is true of the session is what is true of all of them."""
    if len(accounts) == 1:
        return accounts[0]
    medians = [each for each in accounts if each.job_duration_median_s is not None]
    most = max(medians, key=lambda each: each.succeeded, default=accounts[0])
    outages = [each.outage for each in accounts if each.outage is not None]
    pauses = [each.paused_until for each in accounts if each.paused_until is not None]
    kinds = {each.limit_kind for each in accounts}
    counts = ("slots_held", "queued", "requests_in_flight", "polls", "throttled", "succeeded", "failed", "refused")
    sums = {name: sum(getattr(each, name) for each in accounts) for name in (*counts, "uncertain", "withdrawn")}
    by_group: Counter[str] = Counter()
    for each in accounts:
        by_group.update(each.queued_by_group)
    return SessionStats(
        job_limit=_sum_if_known([each.job_limit for each in accounts]),
        max_creates_per_s=_sum_if_known([each.max_creates_per_s for each in accounts]),
        limit_kind=kinds.pop() if len(kinds) == 1 else None,
        creates_paused=all(each.creates_paused for each in accounts),
        outage="; ".join(outages) if len(outages) == len(accounts) else None,
        paused_until=min(pauses) if len(pauses) == len(accounts) else None,
        rests_for_s=None,  # an account rests only while another one buys
        rests_because=None,
        job_duration_median_s=most.job_duration_median_s,
        job_duration_sigma=most.job_duration_sigma,
        credits_spent=sum((each.credits_spent for each in accounts), Decimal(0)),
        credits_remaining=_sum_if_known([each.credits_remaining for each in accounts]),
        queued_by_group=dict(by_group.most_common()),
        **sums,
    )


def _sum_if_known(values: Sequence[Number | None]) -> Number | None:
    """Return the sum; None if one of the values is unknown."""
    total: Number | None = None
    for value in values:
        if value is None:
            return None
        total = value if total is None else total + value
    return total


def _outage(engine: Engine) -> str | None:
    lease, error = engine.store.lease, engine.poller.outage.error
    if lease is not None and lease.outage is not None:
        return lease.outage
    return None if error is None else error.message

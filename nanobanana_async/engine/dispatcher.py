"""Decide which queued create or poll leaves next. Creates go first: repeats, then by priority and in fair shares.

A repeat of a create in doubt goes before all first creates: it holds its slots already. `policy.fair_queue` decides
which first create is next; what a job costs its group there is its slots times the mean duration of its price class,
relative to that of other classes.
"""

import enum
from collections import Counter, deque
from collections.abc import Callable
from functools import partial

from attrs import frozen

from nanobanana_async.engine.credit_account import CreditAccount
from nanobanana_async.engine.estimates import JobEstimates
from nanobanana_async.engine.image_poll import ImagePoll
from nanobanana_async.engine.phases import Phase
from nanobanana_async.engine.poller import Poller
from nanobanana_async.engine.request_queues import PollQueue, RepeatQueue
from nanobanana_async.engine.slots import Slots
from nanobanana_async.engine.tracked_job import NEVER, TrackedJob
from nanobanana_async.engine.workers import WorkerPool
from nanobanana_async.errors import CreditLimitReached, NanoBananaError
from nanobanana_async.jobs import JobState
from nanobanana_async.policy.budget import Affordable
from nanobanana_async.policy.fair_queue import MOST_PASSED_OVER, FairQueue, give_back

# While the retry budget is empty, no other event wakes the repeats that wait for it.
RETRY_BUDGET_CHECK_S = 0.5


class DispatchKind(enum.Enum):
    """A request for a job that may leave."""

    CREATE = "create"
    POLL = "poll"


@frozen
class CapExceeded:
    """A cap of credits does not allow the job. The error is made at once, because the next create changes the caps."""

    error: CreditLimitReached


@frozen
class WaitOver:
    """The job could not be sent for too long, because the creates of its account fail."""

    error: NanoBananaError


DispatchDecision = tuple[TrackedJob, DispatchKind | CapExceeded | WaitOver] | ImagePoll


class Dispatcher:
    """Holds the queued jobs and decides which is next; the scheduler starts it."""

    def __init__(
        self, slots: Slots, poller: Poller, estimates: JobEstimates, workers: WorkerPool, account: CreditAccount
    ) -> None:
        self._slots = slots
        self._poller = poller
        self._estimates = estimates
        self._workers = workers
        self._credits = account
        self._last_place = 0
        self._declined = 0
        """How many of the decisions that are being made decline a job: they take no request."""
        self._pending: FairQueue[TrackedJob] = FairQueue(slots.limiter.policy.group_weights)
        self._held_back: list[TrackedJob] = []
        """Those that smaller jobs go before in this round (`refused_size.py`); they keep their places."""
        self._lacks_credits = False
        """All of them wait until a cap of credits has room."""
        self._repeats = RepeatQueue()
        self._due_polls = PollQueue()
        self._image_polls: deque[ImagePoll] = deque()
        self.after_admission: Callable[[], None] = lambda: None
        """Called after each decision about all that waits."""
        self.after_wait: Callable[[TrackedJob, NanoBananaError], NanoBananaError | None] = lambda job, error: error
        """Lets another account buy a job that could not be sent for too long; returns the error if none can."""
        self.ask_again_every_s = NEVER
        """How often a job asks again that waits for credits, if other accounts may free some."""

    def count_unsent(self) -> Counter[str]:
        """Count the jobs that wait to be sent for the first time, by group.

        A batch without a group has the common prefix of its keys as a name, all other jobs without one the empty text.
        """
        unsent = {
            job.key: job for job in self._pending if self._waits_to_be_sent(job) and not job.record.possibly_bought
        }
        return Counter(job.record.group_name or job.record.batch or "" for job in unsent.values())

    def usable_slots(self, now: float) -> int:
        """Return how many slots the jobs that wait to be sent for the first time would take soon, if they were free.

        Other owners of the account get those that this session itself keeps its jobs from.
        """
        if self._lacks_credits or (first := self._pending.first()) is None:
            return 0
        return self._slots.usable(len(self._pending), first.weight, now)

    def urgent_slots(self, usable: int) -> int:
        """Return how many of the usable slots are for jobs of a priority above 0."""
        if not usable or not (urgent := self._pending.waiting_above(0)):
            return 0
        first = self._pending.first()
        return min(usable, urgent * (1 if first is None else first.weight))

    def queue_length(self, least_priority: int | None = None) -> int:
        """Return how many jobs are queued for a first create, with some that were withdrawn meanwhile.

        With a priority, only those that would not let a new job of this priority go first.
        """
        return len(self._pending) if least_priority is None else self._pending.waiting_above(least_priority - 1)

    def waiting(self, most: int) -> list[TrackedJob]:
        """Return up to `most` jobs that are queued for a first create, in the order of their turns."""
        return [job for job in self._pending.next_jobs(most) if self._waits_to_be_sent(job)]

    def take_out(self, job: TrackedJob) -> None:
        """Take a job out of the queue for first creates: another account gets it."""
        self._pending.remove(job, job.weight * self._estimates.relative_duration(job))

    @property
    def polls_due(self) -> int:
        """How many polls wait to be sent."""
        return len(self._due_polls) + len(self._image_polls)

    def assign_place(self, job: TrackedJob) -> TrackedJob:
        """Give a job the last place in the queue for creates."""
        self._last_place += 1
        job.place = self._last_place
        return job

    def put(self, job: TrackedJob, now: float) -> None:
        """Add a job to the queue for its state."""
        match job.record.state:
            case JobState.PENDING:
                job.priority = max(job.priority, job.record.priority)  # the ledger may know the job longer
                job.group = job.record.group_name or job.group
                self._slots.create_outage.expect(job, now)
                self._slots.refused_size.expect(job)
                self._pending.add(job)
            case (
                JobState.SUBMITTING
            ):  # behind the other repeats, so that no single job uses up its attempts as the breaker's probe
                self._repeats.add(self.assign_place(job))
            case _:
                self._due_polls.append(job)

    def raise_priority(self, job: TrackedJob, priority: int) -> None:
        """Give a job a higher priority, if it was not sent yet; a lower one changes nothing."""
        if priority <= job.priority:
            return
        if job.phase is Phase.QUEUED and job.record.state is JobState.PENDING:
            self._pending.raise_priority(job, priority)
        else:
            job.priority = priority

    def correct_turn_cost(self, job: TrackedJob) -> None:
        """Give back to the group of a job what its create was to cost, unless it took a slot."""
        if not job.slots:
            give_back(job)
        job.turn_cost = None

    def drop_poll(self, job: TrackedJob) -> None:
        """Take a job out of the queue for polls, if it is there."""
        self._due_polls.drop(job)

    def put_image_poll(self, poll: ImagePoll) -> None:
        """Add a poll for images."""
        self._image_polls.append(poll)

    def admit(self, now: float) -> tuple[list[DispatchDecision], float]:
        """Take out what may start now, creates first. Also return when more may start by the passing of time."""
        starts: list[DispatchDecision] = []
        self._declined = 0
        waits_at = self._end_waits(now, starts)
        creates_at = self._admit_creates(now, starts, smaller_first=True)
        nothing_smaller = self._held_back and not self._pending
        self._restore_passed_over()
        if nothing_smaller and not self._slots.load.taken:
            creates_at = min(creates_at, self._admit_creates(now, starts, smaller_first=False))
            self._restore_passed_over()
        polls_at = self._admit_polls(now, starts)
        self.after_admission()
        return starts, min(waits_at, creates_at, polls_at)

    def _end_waits(self, now: float, starts: list[DispatchDecision]) -> float:
        outage, size = self._slots.create_outage, self._slots.refused_size
        if size.take_check(now):
            self._end_each([job for job in self._pending if size.waited_too_long(job)], size.end_wait, starts)
        overdue, next_at = outage.overdue(self._pending, now, self._slots.creates_in_flight)
        self._end_each(overdue, outage.end_wait, starts)
        return next_at

    def _end_each(
        self, jobs: list[TrackedJob], end_wait: Callable[[TrackedJob], NanoBananaError], starts: list[DispatchDecision]
    ) -> None:
        for job in jobs:
            if self._waits_to_be_sent(job) and (error := self.after_wait(job, end_wait(job))) is not None:
                starts.append((job, WaitOver(error)))
                self._declined += 1

    def _restore_passed_over(self) -> None:
        self._pending.restore_passed_over()
        for job in self._held_back:
            self._pending.add(job)
        self._held_back.clear()

    def _admit_creates(self, now: float, starts: list[DispatchDecision], *, smaller_first: bool) -> float:
        self._lacks_credits = False
        if not (self._repeats or self._pending):
            return NEVER
        # Many overdue polls mean many ended jobs that are still counted as held: poll them before sending more. Where
        # requests are scarce, polls are always overdue, and creates must not wait for them.
        limiter = self._slots.limiter
        seen_enough = (
            not self._due_polls
            or limiter.budget.is_limited
            or (limiter.was_throttled and len(self._due_polls) <= self._workers.free_requests)
        )
        ask_again_at = NEVER
        for queue in (self._repeats, self._pending) if seen_enough else (self._repeats,):
            while (job := queue.first()) is not None:
                if not self._waits_to_be_sent(job):  # it was withdrawn, is not followed, or another owner has sent it
                    queue.drop_first()
                    continue
                if self._slots.refused_size.includes(job) and not job.slots and smaller_first:
                    later = self._slots.refused_size.goes_later(job, now)
                    ask_again_at = min(ask_again_at, self._slots.refused_size.changes_at(now))
                    if later and len(self._held_back) < MOST_PASSED_OVER and self._slots.has_room(1, now, 0):
                        self._held_back.append(queue.drop_first())
                        continue
                affordable = self._credits.affordability_of(job, now)
                if affordable is Affordable.NEVER:
                    starts.append((queue.drop_first(), CapExceeded(self._credits.cap_exceeded_error(job))))
                    self._declined += 1
                    continue
                if not self._free_request_count(starts):
                    return NEVER
                if affordable is Affordable.LATER:
                    ask_again_at = min(ask_again_at, self._credits.ask_again_at(job), now + self.ask_again_every_s)
                    if queue is self._pending and self._pending.pass_over_first():  # other groups have credits perhaps
                        continue
                    break
                if not self._slots.try_admit(job, now):
                    break
                queue.serve_first(job.weight * self._estimates.relative_duration(job))
                self._credits.reserve(job)
                self._slots.on_sent(job, now)
                starts.append((job, DispatchKind.CREATE))
        self._lacks_credits = not self._pending and len(self._pending) > 0
        if self._repeats:
            opens_at = (
                self._slots.breaker.paused_until
                if self._slots.breaker.paused_until > now
                else now + RETRY_BUDGET_CHECK_S
            )
            return min(opens_at, ask_again_at)
        if not self._pending:
            return ask_again_at
        opens_at = self._slots.creates_open_at(now)
        return min(opens_at if opens_at > now else NEVER, ask_again_at)

    def _admit_polls(self, now: float, starts: list[DispatchDecision]) -> float:
        while self._image_polls or self._due_polls:
            if not (free := self._free_request_count(starts)):
                return NEVER
            if not self._poller.admits(now):
                opens_at = self._poller.opens_at()
                return opens_at if opens_at > now else NEVER
            if self._image_polls:
                self._slots.retry_budget.earn()
                self._poller.on_sent(now)
                starts.append(self._image_polls.popleft())
                continue
            job = self._due_polls.pop_best(free, partial(self._estimates.hazard_since_poll, now))
            if job.phase is Phase.QUEUED and job.record.state is JobState.RUNNING:
                self._slots.retry_budget.earn()
                self._poller.on_sent(now)
                starts.append((job, DispatchKind.POLL))
        return NEVER

    def _waits_to_be_sent(self, job: TrackedJob) -> bool:
        """Return whether a queued job still waits here: only the account that follows it may send it."""
        record = job.record
        sendable = job.phase is Phase.QUEUED and record.state in (JobState.PENDING, JobState.SUBMITTING)
        return sendable and self._credits.tracked.get(record.key) is job

    def _free_request_count(self, starts: list[DispatchDecision]) -> int:
        """Return how many more requests may leave after the starts that were just taken out."""
        return self._workers.free_requests - len(starts) + self._declined

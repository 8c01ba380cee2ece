"""Estimate how long jobs take, by price class, from those that this session has seen end."""

from collections.abc import Callable

from nanobanana_async.engine.tracked_job import TrackedJob
from nanobanana_async.gateways.contract import Gateway
from nanobanana_async.policy.durations import Durations
from nanobanana_async.policy.poll_schedule import PollSchedule
from nanobanana_async.policy.polling import PollPolicy


class JobEstimates:
    """Estimates how long jobs run and which have probably ended. `job_s` is the longest time that a job is followed."""

    def __init__(self, gateway: Gateway, polling: PollPolicy, *, job_s: float, clock: Callable[[], float]) -> None:
        self._gateway = gateway
        self._polling = polling
        self._job_s = job_s
        self._clock = clock
        self._schedules: dict[str, PollSchedule[TrackedJob]] = {}
        self._reference_schedule: PollSchedule[TrackedJob] | None = None
        """Of the class whose job ran first in this session."""

    def forget(self, job: TrackedJob) -> None:
        """Forget a job that is no longer followed."""
        if job.schedule is not None:
            job.schedule.forget(job)

    def hazard_since_poll(self, now: float, job: TrackedJob) -> float:
        """Return a measure of how likely the job has ended since its last poll."""
        return 0.0 if job.schedule is None else job.schedule.hazard_since_poll(job, now - job.running_at)

    def expected_unnoticed_ends(self, since: float) -> float:
        """Return the expected number of followed jobs that ended since a time and were not polled after it."""
        now = self._clock()
        return sum(
            schedule.ended_between_probability(max(seen_s, since - job.running_at), now - job.running_at)
            for schedule in self._schedules.values()
            for job, seen_s in schedule.running_jobs()
        )

    def relative_duration(self, job: TrackedJob) -> float:
        """Return the mean duration of the job's price class, in those of the class that ran first; 1 if unknown.

        A ratio, since all durations may be guessed wrong at first: what a job costs must not change with the guess.
        """
        request = job.record.request
        if request is None or self._reference_schedule is None or len(self._schedules) <= 1 + ("" in self._schedules):
            return 1.0  # there is no other class
        schedule = self._schedules.get(self._gateway.price_class(request))
        return 1.0 if schedule is None else schedule.mean_s / self._reference_schedule.mean_s

    def may_run_for_s(self, job: TrackedJob) -> float:
        """Return how long a job may still run whose create may have been accepted."""
        return min(self._job_s, self.schedule_of(job).p99_s)

    @property
    def max_run_s(self) -> float:
        """The longest time that a job of any class may run."""
        classes = (self._schedule_of_class(""), *self._schedules.values())
        return min(self._job_s, max(schedule.p99_s for schedule in classes))

    @property
    def best_known_durations(self) -> Durations | None:
        """The learned durations of the class with the most ended jobs; None if no job has ended."""
        for schedule in self._schedules.values():
            schedule.refit_if_due()
        known = [schedule.durations for schedule in self._schedules.values() if schedule.durations.count]
        return max(known, key=lambda durations: durations.count, default=None)

    def restore(self, name: str, *, count: float, log_mean: float, log_variance: float) -> None:
        """Start a price class from the durations that an earlier session learned."""
        durations = Durations(self._gateway.expected_job_s)
        durations.restore(count, log_mean, log_variance)
        self._schedules[name] = PollSchedule(self._polling, durations)

    @property
    def durations(self) -> dict[str, Durations]:
        """The learned durations by price class, of those with an ended job."""
        return {name: each.durations for name, each in self._schedules.items() if name and each.durations.count}

    def schedule_of(self, job: TrackedJob) -> PollSchedule[TrackedJob]:
        """Return the poll schedule of the job's price class."""
        request = job.record.request
        schedule = self._schedule_of_class("" if request is None else self._gateway.price_class(request))
        if self._reference_schedule is None and request is not None:
            self._reference_schedule = schedule
        return schedule

    def _schedule_of_class(self, name: str) -> PollSchedule[TrackedJob]:
        schedule = self._schedules.get(name)
        if schedule is None:
            # A class without ended jobs starts from the class with the most.
            learned = self.best_known_durations
            expected_s = self._gateway.expected_job_s if learned is None else learned.median_s
            schedule = self._schedules[name] = PollSchedule(self._polling, Durations(expected_s))
        return schedule

"""How much of a job is done, and when it should end. It is computed when it is read, and kept nowhere but in memory.

The gateway's own number counts where a poll brought one. Else a job of age a has done a / m(a), where m(a) is the age
by which half of the jobs that run at age a have ended: `PollSchedule.median_end_s`. So the bar and the expected end say
the same. A job that takes longer than most moves ever more slowly, and never reaches the end before it is there.
"""

from collections.abc import Collection
from datetime import datetime, timedelta
from itertools import islice

from nanobanana_async.engine.engine import Engine
from nanobanana_async.engine.tracked_job import MOST_PROGRESS, NEVER, StatedProgress, TrackedJob
from nanobanana_async.jobs import JobState

MOST_COUNTED_JOBS = 100
"""Of more jobs than this, the progress is estimated from so many: reading it must not cost more with their number."""


def progress_of(engine: Engine, job: TrackedJob, state: JobState | None = None) -> float:
    """Return the share of a job that is done: it never goes back, and is 1 only when the job has succeeded.

    `state` is an earlier state of the job, for those who learn of it late.
    """
    match state or job.record.state:
        case JobState.SUCCEEDED:
            return 1.0
        case JobState.PENDING | JobState.SUBMITTING:
            return 0.0
        case _:
            if job.record.state is JobState.RUNNING and not isinstance(job.progress, StatedProgress):
                age_s = _age_s(engine, job)
                share = age_s / engine.home_of(job).estimates.schedule_of(job).median_end_age_s(age_s)
                job.progress = max(job.progress, min(MOST_PROGRESS, share))
            return float(job.progress)


def expected_end_of(engine: Engine, job: TrackedJob) -> datetime | None:
    """Return when a running job should end: half of such jobs end by then. None for a job that does not run."""
    if job.record.state is not JobState.RUNNING:
        return None
    age_s = _age_s(engine, job)
    left_s = engine.home_of(job).estimates.schedule_of(job).median_end_age_s(age_s) - age_s
    return engine.store.utcnow() + timedelta(seconds=left_s)


def expected_end_of_all(engine: Engine, jobs: Collection[TrackedJob]) -> datetime | None:
    """Return when the last of the running jobs should end; None if none runs."""
    counted = islice(jobs, 0, None, max(1, -(-len(jobs) // MOST_COUNTED_JOBS)))
    return max((end for job in counted if (end := expected_end_of(engine, job)) is not None), default=None)


def sum_of_progress(engine: Engine, jobs: Collection[TrackedJob]) -> float:
    """Return the sum of the progress of jobs."""
    if not jobs:
        return 0.0
    stride = -(-len(jobs) // MOST_COUNTED_JOBS)
    counted = [progress_of(engine, job) for job in islice(jobs, 0, None, stride)]
    return sum(counted) / len(counted) * len(jobs)


def _age_s(engine: Engine, job: TrackedJob) -> float:
    running_at = job.running_at if job.running_at < NEVER else engine.home_of(job).poller.running_at_of(job)
    return max(0.0, engine.clock() - running_at)

"""Plan the polls of jobs whose callback is expected, in case the callback is lost.

The callbacks of an account's webhook are expected only once one has come: it is not known before whether the gateway
reaches the public URL. Until then jobs are polled as usual.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable

from nanobanana_async.engine.callback_router import CallbackRouter
from nanobanana_async.engine.deadlines import JobDeadlines
from nanobanana_async.engine.early_deliveries import EarlyDeliveries
from nanobanana_async.engine.timers import TICK_S
from nanobanana_async.engine.tracked_job import NEVER, NOT_YET, TrackedJob
from nanobanana_async.events import log
from nanobanana_async.jobs import JobRecord, JobState
from nanobanana_async.validators import DAY_S

# A job that waits for its callback is polled once when nearly all others have ended, in case the callback is lost. The
# time is planned again as durations are learned, and is never later than a minute after it began or was polled.
REPLAN_S = 5.0
SHORTEST_FALLBACK_S = 5.0
LONGEST_FALLBACK_S = 60.0

# A job whose callback is lost holds its slot too long. Above this share of lost callbacks, jobs are polled as usual.
STOP_RELYING_ABOVE_LOSS = 0.2
RELY_AGAIN_BELOW_LOSS = 0.05
LOSS_SMOOTHING = 0.1

# A warning says that a webhook brings nothing: after so many jobs that ended without a delivery, in so many seconds.
SILENT_JOBS = 10
SILENT_S = 60.0

# How many ended tasks are remembered, to recognise the first delivery although a poll was faster.
ENDED_KEPT = 256

# A job is polled at most once in this time, however many callbacks come.
CALLBACK_POLL_GAP_S = 1.0


class FallbackPolling:
    """Plans the polls of jobs with a callback, and counts the callbacks that never came."""

    def __init__(self, callbacks: CallbackRouter, deadlines: JobDeadlines, clock: Callable[[], float]) -> None:
        self._callbacks, self._deadlines = callbacks, deadlines
        self._clock = clock
        self._opened_at = clock()
        self._relies_on_callbacks = True
        self._lost_share = 0.0
        """The recent share of callbacks that never came."""
        self.early_deliveries = EarlyDeliveries(clock)
        self.webhook_doubted = asyncio.Event()
        """Set when a job ends without a callback while none are relied on: the webhook may be gone."""
        self._webhook_since: float | None = None
        """When the account's webhook was registered, or found."""
        self._webhook_unproven = False
        """A webhook is registered, and no delivery has shown so far that it works."""
        self._ended_without_delivery: OrderedDict[str, None] = OrderedDict()
        """The last tasks that ended while no delivery had come."""
        self._silent_since = NEVER
        """When the first of them ended."""
        self._warned = False

    def on_webhook_registered(self) -> None:
        """Expect deliveries for all jobs of the account, once one has come."""
        if self._webhook_since is None:
            self._webhook_since, self._webhook_unproven = self._clock(), True

    def on_webhook_removed(self) -> None:
        """Expect no more deliveries."""
        self._webhook_since, self._webhook_unproven = None, False

    def on_delivery(self, task_id: str) -> None:
        """Record a delivery. It proves that the webhook works if a poll has confirmed the end of its task."""
        if task_id in self._ended_without_delivery:
            self._mark_proven()

    def take_early_delivery(self, record: JobRecord) -> bool:
        """Forget a delivery that came before the job had its task id; return whether there was one."""
        return record.task_id is not None and self.early_deliveries.take(record.account, record.task_id)

    def expects_callback_for(self, record: JobRecord) -> bool:
        """Return whether a callback is expected when this job ends."""
        return self._webhook_since is not None or self._callbacks.expects_callback_for(record)

    def waits_for_callback(self, job: TrackedJob) -> bool:
        """Whether the job waits for its callback instead of being polled as usual."""
        # The callback of a job that began before this session, or before the webhook, may have come or been due then.
        older = job.polled_at == NOT_YET and job.running_at < max(self._opened_at, self._webhook_since or 0.0)
        return (
            not older
            and not self._webhook_unproven
            and self._relies_on_callbacks
            and self.expects_callback_for(job.record)
        )

    def next_check_at(self, job: TrackedJob) -> float:
        """Return when to poll a job that waits for its callback, or to plan its poll again."""
        return min(self._fallback_poll_at(job), self._clock() + REPLAN_S)

    def due_after_callback(self, job: TrackedJob, due: float) -> float:
        """Return when a job is due: earlier than `due` if a callback came for it."""
        # A poll that failed is repeated after its backoff, even if callbacks come.
        callback_came = job.callback_pending and job.record.state is JobState.RUNNING and not job.failures
        return min(due, job.polled_at + CALLBACK_POLL_GAP_S) if callback_came else due

    def adjust_due(self, job: TrackedJob, due: float, now: float) -> float:
        """Return when a job is due that asked for the time `due`: callbacks change that; its deadline comes first."""
        running = job.record.state is JobState.RUNNING
        if running and self._deadlines.has_come(job):
            return due
        due = self.due_after_callback(job, due)
        # A live job always has a due time, even if a setting or a policy asks for an infinite wait.
        due = due if due < now + DAY_S else now + DAY_S
        due = self.next_check_at(job) if due <= now and running and self.is_too_early(job) else due
        return min(due, self._deadlines.of(job)) if running else due

    def is_too_early(self, job: TrackedJob) -> bool:
        """Whether a due job is not polled yet, because its callback is expected."""
        in_trouble = job.failures > 0 or job.rare.first_imageless_at < NEVER
        waits = self.waits_for_callback(job) and not job.callback_pending and not in_trouble
        return waits and self._fallback_poll_at(job) > self._clock() + TICK_S

    def on_ended(self, record: JobRecord, *, callback_came: bool) -> None:
        """Record that a job ended, and whether its callback had come."""
        if not self.expects_callback_for(record):
            return
        if not self._webhook_unproven:
            self._lost_share += LOSS_SMOOTHING * ((not callback_came) - self._lost_share)
            self._relies_on_callbacks = self._lost_share < (
                STOP_RELYING_ABOVE_LOSS if self._relies_on_callbacks else RELY_AGAIN_BELOW_LOSS
            )
            if not (callback_came or self._relies_on_callbacks):
                self.webhook_doubted.set()
        elif callback_came:
            self._mark_proven()
        else:
            self._record_undelivered_end(record.task_id or "")

    def _mark_proven(self) -> None:
        self._webhook_unproven, self._lost_share, self._relies_on_callbacks = False, 0.0, True
        self._ended_without_delivery.clear()

    def _record_undelivered_end(self, task_id: str) -> None:
        """Remember a task that ended before any delivery came; warn once if none comes for long."""
        now, ended = self._clock(), self._ended_without_delivery
        self.webhook_doubted.set()
        ended[task_id] = None
        self._silent_since = min(self._silent_since, now)
        if len(ended) >= SILENT_JOBS and now >= self._silent_since + SILENT_S and not self._warned:
            self._warned = True
            why = f"no delivery came for {len(ended)} jobs: can the gateway reach public_url? Jobs are polled as usual"
            log.warning("webhook.silent %s", why, extra={"event": "webhook.silent"})
        if len(ended) > ENDED_KEPT:
            ended.popitem(last=False)

    def _fallback_poll_at(self, job: TrackedJob) -> float:
        late_s = 0.0
        if job.schedule is not None:
            job.schedule.refit_if_due()
            late_s = job.schedule.p99_s
        if job.polled_at < job.running_at:
            return job.running_at + min(late_s, LONGEST_FALLBACK_S)
        return job.polled_at + min(max(late_s / 2, SHORTEST_FALLBACK_S), LONGEST_FALLBACK_S)

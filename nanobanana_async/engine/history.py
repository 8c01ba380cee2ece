"""Read the gateway's history of tasks, where it has one, and keep the jobs in doubt that wait for it."""

import asyncio
import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial

import anyio
from attrs import define, frozen

from nanobanana_async.engine.contained_send import send_contained
from nanobanana_async.engine.poller import Poller
from nanobanana_async.engine.store import JobStore
from nanobanana_async.engine.tracked_job import NEVER, TrackedJob
from nanobanana_async.errors import (
    ConfigurationError,
    GatewayError,
    GatewayUnavailable,
    NanoBananaError,
    RateLimited,
    TaskNotFound,
    UnexpectedResponse,
)
from nanobanana_async.events import log, log_failure
from nanobanana_async.gateways.capabilities import HasHistory, HistoryPage, PastTask
from nanobanana_async.gateways.contract import Gateway, Transport
from nanobanana_async.http.threads import AnswerReader
from nanobanana_async.jobs import JobRecord
from nanobanana_async.policy.circuit import CreateSpacing
from nanobanana_async.policy.reconcile import ROUNDING_S, ClockOffset, estimate_lateness_s, ready_after_s

# An answer of these statuses that is not a history shows that there is none: no later reading will find one.
_NO_HISTORY_STATUSES = (200, 404, 405, 501)

# While creates may be processed for longer than this, the repeat after a 409 does not wait for their end.
LONGEST_CONFIRMATION_S = 10.0

# After so many readings that did not decide it, a job is left to its repeats, or becomes UNCERTAIN.
MOST_READINGS = 5
# So long a history is not read that was refused, as to a key without the right to read it: that may be given.
REFUSED_PAUSE_S = 600.0
# No more tasks are kept of one reading: a page has 50, and a day of a large account a few thousand.
MOST_TASKS = 20_000
# How many accepted tasks are remembered.
MOST_ACCEPTED = 100
# A clock that is further off is none.
_LONGEST_OFFSET_S = 86_400.0


@define
class JobAwaitingHistory:
    """A job in doubt that waits for the history to be read."""

    job: TrackedJob
    due: float
    ready_at: float
    """When a reading may decide about it."""
    lost_at: datetime
    reads: int = 0
    found_task: PastTask | None = None
    """Its task, which it gets once no request of the job is in flight."""


@frozen
class HistoryReading:
    """The tasks that were listed, newest first."""

    read_at: datetime
    """By our clock, before the first page was requested."""
    tasks: list[PastTask]
    complete_since: datetime
    """Every task since then was listed."""
    clock_offset: ClockOffset | None
    """The gateway's clock minus ours, by the dates of its answers."""


class History:
    """The history of the account's tasks. Its requests count as polls."""

    def __init__(
        self,
        gateway: Gateway,
        transport: Transport,
        poller: Poller,
        store: JobStore,
        spacing: CreateSpacing,
        *,
        query_s: float,
        clock: Callable[[], float],
    ) -> None:
        self.gateway = gateway if isinstance(gateway, HasHistory) else None
        self.delay_s = 0.0 if self.gateway is None else self.gateway.history_delay_s
        self.awaiting_jobs: dict[str, JobAwaitingHistory] = {}
        self.lock = asyncio.Lock()
        """Held while a reading is made and carried out."""
        self._transport = transport
        self._poller = poller
        self._store = store
        self._spacing = spacing
        self._query_s = query_s
        self._clock = clock
        self._answers = AnswerReader()
        self._longest_answer_s: float | None = None
        self._changed = asyncio.Event()
        self._read_at = -self.delay_s
        self._unreadable_until = -math.inf
        self._failures = 0
        """Readings in a row that failed."""
        self.accepted_tasks: dict[str, tuple[datetime, datetime]] = {}
        """The last tasks of this session: when their creates left, and were answered."""
        self._was_read = False

    @property
    def is_missing(self) -> bool:
        """Whether the gateway has no history, as far as is known."""
        return self.gateway is None or self._unreadable_until == math.inf

    @property
    def is_readable(self) -> bool:
        """Whether the gateway has a history, which was not refused a short time ago."""
        return self.gateway is not None and self._clock() >= self._unreadable_until

    @property
    def is_failing(self) -> bool:
        """Whether so many readings in a row failed that jobs do not wait for several more."""
        return self._failures >= MOST_READINGS

    @property
    def lateness_s(self) -> float:
        """How long after its connection was lost a create may still be processed."""
        return estimate_lateness_s(self._longest_answer_s, self.delay_s)

    def conflict_proven_after_s(self, record: JobRecord) -> float:
        """Return how long after the first 409 a second one shows that the create was processed to its end."""
        first = self.is_readable and record.conflict_at is None and self.lateness_s <= LONGEST_CONFIRMATION_S
        return self.lateness_s if first else 0.0

    def record_accepted_create(self, task_id: str, took_s: float) -> None:
        """Record how long the gateway took to accept a create, and when: the history must show that task."""
        self._longest_answer_s = max(took_s, self._longest_answer_s or 0.0)
        answered_at = self._store.utcnow()
        self.accepted_tasks[task_id] = (answered_at - timedelta(seconds=took_s), answered_at)
        if len(self.accepted_tasks) > MOST_ACCEPTED:
            del self.accepted_tasks[next(iter(self.accepted_tasks))]

    def find_unlisted_task(self, reading: HistoryReading) -> str | None:
        """Return a task that the reading should have listed, and has not: it then shows nothing for certain."""
        listed = {task.task_id for task in reading.tasks}
        until = reading.read_at - timedelta(seconds=self.delay_s)
        for task_id, (sent_at, answered_at) in self.accepted_tasks.items():
            since = _to_gateway_time(sent_at, reading.clock_offset)
            if since > reading.complete_since and answered_at <= until and task_id not in listed:
                return task_id
        return None

    def can_show(self, record: JobRecord) -> bool:
        """Return whether the history may show whether a job was bought: not if our clock was set back meanwhile."""
        known = record.sent_at is not None and record.lost_at is not None and record.sent_at <= record.lost_at
        return self.is_readable and known

    def watch_repeats(self, job: TrackedJob) -> None:
        """Let the history decide about a job whose repeats get 409, while it is repeated."""
        wait = self.awaiting_jobs.get(job.key)
        if job.record.conflict_at is None:
            self.awaiting_jobs.pop(job.key, None)
        elif wait is None or wait.lost_at != job.record.lost_at:
            self._add_awaiting_job(job, parked=False)

    def watch_parked(self, job: TrackedJob) -> bool:
        """Let the history decide about a job that is not repeated any more, from the time when it can.

        The first time it is read at once: there may be no history. Returns False if it will not decide: what
        `can_show` said does not hold after a write, during which a reading may have shown that there is no history.
        """
        return self._add_awaiting_job(job, parked=True)

    def _add_awaiting_job(self, job: TrackedJob, *, parked: bool) -> bool:
        lost_at, now = job.record.lost_at, self._clock()
        if not self.is_readable or lost_at is None:
            return False
        after_s = ready_after_s(self.lateness_s, self.delay_s, processed=job.record.conflict_at is not None)
        ready_at = now + max(0.0, after_s - self._store.age_s(lost_at))
        due = now if parked and not self._was_read else ready_at
        self.awaiting_jobs[job.key] = JobAwaitingHistory(
            job, due, ready_at, lost_at, reads=MOST_READINGS - 1 if self.is_failing else 0
        )
        self._changed.set()
        return True

    async def wait_until_due(self) -> None:
        """Wait until a job is due. One reading serves all that are due by then; readings are half a delay apart."""
        while True:
            self._changed.clear()
            reads_at = self._read_at + self.delay_s / 2
            due = min(
                (
                    max(wait.due, reads_at) if wait.found_task is None else wait.due
                    for wait in self.awaiting_jobs.values()
                ),
                default=NEVER,
            )
            wait_s = due - self._clock()
            if wait_s <= 0:
                return
            with anyio.move_on_after(wait_s if wait_s < NEVER else None):
                await self._changed.wait()

    async def read(self, since: datetime, *, most_pages: int) -> HistoryReading:
        """List the tasks since a time of our clock, and a few older ones. Raises what prevents it."""
        read_at = self._store.utcnow()
        tasks: dict[str, PastTask] = {}
        offset: ClockOffset | None = None
        oldest, in_order = datetime.max.replace(tzinfo=UTC), True
        complete_since = oldest
        for number in range(1, most_pages + 1):
            sent_at = self._store.utcnow()
            page = await self._read_page(number)
            offset = offset or _clock_offset(page, sent_at, self._store.utcnow())
            known = len(tasks)
            for task in page.tasks:
                # Tasks made meanwhile move older ones to the next page, where they are listed once more.
                in_order = in_order and (task.task_id in tasks or task.created_at <= oldest)
                oldest = min(oldest, task.created_at)
                tasks.setdefault(task.task_id, task)
            if page.is_last:
                complete_since = datetime.min.replace(tzinfo=UTC)
            elif in_order:
                complete_since = oldest
            # A gateway that ignores the number of the page shows the first one for ever.
            if page.is_last or len(tasks) == known or (in_order and oldest < _to_gateway_time(since, offset)):
                break
            if len(tasks) >= MOST_TASKS:
                log.info("history.cut tasks=%d: jobs from before %s stay in doubt", len(tasks), oldest.isoformat())
                break
        self._read_at, self._was_read, self._failures = self._clock(), True, 0
        return HistoryReading(read_at, list(tasks.values()), complete_since, offset)

    def on_read_failed(self, error: Exception) -> None:
        """Record that the history could not be read."""
        self._read_at = self._clock()
        self._failures += 1
        no_history = isinstance(error, UnexpectedResponse) and error.status in _NO_HISTORY_STATUSES
        refused = isinstance(error, GatewayError) and not isinstance(error, (RateLimited, GatewayUnavailable))
        what = _name_failure(error)
        if no_history or isinstance(error, (TaskNotFound, ConfigurationError)):  # or a lent session that was closed
            self._unreadable_until = math.inf
            self._spacing.disable()
            log.warning("history.unreadable error=%s: jobs in doubt have to be resolved by hand", what)
        elif refused:
            self._unreadable_until = self._clock() + REFUSED_PAUSE_S
            self._spacing.release()
            log.warning(
                "history.refused error=%s: it is read again after %g s if a job is in doubt then", what, REFUSED_PAUSE_S
            )
        elif isinstance(error, NanoBananaError):
            log.info("history.unread error=%s", what)
        else:
            log_failure("history.crashed", error)

    def allow_reading(self) -> None:
        """Let a history that was refused be read at once: a person asks for it."""
        if not self.is_missing:
            self._unreadable_until = -math.inf

    async def find_claimed(self, account: str, tasks: list[PastTask]) -> dict[str, JobRecord | None]:
        """Return the tasks that a job of the ledger has. An attached task may be another job's as well."""
        known = await self._store.ledger.known_tasks(account, [task.task_id for task in tasks])
        return {
            task_id: record for task_id, record in known.items() if record is None or record.first_sent_at is not None
        }

    async def _read_page(self, number: int) -> HistoryPage:
        await self._poller.wait_until_admitted()
        return await self._poller.run_admitted_request(partial(self._request_page, number))

    async def _request_page(self, number: int) -> HistoryPage:
        assert self.gateway is not None
        request = self.gateway.build_history(number)
        response = await send_contained(self._transport, request, timeout_s=self._query_s)
        return await self._answers.read(self.gateway.read_history, response)


def _name_failure(error: Exception) -> str:
    """Return what a log may say about a failed reading: no text of the answer, which may hold links to images."""
    status, code = (getattr(error, name, None) for name in ("status", "code"))
    facts = [str(fact) for fact in (status, None if code == str(status) else code) if fact is not None]
    return " ".join([type(error).__name__, *facts])


def _clock_offset(page: HistoryPage, sent_at: datetime, answered_at: datetime) -> ClockOffset | None:
    """Return the bounds of the offset by the date of an answer, which is in whole seconds."""
    if page.answered_at is None:
        return None
    least = (page.answered_at - answered_at).total_seconds()
    if abs(least) > _LONGEST_OFFSET_S:
        return None
    return ClockOffset(least, (page.answered_at - sent_at).total_seconds() + ROUNDING_S)


def _to_gateway_time(since: datetime, offset: ClockOffset | None) -> datetime:
    """Return a time of our clock by the gateway's: the earliest it can be, less the rounding of `created_at`."""
    least = 0.0 if offset is None else offset.least
    return since + timedelta(seconds=least - 2 * ROUNDING_S)

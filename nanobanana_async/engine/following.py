"""The life after the purchase: one look at a job, and what it means.

The network never fails a job. What ends the waiting leaves the record RUNNING, to be followed again.
"""

import random
from collections.abc import Callable
from itertools import islice

from nanobanana_async.engine.books import Books
from nanobanana_async.engine.entry import NEVER, Entry
from nanobanana_async.engine.reliance import Reliance
from nanobanana_async.engine.sending import send
from nanobanana_async.errors import ContractBroken, NanoBananaError, RateLimited
from nanobanana_async.gateways.contract import Gateway, Transport
from nanobanana_async.http.threads import AnswerReader
from nanobanana_async.jobs import Failure, JobRecord, JobState, Observation
from nanobanana_async.observe import LONGEST_WORD, JobSeen, QueryFailed, UnknownStatus
from nanobanana_async.policy.durations import Durations
from nanobanana_async.policy.pacing import Pacer
from nanobanana_async.policy.polling import PollPolicy
from nanobanana_async.policy.retry import (
    LATE_IMAGES_S,
    MAX_RETRY_AFTER_S,
    Gate,
    RetryPolicy,
    is_outage,
    stops_following,
)
from nanobanana_async.policy.schedule import Schedule

# A gateway that says something else each time is warned of so often in a session, and remembered no further.
MOST_STRANGE_WORDS = 50


class Follower:
    """Looks at one job at a time, and says when to look again."""

    def __init__(
        self,
        gateway: Gateway,
        transport: Transport,
        books: Books,
        polling: PollPolicy,
        retry: RetryPolicy,
        *,
        query_s: float,
        job_s: float,
        clock: Callable[[], float],
        is_called_back: Callable[[JobRecord], bool],
    ) -> None:
        self._gateway = gateway
        self._transport = transport
        self._books = books
        self._polling = polling
        self._retry = retry
        self._query_s = query_s
        self.job_s = job_s
        self._clock = clock
        self._answers = AnswerReader()
        self.reliance = Reliance(is_called_back, clock)
        self._jitter = random.Random()
        self._strange_words: set[str] = set()
        self._schedules: dict[str, Schedule[Entry]] = {}
        self.gate = Gate(retry)
        self.pacer = Pacer()
        self.looks = 0
        self._on_wire = 0

    def admits(self, now: float) -> bool:
        """Tell whether one more query may leave."""
        return self.gate.admits(now, self._on_wire) and self.pacer.admits(now, self._on_wire)

    def opens_at(self) -> float:
        """When time alone lets a query leave; in the past if it waits for something else."""
        return max(self.gate.opens_at, self.pacer.next_at)

    def sent(self, now: float) -> None:
        """Note that a query left."""
        self._on_wire += 1
        self.pacer.sent(now)

    def begin(self, entry: Entry) -> float:
        """Begin to follow a job that runs; return when to look at it first."""
        entry.schedule = self._schedule_of(entry)
        entry.schedule.began(entry)
        entry.failures = 0  # those of its creates
        if self.reliance.applies_to(entry):
            return self.reliance.next_look(entry)
        return entry.running_at + entry.schedule.next_look_s(0.0)  # a job found again may long have ended

    async def ask(self, task_id: str) -> Observation:
        """Ask about a task that may be ours; whatever prevents an answer is raised."""
        self.looks += 1
        return await self._query(task_id)

    def end(self, entry: Entry) -> None:
        """Let go of a job."""
        if entry.schedule is not None:
            entry.schedule.forget(entry)

    def gain(self, entry: Entry) -> float:
        """Return what a look at this job is worth now: how likely it has ended since the last one."""
        return 0.0 if entry.schedule is None else entry.schedule.gain(entry, self._clock() - entry.running_at)

    def likely_ends(self, since: float) -> float:
        """Return how many of the followed jobs have probably ended, unseen, since a moment."""
        now = self._clock()
        return sum(
            schedule.ended_chance(max(seen_s, since - entry.running_at), now - entry.running_at)
            for schedule in self._schedules.values()
            for entry, seen_s in schedule.running()
        )

    def lingers_s(self, entry: Entry) -> float:
        """Return how long a job that was perhaps bought may still run."""
        return min(self.job_s, self._schedule_of(entry).late_s)

    @property
    def longest_s(self) -> float:
        """How long a job of whatever class may still run."""
        classes = (self._schedule(""), *self._schedules.values())
        return min(self.job_s, max(schedule.late_s for schedule in classes))

    def mean_s(self, entry: Entry) -> float:
        """Return how long jobs like this one take, in the mean."""
        return self._schedule_of(entry).mean_s

    @property
    def learned(self) -> Durations | None:
        """What was learned about the class of jobs that was seen most."""
        for schedule in self._schedules.values():
            schedule.learn()
        known = [schedule.durations for schedule in self._schedules.values() if schedule.durations.count]
        return max(known, key=lambda durations: durations.count, default=None)

    def _schedule_of(self, entry: Entry) -> Schedule[Entry]:
        request = entry.record.request
        return self._schedule("" if request is None else self._gateway.price_class(request))

    def _schedule(self, name: str) -> Schedule[Entry]:
        schedule = self._schedules.get(name)
        if schedule is None:
            # A class never seen is taken to be like the one that was seen most.
            learned = self.learned
            expected_s = self._gateway.expected_job_s if learned is None else learned.median_s
            schedule = self._schedules[name] = Schedule(self._polling, Durations(expected_s))
        return schedule

    def running_since(self, entry: Entry) -> float:
        """The loop's time at which a job that was found in the ledger began to run."""
        return self._clock() - max(0.0, self._books.age_s(entry.record.begun_at))

    async def look(self, entry: Entry) -> float:
        """Ask the gateway once; return when the job is due again."""
        entry.looks += 1
        self.looks += 1
        entry.looked_at = sent_at = self._clock()
        called, entry.news = entry.news, False
        try:
            seen = await self._query(entry.record.task_id or "")
        except NanoBananaError as error:
            entry.news = entry.news or called  # it is still to be confirmed
            return self._not_seen(entry, error, sent_at)
        finally:
            self._on_wire -= 1
        self.gate.succeeded()
        self.pacer.accepted(self._clock(), sent_at)
        entry.failures = 0
        self._note_strange_word(entry, seen)
        age_s = self._clock() - entry.running_at
        took_s = None if entry.refetching else seen.took_s(age_s)
        delay_s = None if took_s is None else max(0.0, age_s - took_s)
        self._books.tell(JobSeen(record=entry.record, status=seen.status, looks=entry.looks, delay_s=delay_s))
        if entry.refetching:
            return self._refetched(entry, seen)
        match seen.state:
            case JobState.SUCCEEDED if seen.images:
                return await self._succeeded(entry, seen, called)
            case JobState.SUCCEEDED:
                return self._without_image(entry, seen)
            case JobState.FAILED:
                return await self._failed(entry, seen, called)
            case _:
                return self._still_running(entry)

    async def _query(self, task_id: str) -> Observation:
        response = await send(self._transport, self._gateway.build_query(task_id), timeout_s=self._query_s)
        seen = await self._answers.read(self._gateway.read_query, response)
        if seen.task_id not in (None, task_id):
            raise ContractBroken(f"asked about {task_id}, told about {seen.task_id}", status=response.status)
        return seen

    async def _succeeded(self, entry: Entry, seen: Observation, called: bool) -> float:
        entry.observation = seen
        # Pictures that came inline are kept out of the ledger: an empty place says that one was here.
        kept = tuple("" if url.startswith("data:") else url for url in seen.images)
        await self._end(entry, JobState.SUCCEEDED, seen, called, images=kept, missing=seen.missing)
        return NEVER

    def _refetched(self, entry: Entry, seen: Observation) -> float:
        if not seen.images:
            error = f"task {entry.record.task_id} has succeeded, but the gateway no longer shows its pictures"
            return self._stop(entry, ContractBroken(error))
        entry.refetching, entry.observation = False, seen
        entry.wake()
        return NEVER

    async def _failed(self, entry: Entry, seen: Observation, called: bool) -> float:
        entry.observation = seen
        failure = Failure(
            kind="JobFailed", message=seen.error or "the gateway gave no reason", request_id=seen.request_id
        )
        await self._end(entry, JobState.FAILED, seen, called, failure=failure)
        return NEVER

    async def _end(self, entry: Entry, state: JobState, seen: Observation, called: bool, **facts: object) -> None:
        record = entry.record
        self.reliance.ended(record, called=called)
        if entry.schedule is not None:
            age_s = self._clock() - entry.running_at
            took_s = seen.took_s(age_s)
            entry.schedule.seen_ended(entry, age_s, age_s if called and took_s is None else took_s)
        unwritten = await self._books.learn(
            entry,
            state,
            ended_at=self._books.utcnow(),
            credits_used=record.credits_used if seen.credits_used is None else seen.credits_used,
            credits_refunded=seen.credits_refunded,
            model=seen.model or record.model,
            **facts,
        )
        if unwritten is not None:  # what was paid for is handed over all the same
            self._books.tell(QueryFailed(record=entry.record, error=unwritten, wait_s=None, looks=entry.looks))

    def _without_image(self, entry: Entry, seen: Observation) -> float:
        now = self._clock()
        entry.imageless_at = min(entry.imageless_at, now)
        if now - entry.imageless_at < LATE_IMAGES_S:
            return now + max(1.0, self._polling.min_gap_s)
        excerpt = ", ".join(f"{name}={value!r}"[:60] for name, value in islice(seen.raw.items(), 20))[:300]
        reasons = "".join(dict.fromkeys(f"; {why}" for _, why in seen.missing))[:300]
        status = seen.status[:LONGEST_WORD]
        error = ContractBroken(f"task {entry.record.task_id} is {status} without an image{reasons}", body=excerpt)
        return self._stop(entry, error)

    def _still_running(self, entry: Entry) -> float:
        age_s = self._clock() - entry.running_at
        if age_s >= self.job_s:
            error = ContractBroken(f"task {entry.record.task_id} still runs after {age_s:.0f} s (Timeouts.job_s)")
            return self._stop(entry, error)
        if entry.schedule is None:
            return self.begin(entry)
        entry.schedule.seen_running(entry, age_s)
        if self.reliance.applies_to(entry):
            return self.reliance.next_look(entry)
        return entry.running_at + entry.schedule.next_look_s(age_s)

    def _not_seen(self, entry: Entry, error: NanoBananaError, sent_at: float) -> float:
        now = self._clock()
        asked = min(getattr(error, "retry_after_s", None) or 0.0, MAX_RETRY_AFTER_S)
        if isinstance(error, RateLimited):
            self.pacer.refused(now, sent_at, asked or None)
            self.gate.pause(now, asked)
        if is_outage(error):
            self.gate.failed(now, self._jitter.random())
        else:
            self.gate.succeeded()
        if stops_following(error, now - entry.running_at, self.job_s):
            return self._stop(entry, error)
        entry.failures += 1
        wait_s = max(asked, self._retry.backoff_s(entry.failures + 1, self._jitter.random()))
        self._books.tell(QueryFailed(record=entry.record, error=error, wait_s=wait_s, looks=entry.looks))
        return now + wait_s

    def _stop(self, entry: Entry, error: NanoBananaError) -> float:
        """End the waiting, not the job."""
        self._books.tell(QueryFailed(record=entry.record, error=error, wait_s=None, looks=entry.looks))
        entry.refetching, entry.stopped = False, error
        entry.wake()
        return NEVER

    def _note_strange_word(self, entry: Entry, seen: Observation) -> None:
        """Tell of a status word that the reference does not list: once, and of so many words at most."""
        word = seen.status[:LONGEST_WORD]
        if seen.known_status or word in self._strange_words or len(self._strange_words) >= MOST_STRANGE_WORDS:
            return
        self._strange_words.add(word)
        self._books.tell(UnknownStatus(record=entry.record, status=word))

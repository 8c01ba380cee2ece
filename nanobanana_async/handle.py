"""`Job`, the live handle of one job: its state, result and updates."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Generator
from datetime import datetime
from decimal import Decimal
from typing import Any, Self

from attrs import evolve

from nanobanana_async import errors
from nanobanana_async.engine.doubt import candidates_hint
from nanobanana_async.engine.engine import Engine
from nanobanana_async.engine.phases import Phase
from nanobanana_async.engine.progress import expected_end_of, progress_of
from nanobanana_async.engine.tracked_job import TrackedJob
from nanobanana_async.errors import (
    CreditLimitReached,
    GatewayError,
    IdempotencyConflict,
    JobFailed,
    JobUncertain,
    JobUnfinished,
    JobWithdrawn,
    NanoBananaError,
)
from nanobanana_async.failures import Failure
from nanobanana_async.formatting import number
from nanobanana_async.jobs import JobSnapshot, JobState, with_indexes
from nanobanana_async.misspelt import has_result
from nanobanana_async.models import GeneratedImage, GenerationResult, ImageRequest, request_facts, result_facts
from nanobanana_async.notebook_html import Html, card, error_box, image_gallery, note, progress_bar
from nanobanana_async.validators import as_timeout


@has_result(GenerationResult)
class Job:
    """A live job. Await it for its result, any number of times and from any number of tasks.

    It belongs to the event loop of its session. Pickled, it becomes a `JobSnapshot`.
    """

    def __init__(self, engine: Engine, tracked: TrackedJob) -> None:
        self._engine = engine
        self._tracked = tracked

    def __repr__(self) -> str:
        task = f" task {self.task_id}" if self.task_id else ""
        return f"<Job {self.key} {self.state.value}{task}>"

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, _: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (self._snapshot(self.state),)

    def _repr_html_(self) -> str:
        request, outcome = self.request, self.outcome()
        prompt = None if request is None else request.prompt
        if isinstance(outcome, GenerationResult):
            shown = image_gallery(image.url for image in outcome.images)
            return card(prompt, [("state", self.state.value), *result_facts(outcome)], shown)
        facts = [
            ("state", self.state.value),
            *request_facts(request),
            ("credits", None if self.credits is None else number(self.credits)),
            ("key", self.key),
            ("task", self.task_id),
        ]
        bar = progress_bar(self.progress) if self.state is JobState.RUNNING and outcome is None else Html("")
        return card(prompt, facts, bar, _status_html(self.state, outcome))

    def __await__(self) -> Generator[Any, None, GenerationResult]:
        return self.result().__await__()

    @property
    def key(self) -> str:
        """The key of the job in the ledger; also its idempotency key."""
        return self._tracked.record.key

    @property
    def task_id(self) -> str | None:
        """The gateway's task id; None until the create is accepted."""
        return self._tracked.record.task_id

    @property
    def state(self) -> JobState:
        """The state in the ledger."""
        return self._tracked.record.state

    @property
    def request(self) -> ImageRequest | None:
        """The request; None for a task attached by its id alone."""
        return self._tracked.record.request

    @property
    def created_at(self) -> datetime:
        """When the job was first stored."""
        return self._tracked.record.created_at

    @property
    def credits(self) -> Decimal | None:
        """The price after refunds; None until the gateway reports one."""
        return self._tracked.record.credits

    @property
    def progress(self) -> float:
        """The share of the job that is done: it never goes back, and is 1 only when the job has succeeded.

        By the gateway's word where it says so, else by how long such jobs take.
        """
        return progress_of(self._engine, self._tracked)

    @property
    def expected_end(self) -> datetime | None:
        """When a running job should end: half of the jobs like it that still run have ended by then. Else None."""
        return expected_end_of(self._engine, self._tracked)

    async def wait_until_stored(self) -> None:
        """Wait until the ledger has stored the job. Raises `LedgerError` if it cannot."""
        self._engine.guard.check()
        while self._tracked.awaits_ledger_decision:
            await self._tracked.wait_for_change()
        if self._tracked.wait_error is not None:
            raise self._make_error()

    async def wait_for_task_id(self) -> str:
        """Wait for the gateway's task id and return it. Raises the error of a job that ended without one."""
        self._engine.guard.check()
        if self.task_id is None:
            await self._ensure_followed()
        while self.task_id is None:
            if self._tracked.done:
                raise self._make_error()
            await self._wait_for_change()
        return self.task_id

    async def result(self, *, timeout: float | None = None) -> GenerationResult:
        """Wait for the images.

        Raises `JobUnfinished` after `timeout` seconds, or when the job still runs `Timeouts.job_s` after the wait
        began; the job goes on and can be awaited again. Other errors end the job or its polling: `JobFailed`,
        `JobUncertain`, `JobWithdrawn`, the gateway's refusal, a `TransportError`.
        """
        self._engine.guard.check()
        if timeout is None:
            return await self._result()
        deadline = asyncio.timeout(timeout := as_timeout("timeout", timeout))
        try:
            async with deadline:
                return await self._result()
        except TimeoutError as error:
            if isinstance(error, NanoBananaError) or not deadline.expired():
                raise
        raise timeout_error(self, self._tracked, timeout or 0.0)

    async def _result(self) -> GenerationResult:
        await self._ensure_followed()
        while not self._tracked.done or self._tracked.images_missing:
            if self._tracked.done:
                await self._engine.poll_again_for_images(self._tracked)
            else:
                await self._wait_for_change(until_over=True)
        if self.state is not JobState.SUCCEEDED:
            raise self._make_error()
        return self._result_from_record()

    async def updates(self) -> AsyncGenerator[JobSnapshot, None]:
        """Yield the job as it is, then after each change of its state, and each poll that found it running."""
        self._engine.guard.check()
        await self._ensure_followed()
        tracked = self._tracked
        feed: deque[JobState] = deque([self.state])
        tracked.rare = evolve(tracked.rare, state_queues=(*tracked.rare.state_queues, feed))
        try:
            while True:
                while feed:
                    yield self._snapshot(feed.popleft())
                if tracked.done or not tracked.is_followed:
                    return
                self._engine.guard.check()  # the caller may resume this generator on another event loop
                await tracked.wait_for_change()
        finally:
            others = tuple(other for other in tracked.rare.state_queues if other is not feed)
            tracked.rare = evolve(tracked.rare, state_queues=others)

    def _snapshot(self, state: JobState) -> JobSnapshot:
        """Return the job in its present state or in an earlier one."""
        end = expected_end_of(self._engine, self._tracked) if state is JobState.RUNNING else None
        progress = progress_of(self._engine, self._tracked, state)
        return evolve(JobSnapshot.of(self._tracked.record), state=state, progress=progress, expected_end=end)

    async def cancel(self) -> bool:
        """Withdraw the job if it was not sent yet. Returns False if it was: then it goes on."""
        self._engine.guard.check()
        # No `_ensure_followed` here: cancel() must not start polling a job that was already sent.
        self._tracked = tracked = self._engine.tracked.get(self.key, self._tracked)
        if self._engine.request_withdrawal(tracked) or tracked.is_being_withdrawn:
            while tracked.is_being_withdrawn and not tracked.done:
                await self._wait_for_change()
        return self.state is JobState.WITHDRAWN

    async def _ensure_followed(self) -> None:
        """Start polling a job that was only looked up, or whose polling has stopped."""
        self._tracked = await self._engine.reload_and_follow(self._tracked)

    async def _wait_for_change(self, *, until_over: bool = False) -> None:
        if not self._tracked.is_followed:
            message = f"job {self.key} was never bought: generate it again to buy it"
            if self._tracked.record.possibly_bought:
                message = f"job {self.key} is {self.state.value} and no longer polled here: await it again"
            raise JobUnfinished(message, job=self, safe_to_repeat=self._tracked.safe_to_repeat)
        await self._tracked.wait_for_change(until_over=until_over)

    def outcome(self) -> GenerationResult | NanoBananaError | None:
        """Return the result or error of a job; None if it has not ended, or its images must be fetched again."""
        tracked = self._tracked
        if not tracked.done or (self.state is JobState.SUCCEEDED and tracked.images_missing):
            return None
        return self._result_from_record() if self.state is JobState.SUCCEEDED else self._make_error()

    def last_failure(self) -> NanoBananaError | None:
        """Return why the last request of an unfinished job failed, or of another job if this one waits for it."""
        why = self._tracked.last_failure or self._engine.home_of(self._tracked).poller.outage.error
        return None if why is None else why.for_job(self.key, safe_to_repeat=False)

    def _result_from_record(self) -> GenerationResult:
        record, seen = self._tracked.record, self._tracked.observation
        urls, missing = (record.images, record.missing) if seen is None else (seen.images, seen.missing)
        task_id = record.task_id or ""
        return GenerationResult(
            key=record.key,
            task_id=task_id,
            images=tuple(
                GeneratedImage(url=url, index=index, task_id=task_id, ended_at=record.ended_at)
                for index, url in with_indexes(urls, missing)
            ),
            missing=dict(missing) | _reasons_for_unmentioned(record.request, len(urls) + len(missing)),
            model=record.model,
            credits=record.credits,
            created_at=record.created_at,
            completed_at=record.ended_at,
            raw={} if seen is None else seen.raw,
            request=record.request,
        )

    def _make_error(self) -> NanoBananaError:
        """Return a new error that ended the job or the wait, so that each waiter has its own traceback."""
        record, ended_by = self._tracked.record, self._tracked.wait_error
        why, safe = record.failure, self._tracked.safe_to_repeat
        reason = "" if why is None else f": {why.message}"
        if isinstance(ended_by, JobUnfinished):
            return JobUnfinished(ended_by.message, job=self, safe_to_repeat=safe)
        if ended_by is not None:
            return ended_by.for_job(record.key, safe_to_repeat=safe and ended_by.safe_to_repeat)
        match record.state:
            case JobState.FAILED:
                kind = "unknown" if why is None else why.failure_kind
                return JobFailed(f"task {record.task_id} failed{reason}", job=self, safe_to_repeat=safe, kind=kind)
            case JobState.UNCERTAIN if why is None or why.kind != IdempotencyConflict.__name__:
                message = f"job {record.key} may have been bought: the answer to its create was lost{reason}"
                message += candidates_hint(record, self._engine.claimer.ledger_location)
                return JobUncertain(message, job=self, safe_to_repeat=safe)
            case JobState.UNCERTAIN | JobState.REFUSED if why is not None:
                return _error_from_failure(why).for_job(record.key, safe_to_repeat=safe)
            case JobState.WITHDRAWN if why is not None and why.kind == CreditLimitReached.__name__:
                refused = CreditLimitReached(f"job {record.key} was withdrawn{reason}", safe_to_repeat=safe)
                refused.key, refused.budget = record.key, record.budget
                return refused
            case _:
                return JobWithdrawn(f"job {record.key} was withdrawn{reason}", job=self, safe_to_repeat=safe)


def _reasons_for_unmentioned(request: ImageRequest | None, named: int) -> dict[int, str]:
    """Return a reason for each requested image that the gateway does not mention."""
    wanted = 0 if request is None else request.num_images
    return dict.fromkeys(range(named, wanted), "the gateway returned fewer images than requested")


def timeout_error(job: Job, tracked: TrackedJob, timeout: float) -> JobUnfinished:
    """Return the error of a wait that ended before the job did; the job goes on."""
    sending = tracked.record.state is JobState.PENDING and tracked.phase is Phase.IN_FLIGHT
    stage = "being sent" if sending else tracked.record.state.value
    why = job.last_failure()
    message = f"job {job.key} is {stage} after {timeout:g} s{in_parentheses(why)}; the job goes on: await it again"
    error = JobUnfinished(message, job=job, safe_to_repeat=False)
    error.__cause__ = why
    return error


def in_parentheses(why: NanoBananaError | None) -> str:
    """Return the message of an error in parentheses; nothing if there is none."""
    return "" if why is None else f" ({why.message})"


def _unpickled(snapshot: JobSnapshot) -> JobSnapshot:
    return snapshot


def _status_html(state: JobState, error: NanoBananaError | None) -> Html:
    if error is not None:
        return error_box(type(error).__name__, str(error))
    if state is JobState.SUCCEEDED:
        return note("Its images came inline and are not stored: await the job to fetch them again.")
    return note("It has not ended: await it for its images.")


def _error_from_failure(why: Failure) -> GatewayError:
    kind = getattr(errors, why.kind, GatewayError)
    if not (isinstance(kind, type) and issubclass(kind, GatewayError)):
        kind = GatewayError
    return kind(why.message, status=why.status, code=why.code, request_id=why.request_id)

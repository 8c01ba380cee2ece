"""The live handle of one job: where it stands, its result, its changes."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Generator
from datetime import datetime
from decimal import Decimal
from typing import Any, Self

from attrs import frozen

from nanobanana_async import errors
from nanobanana_async.engine.engine import Engine
from nanobanana_async.engine.tracked_job import TrackedJob
from nanobanana_async.errors import (
    ConfigurationError,
    GatewayError,
    IdempotencyConflict,
    JobFailed,
    JobUncertain,
    JobUnfinished,
    JobWithdrawn,
    NanoBananaError,
)
from nanobanana_async.jobs import Failure, JobState, with_indexes
from nanobanana_async.models import GeneratedImage, GenerationResult, ImageRequest, request_facts, result_facts
from nanobanana_async.notebook_html import Html, amount, card, error_box, image_gallery, note
from nanobanana_async.validators import as_timeout


@frozen(kw_only=True)
class JobSnapshot:
    """What becomes of a `Job` that is pickled: where it stood then. It can't be awaited, the session can't come along.

    In the session's own process, copies of what holds a job (an `Outcome`, a `JobError`) hold the same live `Job`.
    """

    key: str
    task_id: str | None
    state: JobState
    request: ImageRequest | None
    created_at: datetime
    credits: Decimal | None

    def __await__(self) -> Generator[Any, None, GenerationResult]:
        raise ConfigurationError(f"this is a copy of job {self.key}: find the job with `await session.job(key)`")


class Job:
    """One job, live: await it for its result, as often and from as many tasks as you like.

    Like its session it belongs to one event loop. Pickled, it becomes a `JobSnapshot`.
    """

    def __init__(self, engine: Engine, entry: TrackedJob) -> None:
        self._engine = engine
        self._tracked = entry

    def __repr__(self) -> str:
        task = f" task {self.task_id}" if self.task_id else ""
        return f"<Job {self.key} {self.state.value}{task}>"

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, _: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        facts = (self.key, self.task_id, self.state, self.request, self.created_at, self.credits)
        return _snapshot, facts

    def _repr_html_(self) -> str:
        request, settled = self.request, self.outcome()
        prompt = None if request is None else request.prompt
        if isinstance(settled, GenerationResult):
            shown = image_gallery(image.url for image in settled.images)
            return card(prompt, [("state", self.state.value), *result_facts(settled)], shown)
        facts = [
            ("state", self.state.value),
            *request_facts(request),
            ("credits", None if self.credits is None else amount(self.credits)),
            ("key", self.key),
            ("task", self.task_id),
        ]
        return card(prompt, facts, _status_html(self.state, settled))

    def __await__(self) -> Generator[Any, None, GenerationResult]:
        return self.result().__await__()

    @property
    def key(self) -> str:
        """Our key: the job's identity, and its idempotency key."""
        return self._tracked.record.key

    @property
    def task_id(self) -> str | None:
        """The gateway's id, once it gave one."""
        return self._tracked.record.task_id

    @property
    def state(self) -> JobState:
        """Where it stands, as far as the ledger knows."""
        return self._tracked.record.state

    @property
    def request(self) -> ImageRequest | None:
        """What is wanted; None for a task attached by its id alone."""
        return self._tracked.record.request

    @property
    def created_at(self) -> datetime:
        """When the job was first written down."""
        return self._tracked.record.created_at

    @property
    def credits(self) -> Decimal | None:
        """What it cost after refunds, as far as the gateway said."""
        return self._tracked.record.credits

    async def persisted(self) -> None:
        """Wait until the job is written down; raise `LedgerError` if it can't be."""
        self._engine.guard.check()
        while self._tracked.joining:
            await self._tracked.wait_for_change()
        self._raise_stopped()

    async def accepted(self) -> str:
        """Wait for the gateway's task id and return it; raise what ended the job before."""
        self._engine.guard.check()
        if self.task_id is None:
            await self._ensure_followed()
        while self.task_id is None:
            if self._tracked.done:
                raise self._error()
            await self._wait_for_change()
        return self.task_id

    async def result(self, *, timeout: float | None = None) -> GenerationResult:
        """Wait for the pictures.

        Raises `JobUnfinished` after `timeout` seconds: the job goes on, and can be awaited again. Raises what ended it
        otherwise: `JobFailed`, `JobUncertain`, `JobWithdrawn`, the gateway's refusal, or what ended the following.
        """
        self._engine.guard.check()
        deadline = asyncio.timeout(timeout := as_timeout("timeout", timeout))
        try:
            async with deadline:
                return await self._result()
        except TimeoutError as error:
            if isinstance(error, NanoBananaError) or not deadline.expired():
                raise
        record = self._tracked.record
        raise JobUnfinished(
            f"job {self.key} is {record.state.value} after {timeout:g} s",
            job=self,
            safe_to_repeat=False,
        )

    async def _result(self) -> GenerationResult:
        await self._ensure_followed()
        while not self._tracked.done:
            await self._wait_for_change()
        while self.state is JobState.SUCCEEDED and self._tracked.images_missing:
            self._tracked = self._engine.poll_for_images(self._tracked)
            while not self._tracked.done:
                await self._wait_for_change()
            self._raise_stopped()
        if self.state is not JobState.SUCCEEDED:
            raise self._error()
        return self._result_from_record()

    async def updates(self) -> AsyncGenerator[JobState, None]:
        """Yield each state of the job once, from the one it is in to the one it ends in."""
        self._engine.guard.check()
        await self._ensure_followed()
        entry = self._tracked
        feed: deque[JobState] = deque([self.state])
        entry.updates = [*(entry.updates or ()), feed]
        try:
            while True:
                while feed:
                    yield feed.popleft()
                if entry.done or not entry.live:
                    return
                self._engine.guard.check()  # the next step may be asked for from another loop than the first
                await entry.wait_for_change()
        finally:
            entry.updates = [other for other in entry.updates if other is not feed] or None

    async def cancel(self) -> bool:
        """Withdraw the job if it was not yet sent; return False when it is too late: then it goes on."""
        self._engine.guard.check()
        # One that was only looked up and was sent shall not be stirred.
        self._tracked = entry = self._engine.tracked.get(self.key, self._tracked)
        if self._engine.request_withdrawal(entry) or entry.leaving:
            while entry.leaving and not entry.done:
                await self._wait_for_change()
        return self.state is JobState.WITHDRAWN

    async def _ensure_followed(self) -> None:
        """Let the job be followed again if it was only looked up, or if its following had stopped."""
        self._tracked = await self._engine.reload_and_follow(self._tracked)

    async def _wait_for_change(self) -> None:
        if not self._tracked.live:
            bought = self._tracked.record.possibly_bought
            why = f"is {self.state.value}, and is no longer followed here" if bought else "was never bought"
            raise JobUnfinished(f"job {self.key} {why}", job=self, safe_to_repeat=not bought)
        await self._tracked.wait_for_change()

    def outcome(self) -> GenerationResult | NanoBananaError | None:
        """Return how the job ended; None if it has not, or if its pictures must be asked for once more."""
        entry = self._tracked
        if not entry.done or (self.state is JobState.SUCCEEDED and entry.images_missing):
            return None
        return self._result_from_record() if self.state is JobState.SUCCEEDED else self._error()

    def _result_from_record(self) -> GenerationResult:
        record, seen = self._tracked.record, self._tracked.observation
        urls, missing = (record.images, record.missing) if seen is None else (seen.images, seen.missing)
        task_id = record.task_id or ""
        return GenerationResult(
            key=record.key,
            task_id=task_id,
            images=tuple(
                GeneratedImage(url=url, index=index, task_id=task_id) for index, url in with_indexes(urls, missing)
            ),
            missing=dict(missing) | _unnamed(record.request, len(urls) + len(missing)),
            model=record.model,
            credits=record.credits,
            created_at=record.created_at,
            completed_at=record.ended_at,
            raw={} if seen is None else seen.raw,
            request=record.request,
        )

    def _raise_stopped(self) -> None:
        if self._tracked.wait_error is not None:
            raise self._error()

    def _error(self) -> NanoBananaError:
        """Return what ended the job, or the waiting for it: fresh, so that each waiter has a traceback of its own."""
        entry = self._tracked
        record = entry.record
        if entry.wait_error is not None:
            safe = entry.wait_error.safe_to_repeat and not record.possibly_bought
            return entry.wait_error.for_job(record.key, safe_to_repeat=safe)
        why = record.failure
        match record.state:
            case JobState.FAILED:
                reason = "" if why is None else f": {why.message}"
                return JobFailed(f"task {record.task_id} failed{reason}", job=self, safe_to_repeat=True)
            case JobState.UNCERTAIN if why is not None and why.kind == IdempotencyConflict.__name__:
                return _error_from_failure(why).for_job(record.key, safe_to_repeat=False)
            case JobState.UNCERTAIN:
                reason = "" if why is None else f": {why.message}"
                return JobUncertain(
                    f"nobody knows whether job {record.key} was bought{reason}", job=self, safe_to_repeat=False
                )
            case JobState.REFUSED if why is not None:
                return _error_from_failure(why).for_job(record.key, safe_to_repeat=True)
            case _:
                return JobWithdrawn(f"job {record.key} was withdrawn", job=self, safe_to_repeat=True)


def _unnamed(request: ImageRequest | None, named: int) -> dict[int, str]:
    """Return the images that were asked for and that the gateway does not name at all."""
    wanted = 0 if request is None else request.num_images
    return dict.fromkeys(range(named, wanted), "the gateway names fewer images than were asked for")


async def persistent_handle(engine: Engine, entry: TrackedJob) -> Job:
    """Return the handle of a job once it is written down; then it outlives its callers."""
    job = Job(engine, entry)
    engine.add_caller(entry)
    try:
        await job.persisted()
        engine.keep(entry)
    finally:
        engine.drop_caller(entry)
    return job


def _snapshot(*facts: Any) -> JobSnapshot:
    key, task_id, state, request, created_at, credits_ = facts
    return JobSnapshot(key=key, task_id=task_id, state=state, request=request, created_at=created_at, credits=credits_)


def _status_html(state: JobState, settled: NanoBananaError | None) -> Html:
    if settled is not None:
        return error_box(type(settled).__name__, str(settled))
    if state is JobState.SUCCEEDED:
        return note("Its pictures came inline, and are not at hand: await it to see them.")
    return note("It has not ended: await it for its pictures.")


def _error_from_failure(why: Failure) -> GatewayError:
    kind = getattr(errors, why.kind, GatewayError)
    if not (isinstance(kind, type) and issubclass(kind, GatewayError)):
        kind = GatewayError
    return kind(why.message, status=why.status, code=why.code, request_id=why.request_id)

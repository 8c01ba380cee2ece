"""Turn the events of one session into spans and metrics."""

import asyncio
import time
from typing import Any

from opentelemetry import context, trace
from opentelemetry.trace import Span, SpanKind, StatusCode

from nanobanana_async.errors import RateLimited, SessionClosed
from nanobanana_async.events import (
    CallbackReceived,
    CreateFailed,
    Event,
    JobPolled,
    JobReleased,
    JobStateChanged,
    JobTracked,
    LimitsChanged,
    PollFailed,
    WriteRefused,
)
from nanobanana_async.jobs import TERMINAL_STATES, JobState
from nanobanana_async.otel.attributes import (
    Attributes,
    end_attributes,
    error_attributes,
    error_type,
    input_messages,
    request_attributes,
    without_none,
)
from nanobanana_async.otel.instruments import Instruments
from nanobanana_async.otel.names import (
    CALLBACK_RECEIVED,
    CREATE_ACCEPTED,
    CREATE_DECISION,
    CREATE_FAILED,
    CREATE_OUTCOME,
    CREATE_SENT,
    CREATE_THROTTLED,
    ERROR_TYPE,
    GENERATE,
    INPUT_MESSAGES,
    JOB_ADOPTED,
    JOB_ENDED,
    JOB_GENERATION,
    JOB_KEY,
    JOB_POLLS,
    JOB_RESOLVED,
    JOB_STATE,
    LIMIT_KIND,
    OPERATION_NAME,
    OUTPUT_TYPE,
    POLL_ANSWERED,
    POLL_FAILED,
    POLL_STATUS,
    PROVIDER_NAME,
    REQUEST_MODEL,
    RESPONSE_ID,
    WAIT,
)


class _LiveJob:
    """What is known about a job while the session tracks it."""

    __slots__ = (
        "adopted",
        "attributes",
        "error",
        "held",
        "last_poll",
        "parent",
        "polls",
        "record",
        "span",
        "tracked_at",
        "tracked_ns",
        "weight",
    )

    def __init__(self, event: JobTracked) -> None:
        self.record = event.record
        self.weight = event.weight
        self.parent = context.get_current()
        self.tracked_at = asyncio.get_running_loop().time()
        self.tracked_ns = time.time_ns()
        self.span: Span | None = None
        self.adopted = False
        self.held = False
        self.last_poll = 0
        """The number of the last counted poll, `JobPolled.polls`."""
        self.polls = 0
        """Polls since the session tracks the job."""
        self.error: str | None = None
        self.attributes: Attributes = {PROVIDER_NAME: event.record.gateway}
        if event.record.request is not None and event.record.request.model is not None:
            self.attributes[REQUEST_MODEL] = event.record.request.model


class JobSpans:
    """The observer of one session. Its memory is bounded by the number of tracked jobs."""

    def __init__(self, tracer: trace.Tracer, instruments: Instruments, *, record_prompts: bool) -> None:
        self._tracer = tracer
        self._instruments = instruments
        self._record_prompts = record_prompts
        self._jobs: dict[str, _LiveJob] = {}
        self._provider: Attributes = {}
        self._gateways: dict[str, str] = {}
        """Account -> its gateway."""
        self._limits: dict[str, int] = {}
        """Account -> its learned limit."""

    def __call__(self, event: Event) -> None:
        if isinstance(event, JobTracked):
            self._provider = {PROVIDER_NAME: event.record.gateway}
            self._gateways[event.record.account] = event.record.gateway
            self._jobs[event.record.key] = _LiveJob(event)
            return
        if isinstance(event, LimitsChanged):
            self._limit_changed(event)
            return
        if isinstance(event, WriteRefused):
            self._instruments.writes_refused.add(1, self._provider)
            return
        if (job := self._jobs.get(event.record.key)) is None:
            return
        job.record = event.record
        self._gateways[job.record.account] = job.record.gateway  # it may have moved to another account
        if isinstance(event, JobReleased):
            self._end_span(job, event.error)
            return
        match event:
            case JobStateChanged():
                self._state_changed(job, event)
            case CreateFailed():
                self._create_failed(job, event)
            case JobPolled(status=status, polls=polls, delay_s=delay_s):
                self._count_poll(job, polls)
                if delay_s is not None:
                    self._instruments.delay_s.record(delay_s, job.attributes)
                self._add_event(job, POLL_ANSWERED, {POLL_STATUS: status})
            case PollFailed(error=error, polls=polls):
                self._count_poll(job, polls)
                self._add_event(job, POLL_FAILED, error_attributes(error))
            case CallbackReceived():
                self._add_event(job, CALLBACK_RECEIVED)
            case _:
                pass
        if job.record.state is JobState.RUNNING and job.span is not None:
            self._hold_slots(job)

    def _limit_changed(self, event: LimitsChanged) -> None:
        """Set the limit of a gateway: the sum over the accounts of the session there."""
        if event.job_limit is None:
            return
        self._limits[event.account] = event.job_limit
        gateway = self._gateways.get(event.account)
        limit = sum(each for account, each in self._limits.items() if self._gateways.get(account) == gateway)
        self._instruments.limit.set(limit, {} if gateway is None else {PROVIDER_NAME: gateway})

    def _state_changed(self, job: _LiveJob, event: JobStateChanged) -> None:
        record, before = event.record, event.before
        if event.write_s is not None:
            self._instruments.write_s.record(event.write_s, self._provider | {JOB_STATE: record.state.value})
        new = record.state is JobState.PENDING and before is not JobState.SUBMITTING
        if job.span is None:
            self._start_span(job, adopted=not new)
        if before is JobState.UNCERTAIN:
            self._add_event(job, JOB_RESOLVED)
        match record.state:
            case JobState.PENDING:
                self._release_slots(job)
            case JobState.SUBMITTING:
                self._add_event(job, CREATE_SENT)
            case JobState.RUNNING if before is JobState.SUBMITTING:
                self._instruments.creates.add(1, job.attributes | {CREATE_OUTCOME: "accepted"})
                self._add_event(job, CREATE_ACCEPTED, without_none({RESPONSE_ID: record.task_id}))
            case state if state in TERMINAL_STATES or state is JobState.UNCERTAIN:
                self._ended(job)
            case _:
                pass

    def _create_failed(self, job: _LiveJob, event: CreateFailed) -> None:
        error = event.error
        throttled = isinstance(error, RateLimited)
        outcome = "throttled" if throttled else "failed"
        self._instruments.creates.add(1, job.attributes | {CREATE_OUTCOME: outcome})
        wait_s = max(event.wait_s, getattr(error, "retry_after_s", None) or 0.0)
        facts = error_attributes(error) | {CREATE_DECISION: event.action, WAIT: round(wait_s, 3)}
        if isinstance(error, RateLimited):
            kind: Attributes = {LIMIT_KIND: error.kind or "unknown"}
            self._instruments.refusals.add(1, job.attributes | kind)
            facts |= kind
        self._add_event(job, CREATE_THROTTLED if throttled else CREATE_FAILED, facts)
        if event.in_doubt:
            self._hold_slots(job)

    def _ended(self, job: _LiveJob) -> None:
        record, instruments = job.record, self._instruments
        state: Attributes = {JOB_STATE: record.state.value}
        job.error = error_type(record)
        failed: Attributes = {} if job.error is None else {ERROR_TYPE: job.error}
        instruments.ended.add(1, job.attributes | state | failed)
        if record.credits is not None and record.state in (JobState.SUCCEEDED, JobState.FAILED):
            instruments.credits.add(float(record.credits), job.attributes)
        if record.ended_at is not None and record.running_since is not None:
            took_s = max(0.0, (record.ended_at - record.running_since).total_seconds())
            instruments.job_s.record(took_s, job.attributes | state)
        self._add_event(job, JOB_ENDED, state)

    def _end_span(self, job: _LiveJob, error: Exception | None) -> None:
        """End the span: nothing more happens to the job in this session."""
        del self._jobs[job.record.key]
        self._release_slots(job)
        if error is not None and not isinstance(error, SessionClosed):
            job.error = type(error).__name__
            self._ensure_span(job)
        span, record = job.span, job.record
        if span is None:  # nothing happened here: the job had ended before, or another process follows it
            return
        if not job.adopted and (job.error is not None or record.state is JobState.SUCCEEDED):
            failed: Attributes = {} if job.error is None else {ERROR_TYPE: job.error}
            age_s = asyncio.get_running_loop().time() - job.tracked_at
            self._instruments.operation_s.record(age_s, job.attributes | {OPERATION_NAME: GENERATE} | failed)
        if span.is_recording():
            span.set_attributes(end_attributes(record) | {JOB_POLLS: job.polls})
            if job.error is not None:
                span.set_attribute(ERROR_TYPE, job.error)
                span.set_status(StatusCode.ERROR)
        span.end()

    def _start_span(self, job: _LiveJob, *, adopted: bool) -> None:
        """Start the span as a child of the span in which the job was requested."""
        job.adopted = adopted
        record = job.record
        attributes: dict[str, Any] = {OPERATION_NAME: GENERATE, OUTPUT_TYPE: "image", **job.attributes}
        attributes |= {JOB_KEY: record.key, JOB_GENERATION: record.generation, JOB_ADOPTED: adopted}
        if record.request is not None:
            attributes |= request_attributes(record.request)
            if self._record_prompts:
                attributes[INPUT_MESSAGES] = input_messages(record.request)
        model = job.attributes.get(REQUEST_MODEL)
        job.span = self._tracer.start_span(
            GENERATE if model is None else f"{GENERATE} {model}",
            context=job.parent,
            kind=SpanKind.CLIENT,
            attributes=without_none(attributes),
            start_time=job.tracked_ns,
        )

    def _ensure_span(self, job: _LiveJob) -> Span | None:
        """Return the job's span; start one if this session has not seen the creation of the job."""
        if job.span is None and job.record.state is not JobState.SUCCEEDED:  # in SUCCEEDED, only its images are fetched
            self._start_span(job, adopted=job.record.state is not JobState.PENDING)
        return job.span

    def _add_event(self, job: _LiveJob, name: str, facts: Attributes | None = None) -> None:
        span = self._ensure_span(job)
        if span is not None and span.is_recording():
            span.add_event(name, facts)

    def _count_poll(self, job: _LiveJob, number: int) -> None:
        if number != job.last_poll:  # several events may report the same poll
            job.last_poll = number
            job.polls += 1
            self._instruments.polls.add(1, job.attributes)

    def _hold_slots(self, job: _LiveJob) -> None:
        if not job.held:
            job.held = True
            self._instruments.held.add(job.weight, self._provider)

    def _release_slots(self, job: _LiveJob) -> None:
        if job.held:
            job.held = False
            self._instruments.held.add(-job.weight, self._provider)

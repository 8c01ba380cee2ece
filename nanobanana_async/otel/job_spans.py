"""What becomes of one session's events."""

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
)
from nanobanana_async.jobs import TERMINAL_STATES, JobState
from nanobanana_async.otel.attributes import (
    Attributes,
    end_attributes,
    error_attributes,
    job_attributes,
    messages,
    present,
    request_attributes,
)
from nanobanana_async.otel.instruments import Instruments
from nanobanana_async.otel.names import (
    CALLBACK_RECEIVED,
    CREATE_ACCEPTED,
    CREATE_FAILED,
    CREATE_OUTCOME,
    CREATE_REFUSED,
    CREATE_SENT,
    DECISION,
    ERROR_TYPE,
    GENERATE,
    INPUT_MESSAGES,
    JOB_ADOPTED,
    JOB_ENDED,
    JOB_GENERATION,
    JOB_KEY,
    JOB_QUERIES,
    JOB_SETTLED,
    JOB_STATE,
    LIMIT_KIND,
    OPERATION_NAME,
    OUTPUT_TYPE,
    PROVIDER_NAME,
    QUERY_ANSWERED,
    QUERY_FAILED,
    REQUEST_MODEL,
    RESPONSE_ID,
    STATUS,
    WAIT,
)


class _Live:
    """What is known of a job while the session has it."""

    __slots__ = (
        "adopted",
        "attributes",
        "entered_at",
        "entered_ns",
        "error",
        "held",
        "looks",
        "parent",
        "queries",
        "record",
        "span",
        "weight",
    )

    def __init__(self, event: JobTracked) -> None:
        self.record = event.record
        self.weight = event.weight
        self.parent = context.get_current()
        self.entered_at = asyncio.get_running_loop().time()
        self.entered_ns = time.time_ns()
        self.span: Span | None = None
        self.adopted = False
        self.held = False
        self.looks = 0
        self.queries = 0
        self.error: str | None = None
        self.attributes: Attributes = {PROVIDER_NAME: event.record.gateway}
        if event.record.request is not None and event.record.request.model is not None:
            self.attributes[REQUEST_MODEL] = event.record.request.model


class JobSpans:
    """Hears the events of one session. What it keeps is bounded by the session's live jobs."""

    def __init__(self, tracer: trace.Tracer, instruments: Instruments, *, record_prompts: bool) -> None:
        self._tracer = tracer
        self._instruments = instruments
        self._record_prompts = record_prompts
        self._jobs: dict[str, _Live] = {}
        self._provider: Attributes = {}

    def __call__(self, event: Event) -> None:
        if isinstance(event, JobTracked):
            self._provider = {PROVIDER_NAME: event.record.gateway}
            self._jobs[event.record.key] = _Live(event)
            return
        if isinstance(event, LimitsChanged):
            if event.job_limit is not None:
                self._instruments.limit.set(event.job_limit, self._provider)
            return
        if (job := self._jobs.get(event.record.key)) is None:
            return
        job.record = event.record
        if isinstance(event, JobReleased):
            self._left(job, event.error)
            return
        match event:
            case JobStateChanged():
                self._moved(job, event)
            case CreateFailed():
                self._create_failed(job, event)
            case JobPolled(status=status, polls=looks, delay_s=delay_s):
                self._asked(job, looks)
                if delay_s is not None:
                    self._instruments.delay_s.record(delay_s, job.attributes)
                self._note(job, QUERY_ANSWERED, {STATUS: status})
            case PollFailed(error=error, polls=looks):
                self._asked(job, looks)
                self._note(job, QUERY_FAILED, job_attributes(error))
            case CallbackReceived():
                self._note(job, CALLBACK_RECEIVED)
            case _:
                pass
        if job.record.state is JobState.RUNNING and job.span is not None:
            self._hold(job)

    def _moved(self, job: _Live, event: JobStateChanged) -> None:
        record, before = event.record, event.before
        new = record.state is JobState.PENDING and before is not JobState.SUBMITTING
        if job.span is None:
            self._begin(job, adopted=not new)
        if before is JobState.UNCERTAIN:
            self._note(job, JOB_SETTLED)
        match record.state:
            case JobState.PENDING:
                self._give_back(job)
            case JobState.SUBMITTING:
                self._note(job, CREATE_SENT)
            case JobState.RUNNING if before is JobState.SUBMITTING:
                self._instruments.creates.add(1, job.attributes | {CREATE_OUTCOME: "accepted"})
                self._note(job, CREATE_ACCEPTED, present({RESPONSE_ID: record.task_id}))
            case state if state in TERMINAL_STATES or state is JobState.UNCERTAIN:
                self._ended(job)
            case _:
                pass

    def _create_failed(self, job: _Live, event: CreateFailed) -> None:
        error = event.error
        refused = isinstance(error, RateLimited)
        outcome = "refused" if refused else "failed"
        self._instruments.creates.add(1, job.attributes | {CREATE_OUTCOME: outcome})
        wait_s = max(event.wait_s, getattr(error, "retry_after_s", None) or 0.0)
        facts = job_attributes(error) | {DECISION: event.action, WAIT: round(wait_s, 3)}
        if isinstance(error, RateLimited):
            kind: Attributes = {LIMIT_KIND: error.kind or "unknown"}
            self._instruments.refusals.add(1, job.attributes | kind)
            facts |= kind
        self._note(job, CREATE_REFUSED if refused else CREATE_FAILED, facts)
        if event.in_doubt:
            self._hold(job)

    def _ended(self, job: _Live) -> None:
        record, instruments = job.record, self._instruments
        state: Attributes = {JOB_STATE: record.state.value}
        job.error = error_attributes(record)
        failed: Attributes = {} if job.error is None else {ERROR_TYPE: job.error}
        instruments.ended.add(1, job.attributes | state | failed)
        if record.credits is not None and record.state in (JobState.SUCCEEDED, JobState.FAILED):
            instruments.credits.add(float(record.credits), job.attributes)
        if record.ended_at is not None and record.running_since is not None:
            took_s = max(0.0, (record.ended_at - record.running_since).total_seconds())
            instruments.job_s.record(took_s, job.attributes | state)
        self._note(job, JOB_ENDED, state)

    def _left(self, job: _Live, error: Exception | None) -> None:
        """End the span: nothing more happens to the job in this session."""
        del self._jobs[job.record.key]
        self._give_back(job)
        if error is not None and not isinstance(error, SessionClosed):
            job.error = type(error).__name__
            self._ensure_span(job)
        span, record = job.span, job.record
        if span is None:  # nothing happened to it here: it had ended, or another process follows it
            return
        if not job.adopted and (job.error is not None or record.state is JobState.SUCCEEDED):
            failed: Attributes = {} if job.error is None else {ERROR_TYPE: job.error}
            age_s = asyncio.get_running_loop().time() - job.entered_at
            self._instruments.operation_s.record(age_s, job.attributes | {OPERATION_NAME: GENERATE} | failed)
        if span.is_recording():
            span.set_attributes(end_attributes(record) | {JOB_QUERIES: job.queries})
            if job.error is not None:
                span.set_attribute(ERROR_TYPE, job.error)
                span.set_status(StatusCode.ERROR)
        span.end()

    def _begin(self, job: _Live, *, adopted: bool) -> None:
        """Begin the span, in the place in the trace where the job was asked for."""
        job.adopted = adopted
        record = job.record
        begins: dict[str, Any] = {OPERATION_NAME: GENERATE, OUTPUT_TYPE: "image", **job.attributes}
        begins |= {JOB_KEY: record.key, JOB_GENERATION: record.generation, JOB_ADOPTED: adopted}
        if record.request is not None:
            begins |= request_attributes(record.request)
            if self._record_prompts:
                begins[INPUT_MESSAGES] = messages(record.request)
        model = job.attributes.get(REQUEST_MODEL)
        job.span = self._tracer.start_span(
            GENERATE if model is None else f"{GENERATE} {model}",
            context=job.parent,
            kind=SpanKind.CLIENT,
            attributes=present(begins),
            start_time=job.entered_ns,
        )

    def _ensure_span(self, job: _Live) -> Span | None:
        """Return the job's span. One of which we first hear in the middle of its life was begun by somebody else."""
        if job.span is None and job.record.state is not JobState.SUCCEEDED:  # else only its pictures are fetched
            self._begin(job, adopted=job.record.state is not JobState.PENDING)
        return job.span

    def _note(self, job: _Live, name: str, facts: Attributes | None = None) -> None:
        span = self._ensure_span(job)
        if span is not None and span.is_recording():
            span.add_event(name, facts)

    def _asked(self, job: _Live, looks: int) -> None:
        if looks != job.looks:  # else it tells more of a query that was counted
            job.looks = looks
            job.queries += 1
            self._instruments.queries.add(1, job.attributes)

    def _hold(self, job: _Live) -> None:
        if not job.held:
            job.held = True
            self._instruments.held.add(job.weight, self._provider)

    def _give_back(self, job: _Live) -> None:
        if job.held:
            job.held = False
            self._instruments.held.add(-job.weight, self._provider)

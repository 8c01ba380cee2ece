"""A job's record, its states and transitions, and what a gateway reports about it."""

import enum
import hashlib
import itertools
from collections.abc import Collection, Generator, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from operator import attrgetter
from typing import Any

from attrs import field, fields, frozen

from nanobanana_async.candidates import Candidate
from nanobanana_async.errors import ConfigurationError, JobFailureKind
from nanobanana_async.failures import Failure
from nanobanana_async.models import ImageRequest

MissingImageReasons = tuple[tuple[int, str], ...]
"""The positions of a job's images that hold no image, each with the reason."""

CLOCK_SLACK_S = 5.0
"""The tolerance when a duration by the gateway's times is compared with a job's age: its clock starts earlier."""


class JobState(enum.StrEnum):
    """The state of a job; `TRANSITIONS` lists every allowed change."""

    PENDING = "pending"  # recorded, not sent
    SUBMITTING = "submitting"  # about to be sent, or sent and not answered
    RUNNING = "running"  # accepted: the gateway returned a task id
    SUCCEEDED = "succeeded"  # the images are there
    FAILED = "failed"  # the gateway reports that the task failed
    REFUSED = "refused"  # the gateway refused the create for good
    UNCERTAIN = "uncertain"  # sent, and it is not known whether the gateway accepted it
    WITHDRAWN = "withdrawn"  # withdrawn before anything was sent

    __hash__ = str.__hash__  # `Enum` hashes their names in Python, often for each job


_S = JobState

# A state without transitions is terminal: only a new generation (`next_generation`) continues such a job.
TRANSITIONS: Mapping[JobState, frozenset[JobState]] = {
    _S.PENDING: frozenset({_S.SUBMITTING, _S.WITHDRAWN}),
    _S.SUBMITTING: frozenset({_S.SUBMITTING, _S.RUNNING, _S.PENDING, _S.REFUSED, _S.UNCERTAIN}),
    # RUNNING -> RUNNING and REFUSED: resolved by hand, when the gateway does not know the task id.
    _S.RUNNING: frozenset({_S.SUCCEEDED, _S.FAILED, _S.RUNNING, _S.REFUSED}),
    _S.UNCERTAIN: frozenset({_S.RUNNING, _S.PENDING, _S.REFUSED, _S.UNCERTAIN}),  # itself: it has other candidates
    _S.SUCCEEDED: frozenset(),
    _S.FAILED: frozenset(),
    _S.REFUSED: frozenset(),
    _S.WITHDRAWN: frozenset(),
}

TERMINAL_STATES = frozenset(state for state, onward in TRANSITIONS.items() if not onward)

ACTIVE_STATES = frozenset({_S.PENDING, _S.SUBMITTING, _S.RUNNING})
"""States in which an owner works on the job. UNCERTAIN is not one of them: it waits for `reconcile` or a person."""

POSSIBLY_BOUGHT_STATES = frozenset({_S.SUBMITTING, _S.RUNNING, _S.UNCERTAIN, _S.SUCCEEDED})


@frozen(kw_only=True)
class Accepted:
    """What a gateway reports when it accepts a job."""

    task_id: str  # the gateway's name for the job
    credits_used: Decimal | None = None  # the price, if the answer states it
    credits_remaining: Decimal | None = None  # the balance of the account, if it states that
    model: str | None = None  # which was chosen, if the answer names one
    request_id: str | None = None  # of the create, for questions to the gateway
    provider_request_id: str | None = None
    """The id under which the gateway's own provider traces the task, where the gateway shows one."""


@frozen(kw_only=True)
class Observation:
    """What a poll or callback reports about a task; short-lived, never stored."""

    task_id: str | None  # as the answer names it
    state: JobState  # RUNNING, SUCCEEDED or FAILED
    status: str  # the gateway's own word for that
    known_status: bool = True  # False: a word that its reference does not have
    queued: bool = False  # it has not started the task: that time does not count as the duration
    progress: float | None = None
    """The share that is done, from 0 to 1, by the gateway's word; None if it does not say."""
    images: tuple[str, ...] = field(default=(), repr=False)  # URLs, or data URIs
    missing: MissingImageReasons = ()  # the indexes of images that the task did not bring, each with the reason
    error: str | None = None
    """Why the task failed, or why an end without images has none; None if the gateway gave no reason."""
    error_code: str | None = None  # the gateway's code for that
    failure_kind: JobFailureKind = "unknown"  # what that is in `JobFailed.kind`
    model: str | None = None  # which was used, if the answer names one
    credits_used: Decimal | None = None  # the price, if the answer states it
    credits_refunded: Decimal | None = None  # what was given back of it
    created_at: datetime | None = None  # by the gateway's clock
    completed_at: datetime | None = None  # by the gateway's clock
    request_id: str | None = None  # of the query
    provider_request_id: str | None = None  # as that of `Accepted`
    raw: Mapping[str, Any] = field(factory=dict, repr=False, eq=False)  # the whole answer

    def duration_s(self, age_s: float) -> float | None:
        """Return the duration by the gateway's times; None if it is missing or longer than the job's age allows."""
        if self.created_at is None or self.completed_at is None:
            return None
        took_s = (self.completed_at - self.created_at).total_seconds()
        return took_s if 0.0 < took_s <= age_s + CLOCK_SLACK_S else None


@frozen(kw_only=True, weakref_slot=False)
class JobRecord:
    """The record of one job. It is immutable: each transition makes a new record."""

    key: str
    gateway: str
    account: str
    """The account's name, or a fingerprint of its API key. A job in doubt is never repeated under another account."""
    request: ImageRequest | None
    """None for a task that was attached by its id alone."""
    body: bytes = field(repr=False)
    """The exact bytes of each create of this generation; empty once it was accepted."""
    created_at: datetime
    batch: str | None = None
    """The named batch whose cap counts the charges: the prefix of its keys; None outside of a named batch."""
    budget: str | None = None
    """The name of the budget that counts the charges too."""
    priority: int = 0
    group_name: str | None = None
    """`priority=` and `group=` of the first caller: when the job has its turn. No part of what is bought."""
    slots: int = 1
    """How many job slots of the account it takes, as the gateway's settings said when its generation began."""
    state: JobState = _S.PENDING
    revision: int = 0
    """The number of writes; each write is a compare-and-swap on it."""
    generation: int = 1
    """The number of deliberate purchases; `wire_key` depends on it."""
    attempts: int = 0
    first_sent_at: datetime | None = None
    """When this generation's key may first have reached the gateway; the lifetime of the key starts here."""
    in_doubt: bool = False
    """Whether a create may have been accepted without a usable answer; sticky until a task id is known."""
    sent_at: datetime | None = None  # when the create left whose answer is awaited or lost, not a repeat of it
    lost_at: datetime | None = None
    """Until when a create in doubt may have been processed: its answer was given up then, or a repeat got 409."""
    conflict_at: datetime | None = None
    """When a repeat last got 409, which does not name the task; None if none did after `lost_at`."""
    candidates: tuple[Candidate, ...] = ()  # the tasks in the gateway's history that could be this job, if uncertain
    task_id: str | None = None
    running_since: datetime | None = None
    ended_at: datetime | None = None
    images: tuple[str, ...] = ()
    missing: MissingImageReasons = ()
    credits_used: Decimal | None = None
    credits_refunded: Decimal | None = None
    model: str | None = None
    failure: Failure | None = None

    def transition_to(self, state: JobState, **changes: Any) -> "JobRecord":
        """Return the record after a transition with changes; raise `RuntimeError` if `TRANSITIONS` forbids it."""
        if state not in TRANSITIONS[self.state]:
            raise RuntimeError(f"a job cannot go {self.state.name} -> {state.name}")
        changed = {**changes, "state": state, "revision": self.revision + 1}
        return JobRecord(**dict(zip(_FIELDS, _values_of(self), strict=True)) | changed)  # twice as fast as `evolve`

    def next_generation(
        self,
        *,
        body: bytes,
        created_at: datetime,
        account: str | None = None,
        gateway: str | None = None,
        request: ImageRequest | None = None,
        budget: str | None = None,
        slots: int | None = None,
    ) -> "JobRecord":
        """Return the record of the next generation: a deliberate new purchase with its own `Idempotency-Key`.

        `account` is another account that buys it, at `gateway`; only a job that was never accepted may move.
        `request` is the equal one that was given now: its URLs may have newer signatures. `budget` is one given now,
        and `slots` is what the job takes by the settings of now.
        """
        return JobRecord(
            key=self.key,
            gateway=gateway or self.gateway,
            account=account or self.account,
            request=request or self.request,
            body=body,
            created_at=created_at,
            batch=self.batch,
            budget=budget or self.budget,
            priority=self.priority,
            group_name=self.group_name,
            slots=slots or self.slots,
            revision=self.revision + 1,
            generation=self.generation + 1,
        )

    @property
    def wire_key(self) -> str:
        """The `Idempotency-Key` of this generation: the job's key, or one derived from it."""
        if self.generation == 1:
            return self.key
        digest = hashlib.sha256(f"{self.generation}:{self.key}".encode()).hexdigest()
        return f"g{self.generation}-{digest[:48]}"

    @property
    def may_run_since(self) -> datetime:
        """The earliest known time at which the task may have started."""
        return self.running_since or self.first_sent_at or self.created_at

    @property
    def credits(self) -> Decimal | None:
        """The cost after refunds; None if the gateway did not state it."""
        if self.credits_used is None or not self.credits_refunded:
            return self.credits_used
        return max(Decimal(0), self.credits_used - self.credits_refunded)

    @property
    def is_counted(self) -> bool:
        """Whether the ledger counts its charges, under a named batch or a budget."""
        return self.batch is not None or self.budget is not None

    @property
    def possibly_bought(self) -> bool:
        """Whether money was spent on the job, or may have been, or may still be."""
        return self.in_doubt or self.state in POSSIBLY_BOUGHT_STATES

    @property
    def never_accepted(self) -> bool:
        """Whether certainly no create was accepted: the gateway refused it, it was withdrawn, or it was never sent.

        False for a job that was resolved by hand: the gateway did not say that it was not bought.
        """
        if self.in_doubt or self.task_id is not None:
            return False
        match self.state:
            case JobState.PENDING:
                return self.first_sent_at is None
            case JobState.REFUSED:
                return self.failure is not None and self.failure.status is not None
            case _:
                return self.state is JobState.WITHDRAWN


_FIELDS = tuple(each.name for each in fields(JobRecord))
_values_of = attrgetter(*_FIELDS)


@frozen(kw_only=True)
class JobSnapshot:
    """A job at one time: what `Job.updates` yields, a pickled `Job`, or the job of an event's error.

    It has no session: awaiting it raises `ConfigurationError`. Copies of an `Outcome` or a `JobError` made without
    pickling hold the same live `Job`.
    """

    key: str  # our name for it
    task_id: str | None
    """The gateway's name for it; None until it was accepted."""
    state: JobState  # at that time
    request: ImageRequest | None
    """None if only the task is known."""
    created_at: datetime  # when it was requested
    credits: Decimal | None
    """The price after refunds; None until the gateway reports one."""
    progress: float = 0.0
    """The share that is done, from 0 to 1."""
    expected_end: datetime | None = None
    """When a running job should end, an aware time; else None."""

    @classmethod
    def of(cls, record: JobRecord) -> "JobSnapshot":
        """Return the snapshot of a record."""
        return cls(
            key=record.key,
            task_id=record.task_id,
            state=record.state,
            request=record.request,
            created_at=record.created_at,
            credits=record.credits,
            progress=1.0 if record.state is JobState.SUCCEEDED else 0.0,
        )

    def __await__(self) -> Generator[Any, None, Any]:
        raise ConfigurationError(f"a snapshot of job {self.key} cannot be awaited: use `await session.job(key)`")


def has_failed_with(record: JobRecord, kinds: Collection[str]) -> bool:
    """Return whether a job has failed in one of these ways."""
    if record.state is not JobState.FAILED:
        return False
    return ("unknown" if record.failure is None else record.failure.failure_kind) in kinds


def with_indexes(images: Sequence[str], missing: MissingImageReasons) -> list[tuple[int, str]]:
    """Return each image with its index among all images of the job, including the missing ones."""
    if not missing:
        return list(enumerate(images))
    without_image = {index for index, _ in missing}
    indexes = (index for index in itertools.count() if index not in without_image)
    return list(zip(indexes, images, strict=False))

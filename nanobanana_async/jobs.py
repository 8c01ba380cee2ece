"""The one durable noun: a job's record, the table of its life, and what a gateway says about it."""

import enum
import hashlib
import hmac
import itertools
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

from attrs import evolve, field, frozen

from nanobanana_async.errors import InvalidRequest
from nanobanana_async.models import ImageRequest

MAX_KEY_LENGTH = 255

Missing = tuple[tuple[int, str], ...]
"""The places, among the images of a job, that hold no image, each with the reason."""

# The gateway stamps a job before its answer reaches us.
CLOCK_SLACK_S = 5.0


class JobState(enum.Enum):
    """Where a job stands; `TRANSITIONS` is the whole truth about its moves."""

    PENDING = "pending"  # written down, nothing in doubt
    SUBMITTING = "submitting"  # about to be sent, or sent without an answer yet
    RUNNING = "running"  # the gateway gave us a task id
    SUCCEEDED = "succeeded"
    FAILED = "failed"  # the gateway says that the task failed
    REFUSED = "refused"  # the gateway said no for good
    UNCERTAIN = "uncertain"  # sent, and nobody knows whether it was accepted
    WITHDRAWN = "withdrawn"  # taken back before anything was sent


_S = JobState

# What a job may become. A new generation (`reborn`) is the only way out of the states with no way on.
TRANSITIONS: Mapping[JobState, frozenset[JobState]] = {
    _S.PENDING: frozenset({_S.SUBMITTING, _S.WITHDRAWN}),
    _S.SUBMITTING: frozenset({_S.SUBMITTING, _S.RUNNING, _S.PENDING, _S.REFUSED, _S.UNCERTAIN}),
    # RUNNING -> RUNNING and REFUSED: settled by hand, when the gateway does not know the task id.
    _S.RUNNING: frozenset({_S.SUCCEEDED, _S.FAILED, _S.RUNNING, _S.REFUSED}),
    _S.UNCERTAIN: frozenset({_S.RUNNING, _S.PENDING, _S.REFUSED}),
    _S.SUCCEEDED: frozenset(),
    _S.FAILED: frozenset(),
    _S.REFUSED: frozenset(),
    _S.WITHDRAWN: frozenset(),
}

TERMINAL_STATES = frozenset(state for state, onward in TRANSITIONS.items() if not onward)

ACTIVE_STATES = frozenset({_S.PENDING, _S.SUBMITTING, _S.RUNNING})
"""Somebody follows these, or should. The others are over, though an UNCERTAIN one may be settled."""

POSSIBLY_BOUGHT_STATES = frozenset({_S.SUBMITTING, _S.RUNNING, _S.UNCERTAIN, _S.SUCCEEDED})


@frozen(kw_only=True)
class Failure:
    """Why a job did not end well, as plain facts that a ledger can keep; `kind` names a class of `errors`."""

    kind: str
    message: str
    status: int | None = None
    code: str | None = None
    request_id: str | None = None


@frozen(kw_only=True)
class Accepted:
    """What a gateway said when it took a job."""

    task_id: str
    credits_used: Decimal | None = None
    credits_remaining: Decimal | None = None
    model: str | None = None
    request_id: str | None = None


@frozen(kw_only=True)
class Observation:
    """What a gateway just said about a task, by query or callback; it dies at once.

    `state` is RUNNING, SUCCEEDED or FAILED; `status` the gateway's own word. `queued` tells that it has not begun to
    work on it: such time says nothing about how long jobs run.
    """

    task_id: str | None
    state: JobState
    status: str
    known_status: bool = True
    queued: bool = False
    images: tuple[str, ...] = field(default=(), repr=False)
    missing: Missing = ()
    error: str | None = None
    model: str | None = None
    credits_used: Decimal | None = None
    credits_refunded: Decimal | None = None
    created_at: datetime | None = None
    completed_at: datetime | None = None
    request_id: str | None = None
    raw: Mapping[str, Any] = field(factory=dict, repr=False, eq=False)

    def duration_s(self, age_s: float) -> float | None:
        """Return how long the job took by the gateway's own clock, where that can be true of one as old as this."""
        if self.created_at is None or self.completed_at is None:
            return None
        took_s = (self.completed_at - self.created_at).total_seconds()
        return took_s if 0.0 < took_s <= age_s + CLOCK_SLACK_S else None


@frozen(kw_only=True)
class JobRecord:
    """One job as it is written down. It never changes, it is replaced, along `TRANSITIONS` only."""

    key: str
    gateway: str
    account: str
    """The name of the account, or a fingerprint of its API key: a job in doubt is never repeated under another one."""
    request: ImageRequest | None
    """None for a task that was attached by its id alone."""
    body: bytes = field(repr=False)
    """The exact bytes that every POST of this job sends; none once it was accepted."""
    created_at: datetime
    batch: str | None = None
    """Under what its charges are summed: how the keys of its named batch begin; None outside of one."""
    state: JobState = _S.PENDING
    revision: int = 0
    """Counts the writes; each write is a compare-and-swap on it."""
    generation: int = 1
    """Counts deliberate purchases; the wire key follows from it."""
    attempts: int = 0
    first_sent_at: datetime | None = None
    """When this generation's key may first have reached the gateway: its lifetime runs from here."""
    in_doubt: bool = False
    """A send may have been accepted without our knowing; sticky until a task id settles it."""
    task_id: str | None = None
    running_since: datetime | None = None
    ended_at: datetime | None = None
    images: tuple[str, ...] = ()
    missing: Missing = ()
    credits_used: Decimal | None = None
    credits_refunded: Decimal | None = None
    model: str | None = None
    failure: Failure | None = None

    def transition_to(self, state: JobState, **facts: Any) -> "JobRecord":
        """Return the record after a move, with new facts; a move that is not in the table is a bug of ours."""
        if state not in TRANSITIONS[self.state]:
            raise RuntimeError(f"a job cannot go {self.state.name} -> {state.name}")
        return evolve(self, state=state, revision=self.revision + 1, **facts)

    def next_generation(self, *, body: bytes, created_at: datetime) -> "JobRecord":
        """Return the next generation: a deliberate new purchase, under a wire key of its own."""
        return JobRecord(
            key=self.key,
            gateway=self.gateway,
            account=self.account,
            request=self.request,
            body=body,
            created_at=created_at,
            batch=self.batch,
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
        """Since when it may run, as far as we know."""
        return self.running_since or self.first_sent_at or self.created_at

    @property
    def credits(self) -> Decimal | None:
        """What it cost, after refunds, as far as the gateway said."""
        if self.credits_used is None:
            return None
        return max(Decimal(0), self.credits_used - (self.credits_refunded or Decimal(0)))

    @property
    def possibly_bought(self) -> bool:
        """Whether money was spent on it, may have been, or may yet be."""
        return self.in_doubt or self.state in POSSIBLY_BOUGHT_STATES


def with_indexes(images: Sequence[str], missing: Missing) -> list[tuple[int, str]]:
    """Return each image with its place among all that the job should have brought."""
    empty = {place for place, _ in missing}
    places = (place for place in itertools.count() if place not in empty)
    return list(zip(places, images, strict=False))


def validate_key(key: str) -> str:
    """Return the key if it can stand in a header: 1 to 255 visible ASCII characters; else raise `InvalidRequest`."""
    if not isinstance(key, str) or not 1 <= len(key) <= MAX_KEY_LENGTH:
        raise InvalidRequest(f"idempotency_key must be text of 1 to {MAX_KEY_LENGTH} characters")
    if not all("!" <= character <= "~" for character in key):
        raise InvalidRequest("idempotency_key must be visible ASCII without spaces")
    return key


def validate_task_id(task_id: object) -> str:
    """Return a gateway's task id if it can be one: printable text; else raise `InvalidRequest`."""
    if not isinstance(task_id, str) or not task_id.strip() or not task_id.isprintable():
        raise InvalidRequest("task_id must be printable text, and not empty")
    return task_id


def key_for_task(task_id: str) -> str:
    """Return our key for a task that is known by its id alone: readable where the id can stand in a key."""
    key = f"task-{task_id}"
    if len(key) <= MAX_KEY_LENGTH and all("!" <= character <= "~" for character in key):
        return key
    return f"task-sha256-{hashlib.sha256(task_id.encode()).hexdigest()}"


_MAKER = secrets.token_bytes(16)


def generate_key() -> str:
    """Return a new random key for a job whose caller gave none; `is_made_key` recognises it in this process."""
    nonce = secrets.token_hex(8)
    return nonce + _mark(nonce)


def is_generated_key(key: str) -> bool:
    """Tell whether this process made the key; a caller's own key, a UUID too, is never taken for one."""
    return len(key) == 32 and key.isascii() and hmac.compare_digest(_mark(key[:16]), key[16:])


def _mark(nonce: str) -> str:
    return hmac.digest(_MAKER, nonce.encode(), "sha256").hex()[:16]


def named_account(gateway: str, name: str) -> str:
    """Return what stands in the ledger for an account that the user named: no fingerprint has a colon."""
    return f"{gateway}:{name}"


def account_fingerprint(gateway: str, api_key: str) -> str:
    """Return what stands for an account in the ledger: it names the account, and gives the key to nobody."""
    return hashlib.sha256(f"nanobanana_async:{gateway}:{api_key}".encode()).hexdigest()[:24]


def account_conflict(record: JobRecord, gateway: str, account: str) -> str:
    """Say that a job belongs to another account, and how to go on without paying a second time."""
    if record.gateway != gateway:
        there = f"at gateway {record.gateway} and not {gateway}"
        return f"job {record.key} belongs to another account, {there}: use that gateway"
    same = f"`nanobanana jobs hand-over --from {record.account} --to {account}`"
    name = record.account.removeprefix(f"{gateway}:")
    named = "name the account, account=... or NANOBANANA_ACCOUNT, so that its next API key changes nothing"
    if name != record.account:
        named = f'name it, account="{name}" or NANOBANANA_ACCOUNT={name}'
    return (
        f"job {record.key} belongs to another account, {record.account}, and this session has account {account}: if"
        f" they are one account whose API key was changed, {named}, or hand its jobs over: {same}; else use that"
        " account's API key"
    )

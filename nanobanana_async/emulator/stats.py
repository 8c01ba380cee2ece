"""Count what happens in the emulator, and take snapshots of the counts."""

import math
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from decimal import Decimal

from attrs import frozen

from nanobanana_async.emulator.accounts import CreateRequest, Task, TaskState
from nanobanana_async.emulator.files import FileStore
from nanobanana_async.emulator.messages import Endpoint, Gateway
from nanobanana_async.emulator.settings import DoubleChargesBy

ZERO = Decimal(0)


@frozen(kw_only=True)
class EmulatorStats:
    """A snapshot of all counts. Durations are in seconds of the emulated clock."""

    requests: Mapping[Endpoint, int]  # by endpoint
    creates_received: int  # with those that were refused
    creates_accepted: int  # each is a job that is paid for
    creates_refused: Mapping[int, int]  # by status; includes faults that answered before the gateway
    replays: int  # repeated keys that got the first response again
    double_charges: int  # accepted creates beyond the first of each unique request
    lost_creates: int  # accepted, but a fault hid the response from the client
    refusals_429: Mapping[str, int]  # by kind: jobs, creates, queries, fault
    faults: Mapping[str, int]  # by name

    running_now: int  # jobs
    running_max: int  # the most jobs at once
    ended: int  # jobs, with and without images
    failed: int  # of these, those without images
    unpolled: int  # ended, and no poll has reported the end yet

    polls: int  # queries about jobs
    polls_by_status: Mapping[str, int]  # by the status that they reported
    polls_per_job_mean: float  # polls by accepted creates
    polls_per_job_max: int  # the most about one job
    seen: int  # jobs whose end a poll has reported
    notice_delay_mean_s: float  # from a job's end to the first poll that reported it
    notice_delay_p99_s: float  # 99 % are not later
    notice_delay_max_s: float  # the latest

    credits_charged: Decimal  # before refunds
    credits_refunded: Decimal  # for failed jobs
    credits_remaining: Decimal | None  # None is unlimited

    callbacks_sent: int  # with deliveries of webhooks, as the next three
    callbacks_dropped: int  # by `callback_drop_probability`
    callbacks_failed: int  # the POST failed; only deliveries of webhooks are repeated
    callbacks_refused: int  # not a loopback URL
    credential_leaks: int  # downloads and PUTs to storage with an Authorization header

    uploads: Mapping[str, int]  # how often each content was stored, by SHA-256
    upload_bytes: int  # of all uploads
    duplicate_uploads: int  # of a content that was stored before
    open_connections: int  # at this moment


@frozen(kw_only=True)
class JobFacts:
    """The facts of one accepted create."""

    task_id: str  # the gateway's name for it
    gateway: Gateway  # "apimall" or "defapi"
    key: str | None  # its idempotency key
    prompt: str  # as sent
    images: int  # how many were asked for
    state: TaskState  # where it is now
    created_at: float  # seconds of the emulated clock
    ends_at: float  # seconds of the emulated clock
    first_seen_done_at: float | None  # when a poll first reported its end
    polls: int  # queries about it
    charged: Decimal  # credits
    refunded: bool  # after a failure
    reference_digests: Sequence[str | None]
    """The SHA-256 of each reference image; None for one that is not stored in the emulator."""


def job_facts(task: Task, now: float) -> JobFacts:
    """Return the facts of a task at `now`."""
    return JobFacts(
        task_id=task.task_id,
        gateway=task.gateway,
        key=task.key,
        prompt=task.request.prompt,
        images=task.request.image_count,
        state=task.state_at(now),
        created_at=task.created_at,
        ends_at=task.ends_at,
        first_seen_done_at=task.first_seen_at,
        polls=task.polls,
        charged=task.price,
        refunded=task.refunded,
        reference_digests=task.reference_digests,
    )


class Counters:
    """Running totals. Memory grows by one number per job only."""

    def __init__(self, double_charges_by: DoubleChargesBy) -> None:
        self._double_charges_by = double_charges_by
        self._purchases: set[int] = set()
        self._delays = array("d")
        self.requests: Counter[Endpoint] = Counter()
        self.refused: Counter[int] = Counter()
        self.refusals_429: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.by_status: Counter[str] = Counter()
        self.callbacks: Counter[str] = Counter()
        self.accepted = self.replays = self.double = self.lost = 0
        self.running = self.running_max = self.ended = self.failed = 0
        self.polls = self.polls_max = self.leaks = 0
        self.charged = self.refunded = ZERO

    def on_accepted(self, gateway: Gateway, key: str | None, request: CreateRequest, price: Decimal) -> None:
        """Count an accepted create, and whether the same request was bought before."""
        if self._double_charges_by == "prompt":
            unique = hash((gateway, request.prompt))
        else:
            unique = hash((gateway, key, None if key else request.canonical))
        self.double += unique in self._purchases
        self._purchases.add(unique)
        self.accepted += 1
        self.charged += price
        self.running += 1
        self.running_max = max(self.running_max, self.running)

    def on_ended(self, task: Task) -> None:
        """Count a job that ended."""
        self.running -= 1
        self.ended += 1
        self.failed += task.fails
        if task.refunded:
            self.refunded += task.price

    def on_poll(self, now: float, task: Task, state: TaskState, status: str, *, read: bool) -> None:
        """Count a poll of a known job. `read` is False when a fault hides the response from the client."""
        task.polls += 1
        self.polls += 1
        self.polls_max = max(self.polls_max, task.polls)
        self.by_status[status] += 1
        end_reported = read and state in (TaskState.SUCCEEDED, TaskState.FAILED)
        if end_reported and task.first_seen_at is None:
            task.first_seen_at = now
            if not task.foreign:
                self._delays.append(now - task.ends_at)

    def snapshot(self, remaining: Decimal | None, files: FileStore, connections: int) -> EmulatorStats:
        """Return a snapshot of all totals."""
        delays = sorted(self._delays)
        seen = len(delays)
        creates = self.requests["apimall.create"] + self.requests["defapi.create"]
        return EmulatorStats(
            requests=dict(self.requests),
            creates_received=creates,
            creates_accepted=self.accepted,
            creates_refused=dict(self.refused),
            replays=self.replays,
            double_charges=self.double,
            lost_creates=self.lost,
            refusals_429=dict(self.refusals_429),
            faults=dict(self.faults),
            running_now=self.running,
            running_max=self.running_max,
            ended=self.ended,
            failed=self.failed,
            unpolled=self.ended - seen,
            polls=self.polls,
            polls_by_status=dict(self.by_status),
            polls_per_job_mean=self.polls / self.accepted if self.accepted else 0.0,
            polls_per_job_max=self.polls_max,
            seen=seen,
            notice_delay_mean_s=math.fsum(delays) / seen if seen else 0.0,
            notice_delay_p99_s=delays[math.ceil(seen * 0.99) - 1] if seen else 0.0,
            notice_delay_max_s=delays[-1] if seen else 0.0,
            credits_charged=self.charged,
            credits_refunded=self.refunded,
            credits_remaining=remaining,
            callbacks_sent=self.callbacks["sent"],
            callbacks_dropped=self.callbacks["dropped"],
            callbacks_failed=self.callbacks["failed"],
            callbacks_refused=self.callbacks["refused"],
            credential_leaks=self.leaks,
            uploads=dict(files.times_stored),
            upload_bytes=files.bytes_stored,
            duplicate_uploads=files.times_stored.total() - len(files.times_stored),
            open_connections=connections,
        )

"""Deliberate bugs: each breaks one promise in the library's own code, and the oracle must notice."""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any

from attrs import evolve, frozen

from nanobanana_async.accounts import account_fingerprint
from nanobanana_async.engine import evidence, reconciler
from nanobanana_async.engine import submitter as buying
from nanobanana_async.engine.claimer import Claimer
from nanobanana_async.engine.next_step import Enqueue, Next
from nanobanana_async.engine.resolver import ManualResolver
from nanobanana_async.engine.store import JobStore
from nanobanana_async.engine.submitter import Submitter
from nanobanana_async.engine.tracked_job import TrackedJob
from nanobanana_async.errors import NanoBananaError, TransportError
from nanobanana_async.gateways.apimall import ApiMall
from nanobanana_async.gateways.base import GatewaySettings
from nanobanana_async.gateways.contract import Gateway, HttpRequest
from nanobanana_async.jobs import Accepted, JobRecord, JobState, Observation
from nanobanana_async.ledger.statements import JobTable
from nanobanana_async.policy import reconcile
from nanobanana_async.policy.reconcile import HistoryEvidence, JobInDoubt, NotBought, Undecided, Verdict
from nanobanana_async.policy.retry import (
    Attempt,
    FailureKind,
    RetryAction,
    RetryDecision,
    RetryPolicy,
    decide_failed_create,
)
from tests.support import leased_disk
from tests.support.mutations import Change, Mutation


@frozen
class SeedMutation(Mutation):
    """A bug that one of `rules` must catch within the first `within` seeds."""

    rules: tuple[str, ...]
    within: int = 150
    seed: int = 0
    """The first seed that catches it: the suite begins there, `--mutations` at 0."""


def _no_write_before_the_post() -> list[Change]:
    async def write_intent(self: Any, job: TrackedJob) -> None:
        job.first_attempt_at = min(job.first_attempt_at, self._clock())
        sent_at = job.record.first_sent_at or self._store.utcnow()
        job.set_record(job.record.transition_to(JobState.SUBMITTING, first_sent_at=sent_at))

    return [(Submitter, "_write_intent", write_intent)]


def _new_wire_key_each_time() -> list[Change]:
    build, sent = ApiMall.build_create, [0]

    def build_create(self: ApiMall, body: bytes, *, wire_key: str) -> HttpRequest:
        sent[0] += 1
        return build(self, body, wire_key=wire_key if sent[0] == 1 else f"{wire_key}-{sent[0]}")

    return [(ApiMall, "build_create", build_create)]


def _answer_goes_with_its_caller() -> list[Change]:
    post = Submitter._post

    async def posted(self: Submitter, job: TrackedJob, body: bytes) -> Accepted:
        task = asyncio.Task(post(self, job, body))
        while not task.done():
            if not job.callers and not job.has_handle:
                task.cancel()
                raise TransportError("the caller left", possibly_sent=True)
            await asyncio.wait([task], timeout=0.02)
        return task.result()

    return [(Submitter, "_post", posted)]


def _repeat_without_a_key() -> list[Change]:
    def decided(error: NanoBananaError, attempt: Attempt, policy: RetryPolicy) -> RetryDecision:
        return decide_failed_create(error, attempt, evolve(policy, retry_uncertain=True))

    return [(buying, "decide_failed_create", decided)]


def _doubt_forgotten_on_a_refusal() -> list[Change]:
    def decided(error: NanoBananaError, attempt: Attempt, policy: RetryPolicy) -> RetryDecision:
        return decide_failed_create(error, evolve(attempt, in_doubt=False), policy)

    return [(buying, "decide_failed_create", decided)]


def _emitted_before_written() -> list[Change]:
    async def transition_as_reported(self: Any, job: TrackedJob, state: JobState, **changes: Any) -> None:
        before, after = job.ledger_record, job.record.transition_to(state, **changes)
        self._update_job(job, after, stored=after)
        await self.ledger.advance(before, after)

    return [(JobStore, "transition_as_reported", transition_as_reported)]


def _adopts_from_the_living() -> list[Change]:
    def is_unowned(self: JobTable, owner: str | None) -> bool:
        return owner != self._owner

    return [(JobTable, "_is_unowned", is_unowned)]


def _expired_key_repeated() -> list[Change]:
    return [(Attempt, "is_key_alive", property(lambda attempt: attempt.keyed))]


def _swap_without_comparing() -> list[Change]:
    def careless(self: JobTable, before: JobRecord, statement: str, row: tuple[Any, ...]) -> None:
        columns = statement.partition(" WHERE ")[0]
        self.connection.execute(f"{columns} WHERE key = ?", (*row, self._owner, before.key))

    return [(JobTable, "_compare_and_swap", careless)]


def _never_lets_go() -> list[Change]:
    def release(self: JobTable, key: str) -> None:
        return None

    return [(JobTable, "release", release)]


def _found_half_way_is_sent_as_new() -> list[Change]:
    async def recover(self: Any, job: TrackedJob) -> Next:
        await self._store.transition(job, JobState.PENDING)
        return Enqueue()

    return [(Submitter, "continue_interrupted", recover)]


def _lost_answer_taken_for_unsent() -> list[Change]:
    def decided(error: NanoBananaError, attempt: Attempt, policy: RetryPolicy) -> RetryDecision:
        if isinstance(error, TransportError):
            return RetryDecision(kind=FailureKind.NOT_SENT, action=RetryAction.REPEAT)
        return decide_failed_create(error, attempt, policy)

    return [(buying, "decide_failed_create", decided)]


def _other_bytes_on_a_repeat() -> list[Change]:
    build = ApiMall.build_create
    sent: set[str] = set()

    def build_create(self: ApiMall, body: bytes, *, wire_key: str) -> HttpRequest:
        again = wire_key in sent
        sent.add(wire_key)
        return build(self, body + b" " if again else body, wire_key=wire_key)

    return [(ApiMall, "build_create", build_create)]


def _refused_is_renewed_in_memory_only() -> list[Change]:
    async def start_generation(self: Any, job: TrackedJob, known: JobRecord, body: bytes, *_: Any, **__: Any) -> None:
        after = known.next_generation(body=body, created_at=self.utcnow())
        self._update_job(job, after, stored=after)

    return [(JobStore, "start_generation", start_generation)]


def _uncertain_is_bought_again() -> list[Change]:
    claim_of = Claimer._claim_and_check

    async def claimed(self: Any, job: TrackedJob) -> Any:
        claim = await claim_of(self, job)
        if claim.record.state is JobState.UNCERTAIN:
            return evolve(claim, record=evolve(claim.record, state=JobState.REFUSED))
        return claim

    return [(Claimer, "_claim_and_check", claimed)]


def _ended_jobs_are_forgotten() -> list[Change]:
    advance = JobTable.advance

    def forgets(self: JobTable, before: JobRecord, after: JobRecord, statement: str, row: tuple[Any, ...]) -> None:
        advance(self, before, after, statement, row)
        self.connection.execute("DELETE FROM jobs WHERE key = ? AND state IN ('succeeded', 'failed')", (before.key,))

    return [(JobTable, "advance", forgets)]


def _conflict_taken_for_a_refusal() -> list[Change]:
    def decided(error: NanoBananaError, attempt: Attempt, policy: RetryPolicy) -> RetryDecision:
        verdict = decide_failed_create(error, attempt, policy)
        if verdict.kind is FailureKind.KEY_TAKEN:
            return RetryDecision(kind=FailureKind.REFUSED, action=RetryAction.REFUSE)
        return verdict

    return [(buying, "decide_failed_create", decided)]


def _resolved_without_asking() -> list[Change]:
    async def known(self: ManualResolver, task_id: str, record: JobRecord, age_s: float) -> Observation:
        return Observation(task_id=task_id, state=JobState.RUNNING, status="processing")

    return [(ManualResolver, "_query_task", known)]


def _account_is_its_api_key() -> list[Change]:
    def account(gateway: GatewaySettings) -> str:
        return account_fingerprint(gateway.name, gateway.api_key.reveal())

    return [(GatewaySettings, "account", property(account))]


def _one_task_for_two_jobs() -> list[Change]:
    def check_task(self: JobTable, after: JobRecord) -> None:
        return None

    return [(JobTable, "check_task_free", check_task)]


def _every_create_was_processed() -> list[Change]:
    to_job_in_doubt = evidence.to_job_in_doubt

    def to_processed(record: JobRecord, gateway: Gateway, lateness_s: float, *, shared: bool) -> JobInDoubt:
        return evolve(to_job_in_doubt(record, gateway, lateness_s, shared=shared), processed=True)

    return [(reconciler, "to_job_in_doubt", to_processed), (reconciler, "was_processed", lambda *_: True)]


def _undecided_is_not_bought() -> list[Change]:
    def decide(doubts: Sequence[JobInDoubt], read: HistoryEvidence) -> dict[str, Verdict]:
        verdicts = reconcile.decide_doubts(doubts, read)
        return {key: NotBought() if isinstance(each, Undecided) else each for key, each in verdicts.items()}

    return [(reconciler, "decide_doubts", decide)]


def _buried_owner_writes() -> list[Change]:
    compare = JobTable._compare_and_swap

    def unfenced(self: JobTable, before: JobRecord, statement: str, row: tuple[Any, ...]) -> None:
        self.connection.execute(
            "UPDATE jobs SET owner = ? WHERE key = ? AND revision = ?", (self._owner, before.key, before.revision)
        )
        compare(self, before, statement, row)

    def unnoticed(self: leased_disk.Lease) -> None:
        self._disk.execute(leased_disk.RELEASE, self._process.owner)

    return [
        (JobTable, "_compare_and_swap", unfenced),
        (leased_disk.Lease, "_bury", unnoticed),
        (leased_disk.Lease, "is_sure", True),
    ]


def _create_does_not_wait_for_its_lease() -> list[Change]:
    async def wait_until_owner(job: TrackedJob, lease: object) -> None:
        return None

    return [(buying, "wait_until_owner", wait_until_owner)]


def _jobs_are_released_before_the_burial() -> list[Change]:
    bury = leased_disk.Lease._bury

    def release_first(self: leased_disk.Lease) -> None:
        if self._process.alive and self._file is not None:
            self._disk.execute(leased_disk.RELEASE, self._process.owner)
            self._disk.machine.after(3.0, partial(bury, self))

    def is_sure(self: leased_disk.Lease) -> bool:
        return self._known == self._process.owner and not self.buried

    def is_silent(self: leased_disk.Lease) -> bool:
        return False

    return [
        (leased_disk.Lease, "_bury", release_first),
        (leased_disk.Lease, "is_sure", property(is_sure)),
        (leased_disk.Lease, "is_silent", property(is_silent)),
    ]


MUTATIONS = (
    SeedMutation("no durable write before the POST", _no_write_before_the_post, ("unwritten",), seed=0),
    SeedMutation("a new wire key on each retry", _new_wire_key_each_time, ("wire key", "double"), seed=0),
    SeedMutation("the answer goes with its caller", _answer_goes_with_its_caller, ("answer dropped",), seed=2),
    SeedMutation(
        "a lost answer is repeated without a key", _repeat_without_a_key, ("repeated without a key", "double"), seed=6
    ),
    SeedMutation(
        "doubt is forgotten on a refusal",
        _doubt_forgotten_on_a_refusal,
        ("repeated without a key", "double", "lost"),
        seed=42,
    ),
    SeedMutation("emitted before it is written", _emitted_before_written, ("reported early",), seed=0),
    SeedMutation("a living owner's job is adopted", _adopts_from_the_living, ("two buyers", "not the owner"), seed=20),
    SeedMutation("an expired key is repeated", _expired_key_repeated, ("expired",), seed=0),
    SeedMutation(
        "the ledger swaps without comparing",
        _swap_without_comparing,
        ("two buyers", "not the owner", "repeated without a key"),
        150,
        seed=37,
    ),
    SeedMutation("a job that was given up is not let go", _never_lets_go, ("not let go",), seed=38),
    SeedMutation(
        "a job found half-way is sent as new",
        _found_half_way_is_sent_as_new,
        ("repeated without a key", "double", "expired"),
        seed=4,
    ),
    SeedMutation(
        "a lost answer is taken for unsent",
        _lost_answer_taken_for_unsent,
        ("repeated without a key", "double", "safe to repeat"),
        seed=13,
    ),
    SeedMutation("other bytes on a repeat", _other_bytes_on_a_repeat, ("other bytes",), seed=0),
    SeedMutation(
        "a new purchase is not written", _refused_is_renewed_in_memory_only, ("unwritten", "reported early"), seed=13
    ),
    SeedMutation(
        "an uncertain job is bought again when asked for",
        _uncertain_is_bought_again,
        ("double", "repeated without a key"),
        seed=6,
    ),
    SeedMutation("jobs that have ended are forgotten", _ended_jobs_are_forgotten, ("double", "lost"), 20, seed=0),
    SeedMutation(
        "a conflict on the first send is taken for a refusal",
        _conflict_taken_for_a_refusal,
        ("bought after a conflict", "double"),
        seed=60,
    ),
    SeedMutation("a task id is resolved without asking", _resolved_without_asking, ("unfinished",), seed=13),
    SeedMutation("one task is given to two jobs", _one_task_for_two_jobs, ("wrong result",), seed=37),
    SeedMutation(
        "an account is known by its API key alone", _account_is_its_api_key, ("unfinished", "wrong outcome"), 20, seed=1
    ),
    SeedMutation("a task is adopted without evidence", _every_create_was_processed, ("wrong result",), seed=7),
    SeedMutation(
        "what the history leaves open was not bought", _undecided_is_not_bought, ("expired", "double"), seed=20
    ),
    SeedMutation(
        "a buried owner writes",
        _buried_owner_writes,
        ("two buyers", "not the owner", "answer dropped", "unwritten"),
        seed=122,
    ),
    SeedMutation(
        "a create leaves whether its owner lives or not",
        _create_does_not_wait_for_its_lease,
        ("not the owner", "unwritten"),
        seed=122,
    ),
    SeedMutation(
        "jobs are released before their owner is buried",
        _jobs_are_released_before_the_burial,
        ("two buyers", "not the owner", "unwritten"),
        seed=24,
    ),
)

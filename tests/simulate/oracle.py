"""The billing oracle: what the gateway knows and the file holds, against what the library promises.

It never reads the client's own bookkeeping (but for two rules: whether a job that was given up was let go, and whether
a job that waits for the gateway's history is watched). Each rule has a name, under which the table and the mutation
control count it.
"""

import json
from collections import Counter
from collections.abc import Sequence

from attrs import frozen

from nanobanana_async import errors
from nanobanana_async.emulator.accounts import TaskState
from nanobanana_async.emulator.stats import JobFacts
from nanobanana_async.engine.phases import Phase
from nanobanana_async.engine.routed_engine import RoutedEngine
from nanobanana_async.errors import (
    GatewayError,
    IdempotencyConflict,
    JobFailed,
    JobUncertain,
    JobUnfinished,
    JobWithdrawn,
    LedgerError,
    NanoBananaError,
)
from nanobanana_async.events import Event, JobStateChanged
from nanobanana_async.gateways.contract import HttpRequest
from nanobanana_async.jobs import ACTIVE_STATES, JobRecord, JobState
from nanobanana_async.models import GenerationResult
from tests.simulate.network import Network, SentRequest
from tests.simulate.plan import Plan
from tests.support.disk import Disk
from tests.support.machine import Machine, Process

Outcome = GenerationResult | BaseException

PUBLIC = frozenset(kind for kind in vars(errors).values() if isinstance(kind, type))
# How long a session has to write an answer down, and to let go of what it gave up: many slow commits.
PATIENCE_S = 10.0


@frozen
class Violation:
    """A promise that was broken."""

    rule: str
    text: str
    at: float


class Oracle:
    """Watches one seed."""

    def __init__(self, machine: Machine, plan: Plan, disk: Disk, network: Network) -> None:
        self._machine = machine
        self._plan = plan
        self._disk = disk
        self._network = network
        self.violations: list[Violation] = []
        self.deliberate: Counter[str] = Counter()
        """Purchases by hand, per job: they may have been made, and may be second ones."""
        self.decided: Counter[str] = Counter()
        """Decisions by hand of any kind, per job."""
        self._wire_keys: dict[tuple[str, int], str | None] = {}
        self._bodies: dict[str, bytes] = {}
        self._given_up: dict[tuple[str, str], float] = {}
        self._history_read_at = -1.0
        self._silent_at: dict[str, float] = {}
        """When each host was last seen suspended or cut off."""

    def find_fault(self, rule: str, text: str) -> None:
        """Note that a promise was broken."""
        self._machine.note("ORACLE", f"{rule}: {text}")
        self.violations.append(Violation(rule, text, self._machine.time()))

    def key_of(self, request: HttpRequest) -> tuple[str, int]:
        """Return the key of a create, by its prompt, and the generation in the ledger file; a poll has no key."""
        if request.body is None:
            return "", 0
        key = str(json.loads(request.body)["prompt"]).split()[0]
        record = self._disk.record(key)
        return key, 0 if record is None else record.generation

    def left(self, sent: SentRequest) -> None:
        """A request is about to leave: it must be written down, with these bytes, by who sends it."""
        self._check_watched(sent.process)
        if not sent.creates:
            if "/history?" in sent.request.url:
                self._history_read_at = sent.left_at
            return
        found = self._disk.find(sent.key)
        if found is None or found[0].state is not JobState.SUBMITTING:
            stands = "nothing" if found is None else found[0].state.value
            self.find_fault("unwritten", f"{sent.key} was sent, and the ledger holds {stands}")
            return
        record, owner = found
        if owner != sent.process.owner:
            self.find_fault("not the owner", f"{sent.key} was sent by {sent.process.name}, who does not own it")
        if record.body != sent.request.body:
            self.find_fault("other bytes", f"{sent.key} was sent with bytes that are not in the ledger")
        self._check_wire_key(sent, record)
        self._check_repeat(sent)

    def _check_wire_key(self, sent: SentRequest, record: JobRecord) -> None:
        wire_key, body = sent.wire_key, sent.request.body or b""
        if wire_key is None:
            return
        known = self._wire_keys.setdefault((sent.key, sent.generation), wire_key)
        if known != wire_key or wire_key != record.wire_key:
            self.find_fault("wire key", f"{sent.key} was sent under {wire_key}, before under {known}")
        if self._bodies.setdefault(wire_key, body) != body:
            self.find_fault("other bytes", f"two bodies were sent under {wire_key}")

    def _check_repeat(self, sent: SentRequest) -> None:
        before = [old for old in self._network.of_key(sent.key) if old.generation == sent.generation]
        for old in before:
            stale = old.owner in self._disk.buried  # its job is another's: on API Mall the key is the fence
            if old.process is not sent.process and old.process.alive and not old.answer.done() and not stale:
                self.find_fault("two buyers", f"{sent.key} was sent while {old.process.name} waits for its answer")
        known = self._network.of_key(sent.key)
        if not self.decided[sent.key] and any(old.conflict for old in known if old.generation < sent.generation):
            self.find_fault(
                "bought after a conflict", f"{sent.key} was sent as a new generation without a decision by hand"
            )
        if all(old.fate == "refused" for old in before):
            return
        if not self._plan.keyed:
            self.find_fault("repeated without a key", f"{sent.key} was sent again after request {before[-1].number}")
            return
        # If the history was read, and truly has no task of it, only what was sent since then counts.
        bought = any(job.key == sent.wire_key for job in self.charges(sent.key))
        unrefused = [old for old in before if old.fate != "refused"]
        since = [old for old in unrefused if bought or self._history_read_at <= old.left_at]
        age_s = self._machine.time() - since[0].left_at if since else 0.0
        if age_s > self._plan.key_lifetime_s:
            self.find_fault("expired", f"{sent.key} was sent again {age_s:.3f} s after it was first sent")

    def answered(self, sent: SentRequest, delivered: bool) -> None:
        """A create's answer has come: who lives must have waited for it, and must write it down."""
        process = sent.process
        if not delivered and process.alive and not process.closing and not sent.timed_out and sent.answer.done():
            self.find_fault("answer dropped", f"{process.name} no longer waited for request {sent.number}")
        if delivered and sent.fate == "accepted":
            self._machine.after(PATIENCE_S, lambda: self._check_kept(sent))

    def _check_kept(self, sent: SentRequest) -> None:
        record = self._disk.record(sent.key)
        process = sent.process
        if not process.alive or sent.key in self._disk.failed_keys:
            return
        if self._plan.leases and not self._has_had_time(sent, record):
            return
        if record is None or (record.generation == sent.generation and record.task_id != sent.task_id):
            self.find_fault("answer dropped", f"{sent.key} is {sent.task_id}: answered, and not written down")

    def _has_had_time(self, sent: SentRequest, record: JobRecord | None) -> bool:
        """Whether a host can have written the answer by now; if not, look again later, unless it ends before.

        A host that is suspended, cut off or closing can't, nor can one while another host decides about the create.
        """
        process = sent.process
        if process.closing or process.ended.done():
            return False
        found = self._disk.find(sent.key)
        decides = found is not None and found[0].state is JobState.SUBMITTING and found[1] not in (None, process.owner)
        now = self._machine.time()
        if process.frozen or process.lease.is_silent or process.lease.buried:
            self._silent_at[process.name] = now
        lived_s = now - self._silent_at.get(process.name, -PATIENCE_S)
        same = record is not None and record.generation == sent.generation
        if same and (decides or lived_s < PATIENCE_S):
            self._machine.after(1.0, lambda: self._check_kept(sent))
        return not same or not (decides or lived_s < PATIENCE_S)

    def observer(self, process: Process) -> "EventChecker":
        """Return who listens to a session's events."""
        return EventChecker(self, self._machine, self._disk, process)

    def check_outcome(self, process: Process, key: str, request_prompt: str, outcome: Outcome) -> None:
        """A caller got a result or an error."""
        match outcome:
            case GenerationResult():
                self._machine.note(process.name, f"{key}: result of {outcome.task_id}")
                if outcome.task_id not in {job.task_id for job in self.charges(key)}:
                    self.find_fault("wrong result", f"{key}: {outcome.task_id} is no job of it")
            case NanoBananaError():
                name = f"{type(outcome).__name__}{' (safe)' if outcome.safe_to_repeat else ''}"
                self._machine.note(process.name, f"{key}: {name}: {outcome.message[:90]}")
                self._check_error(process, key, request_prompt, outcome)
            case _:
                self._machine.note(process.name, f"{key}: {outcome!r}")
                self.find_fault("foreign error", f"{key}: {outcome!r}")

    def _check_error(self, process: Process, key: str, prompt: str, error: NanoBananaError) -> None:
        if type(error) not in PUBLIC or type(error) is NanoBananaError:
            self.find_fault("foreign error", f"{key}: {type(error).__name__}: {error}")
        record = self._disk.record(key)
        other = record is not None and record.request is not None and record.request.prompt != prompt
        if isinstance(error, LedgerError) and not self._plan.fills_disk:
            self.find_fault("ledger error", f"{key}: {error}")
        about_a_job = error.key is not None  # else the call itself was refused, which says nothing about the job
        if (
            error.safe_to_repeat
            and about_a_job
            and not other
            and not isinstance(error, JobFailed)
            and not self.deliberate[key]
        ):
            if live := [job.task_id for job in self.charges(key) if job.state is not TaskState.FAILED]:
                self.find_fault("safe to repeat", f"{key}: {type(error).__name__} says so, and {live[0]} was bought")
            elif self._is_being_bought(process, key, error):
                self.find_fault("safe to repeat", f"{key}: {type(error).__name__} says so, and a create is on its way")
        self._given_up[process.name, key] = at = self._machine.time()
        self._machine.after(PATIENCE_S, lambda: self._check_let_go(process, key, at))

    def _is_being_bought(self, process: Process, key: str, error: NanoBananaError) -> bool:
        """Whether a create is in flight; a refused or withdrawn caller can't know what others buy later."""
        known_to_all = not isinstance(error, GatewayError | JobUnfinished | JobWithdrawn)
        creates = self._network.of_key(key)
        return any(sent.fate == "open" and (known_to_all or sent.process is process) for sent in creates)

    def _check_let_go(self, process: Process, key: str, at: float) -> None:
        if self._given_up[process.name, key] > at:  # another caller has requested it since
            return
        found = self._disk.find(key)
        if key in self._disk.failed_keys:  # then to let go may have failed, too
            return
        if found is None or not process.alive or process.ended.done() or process.session is None:
            return
        if process.frozen or (process.lease is not None and process.lease.is_silent):  # it can't write now
            self._machine.after(PATIENCE_S, lambda: self._check_let_go(process, key, at))
            return
        engine = process.session._session_task.engine
        follows = engine is not None and (key in engine.tracked or engine.scheduler.closing)
        if found[0].state in ACTIVE_STATES and found[1] == process.owner and not follows:
            self.find_fault("not let go", f"{key} is owned by {process.name}, who does not follow it")

    def _check_watched(self, process: Process) -> None:
        """A job that waits for the history must be watched, or it waits for ever."""
        engine = None if process.session is None else process.session._session_task.engine
        if engine is None:
            return
        for each in engine.members if isinstance(engine, RoutedEngine) else (engine,):
            for key, job in each.tracked.items():
                if job.phase is Phase.CHECKING and key not in each.history.awaiting_jobs:
                    self.find_fault("not watched", f"{key} waits for the history, and {process.name} does not read it")

    def charges(self, key: str) -> list[JobFacts]:
        """Return what the gateway charged for a job, oldest first."""
        return [job for job in self._network.world.jobs(self._machine.time()) if job.prompt.split()[0] == key]

    def judge(self, outcomes: dict[str, Outcome]) -> None:
        """Compare gateway, file and callers once all is quiet."""
        for key, outcome in outcomes.items():
            charges, record = self.charges(key), self._disk.record(key)
            allowed = 1 + self.deliberate[key]
            if len(charges) > allowed and self._plan.scene != "apimall short":
                self.find_fault("double", f"{key} was charged {len(charges)} times, {allowed} allowed")
            if record is None:
                self.find_fault("lost", f"{key} is not in the ledger")
                continue
            self._judge_record(key, record, charges)
            self._judge_outcome(key, record, outcome)

    def _judge_record(self, key: str, record: JobRecord, charges: Sequence[JobFacts]) -> None:
        known = {job.task_id: job for job in charges}
        owed = [sent for sent in self._network.of_key(key) if sent.generation == record.generation]
        own_charges = {sent.task_id for sent in owed if sent.task_id in known} | self._silent(record, charges)
        match record.state:
            case JobState.SUCCEEDED | JobState.FAILED:
                truth = known.get(record.task_id or "")
                if truth is None:
                    self.find_fault("wrong state", f"{key} is {record.state.value} and was not bought")
                elif (truth.state is TaskState.FAILED) is not (record.state is JobState.FAILED):
                    self.find_fault("wrong state", f"{key} is {record.state.value}, truly {truth.state.value}")
            case JobState.UNCERTAIN:
                pass
            case JobState.REFUSED | JobState.WITHDRAWN | JobState.PENDING if own_charges:
                self.find_fault("lost", f"{key} is {record.state.value}, and {len(own_charges)} were bought")
            case JobState.REFUSED | JobState.PENDING:
                pass
            case _:
                self.find_fault("unfinished", f"{key} is still {record.state.value}")

    def _silent(self, record: JobRecord, charges: Sequence[JobFacts]) -> set[str | None]:
        """Return the jobs bought under the record's wire key; without keys, all when there was one generation."""
        if self._plan.keyed:
            return {job.task_id for job in charges if job.key == record.wire_key}
        return {job.task_id for job in charges} if record.generation == 1 else set()

    def _judge_outcome(self, key: str, record: JobRecord, outcome: Outcome) -> None:
        fits = True
        match record.state:
            case JobState.SUCCEEDED:
                fits = isinstance(outcome, GenerationResult) and outcome.task_id == record.task_id
            case JobState.FAILED:
                fits = isinstance(outcome, JobFailed)
            case JobState.UNCERTAIN:
                fits = isinstance(outcome, JobUncertain | IdempotencyConflict)
            case _:
                fits = isinstance(outcome, NanoBananaError)
        if not fits:
            self.find_fault("wrong outcome", f"{key} is {record.state.value}, and its caller got {outcome!r}"[:300])


class EventChecker:
    """A session's observer: a state must be in the file before its event."""

    def __init__(self, oracle: Oracle, machine: Machine, disk: Disk, process: Process) -> None:
        self._oracle = oracle
        self._machine = machine
        self._disk = disk
        self._process = process

    def __call__(self, event: Event) -> None:
        """Hear an event of the session."""
        if not isinstance(event, JobStateChanged) or not self._process.alive:
            return
        record = event.record
        self._machine.note(self._process.name, f"{record.key} {record.state.value} {record.task_id or ''}".rstrip())
        stands = self._disk.record(record.key)
        if record.key in self._disk.failed_keys:
            return
        if stands is None or stands.revision < record.revision:
            self._oracle.find_fault(
                "reported early", f"{record.key} {record.state.value} was emitted and is not written"
            )

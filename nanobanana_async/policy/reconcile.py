"""Decide by the gateway's history which task is whose, when the answers to creates were lost.

Theory of operation. A history shows tasks without their prompts, so only times, models and prices say whose a task is.
Two mistakes are possible. A wrong task gives a user the image of another prompt, or of another client of the account. A
wrong "not bought" pays twice. So a decision is a proof from what was seen, and without a proof the job stays uncertain.

A job in doubt is known by its window: from just before its create left (`sent_at`) until no create of it can have been
processed any more (`lost_at`): its answer, or that of a repeat, was given up, or a repeat got the first 409. A gateway
may finish a create after its connection is gone. It is taken to need no longer for that than a few of the longest
answers seen (`lateness_s`). The window is moved to the gateway's clock by an offset that is known within bounds, and
reaches a second back, because `created_at` may be cut to whole seconds. Until a task of known time shows that
`created_at` is in UTC, a task whose time differs by whole quarter hours may be this job's as well. A task outside the
window, or of another model or price, is not this job's; neither is one that another job has.

Evidence. A 409 to a repeat shows that a create under this key is being processed, and it may still be refused. If
repeats get 409 for longer than any create is processed, and no other answer, it was processed to its end: exactly one
of the tasks in the window is this job's, if the history was read late enough (`delay_s` after the window) and far
enough back. Without that evidence the create may never have arrived, and the only task of the window may be another
client's. No width of the window rules that out, so nothing is adopted then: the job stays uncertain, and the tasks of
its window are its candidates.

An explanation gives each job with evidence a task of its window, no task twice; other tasks are another client's. A job
gets a task if all explanations agree on it. For one job: it is the only task of its window. For several: two jobs with
windows {a} and {a, b} have a and b; with {a, b} and {a, b} it is unknown, unless they ask for the same image: then it
makes no difference. If no explanation exists, an assumption was wrong, and nothing is decided about those jobs.
Whether all agree is found by leaving one pair out: if the others then can't all get a task, the pair is in all
explanations. Jobs are interchangeable only if their windows hold the same tasks as well. Otherwise an exchange could
force a third job to a wrong task.

A job without evidence was not bought if no task at all can be its own: none is left in a window that reaches from three
delays before `sent_at` (our clock may have been set) to three after `lost_at`, in a history that was read after that.
Prices do not count here, they may have changed.
"""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from decimal import Decimal

from attrs import frozen

from nanobanana_async.candidates import MOST_CANDIDATES
from nanobanana_async.policy.matching import agreed_tasks

ROUNDING_S = 1.0
"""By how much `created_at` may be cut."""
FLOAT_ERROR_S = 1e-3
"""By how much sums of times may differ because floats are rounded; stated times differ by more."""
LATENESS_PER_LONGEST_ANSWER = 3.0
"""A create whose connection is gone is processed within this many of the longest answers seen."""
LEAST_LATENESS_S = 2.0
ZONE_STEP_S = 900.0
"""Clocks of two time zones differ by a multiple of this."""
MOST_ZONE_STEPS = 56
"""14 hours: no time zone is further from UTC."""
READING_S = 60.0
"""A task on the first page was created at most so long after the reading began."""


@frozen
class ClockOffset:
    """The gateway's clock minus ours, in seconds, within bounds."""

    least: float
    most: float


@frozen(kw_only=True)
class ClaimedTask:
    """A task of the history that a job of the ledger has: it shows how the gateway writes times, models and prices."""

    created_at: float
    sent_at: float | None = None
    """It was created after this, by our clock; None if unknown."""
    answered_at: float | None = None
    model: str | None = None
    requested_model: str | None = None
    price_class: str = ""
    credits: Decimal | None = None


@frozen(kw_only=True)
class UnclaimedTask:
    """A task of the history that no job of the ledger has."""

    task_id: str
    created_at: float
    model: str | None = None
    credits: Decimal | None = None


@frozen(kw_only=True)
class JobInDoubt:
    """A job whose create got no usable answer. Times are those of our clock."""

    key: str
    sent_at: float
    lost_at: float
    processed: bool
    """Repeats got 409 for so long that a create was processed to its end."""
    in_progress: bool = False
    """A repeat got 409."""
    request: Hashable
    """Equal for jobs that ask for the same images."""
    model: str | None = None
    price_class: str = ""


@frozen(kw_only=True)
class HistoryEvidence:
    """What one reading of the history has shown, and how exact it is."""

    read_at: float
    """By our clock, before the first page was requested."""
    complete_since: float
    """All tasks created since this time, by the gateway's clock, were listed."""
    unclaimed: Sequence[UnclaimedTask]
    claimed: Sequence[ClaimedTask] = ()
    offset: ClockOffset
    offset_known_until: float = math.inf
    """Nothing shows what the offset is after this time of our clock."""
    zone_known: bool = True
    """A task of known time shows the zone of `created_at`; by the dates of the answers it may be any."""
    delay_s: float
    lateness_s: float


@frozen
class FoundTask:
    """The job has this task."""

    task_id: str


@frozen
class NotBought:
    """No create of the job was processed."""


@frozen
class Undecided:
    """These tasks could be the job's, or the nearest of them. `may_change`: whether a later reading may decide it."""

    candidates: tuple[str, ...]
    may_change: bool


Verdict = FoundTask | NotBought | Undecided


def estimate_offset(claimed: Iterable[ClaimedTask], answered: ClockOffset | None) -> ClockOffset | None:
    """Return the offset of the gateway's clock; None if nothing shows it.

    Each task that was created between two known times bounds it, and so do the dates of the answers (`answered`). If
    the bounds contradict each other, our clock was set meanwhile, or the gateway has several: all of them are possible.
    """
    known = [(task, task.sent_at, task.answered_at) for task in claimed]
    bounds = [
        (task.created_at - answered_at, task.created_at + ROUNDING_S - sent_at)
        for task, sent_at, answered_at in known
        if sent_at is not None and answered_at is not None
    ]
    if answered is not None:
        bounds.append((answered.least, answered.most))
    if not bounds:
        return None
    least, most = max(low for low, _ in bounds), min(high for _, high in bounds)
    if least <= most:
        return ClockOffset(least, most)
    return ClockOffset(min(low for low, _ in bounds), max(high for _, high in bounds))


def estimate_lateness_s(longest_answer_s: float | None, delay_s: float) -> float:
    """Return how long after its connection was lost a create may still be processed."""
    if longest_answer_s is None:
        return delay_s
    return min(delay_s, max(LEAST_LATENESS_S, LATENESS_PER_LONGEST_ANSWER * longest_answer_s))


def ready_after_s(late_s: float, delay_s: float, *, processed: bool) -> float:
    """Return how long after the loss of its answer a reading of the history may decide about a job."""
    return late_s + delay_s if processed else 3 * delay_s


def decide_doubts(doubts: Sequence[JobInDoubt], read: HistoryEvidence) -> dict[str, Verdict]:
    """Return the verdict on each job in doubt, by its key."""
    return _Decision(doubts, read).verdicts()


class _Decision:
    def __init__(self, doubts: Sequence[JobInDoubt], read: HistoryEvidence) -> None:
        self._doubts = doubts
        self._read = read
        self._marks = _Marks(read.claimed)
        self._zones = _possible_zones(read)
        tasks = sorted(read.unclaimed, key=lambda task: (task.created_at, task.task_id))
        self._candidates = {
            doubt.key: tuple(
                task.task_id
                for task in tasks
                if self._in_window(doubt, task, wide=False) and self._marks.allow_price(doubt, task)
            )
            for doubt in doubts
        }
        self._wide_candidates = {
            doubt.key: tuple(task.task_id for task in tasks if self._in_window(doubt, task, wide=True))
            for doubt in doubts
        }

    def verdicts(self) -> dict[str, Verdict]:
        required = [doubt for doubt in self._doubts if doubt.processed and self._is_ready(doubt)]
        found = agreed_tasks(
            {doubt.key: self._candidates[doubt.key] for doubt in required}, self._interchangeable(required)
        )
        return {doubt.key: self._verdict(doubt, found) for doubt in self._doubts}

    def _verdict(self, doubt: JobInDoubt, found: Mapping[str, str]) -> Verdict:
        if doubt.key in found:
            return FoundTask(found[doubt.key])
        taken = set(found.values())
        unknown = not (doubt.processed or doubt.in_progress)
        if unknown and self._is_ready(doubt) and not set(self._wide_candidates[doubt.key]) - taken:
            return NotBought()
        candidates = tuple(task for task in self._candidates[doubt.key] if task not in taken)
        if not candidates:  # it is not known as not bought because of these
            candidates = tuple(task for task in self._wide_candidates[doubt.key] if task not in taken)
        return Undecided(self._nearest(doubt, candidates), self._may_change(doubt))

    def _nearest(self, doubt: JobInDoubt, candidates: tuple[str, ...]) -> tuple[str, ...]:
        """Return the tasks that were created next to the send, in their order, if there are many."""
        if len(candidates) <= MOST_CANDIDATES:
            return candidates
        sent_at = doubt.sent_at + (self._read.offset.least + self._read.offset.most) / 2
        distances = {task.task_id: abs(task.created_at - sent_at) for task in self._read.unclaimed}
        nearest = set(sorted(candidates, key=distances.__getitem__)[:MOST_CANDIDATES])
        return tuple(task for task in candidates if task in nearest)

    def _in_window(self, doubt: JobInDoubt, task: UnclaimedTask, *, wide: bool) -> bool:
        late_s = 3 * self._read.delay_s if wide else self._read.lateness_s
        until = doubt.lost_at + late_s + self._read.offset.most + FLOAT_ERROR_S
        first = math.ceil((task.created_at - until) / ZONE_STEP_S)
        last = math.floor((task.created_at - self._window_start(doubt, wide=wide)) / ZONE_STEP_S)
        in_time = max(first, self._zones[0]) <= min(last, self._zones[1])
        return in_time and self._marks.allow_model(doubt, task)

    def _window_start(self, doubt: JobInDoubt, *, wide: bool) -> float:
        margin_s = 3 * self._read.delay_s if wide else 0.0
        return doubt.sent_at + self._read.offset.least - ROUNDING_S - margin_s

    def _is_ready(self, doubt: JobInDoubt) -> bool:
        """Return whether all tasks that could be the job's were listed."""
        after_s = ready_after_s(self._read.lateness_s, self._read.delay_s, processed=doubt.processed)
        late_enough = self._read.read_at >= doubt.lost_at + after_s and doubt.lost_at <= self._read.offset_known_until
        return late_enough and self._is_covered(doubt)

    def _is_covered(self, doubt: JobInDoubt) -> bool:
        since = self._window_start(doubt, wide=not doubt.processed)
        return since + self._zones[0] * ZONE_STEP_S >= self._read.complete_since

    def _may_change(self, doubt: JobInDoubt) -> bool:
        """Return whether a later reading may list more tasks of this job, or of one that shares a task with it."""
        perhaps = set(self._wide_candidates[doubt.key])
        complete_until = self._read.read_at - 3 * self._read.delay_s
        if not self._is_covered(doubt):
            return False
        related = (
            other for other in self._doubts if other is doubt or perhaps.intersection(self._wide_candidates[other.key])
        )
        return any(other.lost_at > complete_until for other in related)

    def _interchangeable(self, doubts: Iterable[JobInDoubt]) -> dict[str, Hashable]:
        return {doubt.key: (doubt.request, self._candidates[doubt.key]) for doubt in doubts}


def _possible_zones(read: HistoryEvidence) -> tuple[int, int]:
    """Return the least and the greatest number of steps by which the zone of `created_at` may be wrong.

    No task can have been created after the reading: the newest one shows how far the zone is behind at most.
    """
    if read.zone_known:
        return 0, 0
    now = read.read_at + read.offset.most + READING_S
    times = [task.created_at for task in read.unclaimed] + [task.created_at for task in read.claimed]
    newest = max(times, default=-math.inf)
    behind_s = max(newest - now, -MOST_ZONE_STEPS * ZONE_STEP_S)
    return math.ceil(behind_s / ZONE_STEP_S), MOST_ZONE_STEPS


class _Marks:
    """Which models and prices distinguish tasks, by the tasks whose jobs are known."""

    def __init__(self, claimed: Iterable[ClaimedTask]) -> None:
        self._names: dict[str, set[str]] = {}
        """Requested model -> its names in the history."""
        self._names_of_class: dict[tuple[str, str], set[str]] = {}
        """The same by price class: a gateway may name a model otherwise for edits, or for another size."""
        self._prices: dict[str, set[Decimal]] = {}
        for task in claimed:
            if task.model is not None and task.requested_model is not None:
                self._names.setdefault(task.requested_model, {task.requested_model}).add(task.model)
                own = self._names_of_class.setdefault((task.requested_model, task.price_class), {task.requested_model})
                own.add(task.model)
            if task.credits is not None:
                self._prices.setdefault(task.price_class, set()).add(task.credits)

    def allow_model(self, doubt: JobInDoubt, task: UnclaimedTask) -> bool:
        """Return whether the task's model can be the job's: a name that is not known is taken to be."""
        if doubt.model is None or task.model is None:
            return True
        if own := self._names_of_class.get((doubt.model, doubt.price_class)):
            return task.model in own
        if task.model in self._names.get(doubt.model, {doubt.model}):
            return True
        return not any(task.model in names for names in self._names.values())

    def allow_price(self, doubt: JobInDoubt, task: UnclaimedTask) -> bool:
        """Return whether the task's price can be the job's: not if only other classes were seen to cost that."""
        own = self._prices.get(doubt.price_class)
        if own is None or task.credits is None or task.credits in own:
            return True
        return not any(task.credits in prices for prices in self._prices.values())

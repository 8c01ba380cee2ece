"""Decide which waiting job gets the next free slot: by priority, then in fair shares of groups.

Theory of operation. A group is a user, a tenant or a batch; its jobs wait in the order in which they came. Within a
priority the groups are served by start-time fair queueing (Goyal, Vin and Cheng 1996). The first job of a group that
waits has a start tag S, and the queue a virtual time v, which is the start tag of the job that was served last:

    group begins to wait:  S = max(v, F)        served, at cost c and weight w:  v = S,  S = F = S + c / w

The lowest start tag is served next; among equal ones, the job that came first. So:

* Groups that wait get slots in proportion to their weights. Over any time in which two of them wait, what they got per
  weight differs by at most the largest cost per weight of one job of each. A new group's first job waits, beyond the
  jobs that run, for at most one job of each other group that waits then.
* A group that was idle gains no credit (the maximum with v), and one that was served alone has no debt (v follows it).
* The cost is slots times their expected time: a slot is held, so that counts of jobs would favour slow ones. Only what
  took a slot costs: a withdrawn job costs nothing, and a create that was refused is given back.
* Tags belong to groups, not to jobs, so a job costs O(log n) as in one heap. Nothing is known of a group that has no
  waiting job but its last tag F: F of `MOST_IDLE` groups is kept, and none once no job of the priority waits.

Priorities are strict, with a floor: of `FLOOR_EVERY` jobs in a row that are served while lower priorities wait, the
last is one of the next lower priority (of each priority, so that of those slots again every tenth goes further down).
A tenth makes urgent work at most 1.11 times as long, and a batch beside it goes on visibly: at 10 slots of 20 seconds,
a job each 20 seconds. While urgent jobs come one at a time, the batch is served in between and the floor is never due.
"""

import heapq
from bisect import bisect, insort
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping
from itertools import islice
from operator import itemgetter
from typing import Any, Generic, Protocol, TypeVar

FLOOR_EVERY = 10
"""While lower priorities wait, one job of so many is theirs."""

MOST_IDLE = 1000
"""The tags of so many groups without a waiting job are kept."""

MOST_PASSED_OVER = 1000
"""So many groups that have no credits for now are passed over in one round, at about 3 µs each. More would cost each
round too much time: those behind them wait."""


class Group:
    """The waiting jobs of one group at one priority."""

    __slots__ = ("entry", "jobs", "level", "name", "tag", "weight")

    def __init__(self, level: "Level", name: Hashable, weight: float) -> None:
        self.level = level
        self.name = name
        self.weight = weight
        self.tag = level.virtual_time
        """S while it waits, else F."""
        self.jobs: list[tuple[int, Any]] = []
        """A heap: a create that was refused gets its old place."""
        self.entry: tuple[float, int, Group] | None = None
        """What stands for it in the heap of its level; None while it is idle."""

    def __lt__(self, other: "Group") -> bool:
        return False  # the order of equal tags and places does not matter


class Waiting(Protocol):
    """What a job says about its turn."""

    place: int
    """First come, first served within a group."""
    priority: int
    group: Hashable
    turn_cost: tuple[Group, float] | None
    """What it cost its group, until it is known that it took a slot."""


Job = TypeVar("Job", bound=Waiting)


class Level:
    """The groups of one priority."""

    __slots__ = ("groups", "heap", "idle", "priority", "served_since_lower", "virtual_time", "waiting")

    def __init__(self, priority: int) -> None:
        self.priority = priority
        self.virtual_time = 0.0
        """v above."""
        self.groups: dict[Hashable, Group] = {}
        self.idle: OrderedDict[Hashable, Group] = OrderedDict()
        """Those without a waiting job, the longest idle first."""
        self.heap: list[tuple[float, int, Group]] = []
        """By start tag and place; an entry that is not the group's own is out of date."""
        self.waiting = 0
        self.served_since_lower = 0
        """How many of its jobs were served since a lower priority was, while one waited."""

    def enter(self, group: Group) -> None:
        """Put a group into the heap by the tag and the place of its first job."""
        group.entry = (group.tag, group.jobs[0][0], group)
        heapq.heappush(self.heap, group.entry)
        if len(self.heap) > 64 + 2 * len(self.groups):
            self.heap = [each.entry for each in self.groups.values() if each.entry is not None]
            heapq.heapify(self.heap)

    def first(self) -> Group:
        """Return the group that is served next."""
        self._drop_outdated()
        return self.heap[0][2]

    def can_serve(self) -> bool:
        """Whether a group waits that is not passed over in this round."""
        self._drop_outdated()
        return bool(self.heap)

    def _drop_outdated(self) -> None:
        heap = self.heap
        while heap and heap[0][2].entry is not heap[0]:
            heapq.heappop(heap)

    def take_first_job(self, group: Group) -> Any:
        """Take out the first job of the group that is served next."""
        _, job = heapq.heappop(group.jobs)
        if group.jobs:
            group.entry = (group.tag, group.jobs[0][0], group)
            heapq.heapreplace(self.heap, group.entry)
            return job
        heapq.heappop(self.heap)
        self._keep_tag_of_idle(group)
        return job

    def take(self, group: Group, job: Any) -> None:
        """Take out a job of a group, wherever it stands."""
        group.jobs = [each for each in group.jobs if each[1] is not job]
        heapq.heapify(group.jobs)
        self.waiting -= 1
        if group.jobs:
            self.enter(group)
        else:
            self._keep_tag_of_idle(group)

    def _keep_tag_of_idle(self, group: Group) -> None:
        """Keep the tag of a group without a waiting job."""
        group.entry = None
        self.idle[group.name] = group
        if len(self.idle) > MOST_IDLE:
            name, _ = self.idle.popitem(last=False)
            del self.groups[name]


class FairQueue(Generic[Job]):
    """The jobs that wait to be sent for the first time."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights: dict[Hashable, float] = dict(weights.items())
        self._levels: dict[int, Level] = {}
        self._priorities: list[int] = []
        """Of the levels at which jobs wait, the lowest first."""
        self._passed_over: list[Group] = []

    def __len__(self) -> int:
        return sum(level.waiting for level in self._levels.values())

    def __iter__(self) -> Iterator[Job]:
        for level in self._levels.values():
            for group in level.groups.values():
                yield from (job for _, job in group.jobs)

    def __bool__(self) -> bool:
        return bool(self._priorities)

    def waiting_above(self, priority: int) -> int:
        """Return how many jobs of a higher priority wait."""
        return sum(level.waiting for level in self._levels.values() if level.priority > priority)

    def add(self, job: Job) -> None:
        """Add a job at its place in its group."""
        level = self._levels.get(job.priority)
        if level is None:
            level = self._levels[job.priority] = Level(job.priority)
            insort(self._priorities, job.priority)
        group = level.groups.get(job.group)
        if group is None:
            group = level.groups[job.group] = Group(level, job.group, self._weights.get(job.group, 1.0))
        elif not group.jobs:
            del level.idle[group.name]
            group.tag = max(group.tag, level.virtual_time)
        heapq.heappush(group.jobs, (job.place, job))
        level.waiting += 1
        if group.jobs[0][1] is job:
            level.enter(group)

    def raise_priority(self, job: Job, priority: int) -> None:
        """Give a job that waits a higher priority; it keeps its place."""
        if (level := self._levels.get(job.priority)) is not None:
            level.waiting -= 1
        job.priority = priority  # what stands for it at the old level is dropped when its turn comes
        self.add(job)

    def first(self) -> Job | None:
        """Return the job that is served next; None if there is none."""
        while self._priorities:
            level = self._next_level()
            group = level.first()
            job: Job = group.jobs[0][1]
            if job.priority == level.priority:
                return job
            self._take_first(level, group)
        return None

    def next_jobs(self, most: int) -> list[Job]:
        """Return up to `most` jobs that wait, as they would be served if each cost the same and no floor was due."""
        found: list[Job] = []
        for priority in reversed(self._priorities):
            groups = [_in_turn(group) for group in self._levels[priority].groups.values() if group.jobs]
            turns = heapq.merge(*groups, key=itemgetter(0, 1))
            jobs = (job for _, _, job in turns if job.priority == priority)
            found += islice(jobs, most - len(found))
        return found

    def remove(self, job: Job, cost: float) -> None:
        """Take out a job that waits: another account serves it, at so many slot-seconds for its group."""
        level = self._levels[job.priority]
        group = level.groups[job.group]
        level.virtual_time = max(level.virtual_time, group.tag)
        group.tag += cost / group.weight
        level.take(group, job)
        self._drop_if_idle(level)

    def drop_first(self) -> Job:
        """Take out the job that `first` has returned, at no cost: it is not sent."""
        level = self._next_level()
        level.waiting -= 1
        return self._take_first(level, level.first())

    def serve_first(self, cost: float) -> Job:
        """Take out the job that `first` has returned, which is sent now and costs its group so many slot-seconds."""
        level = self._next_level()
        group = level.first()
        cost /= group.weight
        if group.tag > level.virtual_time:
            level.virtual_time = group.tag
        group.tag += cost
        level.waiting -= 1
        if len(self._priorities) > 1:
            for higher in self._priorities[bisect(self._priorities, level.priority) :]:
                self._levels[higher].served_since_lower = 0
            level.served_since_lower = level.served_since_lower + 1 if self._priorities[0] < level.priority else 0
        else:
            level.served_since_lower = 0
        job = self._take_first(level, group)
        job.turn_cost = (group, cost)
        return job

    def pass_over_first(self) -> bool:
        """Pass over the group of the first job until `restore_passed_over`; False: too many are passed over."""
        if len(self._passed_over) >= MOST_PASSED_OVER:
            return False
        level = self._next_level()
        group = level.first()
        heapq.heappop(level.heap)
        group.entry = None
        self._passed_over.append(group)
        if not level.can_serve():
            self._priorities.remove(level.priority)
        return True

    def restore_passed_over(self) -> None:
        """Let the groups that were passed over wait again, each at its place."""
        for group in self._passed_over:
            group.level.enter(group)
            if group.level.priority not in self._priorities:
                insort(self._priorities, group.level.priority)
        self._passed_over.clear()

    def _take_first(self, level: Level, group: Group) -> Job:
        job: Job = level.take_first_job(group)
        if not group.jobs:
            self._drop_if_idle(level)
        return job

    def _drop_if_idle(self, level: Level) -> None:
        if not level.can_serve():
            self._priorities.remove(level.priority)
            if len(level.idle) == len(level.groups):  # none waits: there is nothing to share
                del self._levels[level.priority]

    def _next_level(self) -> Level:
        """Return the highest priority, or a lower one whose turn it is."""
        if len(self._priorities) > 1:
            for priority in reversed(self._priorities[1:]):
                if (level := self._levels[priority]).served_since_lower < FLOOR_EVERY - 1:
                    return level
        return self._levels[self._priorities[0]]


def _in_turn(group: Group) -> Iterator[tuple[float, int, Any]]:
    """Yield the jobs of a group in their order, each with its place and its start tag if each costs 1."""
    jobs, ahead, tag = group.jobs, [(group.jobs[0], 0)], group.tag
    while ahead:
        (place, job), index = heapq.heappop(ahead)
        yield tag, place, job
        tag += 1 / group.weight
        for child in (2 * index + 1, 2 * index + 2):  # they come later than the one above them in the heap
            if child < len(jobs):
                heapq.heappush(ahead, (jobs[child], child))


def give_back(job: Waiting) -> None:
    """Return to the group of a job what it was charged: its create took no slot."""
    if job.turn_cost is not None:
        group, cost = job.turn_cost
        group.tag -= cost
        if group.entry is not None:
            group.level.enter(group)
        job.turn_cost = None

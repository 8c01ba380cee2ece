"""A small discrete-event model: a gateway with hidden limits, and a client that asks a `Throttle` before each create."""

import heapq
import itertools
import math
import random
from collections.abc import Callable, Iterator
from typing import Protocol

from attrs import define, field

from nanobanana_async.policy.concurrency import ConcurrencyPolicy, Mode
from nanobanana_async.policy.durations import Durations
from nanobanana_async.policy.polling import PollPolicy
from nanobanana_async.policy.schedule import Schedule
from nanobanana_async.policy.throttle import LimitKind, Throttle

Draw = Callable[[random.Random], float]


def lognormal(median_s: float, sigma: float) -> Draw:
    return lambda chance: chance.lognormvariate(math.log(median_s), sigma)


def bimodal(chance: random.Random) -> float:
    """Three of four jobs take 15 s, the fourth 45 s."""
    return chance.lognormvariate(math.log(15.0 if chance.random() < 0.75 else 45.0), 0.2)


def floor_and_tail(chance: random.Random) -> float:
    """No job takes less than 10 s; then they end at random."""
    return 10.0 + chance.expovariate(1.0 / 5.0)


class Limiter(Protocol):
    def takes(self, now: float) -> bool: ...

    def wait_s(self, now: float) -> float: ...


@define
class Bucket:
    """A bucket of tokens: `rate` come in a second, `burst` fit in."""

    rate: float
    burst: float
    _tokens: float = field(default=-1.0, kw_only=True)
    _at: float = field(default=0.0, kw_only=True)

    def __attrs_post_init__(self) -> None:
        self._tokens = self.burst

    def takes(self, now: float) -> bool:
        self._tokens = min(self.burst, self._tokens + (now - self._at) * self.rate)
        self._at = now
        if self._tokens < 1.0 - 1e-9:
            return False
        self._tokens -= 1.0
        return True

    def wait_s(self, now: float) -> float:
        return (1.0 - self._tokens) / self.rate

    def ideal_s(self, creates: int) -> float:
        """Return when the last of so many creates can be taken at the earliest."""
        return (creates - self.burst) / self.rate


@define
class Window:
    """So many creates in each fixed stretch of time."""

    most: int
    length_s: float
    _number: int = field(default=-1, kw_only=True)
    _taken: int = field(default=0, kw_only=True)

    def takes(self, now: float) -> bool:
        number = int(now // self.length_s)
        if number > self._number:
            self._number, self._taken = number, 0
        if self._taken >= self.most:
            return False
        self._taken += 1
        return True

    def wait_s(self, now: float) -> float:
        return (self._number + 1) * self.length_s - now

    def ideal_s(self, creates: int) -> float:
        return (creates - 1) // self.most * self.length_s


@define
class Gateway:
    """What the client is not told."""

    slots: float = math.inf
    limiter: Limiter | None = None
    running: list[float] = field(factory=list)
    """When the running jobs end, as a heap."""

    def running_at(self, now: float) -> int:
        while self.running and self.running[0] <= now:
            heapq.heappop(self.running)
        return len(self.running)

    def refuses(self, now: float) -> LimitKind | None:
        """Tell what a create that comes in now fails on."""
        if self.running_at(now) >= self.slots:
            return "jobs"
        if self.limiter is not None and not self.limiter.takes(now):
            return "rate"
        return None


@define
class Refusal:
    """A 429: when its create left, when it came back, and what it was about."""

    sent_at: float
    at: float
    held: int
    kind: LimitKind


@define(eq=False)
class Client:
    """Sends `jobs` jobs, or goes on until `until_s`; what happened stands in its lists."""

    gateway: Gateway
    throttle: Throttle = field(factory=lambda: Throttle(ConcurrencyPolicy()))
    draw: Draw = lognormal(10.0, 0.4)
    jobs: float = math.inf
    until_s: float = math.inf
    rtt_s: float = 0.15
    jitter: float = 0.4
    unseen_s: float = 0.5
    """How long an ended job goes unseen, in the mean."""
    stated: bool = True
    """Whether a refusal says what it is about."""
    states_wait: bool = False
    wire: int = 32
    seed: int = 1
    now: float = 0.0
    sending: int = 0
    sent_at: list[float] = field(factory=list)
    taken_at: list[float] = field(factory=list)
    filled: list[tuple[float, int]] = field(factory=list)
    """Moments at which a create was taken at the gateway, and how many ran there then."""
    refusals: list[Refusal] = field(factory=list)
    most_held: int = 0
    ended: int = 0
    first_verdict: tuple[LimitKind, int] | None = None
    """The first verdict, and after how many refusals it was in."""
    verdicts: set[LimitKind] = field(factory=set)
    schedule: Schedule = field(factory=lambda: Schedule(PollPolicy(), Durations(20.0)))
    _events: list[tuple[float, int, Callable[[], None]]] = field(factory=list)
    _numbers: Iterator[int] = field(factory=itertools.count)
    _held: dict[int, float] = field(factory=dict)
    _chance: random.Random = field(init=False)
    _waking_at: float = math.inf

    def __attrs_post_init__(self) -> None:
        self._chance = random.Random(self.seed)

    @property
    def held(self) -> int:
        return len(self._held)

    def later(self, at: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (at, next(self._numbers), act))

    def run(self) -> "Client":
        self._send()
        while self._events and self.ended < self.jobs:
            at, _, act = heapq.heappop(self._events)
            if at > self.until_s:
                break
            self.now = at
            act()
            self._send()
        return self

    def _send(self) -> None:
        throttle = self.throttle
        while len(self.taken_at) + self.sending < self.jobs and self.sending < self.wire:
            if not throttle.admits(self.now, self.held, self.sending):
                self._wake_at(throttle.opens_at())
                return
            throttle.sent(self.now)
            self.sending += 1
            self.sent_at.append(self.now)
            rtt_s = self.rtt_s * self._chance.uniform(1.0 - self.jitter, 1.0 + self.jitter)
            self.later(self.now + rtt_s / 2.0, lambda sent_at=self.now, rtt_s=rtt_s: self._arrive(sent_at, rtt_s))

    def _wake_at(self, at: float) -> None:
        if self.now < at < self._waking_at:
            self._waking_at = at
            self.later(at, self._wake)

    def _wake(self) -> None:
        self._waking_at = math.inf

    def _arrive(self, sent_at: float, rtt_s: float) -> None:
        kind = self.gateway.refuses(self.now)
        wait_s = None
        if kind is None:
            lasts_s = self.draw(self._chance)
            ends_at = self.now + lasts_s
            heapq.heappush(self.gateway.running, ends_at)
            self.filled.append((self.now, len(self.gateway.running)))
            self.later(self.now + rtt_s / 2.0, lambda: self._taken(sent_at, ends_at))
            return
        if self.states_wait and kind == "rate" and self.gateway.limiter is not None:
            wait_s = self.gateway.limiter.wait_s(self.now)
        self.later(self.now + rtt_s / 2.0, lambda: self._refused(sent_at, kind, wait_s))

    def _taken(self, sent_at: float, ends_at: float) -> None:
        self.sending -= 1
        number = next(self._numbers)
        self._held[number] = self.now
        self.most_held = max(self.most_held, self.held)
        self.taken_at.append(self.now)
        likely_ends = 0.0 if self.stated else self._likely_ends()
        self.throttle.accepted(self.now, sent_at, self.held, self.sending, likely_ends)
        self._note_verdict()
        seen_at = max(self.now, ends_at) + self._chance.uniform(0.0, 2.0 * self.unseen_s)
        self.later(seen_at, lambda: self._seen_ended(number))

    def _refused(self, sent_at: float, kind: LimitKind, wait_s: float | None) -> None:
        self.sending -= 1
        likely_ends = 0.0 if self.stated else self._likely_ends()
        self.throttle.refused(self.now, sent_at, self.held, kind if self.stated else None, wait_s, likely_ends)
        self.refusals.append(Refusal(sent_at, self.now, self.held, kind))
        self._note_verdict()

    def _seen_ended(self, number: int) -> None:
        age_s = self.now - self._held.pop(number)
        self.ended += 1
        self.schedule.seen_ended(number, age_s, age_s - self.unseen_s)
        if self.ended % 20 == 1:
            self.schedule.next_look_s(0.0)
        self.throttle.jobs.mean_s, self.throttle.jobs.delay_s = self.schedule.mean_s, self.unseen_s
        self.throttle.ended()

    def _likely_ends(self) -> float:
        since = self.refusals[-1].at if self.refusals else self.now
        chance = self.schedule.ended_chance
        return sum(chance(max(0.0, since - at), self.now - at) for at in self._held.values())

    def _note_verdict(self) -> None:
        verdict = self.throttle.verdict
        if verdict is not None:
            self.verdicts.add(verdict)
            self.first_verdict = self.first_verdict or (verdict, len(self.refusals))

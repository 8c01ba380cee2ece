"""A small discrete-event model: a gateway with hidden limits, and a client that asks before each create."""

import heapq
import itertools
import math
import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Protocol

from attrs import define, field

from nanobanana_async.errors import LimitKind
from nanobanana_async.policy.concurrency import ConcurrencyPolicy, Mode
from nanobanana_async.policy.durations import Durations
from nanobanana_async.policy.limiter import AdmissionLimiter
from nanobanana_async.policy.poll_schedule import PollSchedule
from nanobanana_async.policy.polling import PollPolicy

Draw = Callable[[random.Random], float]


def lognormal(median_s: float, sigma: float) -> Draw:
    """Return a source of log-normal durations."""
    return lambda chance: chance.lognormvariate(math.log(median_s), sigma)


def bimodal(chance: random.Random) -> float:
    """Three of four jobs take about 15 s, the fourth 45 s."""
    return chance.lognormvariate(math.log(15.0 if chance.random() < 0.75 else 45.0), 0.2)


def floor_and_tail(chance: random.Random) -> float:
    """No job takes less than 10 s; then they end at random."""
    return 10.0 + chance.expovariate(1.0 / 5.0)


def endless(_: random.Random) -> float:
    """Jobs that never end."""
    return 1e9


class Limiter(Protocol):
    """What refuses creates that come too fast."""

    def takes(self, now: float) -> bool:
        """Tell whether a create is let through now."""
        ...

    def wait_s(self, now: float) -> float:
        """Return how long it will be until the next one is."""
        ...


@define
class Bucket:
    """A bucket of tokens: `rate` come in a second, `burst` fit in."""

    rate: float
    burst: float
    _tokens: float = field(init=False)
    _at: float = 0.0

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
    _number: int = -1
    _taken: int = 0

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
        """Return when the last of so many creates can be taken at the earliest."""
        return (creates - 1) // self.most * self.length_s


@define
class Gateway:
    """What the client is not told."""

    slots: float = math.inf
    limiter: Limiter | None = None
    running: list[float] = field(factory=list)
    """When the running jobs end, as a heap."""

    def refuses(self, now: float) -> LimitKind | None:
        """Tell what a create that comes in now fails on."""
        while self.running and self.running[0] <= now:
            heapq.heappop(self.running)
        if len(self.running) >= self.slots:
            return "jobs"
        if self.limiter is not None and not self.limiter.takes(now):
            return "rate"
        return None


@define
class Refusal:
    """A 429: when its create left, when it came back, and how the job limit was approached then."""

    sent_at: float
    at: float
    mode: Mode


@define(eq=False)
class Client:
    """Sends `jobs` jobs, or goes on until `until_s`; what happened stands in its lists."""

    gateway: Gateway
    throttle: AdmissionLimiter = field(factory=lambda: AdmissionLimiter(ConcurrencyPolicy()))
    draw: Draw = field(factory=lambda: lognormal(10.0, 0.4))
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
    held: dict[int, float] = field(factory=dict)
    most_held: int = 0
    ended: int = 0
    sent_at: list[float] = field(factory=list)
    taken_at: list[float] = field(factory=list)
    filled: list[tuple[float, int]] = field(factory=list)
    """Moments at which a create was taken at the gateway, and how many ran there then."""
    refusals: list[Refusal] = field(factory=list)
    verdicts: list[LimitKind | None] = field(factory=lambda: [None])
    """Each verdict that was held, in turn."""
    refusals_before_verdict: int = 0
    _schedule: PollSchedule[int] = field(factory=lambda: PollSchedule[int](PollPolicy(), Durations(20.0)))
    _events: list[tuple[float, int, Callable[[], None]]] = field(factory=list)
    _numbers: Iterator[int] = field(factory=itertools.count)
    _chance: random.Random = field(init=False)
    _waking_at: float = math.inf

    def __attrs_post_init__(self) -> None:
        self._chance = random.Random(self.seed)

    def later(self, at: float, act: Callable[[], None]) -> None:
        """Let something happen at a moment."""
        heapq.heappush(self._events, (at, next(self._numbers), act))

    def run(self) -> "Client":
        """Let it all happen."""
        self._send()
        while self._events and self.ended < self.jobs:
            at, _, act = heapq.heappop(self._events)
            if at > self.until_s:
                break
            self.now = at
            act()
            self._send()
        return self

    def in_ramp(self) -> int:
        """Return how many refusals the first approach to the limit cost: all of its last round trip."""
        return sum(refusal.sent_at <= self.refusals[0].at for refusal in self.refusals)

    def while_holding(self) -> int:
        """Return how many refusals neither the ramp nor a probe explains."""
        explained_until, count = -math.inf, 0
        for refusal in self.refusals:
            if refusal.mode is not Mode.HOLD:
                explained_until = refusal.at
            elif refusal.sent_at > explained_until:
                count += 1
        return count

    def _send(self) -> None:
        throttle = self.throttle
        while len(self.taken_at) + self.sending < self.jobs and self.sending < self.wire:
            if not throttle.admits(self.now, len(self.held), self.sending):
                self._wake_at(throttle.opens_at(self.now))
                return
            throttle.sent(self.now)
            self.sending += 1
            self.sent_at.append(self.now)
            rtt_s = self.rtt_s * self._chance.uniform(1.0 - self.jitter, 1.0 + self.jitter)
            self.later(self.now + rtt_s / 2.0, partial(self._arrive, self.now, rtt_s))

    def _wake_at(self, at: float) -> None:
        if self.now < at < self._waking_at:
            self._waking_at = at
            self.later(at, self._wake)

    def _wake(self) -> None:
        self._waking_at = math.inf

    def _arrive(self, sent_at: float, rtt_s: float) -> None:
        gateway = self.gateway
        kind = gateway.refuses(self.now)
        if kind is None:
            ends_at = self.now + self.draw(self._chance)
            heapq.heappush(gateway.running, ends_at)
            self.filled.append((self.now, len(gateway.running)))
            self.later(self.now + rtt_s / 2.0, partial(self._taken, sent_at, ends_at))
        else:
            said = self.states_wait and kind == "rate" and gateway.limiter is not None
            wait_s = gateway.limiter.wait_s(self.now) if said and gateway.limiter is not None else None
            self.later(self.now + rtt_s / 2.0, partial(self._refused, sent_at, kind, wait_s))

    def _taken(self, sent_at: float, ends_at: float) -> None:
        self.sending -= 1
        number = next(self._numbers)
        self.held[number] = self.now
        self.most_held = max(self.most_held, len(self.held))
        self.taken_at.append(self.now)
        self.throttle.on_accepted(self.now, sent_at, len(self.held), self.sending, self._likely_ends())
        self._note_verdict()
        seen_at = max(self.now, ends_at) + self._chance.uniform(0.0, 2.0 * self.unseen_s)
        self.later(seen_at, partial(self._seen_ended, number))

    def _refused(self, sent_at: float, kind: LimitKind, wait_s: float | None) -> None:
        self.sending -= 1
        self.refusals.append(Refusal(sent_at, self.now, self.throttle.jobs.mode))
        told = kind if self.stated else None
        self.throttle.on_throttled(self.now, sent_at, len(self.held), told, wait_s, self._likely_ends())
        self._note_verdict()

    def _seen_ended(self, number: int) -> None:
        age_s = self.now - self.held.pop(number)
        self.ended += 1
        self._schedule.on_ended(number, age_s, age_s - self.unseen_s)
        if self.ended % 20 == 1:
            self._schedule.next_poll_s(0.0)
        self.throttle.jobs.mean_s, self.throttle.jobs.delay_s = self._schedule.mean_s, self.unseen_s
        self.throttle.on_ended()

    def _likely_ends(self) -> float:
        since = self.throttle.undecided_since
        if since is None:
            return 0.0
        chance = self._schedule.ended_chance
        return sum(chance(max(0.0, since - at), self.now - at) for at in self.held.values())

    def _note_verdict(self) -> None:
        verdict = self.throttle.verdict
        if verdict != self.verdicts[-1]:
            if len(self.verdicts) == 1:
                self.refusals_before_verdict = len(self.refusals)
            self.verdicts.append(verdict)


def looks(schedule: PollSchedule[int], draw: Draw, jobs: int, seed: int = 5) -> tuple[float, float, float]:
    """Return looks a job, the mean delay and the mean duration when jobs are looked at by a schedule."""
    chance = random.Random(seed)
    count, delay_s, total_s = 0, 0.0, 0.0
    for _ in range(jobs):
        took_s, age_s = draw(chance), 0.0
        while age_s < took_s:
            age_s = schedule.next_poll_s(age_s)
            count += 1
        delay_s += age_s - took_s
        total_s += took_s
    return count / jobs, delay_s / jobs, total_s / jobs

"""A discrete-event model: a gateway with hidden limits, and a client that asks its limiter before each create."""

import heapq
import itertools
import math
import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Protocol

from attrs import define, field

from nanobanana_async.errors import LimitKind
from nanobanana_async.policy.concurrency import AnsweredCreate, ConcurrencyPolicy, Load, Mode
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
    """A rate limit of the gateway."""

    def takes(self, now: float) -> bool:
        """Return whether a create is accepted now."""
        ...

    def wait_s(self, now: float) -> float:
        """Return the seconds until the next create is accepted."""
        ...


@define
class Bucket:
    """A token bucket: `rate` tokens per second, at most `burst`."""

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
    """A limit per fixed window of time."""

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
    """The gateway, with limits that the client does not know."""

    slots: float = math.inf
    limiter: Limiter | None = None
    running: list[float] = field(factory=list)
    """When the running jobs end, as a heap."""

    def refuses(self, now: float) -> LimitKind | None:
        """Return the limit that refuses a create which arrives now; None if it is accepted."""
        while self.running and self.running[0] <= now:
            heapq.heappop(self.running)
        if len(self.running) >= self.slots:
            return "jobs"
        if self.limiter is not None and not self.limiter.takes(now):
            return "rate"
        return None


@define
class Refusal:
    """A 429: when its create was sent, when the answer came, and the mode of the job limit then."""

    sent_at: float
    at: float
    mode: Mode


@define(eq=False)
class Client:
    """Sends `jobs` jobs, or runs until `until_s`, and records what happened."""

    gateway: Gateway
    limiter: AdmissionLimiter = field(factory=lambda: AdmissionLimiter(ConcurrencyPolicy()))
    draw: Draw = field(factory=lambda: lognormal(10.0, 0.4))
    jobs: float = math.inf
    until_s: float = math.inf
    rtt_s: float = 0.15
    jitter: float = 0.4
    unnoticed_s: float = 0.5
    """The mean time until the end of a job is noticed."""
    stated: bool = True
    """Whether a 429 states its kind."""
    states_wait: bool = False
    max_requests: int = 32
    seed: int = 1
    now: float = 0.0
    sending: int = 0
    held: dict[int, float] = field(factory=dict)
    most_held: int = 0
    ended: int = 0
    sent_at: list[float] = field(factory=list)
    taken_at: list[float] = field(factory=list)
    filled: list[tuple[float, int]] = field(factory=list)
    """The time of each accept at the gateway, and the jobs that ran there then."""
    refusals: list[Refusal] = field(factory=list)
    verdicts: list[LimitKind | None] = field(factory=lambda: [None])
    """Each verdict in turn."""
    refusals_before_verdict: int = 0
    _schedule: PollSchedule[int] = field(factory=lambda: PollSchedule[int](PollPolicy(), Durations(20.0)))
    _events: list[tuple[float, int, Callable[[], None]]] = field(factory=list)
    _numbers: Iterator[int] = field(factory=itertools.count)
    _chance: random.Random = field(init=False)
    _waking_at: float = math.inf

    def __attrs_post_init__(self) -> None:
        self._chance = random.Random(self.seed)

    def later(self, at: float, act: Callable[[], None]) -> None:
        """Schedule an action."""
        heapq.heappush(self._events, (at, next(self._numbers), act))

    def run(self) -> "Client":
        """Run the simulation to its end."""
        self._send()
        while self._events and self.ended < self.jobs:
            at, _, act = heapq.heappop(self._events)
            if at > self.until_s:
                break
            self.now = at
            act()
        return self

    def in_ramp(self) -> int:
        """Return the number of 429s in the ramp: all of its last round trip."""
        return sum(refusal.sent_at <= self.refusals[0].at for refusal in self.refusals)

    def while_holding(self) -> int:
        """Return the number of 429s outside the ramp and the probes."""
        explained_until, count = -math.inf, 0
        for refusal in self.refusals:
            if refusal.mode is not Mode.HOLD:
                explained_until = refusal.at
            elif refusal.sent_at > explained_until:
                count += 1
        return count

    def _send(self) -> None:
        limiter = self.limiter
        while len(self.taken_at) + self.sending < self.jobs and self.sending < self.max_requests:
            if not limiter.admits(self.now, Load(len(self.held), self.sending)):
                self._wake_at(limiter.opens_at(self.now))
                return
            limiter.on_sent(self.now)
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
        self._send()

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
        self.limiter.on_accepted(
            self.now, AnsweredCreate(sent_at), Load(len(self.held), self.sending, self._likely_ends())
        )
        self._note_verdict()
        noticed_at = max(self.now, ends_at) + self._chance.uniform(0.0, 2.0 * self.unnoticed_s)
        self.later(noticed_at, partial(self._notice_end, number))
        self._send()

    def _refused(self, sent_at: float, kind: LimitKind, wait_s: float | None) -> None:
        self.sending -= 1
        self.refusals.append(Refusal(sent_at, self.now, self.limiter.job_limit.mode))
        stated = kind if self.stated else None
        self.limiter.on_throttled(
            self.now, AnsweredCreate(sent_at), Load(len(self.held), likely_ended=self._likely_ends()), stated, wait_s
        )
        self._note_verdict()
        self._send()

    def _notice_end(self, number: int) -> None:
        age_s = self.now - self.held.pop(number)
        self.ended += 1
        self._schedule.on_ended(number, age_s, age_s - self.unnoticed_s)
        if self.ended % 20 == 1:
            self._schedule.next_poll_age_s(0.0)
        self.limiter.job_limit.mean_job_s, self.limiter.job_limit.notice_delay_s = (
            self._schedule.mean_s,
            self.unnoticed_s,
        )
        self.limiter.on_ended()
        self._send()

    def _likely_ends(self) -> float:
        since = self.limiter.undecided_since
        if since is None:
            return 0.0
        chance = self._schedule.ended_between_probability
        return sum(chance(max(0.0, since - at), self.now - at) for at in self.held.values())

    def _note_verdict(self) -> None:
        verdict = self.limiter.limit_kind
        if verdict != self.verdicts[-1]:
            if len(self.verdicts) == 1:
                self.refusals_before_verdict = len(self.refusals)
            self.verdicts.append(verdict)


def poll_jobs(schedule: PollSchedule[int], draw: Draw, jobs: int, seed: int = 5) -> tuple[float, float, float]:
    """Return polls per job, the mean delay and the mean duration when a schedule sets the polls."""
    chance = random.Random(seed)
    count, delay_s, total_s = 0, 0.0, 0.0
    for _ in range(jobs):
        took_s, age_s = draw(chance), 0.0
        while age_s < took_s:
            age_s = schedule.next_poll_age_s(age_s)
            count += 1
        delay_s += age_s - took_s
        total_s += took_s
    return count / jobs, delay_s / jobs, total_s / jobs

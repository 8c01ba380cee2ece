"""What a session may do that shares its account with other owners, and what it has to report.

What it may do was decided in its last exchange (`policy.sharing`), so that no request waits for one while the allotment
lasts. It decides nothing about a 429: the account's learner does, and until it knows of it no request leaves.
"""

import math
from bisect import bisect
from collections import deque

from attrs import define, evolve, field

from nanobanana_async.policy.concurrency import Load
from nanobanana_async.policy.request_budget import RequestKind
from nanobanana_async.policy.sharing import CLOCK_JUMP_S, LATER_S, Allotment, Report, RequestEvent

TICK_S = 2.0
"""The time between two exchanges while something changes, or the session wants more than it has."""
QUIET_TICKS = 2
"""The number of ticks between two exchanges while jobs run and nothing changes."""
LEAST_GAP_S = 0.25
"""The least time between two exchanges for a departure, or to give slots back."""
DEPARTURE_KEPT_S = 2.0
"""For so long after its time a departure may be used."""
PUNCTUAL_S = 0.1
"""A request that leaves so much later than its departure counts from then on: a window of time counts it then, too."""
OFFSET_KEPT_S = 60.0
"""For so long a better measure of the difference of the clocks is kept: clocks drift apart by less than it is worth."""
MOST_EVENTS = 5000
"""So many events are kept while the ledger is away; the oldest are forgotten."""


@define
class SharedAccount:
    """What a session may do by its last exchange, and what it reports in the next. Times are by its own clock."""

    interactive: bool = False
    reserve: int = 0
    allotment: Allotment = field(factory=Allotment)
    exchange_wanted_at: float = math.inf
    """When the next exchange is due because of what happened."""
    failing: bool = False
    """The last exchange got no answer."""
    exchanged_at: float = -math.inf
    """When the last exchange ended."""
    gate_until: float = -math.inf
    """Until when the gateway takes nothing from this session, as the session itself has found."""
    gates_polls: bool = False
    outage: bool = False
    """It has found an outage: the gateway did not ask for a pause."""
    _events: list[RequestEvent] = field(factory=list)
    _report: Report | None = None
    """The report that is on its way, or was not answered: it is repeated as it was."""
    _reports: int = 0
    _queued: int = 0
    """The queued slots of the last report, or fewer since."""
    _urgent: int = 0
    """Those for jobs with a priority above 0."""
    _gate_reported: float = -math.inf
    _unreported_refusal: bool = False
    """The learner does not know of a 429 yet: no request leaves."""
    _offset_s: float = 0.0
    """The ledger's clock minus the session's."""
    _offset_error_s: float = math.inf
    _offset_at: float = -math.inf
    _known: deque[tuple[float, float]] = field(factory=lambda: deque(maxlen=1000))
    """When exchanges ended, and their times by the ledger's clock."""
    _departures: dict[RequestKind, deque[float]] = field(factory=lambda: {"create": deque(), "poll": deque()})
    _paced_at: float = -math.inf
    """When the last request left without a departure because the ledger is away."""

    @property
    def is_limited(self) -> bool:
        """Whether a request of any owner was refused for its rate."""
        return self.allotment.gap_s > 0.0

    def note(self, event: RequestEvent) -> None:
        """Keep an event for the next report. Of a create, `sent_at` is by the ledger's clock."""
        self._events.append(event)
        if len(self._events) > MOST_EVENTS:
            del self._events[: MOST_EVENTS // 2]

    def want_exchange_at(self, at: float) -> None:
        """Let an exchange be due at a time, or earlier."""
        self.exchange_wanted_at = min(self.exchange_wanted_at, at)

    def want_exchange_soon(self) -> None:
        """Let an exchange be due, but not right after the last one."""
        self.want_exchange_at(self.exchanged_at + LEAST_GAP_S)

    def on_throttled(self) -> None:
        """Hold requests back until the learner knows of a 429."""
        self._unreported_refusal = True
        self.want_exchange_at(-math.inf)

    def foreign_gate_until(self, kind: RequestKind) -> float:
        """Return until when the gateway takes no such request, as another owner has found."""
        closed = kind == "create" or self.allotment.gates_polls
        return self._local(self.allotment.gate_until) if closed else -math.inf

    def admits(self, load: Load, weight: int) -> bool:
        """Return whether the slots allow a create."""
        taken = load.held + load.slots_in_flight
        return taken + weight <= self.allotment.room or (not taken and self.allotment.room > 0)

    def may_leave(self, kind: RequestKind, now: float) -> bool:
        """Return whether a request may leave now, as far as the learner knows what it would meet."""
        if self._unreported_refusal and not self.failing:
            return False
        if not self.is_limited:
            return True
        if self._departure(kind, now) is not None:
            return True
        if self.failing:  # one of the gaps that this session would have got
            return now >= self._paced_at + self.allotment.gap_s
        if not self._departures[kind]:
            self.want_exchange_soon()
        return False

    def opens_at(self, kind: RequestKind) -> float:
        """Return when a request may leave by the passing of time; a past time if an exchange is awaited."""
        if not self.is_limited:
            return self.foreign_gate_until(kind)
        if departures := self._departures[kind]:
            return max(self.foreign_gate_until(kind), departures[0])
        return max(self.foreign_gate_until(kind), self._paced_at + self.allotment.gap_s if self.failing else -math.inf)

    def on_sent(self, kind: RequestKind, now: float) -> None:
        """Use a departure for a request that leaves; one that leaves later, or without any, is reported."""
        if self.is_limited and (departures := self._departure(kind, now)) is not None:
            at = departures.popleft()
            if now - at < PUNCTUAL_S:
                return
            self.note(RequestEvent(what="unused", at=at, kind=kind))
        self._paced_at = now
        self.note(RequestEvent(what="sent", at=now, kind=kind))

    def knowledge_at(self, sent_at: float) -> float:
        """Return, by the ledger's clock, at which time the session knew of the others when a request left."""
        known = bisect(self._known, (sent_at, math.inf))
        return self._known[known - 1][1] + LATER_S if known else -math.inf

    def next_at(self, now: float, taken: int, queued: int, urgent: int = 0) -> float:
        """Return when the next exchange is due; infinite while there is nothing to say and nothing wanted."""
        hungry = queued > 0 and taken >= self.allotment.room
        self._queued, self._urgent = min(self._queued, queued), min(self._urgent, urgent)
        more = urgent > self._urgent or (self.interactive and queued > self._queued)
        if hungry and (not self._queued or more):
            self.want_exchange_at(-math.inf)
        if self.gate_until != self._gate_reported:
            self.want_exchange_at(-math.inf)
        if taken < self.allotment.granted and (not queued or self.allotment.room < self.allotment.granted):
            self.want_exchange_soon()  # it gives back
        if self.failing:
            return self.exchanged_at + TICK_S
        ticks = (
            1
            if hungry or self._events
            else QUIET_TICKS
            if taken or queued or (self.outage and self.gate_until > now)
            else math.inf
        )
        return min(
            self.exchange_wanted_at, self.exchanged_at + ticks * TICK_S, self._local(self.allotment.exchange_again_at)
        )

    def make_report(
        self,
        load: Load,
        queued: int,
        polls_due: int,
        *,
        mean_job_s: float,
        notice_delay_s: float,
        max_run_s: float,
        urgent: int = 0,
    ) -> Report:
        """Return what to say in an exchange that begins now."""
        self.exchange_wanted_at = math.inf
        if self._report is None:
            met = self._offset_error_s < math.inf  # before that no time of ours has a meaning for the others
            events, self._events = (self._events, []) if met else ([], self._events)
            self._reports += 1
            self._report = Report(
                number=self._reports,
                held=load.held,
                slots_in_flight=load.slots_in_flight,
                queued=queued,
                urgent=urgent,
                creates_ready=len(self._departures["create"]),
                polls_due=max(0, polls_due - len(self._departures["poll"])),
                interactive=self.interactive,
                reserve=self.reserve,
                events=tuple(map(self._by_shared_clock, events)),
                max_run_s=max_run_s,
                mean_job_s=mean_job_s,
                notice_delay_s=notice_delay_s,
                gate_until=self._shared(self.gate_until),
                gates_polls=self.gates_polls,
                outage=self.outage,
            )
            self._gate_reported = self.gate_until
        else:
            self._report = evolve(
                self._report, held=load.held, slots_in_flight=load.slots_in_flight, queued=queued, urgent=urgent
            )
        self._queued, self._urgent = queued, urgent
        return self._report

    def take_allotment(self, allotment: Allotment, asked_at: float, now: float) -> None:
        """Take what the exchange gave that was asked for at a time."""
        error_s = (now - asked_at) / 2
        wrong_s = abs(allotment.at - (now - error_s) - self._offset_s) - error_s - self._offset_error_s
        if wrong_s > CLOCK_JUMP_S:  # what was handed out by the old clock means nothing by the new one
            self._offset_error_s = math.inf
            self._departures = {"create": deque(), "poll": deque()}
        if error_s <= self._offset_error_s or now > self._offset_at + OFFSET_KEPT_S:
            self._offset_s, self._offset_error_s, self._offset_at = allotment.at - (now - error_s), error_s, now
        self.allotment, self._report, self.failing, self.exchanged_at = allotment, None, False, now
        self._known.append((now, allotment.at))
        for kind, times in allotment.departures.items():
            self._departures[kind].extend(map(self._local, times))
        self._unreported_refusal = any(event.what == "throttled" for event in self._events)

    def on_exchange_failed(self, now: float) -> None:
        """Record that an exchange got no answer: what was allotted lasts."""
        self.failing, self.exchanged_at = True, now

    def undecided_since(self) -> float | None:
        """Return since when the learner is in doubt about a 429."""
        since = self.allotment.undecided_since
        return None if since is None else self._local(since)

    def _departure(self, kind: RequestKind, now: float) -> deque[float] | None:
        """Return where the departure is that such a request may use now; None if there is none.

        Departures that no request used in time are given back.
        """
        for each, departures in self._departures.items():
            while departures and departures[0] < now - DEPARTURE_KEPT_S:
                self.note(RequestEvent(what="unused", at=departures.popleft(), kind=each))
        of_any = kind == "create" and self.allotment.creates_first
        found = (departures for each, departures in self._departures.items() if of_any or each == kind)
        return next((departures for departures in found if departures and departures[0] <= now), None)

    def _by_shared_clock(self, event: RequestEvent) -> RequestEvent:
        sent_at = event.sent_at if event.kind == "create" else self._shared(event.sent_at)
        return evolve(event, at=self._shared(event.at), sent_at=sent_at)

    def _local(self, at: float) -> float:
        return at - self._offset_s

    def _shared(self, at: float) -> float:
        return at + self._offset_s

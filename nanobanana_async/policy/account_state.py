"""What the owners of a ledger know of an account together, and how they share its job slots (`policy.sharing`)."""

import json
import math
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime

from attrs import define, evolve, field
from cattrs.preconf.json import make_converter

from nanobanana_async.policy.concurrency import ConcurrencyPolicy, Mode
from nanobanana_async.policy.limiter import AdmissionLimiter

MEMORY_S = 120.0
"""How long the slots that an owner had count, when one more than the even share is given away."""
KEPT_FOR_S = 30.0
"""How long an owner keeps a slot above the even share before it goes to the next: each move leaves it empty a while."""
MOST_SLOTS = 1_000_000
"""A state that grants more is damaged: no account has so many."""
HUNGRY_LATELY_S = 60.0
"""The reserve is kept for so long after an interactive owner wanted more than it had."""


@define
class Share:
    """What an owner has of the account, as of its last exchange."""

    granted: int = 0
    """The slots that it may take, or has taken."""
    target: int = 0
    """Its fair share; it gives back what it has above this as its jobs end."""
    held: int = 0
    """Slots of its jobs."""
    slots_in_flight: int = 0
    """Slots of its creates that have no answer yet."""
    queued: int = 0
    """The slots that its queued jobs would take."""
    urgent: int = 0
    """Of `queued`, those of jobs with a priority above 0."""
    interactive: bool = False
    reserve: int = 0
    used: float = 0.0
    """Slot-seconds of late."""
    spoke_at: float = -math.inf
    hungry_at: float = -math.inf
    """When it last wanted more slots than it had."""
    reports: int = 0
    """The number of its last report: one that comes twice counts once."""

    @property
    def taken(self) -> int:
        """The slots of its jobs and of its creates in flight."""
        return self.held + self.slots_in_flight

    @property
    def wanted(self) -> int:
        """The slots that it could use."""
        return self.taken + self.queued

    def usage_at(self, now: float) -> float:
        """Return its slot-seconds of late, with what it has held since its last exchange."""
        past_s = max(0.0, now - self.spoke_at) if self.spoke_at > -math.inf else 0.0
        return self.used * math.exp(-past_s / MEMORY_S) + past_s * self.held


@define
class AccountState:
    """What the owners of a ledger know of an account together: the learner, the gate, and their shares."""

    limiter: AdmissionLimiter = field(factory=lambda: AdmissionLimiter(ConcurrencyPolicy()))
    spoke_at: float = 0.0
    """The time of the last exchange."""
    gate_until: float = -math.inf
    prober: int | None = None
    """The owner that probes."""
    probing_since: float = -math.inf
    """When it began to."""
    gates_polls: bool = False
    outage_owner: int | None = None
    """The owner that found an outage; None: the gateway itself asked for the pause."""
    probe_turn_s: float = 0.0
    """How long an owner probes during an outage before another one does."""
    cut_off: set[int] = field(factory=set)
    """Owners that get no answer while others get some: their outages are their own."""
    shares: dict[int, Share] = field(factory=dict)
    """Of the living owners; the ledger keeps them apart from the rest."""

    def to_json(self) -> str:
        """Return the state without the shares, for the ledger."""
        return json.dumps(_CONVERTER.unstructure(evolve(self, shares={})), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | None, shares: dict[int, Share]) -> "AccountState":
        """Return a stored state with the shares of its living owners; a new one if the text can't be read."""
        try:
            state = cls() if text is None else _CONVERTER.structure(json.loads(text), cls)
            state.shares = {}
            if not 0 <= state.room(0.0, 0) <= MOST_SLOTS:
                state = cls()
        except Exception:  # edited by hand, or written by another version
            state = cls()
        state.shares = shares
        return state

    def open_gate(self) -> None:
        """Let the creates of all leave."""
        self.gate_until, self.prober, self.outage_owner, self.probe_turn_s = -math.inf, None, None, 0.0

    def room(self, now: float, orphans: int) -> int:
        """Return how many slots may be taken in all."""
        held = orphans + sum(share.held for share in self.shares.values())
        taken = orphans + sum(max(share.taken, share.granted) for share in self.shares.values())
        if now < self.limiter.blocked_until:
            return taken
        if self.limiter.trial_at <= now and taken == held:
            return held + 1
        return self.limiter.job_limit.room(held)

    def targets(self, now: float, room: int) -> dict[int, int]:
        """Return the fair shares of a room: all that interactive owners want first, then urgent jobs, then the rest."""
        if self.limiter.job_limit.mode is Mode.RAMP:
            return {owner: share.wanted for owner, share in self.shares.items()}
        first = {owner: share for owner, share in self.shares.items() if share.interactive}
        rest = {owner: share for owner, share in self.shares.items() if not share.interactive}
        targets = _fair_shares_of(first, room, now)
        room -= sum(targets.values())
        reserve = max((share.reserve for share in first.values() if now - share.hungry_at < HUNGRY_LATELY_S), default=0)
        room -= min(reserve, max(0, room - len(rest)))
        fair = _fair_shares_of(rest, room, now)
        raised = {owner: share.taken + share.urgent for owner, share in rest.items() if share.urgent}
        raised = {owner: wanted for owner, wanted in raised.items() if wanted > fair[owner]}
        if raised:
            fair = _fair_shares_of({owner: rest.pop(owner) for owner in raised}, room, now, raised)
            fair |= _fair_shares_of(rest, room - sum(fair.values()), now)
        return targets | fair

    def set_clock_back(self, now: float) -> None:
        """Go on by a ledger's clock that went back: no time of the past may lie ahead."""
        back_s, self.spoke_at = self.spoke_at - now, now
        self.gate_until, self.probing_since = self.gate_until - back_s, self.probing_since - back_s
        for share in self.shares.values():
            share.spoke_at, share.hungry_at = share.spoke_at - back_s, share.hungry_at - back_s
        self.restart_learner(now, learned_at=now + back_s)

    def restart_learner(self, now: float, *, learned_at: float | None = None) -> None:
        """Let the learner start from what it knew when the last owner left, as far as that is believed.

        `learned_at` is the time of the last exchange by the learner's clock, if that is another one than before.
        """
        before, self.limiter = self.limiter, AdmissionLimiter(ConcurrencyPolicy())
        at = self.spoke_at if learned_at is None else learned_at
        known = before.learned(now=at, at=datetime.fromtimestamp(self.spoke_at, UTC))
        if known is not None:
            self.limiter.job_limit.mean_job_s = before.job_limit.mean_job_s
            self.limiter.restore(known, now=now, at=datetime.fromtimestamp(now, UTC))


def fair_shares(wants: Mapping[int, int], room: int, used: Mapping[int, float]) -> dict[int, int]:
    """Return max-min fair shares in whole slots; what can't be divided goes to those who used least."""
    left, level = max(0, room), 0
    for position, want in enumerate(sorted(wants.values())):
        level = left // (len(wants) - position)
        if want > level:
            break
        left, level = left - want, want
    shares = {owner: min(want, level) for owner, want in wants.items()}
    spare = max(0, room) - sum(shares.values())
    unfilled = [owner for owner, want in wants.items() if want > level]
    for owner in sorted(unfilled, key=lambda owner: (used[owner], owner))[:spare]:
        shares[owner] += 1
    return shares


def _fair_shares_of(
    shares: Mapping[int, Share], room: int, now: float, wants: Mapping[int, int] | None = None
) -> dict[int, int]:
    used = {owner: share.usage_at(now) - KEPT_FOR_S * share.granted for owner, share in shares.items()}
    return fair_shares(wants or {owner: share.wanted for owner, share in shares.items()}, room, used)


_CONVERTER = make_converter(omit_if_default=True)
_CONVERTER.register_unstructure_hook(Mode, lambda mode: mode.name)
_CONVERTER.register_structure_hook(Mode, lambda name, _: Mode[name])
# Lists of pairs are most of a state, which every exchange reads, and the hook of cattrs takes long for each.
_CONVERTER.register_structure_hook_func(
    lambda kind: kind == deque[list[int]],
    lambda value, _: deque([int(first), int(second)] for first, second in value),
)
_CONVERTER.register_structure_hook_func(
    lambda kind: kind == deque[list[float]],
    lambda value, _: deque([float(first), float(second)] for first, second in value),
)

"""The plan of a seed: the gateway, its behaviour and its faults, drawn from the seed alone."""

import random
from typing import Literal

from attrs import field, frozen

from nanobanana_async import ApiMall, DefApi, RetryPolicy, Timeouts
from nanobanana_async.emulator import LogNormal
from nanobanana_async.emulator.settings import API_KEY, EmulatorSettings, Idempotency

GatewayName = Literal["apimall", "defapi"]
Scene = Literal["apimall replay", "apimall conflict", "apimall refuse", "apimall forget", "apimall short", "defapi"]

SCENES: tuple[Scene, ...] = (
    "apimall replay",
    "defapi",
    "apimall conflict",
    "defapi",
    "apimall forget",
    "apimall replay",
    "defapi",
    "apimall refuse",
    "apimall forget",
    "apimall short",
)

LATEST_S = 90.0
"""How much later than sent a request may reach the gateway: the network keeps what it was given."""


@frozen(kw_only=True)
class Plan:
    """One seed's settings. In the scene "apimall short" the gateway forgets keys before the client does."""

    seed: int
    scene: Scene
    world: EmulatorSettings
    key_lifetime_s: float
    keys: int
    slots: int
    """How many processes there are at a time."""
    lives: int
    """How many processes follow each other in a slot."""
    active_s: float
    trouble: float
    """The fraction of requests that meet a fault."""
    latency_s: float
    timeouts: Timeouts
    retry: RetryPolicy
    blocked: int | None
    """The number of a job that the gateway's moderation refuses, and of one that fails."""
    failing: int | None
    moves_clock: bool
    fills_disk: bool
    rotates_keys: bool
    """The API key is changed between processes; the account has a name."""
    shared: bool
    """Another client uses the account."""
    leases: bool
    """The processes are hosts, which are suspended and cut off from the ledger, and buried when that lasts."""
    outages: tuple[tuple[float, float, str], ...] = field(factory=tuple)
    """Begin, end and kind of each outage."""

    @property
    def keyed(self) -> bool:
        return self.scene != "defapi"

    def gateway(self, process: str) -> ApiMall | DefApi:
        """Return the settings of a process's client."""
        key, account = (f"sk-{process}-0123456789", "studio") if self.rotates_keys else (API_KEY, "")
        if self.keyed:
            return ApiMall(api_key=key, account=account, key_lifetime_s=self.key_lifetime_s, expected_job_s=5.0)
        return DefApi(api_key=key, account=account, expected_job_s=5.0)


def plan_of(seed: int) -> Plan:
    """Draw the plan of a seed."""
    draw = random.Random(f"{seed} plan")
    scene = SCENES[seed % len(SCENES)]
    leases = random.Random(f"{seed} leases").random() < 0.5
    lifetime_s = draw.choice((4.0, 15.0, 60.0, 1800.0))
    active_s = draw.uniform(30.0, 150.0)
    latency_s = draw.choice((0.01, 0.05, 0.3))
    create_s = draw.choice((5.0, 20.0, 120.0))
    manner: Idempotency = "replay"
    forget_s = 60.0
    if scene == "apimall conflict":
        manner = "conflict"
    elif scene == "apimall refuse":
        manner = "refuse"
    elif scene in ("apimall forget", "apimall short"):
        manner = "forget"
        # A repeat may leave at the end of the lifetime, and be long on its way.
        share = draw.uniform(1.0, 3.0) if scene == "apimall forget" else draw.uniform(0.02, 0.3)
        forget_s = lifetime_s * share + (LATEST_S + 10.0 if scene == "apimall forget" else 0.0)
    return Plan(
        seed=seed,
        scene=scene,
        world=_world(draw, seed, manner, forget_s),
        key_lifetime_s=lifetime_s,
        keys=draw.randint(2, 7),
        slots=max(draw.choice((1, 1, 2, 3)), 1 + leases),
        lives=draw.randint(1, 4),
        active_s=active_s,
        trouble=draw.choice((0.0, 0.1, 0.3, 0.6)),
        latency_s=latency_s,
        timeouts=Timeouts(create_s=create_s, query_s=5.0, job_s=1800.0, close_s=draw.choice((0.5, 10.0))),
        retry=RetryPolicy(
            max_attempts=draw.choice((2, 5, 40)),
            max_wait_s=draw.choice((10.0, 60.0, 900.0)),
            max_backoff_s=draw.choice((2.0, 30.0)),
        ),
        blocked=draw.choice((None, 0, 1)),
        failing=draw.choice((None, None, 2)),
        moves_clock=draw.random() < 0.2,
        fills_disk=draw.random() < 0.15,
        rotates_keys=random.Random(f"{seed} keys").random() < 0.5,
        shared=random.Random(f"{seed} shared").random() < 0.5,
        leases=leases,
        outages=draw_outages(draw, active_s),
    )


def _world(draw: random.Random, seed: int, manner: Idempotency, forget_s: float) -> EmulatorSettings:
    past = random.Random(f"{seed} history")
    return EmulatorSettings(
        seed=seed,
        job_limit=draw.choice((None, None, 1, 3)),
        creates_per_minute=draw.choice((None, None, 30.0)),
        rate_burst=3,
        retry_after=draw.choice(("absent", "seconds", "date")),
        states_429_kind=draw.random() < 0.7,
        credits=draw.choice((None, None, None, 16)),
        duration=LogNormal(median_s=draw.choice((1.0, 5.0, 15.0)), sigma=0.5),
        failure_probability=draw.choice((0.0, 0.15)),
        unknown_status_probability=draw.choice((0.0, 0.1)),
        visible_after_s=draw.choice((0.0, 0.0, 3.0)),
        images_after_s=draw.choice((0.0, 0.0, 2.0)),
        query_shape=draw.choice(("data", "top")),
        idempotency=manner,
        history_delay_s=past.choice((0.0, 30.0)),
        history_time_step_s=past.choice((0, 1)),
        forget_keys_after_s=forget_s,
    )


def draw_outages(draw: random.Random, active_s: float) -> tuple[tuple[float, float, str], ...]:
    """Return begin, end and kind of each outage."""
    outages: list[tuple[float, float, str]] = []
    for _ in range(draw.choice((0, 0, 1, 2))):
        begin = draw.uniform(0.0, active_s)
        how = draw.choice(("unreachable", "silent", "proxy", "busy", "revoked"))
        outages.append((begin, begin + draw.uniform(2.0, 40.0), how))
    return tuple(outages)

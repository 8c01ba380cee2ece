"""Clients with their fleets in real time, as many side by side as the machine carries."""

import asyncio
import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import asdict, evolve, frozen

from benchmarks.children import Child
from benchmarks.fleet_client import ON_DISK, OURS
from benchmarks.ideal import Drawn, list_schedule_s
from benchmarks.measured import Fleet, Measured, Served

START_S = 60.0
# Share of a core that a client and its server take per job slot, roughly: it decides who runs beside whom.
LOADS = {
    OURS: 0.002,
    ON_DISK: 0.002,
    "3 s loop": 0.001,
    "runwayml": 0.001,
    "comfy-sdk": 0.004,
    "replicate": 0.0125,
    "fal-client": 0.05,
}
CAPACITY = 1.0
PACKAGES = {
    "fal-client": "fal_client",
    "replicate": "replicate",
    "runwayml": "runwayml",
    "comfy-sdk": "comfy_sdk",
}


@frozen(kw_only=True)
class Race:
    """One client, one fleet, and the limit that the client is given; None: no limit is given, nothing is tuned."""

    client: str
    fleet: Fleet
    known_limit: int | None = None

    @property
    def load(self) -> float:
        """Return its load on the machine; a peer with too high a limit also repeats refused requests."""
        loose = self.client not in (OURS, ON_DISK) and self.known_limit != self.fleet.limit
        wanting = (self.known_limit or self.fleet.jobs) / 3 if loose else 0.0
        return LOADS[self.client] * max(self.fleet.limit, wanting)

    def of(self, client: str, fleet: Fleet, known_limit: int | None) -> bool:
        """Return whether it is this client's race with this fleet, under any seed."""
        return (self.client, evolve(self.fleet, seed=fleet.seed), self.known_limit) == (client, fleet, known_limit)


@frozen(kw_only=True)
class Finish:
    """How a race ended: measured, or why not."""

    race: Race
    measured: Measured | None = None
    failures: Mapping[str, int]
    """Error names, and how many jobs ended in them."""
    trouble: str = ""


def missing(client: str) -> bool:
    """Return whether a peer is not installed."""
    package = PACKAGES.get(client)
    return package is not None and importlib.util.find_spec(package) is None


def waves(races: Sequence[Race]) -> list[list[Race]]:
    """Pack races that can run at the same time, the heaviest first."""
    packed: list[list[Race]] = []
    for race in sorted(races, key=lambda race: -race.load):
        for wave in packed:
            if sum(other.load for other in wave) + race.load <= CAPACITY:
                wave.append(race)
                break
        else:
            packed.append([race])
    return packed


async def run_wave(wave: Sequence[Race]) -> list[Finish]:
    """Start all clients of a wave, let them go together, and wait for all."""
    line = asyncio.Barrier(len(wave))
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_run(race, line)) for race in wave]
    return [task.result() for task in tasks]


async def _run(race: Race, line: asyncio.Barrier) -> Finish:
    fleet = race.fleet
    durations = Drawn(fleet.seed, fleet.median_s, fleet.sigma).take(fleet.jobs)
    ideal_s = list_schedule_s(durations, fleet.limit)
    server = Child("benchmarks.fleet_server", asdict(fleet))
    orders: dict[str, Any] = {"client": race.client, "jobs": fleet.jobs, "known_limit": race.known_limit}
    async with server:
        orders["url"] = (await server.answer(START_S))["url"]
        async with Child("benchmarks.fleet_client", orders) as client:
            await client.answer(START_S)
            await line.wait()
            client.send({})
            try:
                ended = await client.answer(6 * ideal_s + 60)
            except (TimeoutError, RuntimeError) as error:
                return Finish(race=race, failures={}, trouble=f"{type(error).__name__} {error}".strip())
        server.send({})
        served = await server.answer(START_S)
    refused_at = tuple(served.pop("refused_at"))
    measured = Measured.of(
        Served(**served, refused_at=refused_at),
        durations=durations,
        ended_well=ended["ended_well"],
        makespan_s=ended["makespan_s"],
        ideal_s=ideal_s,
        cpu_s=ended["cpu_s"],
        peak_mb=ended["peak_mb"],
    )
    return Finish(race=race, measured=measured, failures=ended["failures"])

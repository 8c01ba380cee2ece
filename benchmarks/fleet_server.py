"""In a process of its own: an account with a limit, to which every client of the fleet can speak in its own words."""

import asyncio
from typing import Any

from aiohttp import web
from attrs import asdict

from benchmarks import dialects
from benchmarks.children import dismissed, orders, reply
from benchmarks.ideal import Drawn
from benchmarks.measured import Fleet, Served
from benchmarks.simulating import WatchedSimulator
from nanobanana_async.emulator import EmulatorSettings


async def _serve(options: dict[str, Any]) -> None:
    fleet = Fleet(**options)
    simulator = WatchedSimulator(
        EmulatorSettings(
            seed=fleet.seed, job_limit=fleet.limit, duration=Drawn(fleet.seed, fleet.median_s, fleet.sigma)
        )
    )
    clock = asyncio.get_running_loop().time
    counter = dialects.Counter(simulator, clock)
    app = web.Application()
    app.add_routes(dialects.apimall(simulator, clock))
    for dialect in (dialects.fal, dialects.replicate, dialects.runway, dialects.comfy):
        app.add_routes(dialect(counter))
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    simulator.base_url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    reply({"url": simulator.base_url})
    await dismissed()
    reply(asdict(Served.of(simulator.stats(clock()), simulator.first_at or 0.0, simulator.refused_at)))
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(_serve(orders()))

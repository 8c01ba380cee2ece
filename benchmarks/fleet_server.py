"""In a process of its own: an account with a limit, to which every client of the fleet can speak in its own words."""

import asyncio
from typing import Any

from aiohttp import web
from attrs import asdict

from benchmarks import dialects
from benchmarks.children import dismissed, orders, reply
from benchmarks.ideal import Drawn
from benchmarks.measured import Fleet, Served
from benchmarks.simulating import WatchedWorld
from nanobanana_async.emulator import EmulatorSettings


async def _serve(told: dict[str, Any]) -> None:
    fleet = Fleet(**told)
    world = WatchedWorld(
        EmulatorSettings(
            seed=fleet.seed, job_limit=fleet.limit, duration=Drawn(fleet.seed, fleet.median_s, fleet.sigma)
        )
    )
    clock = asyncio.get_running_loop().time
    counter = dialects.Counter(world, clock)
    app = web.Application()
    app.add_routes(dialects.apimall(world, clock))
    for dialect in (dialects.fal, dialects.replicate, dialects.runway, dialects.comfy):
        app.add_routes(dialect(counter))
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    world.base_url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    reply({"url": world.base_url})
    await dismissed()
    reply(asdict(Served.of(world.stats(clock()), world.first_at or 0.0, world.refused_at)))
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(_serve(orders()))

"""In a process of its own: the emulated account that all hosts share, and what it counted."""

import asyncio
from typing import Any

from benchmarks.children import dismissed, orders, reply
from benchmarks.ideal import Drawn
from benchmarks.simulating import WatchedSimulator
from nanobanana_async.emulator import EmulatorSettings
from nanobanana_async.emulator.server import EmulatorServer


async def _serve(asked: dict[str, Any]) -> None:
    duration = Drawn(asked["seed"], asked["median_s"], asked["sigma"])
    account = WatchedSimulator(
        EmulatorSettings(
            seed=asked["seed"],
            job_limit=asked["limit"],
            requests_per_minute=asked["per_minute"],
            duration=duration,
            double_charges_by="prompt",
            image_scale=0.02,
        )
    )
    server = await EmulatorServer.started(account, host="127.0.0.1", port=0)
    reply({"url": server.url})
    await dismissed()
    now = server.now()
    stats = account.stats(now)
    reply(
        {
            "jobs": [(job.prompt, job.task_id, job.created_at, job.ends_at) for job in account.jobs(now)],
            "refused_at": account.refused_at,
            "refused": sum(stats.refusals_429.values()),
            "requests": sum(stats.requests.values()),
            "running_max": stats.running_max,
        }
    )
    await server.aclose()


if __name__ == "__main__":
    asyncio.run(_serve(orders()))

"""The recipe for Celery: a process of a pool and a whole worker are killed while paid jobs run."""

import asyncio
import json
import os
import signal
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from tests.engines.shop import PYTHON, Shop, marks, opened_shop, without_image
from tests.support.postgres import Server, free_port

pytestmark = marks("celery", "redis", program="redis-server")

WORKER = (PYTHON, "-m", "celery", "-A", "tests.engines.celery_app", "worker", "--loglevel", "WARNING")


async def test_tasks_of_killed_workers_are_paid_once(postgres: Server, tmp_path: Path) -> None:
    async with opened_shop(tmp_path, postgres, rows=40) as shop, redis(shop):
        rows, results = tmp_path / "rows.json", tmp_path / "results.json"
        rows.write_text(json.dumps(shop.rows))
        processes, threads = await worker(shop, "prefork", 4), await worker(shop, "threads", 8)
        queueing = await shop.start(PYTHON, "-m", "tests.engines.celery_app", str(rows), str(shop.images), str(results))
        await shop.kill_one(1, lambda pid: pid != threads.pid)  # its parent puts the task back
        await shop.kill_one(4, lambda pid: pid == threads.pid)  # its tasks come back after the visibility timeout
        other = await worker(shop, "threads", 8)
        await shop.wait_for(queueing)
        found = json.loads(results.read_text())
        assert sorted(found) == sorted(shop.rows)
        assert without_image(found.values()) == []
        shop.check(len(shop.starts()))
        for each in (processes, other):
            os.kill(each.pid, signal.SIGTERM)
            await shop.wait_for(each)
        assert shop.living_owners() == 0  # each process has closed its session


async def worker(shop: Shop, pool: str, size: int) -> Process:
    """Start a worker."""
    return await shop.start(
        *WORKER, "--hostname", f"{os.urandom(4).hex()}@x", "--pool", pool, "--concurrency", str(size)
    )


@asynccontextmanager
async def redis(shop: Shop) -> AsyncIterator[None]:
    """Run a Redis server that keeps everything in memory, as the broker of the shop."""
    port = free_port()
    shop.environ["CELERY_BROKER_URL"] = f"redis://127.0.0.1:{port}/0"
    await shop.start("redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "")
    async with asyncio.timeout(20):
        while True:
            with suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                break
            await asyncio.sleep(0.02)
    yield

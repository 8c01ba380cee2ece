"""In a process of its own: the session, or raw aiohttp with the same requests, and the processor time it took."""

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import aiohttp
from yarl import URL

from benchmarks.children import orders, reply
from benchmarks.simulating import throw_in
from nanobanana_async import ApiMall, ConcurrencyPolicy, PollPolicy, Session
from nanobanana_async.emulator import API_KEY

IN_FLIGHT = 32
TICK_S = 0.01

Step = tuple[int, bool]
"""The number of a job, and whether it is bought now (else it is asked about)."""


async def session(url: str, jobs: int, held: int) -> dict[str, Any]:
    """Buy so many jobs through a session that holds so many at a time and asks often."""
    concurrency = ConcurrencyPolicy(max_jobs=held, learn=False, max_requests=IN_FLIGHT)
    polling = PollPolicy(target_delay_s=0.05, min_gap_s=0.2)
    async with Session(ApiMall(api_key=API_KEY, base_url=url), concurrency=concurrency, polling=polling) as opened:
        begun, begun_cpu = time.perf_counter(), time.process_time()
        well = await throw_in(opened, jobs)
        spent = {"cpu_s": time.process_time() - begun_cpu, "wall_s": time.perf_counter() - begun}
        return {**spent, "well": well, "polls": opened.stats().polls}


def steps(jobs: int, held: int, polls: int) -> Iterator[Step]:
    """Return as many creates and polls, each job looked at while the next ones are bought."""
    done = 0
    for number in range(jobs + held):
        if number < jobs:
            yield number, True
        due = polls * (number + 1) // (jobs + held)
        first, last = max(0, number - held), min(number - IN_FLIGHT, jobs - 1)
        if last >= first:  # the youngest jobs may have no task id yet
            for turn in range(done, due):
                yield first + turn % (last - first + 1), False
            done = due


async def _let_go(permits: asyncio.Semaphore, count: int, seconds: float) -> None:
    """Let requests go at an even pace."""
    clock = asyncio.get_running_loop().time
    begun, gone = clock(), 0
    while gone < count:
        due = min(count, int(count * (clock() - begun + TICK_S) / seconds))
        for _ in range(due - gone):
            permits.release()
        gone = due
        await asyncio.sleep(TICK_S)


async def raw(url: str, jobs: int, held: int, polls: int, paced_s: float) -> dict[str, Any]:
    """Make the same requests in the same time with nothing but aiohttp."""
    plan = steps(jobs, held, polls)
    permits = asyncio.Semaphore(0)
    tasks: dict[int, URL] = {}
    newest = base = URL(url)
    asked = 0

    async def work(http: aiohttp.ClientSession) -> None:
        nonlocal asked, newest
        for number, bought in plan:
            await permits.acquire()
            if bought:
                newest = tasks[number] = base / "api/v1/images" / await _create(http, base, number)
                continue
            asked += 1
            async with http.get(tasks.get(number, newest), headers={"Accept": "application/json"}) as response:
                status = json.loads(await response.read())["data"]["status"]
                assert status in ("pending", "processing", "completed")

    headers = {"Authorization": f"Bearer {API_KEY}"}
    connector = aiohttp.TCPConnector(limit=2 * IN_FLIGHT)
    async with aiohttp.ClientSession(connector=connector, headers=headers) as http:
        begun, begun_cpu = time.perf_counter(), time.process_time()
        async with asyncio.TaskGroup() as group:
            for _ in range(IN_FLIGHT):
                group.create_task(work(http))
            await _let_go(permits, jobs + polls, paced_s)
        spent = {"cpu_s": time.process_time() - begun_cpu, "wall_s": time.perf_counter() - begun}
    return {**spent, "well": len(tasks), "polls": asked}


async def _create(http: aiohttp.ClientSession, base: URL, number: int) -> str:
    body = {"model": "nano-banana-pro", "type": "text-to-image", "prompt": f"image {number}", "num_images": 1}
    headers = {
        "Content-Type": "application/json",
        "Accept": "application/json",
        "Idempotency-Key": f"{time.time_ns():032x}",
    }
    data = json.dumps(body).encode()
    async with http.post(base / "api/v1/images/generate", data=data, headers=headers) as response:
        task_id: str = json.loads(await response.read())["data"]["task_id"]
        return task_id


def main() -> None:
    """Do what was ordered."""
    options = orders()
    reply(asyncio.run((raw if "polls" in options else session)(**options)))


if __name__ == "__main__":
    main()

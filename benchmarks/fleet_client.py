"""In a process of its own: one client as its own documentation uses it, with a fleet of jobs."""

import asyncio
import contextlib
import importlib
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import aiohttp

from benchmarks.children import orders, peak_mb, reply
from nanobanana_async import ApiMall, Session
from nanobanana_async.emulator import API_KEY

Buy = Callable[[str], Awaitable[object]]
OURS = "nanobanana_async"
ON_DISK = f"{OURS}, ledger on disk"
PLAIN_PAUSE_S = 3.0


@contextlib.asynccontextmanager
async def ours(url: str) -> AsyncIterator[Buy]:
    """Use this package, with nothing tuned."""
    async with Session(ApiMall(api_key=API_KEY, base_url=url)) as session:
        yield session.generate


@contextlib.asynccontextmanager
async def ours_on_disk(url: str) -> AsyncIterator[Buy]:
    """Use this package with each job written down before it is bought."""
    with tempfile.TemporaryDirectory() as folder:
        gateway = ApiMall(api_key=API_KEY, base_url=url)
        async with Session(gateway, ledger=os.path.join(folder, "jobs.sqlite")) as session:
            yield session.generate


@contextlib.asynccontextmanager
async def fal(url: str) -> AsyncIterator[Buy]:
    """Use fal-client; its scheme is fixed, so its one constant is pointed at the loopback server."""
    module: Any = importlib.import_module("fal_client")
    importlib.import_module("fal_client.client").__dict__["QUEUE_URL_FORMAT"] = f"{url}/"
    client = module.AsyncClient(key="benchmark")
    yield lambda prompt: client.subscribe("bench/image", {"prompt": prompt})


@contextlib.asynccontextmanager
async def replicate(url: str) -> AsyncIterator[Buy]:
    """Use replicate: create a prediction and wait for it."""
    client: Any = importlib.import_module("replicate").Client(api_token="benchmark", base_url=url)

    async def buy(prompt: str) -> None:
        prediction = await client.predictions.async_create(version="1", input={"prompt": prompt})
        await prediction.async_wait()
        if prediction.status != "succeeded":
            raise RuntimeError(prediction.status)

    yield buy


@contextlib.asynccontextmanager
async def runway(url: str) -> AsyncIterator[Buy]:
    """Use runwayml: create a task and wait for its output."""
    module: Any = importlib.import_module("runwayml")

    async with module.AsyncRunwayML(api_key="benchmark", base_url=url) as client:

        async def buy(prompt: str) -> None:
            task = await client.text_to_image.create(model="gen4_image", prompt_text=prompt, ratio="1024:1024")
            await task.wait_for_task_output()

        yield buy


@contextlib.asynccontextmanager
async def comfy(url: str) -> AsyncIterator[Buy]:
    """Use comfy-sdk: subscribe to a queued model request."""
    os.environ["COMFY_BASE_URL"] = os.environ["COMFY_ROUTER_BASE_URL"] = url
    module: Any = importlib.import_module("comfy_sdk")
    async with module.AsyncComfy(api_key="benchmark") as client:
        yield lambda prompt: client.models.subscribe("bench/image", {"prompt": prompt})


@contextlib.asynccontextmanager
async def plain(url: str) -> AsyncIterator[Buy]:
    """Do what API Mall's reference shows: create, then ask every three seconds."""
    headers = {"Authorization": f"Bearer {API_KEY}"}
    async with aiohttp.ClientSession(url, headers=headers, raise_for_status=True) as http:

        async def buy(prompt: str) -> None:
            body = {"model": "nano-banana-pro", "prompt": prompt}
            async with http.post("/api/v1/images/generate", json=body) as response:
                task_id = (await response.json())["data"]["task_id"]
            while True:
                async with http.get(f"/api/v1/images/{task_id}") as response:
                    status = (await response.json())["data"]["status"]
                if status == "completed":
                    return
                if status == "failed":
                    raise RuntimeError(status)
                await asyncio.sleep(PLAIN_PAUSE_S)

        yield buy


CLIENTS: Mapping[str, Callable[[str], contextlib.AbstractAsyncContextManager[Buy]]] = {
    OURS: ours,
    "fal-client": fal,
    "replicate": replicate,
    "runwayml": runway,
    "comfy-sdk": comfy,
    "3 s loop": plain,
}
VARIANTS = {ON_DISK: ours_on_disk}


async def _run(client: str, url: str, jobs: int, known_limit: int | None) -> dict[str, Any]:
    """Submit all jobs at once, behind a semaphore when the client is given a limit."""
    failures: Counter[str] = Counter()
    permits = contextlib.nullcontext() if known_limit is None else asyncio.Semaphore(known_limit)

    async def one(buy: Buy, prompt: str) -> bool:
        async with permits:
            try:
                await buy(prompt)
            except Exception as error:  # any exception of a peer counts as a failed job
                failures[type(error).__name__] += 1
                return False
        return True

    async with {**CLIENTS, **VARIANTS}[client](url) as buy:
        reply({"ready": True})
        sys.stdin.readline()  # nothing else goes on yet: the loop may stand still until the parent says go
        begun, begun_cpu = time.perf_counter(), time.process_time()
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(buy, f"image {number}")) for number in range(jobs)]
        makespan_s, cpu_s = time.perf_counter() - begun, time.process_time() - begun_cpu
    well = sum(task.result() for task in tasks)
    return {"ended_well": well, "makespan_s": makespan_s, "cpu_s": cpu_s, "failures": failures, "peak_mb": peak_mb()}


if __name__ == "__main__":
    reply(asyncio.run(_run(**orders())))

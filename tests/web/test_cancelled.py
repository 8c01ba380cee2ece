"""Two hundred callers hang up at random moments, the server dies, and nothing that was paid is lost."""

import asyncio
import random
import shutil
from collections import Counter
from pathlib import Path

import aiohttp
import pytest

from nanobanana_async import JobState
from nanobanana_async.emulator import Emulator, LogNormal, RandomFault, Script, faults
from nanobanana_async.emulator.messages import Endpoint
from tests.web.orders import all_ended, check_paid, headers_of
from tests.web.pages import put
from tests.web.servers import Server, free_port, pointed_at, running, uvicorn

pytestmark = pytest.mark.slow

CALLERS = 200
ARRIVING_S = 1.5
PATIENCE_S = 1.6
CREATE: Endpoint = "apimall.create"


def asgi(folder: Path, emulator: Emulator) -> Server:
    """Return uvicorn with an SSE response, which ends with its caller."""
    shutil.copy(Path(__file__).with_name("waiting_app.py"), folder)
    return uvicorn("waiting_app:app", folder, emulator)


def aiohttp_web(folder: Path, emulator: Emulator) -> Server:
    """Return the application of the page, whose handlers are cancelled with their caller."""
    port = free_port()
    file = put("aiohttp_app.py", folder)
    return Server([str(file)], port, {**pointed_at(emulator), "PORT": str(port)}, folder)


async def hang_up(
    http: aiohttp.ClientSession, url: str, number: int, rng: random.Random, patience_s: float | None = None
) -> str:
    """Call at a random moment, wait for `patience_s`, by default a random time; return the outcome."""
    begin_s = rng.uniform(0, ARRIVING_S)
    patience_s = patience_s or rng.uniform(0, PATIENCE_S)
    await asyncio.sleep(begin_s)
    try:
        async with asyncio.timeout(patience_s):
            request = {"prompt": f"a fox, number {number}"}
            async with http.post(f"{url}/images", json=request, headers=headers_of(number)) as answer:
                return "answered" if "/cdn/" in await answer.text() else "sent away"
    except TimeoutError:
        return "hung up"
    except aiohttp.ClientError:
        return "cut off"


@pytest.mark.parametrize("killed", [True, False], ids=["uvicorn, killed", "aiohttp, stopped"])
async def test_two_hundred_cancelled_requests_lose_nothing(tmp_path: Path, killed: bool) -> None:
    lost = faults.reset(processed=True)
    emulator = Emulator(
        seed=7,
        job_limit=60,
        duration=LogNormal(median_s=0.3),
        image_scale=0.02,
        double_charges_by="prompt",
        script=Script({CREATE: [lost]}),  # on a busy machine nearly all callers hang up before theirs is sent
        random_faults=[
            RandomFault(0.02, lost, CREATE),
            RandomFault(0.5, faults.delay(0.05), CREATE),
        ],
    )
    async with emulator:
        server = (asgi if killed else aiohttp_web)(tmp_path, emulator)
        async with running(server), aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
            rng = random.Random(7)
            async with asyncio.TaskGroup() as group:
                callers = [group.create_task(hang_up(http, server.url, n, rng)) for n in range(1, CALLERS)]
                patient = group.create_task(hang_up(http, server.url, 0, rng, patience_s=30.0))
                await asyncio.sleep(ARRIVING_S + 0.3)
                await asyncio.wait([patient])
                # Some callers are still waiting, some jobs on their way.
                if killed:
                    await server.kill()
                else:
                    await server.stop()
            outcomes = Counter(caller.result() for caller in [patient, *callers])
            await server.start()
            records = await all_ended(tmp_path / "jobs.sqlite")
            ended = await check_paid(emulator, records)
        print(f"callers {dict(outcomes)}, jobs {dict(ended)}, answers lost {emulator.stats().lost_creates}")
        assert outcomes["hung up"] >= CALLERS / 4
        assert outcomes["answered"] > 0
        assert ended[JobState.SUCCEEDED] > 0  # how many depends on how busy the machine is
        assert emulator.stats().lost_creates >= 1

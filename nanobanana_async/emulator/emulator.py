"""The public API: `Emulator` and `serve`."""

import asyncio
import random
import statistics
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from types import TracebackType
from typing import Any, Self, Unpack

from nanobanana_async import ApiMall, DefApi
from nanobanana_async.emulator.addresses import is_loopback
from nanobanana_async.emulator.faults import Fault
from nanobanana_async.emulator.images import require_pillow
from nanobanana_async.emulator.messages import Endpoint, Gateway
from nanobanana_async.emulator.server import EmulatorServer
from nanobanana_async.emulator.settings import API_KEY, EmulatorOptions, EmulatorSettings
from nanobanana_async.emulator.simulator import GatewaySimulator
from nanobanana_async.emulator.stats import EmulatorStats, JobFacts


class Emulator:
    """Run both gateways on loopback inside an `async with`.

    Takes the fields of `EmulatorSettings` as keyword arguments. Port 0 takes a free port. Counts stay readable after
    the end. An emulator is started once.
    """

    def __init__(self, *, host: str = "127.0.0.1", port: int = 0, **settings: Unpack[EmulatorOptions]) -> None:
        options: dict[str, Any] = {"started_at": datetime.now(UTC), **settings}
        self._simulator = GatewaySimulator(EmulatorSettings(**options))
        self._host = host
        self._port = port
        self._server: EmulatorServer | None = None
        self._ended_at: float | None = None

    async def __aenter__(self) -> Self:
        """Start listening."""
        if self._server is not None:
            raise RuntimeError("an emulator can be started only once: make a new one")
        self._server = await EmulatorServer.started(self._simulator, host=self._host, port=self._port)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop at once, leaving no connection or asyncio task behind."""
        server = self._running()
        if self._ended_at is None:
            self._ended_at = server.now()
        await server.aclose()

    @property
    def url(self) -> str:
        """The base URL of both gateways, without a trailing slash."""
        return self._running().url

    @property
    def simulator(self) -> GatewaySimulator:
        """The simulator behind the sockets."""
        return self._simulator

    def apimall(self, **settings: Any) -> ApiMall:
        """Return client settings for the emulated API Mall, with the median duration as `expected_job_s`."""
        return ApiMall(**{**self._client_settings(), **settings})

    def defapi(self, **settings: Any) -> DefApi:
        """Return client settings for the emulated defapi, with the median duration as `expected_job_s`."""
        return DefApi(**{**self._client_settings(), **settings})

    def _client_settings(self) -> dict[str, Any]:
        rng = random.Random(0)
        settings = self._simulator.settings
        median_s = statistics.median(settings.duration(rng) for _ in range(101)) / settings.speed
        return {"api_key": API_KEY, "base_url": self.url, "expected_job_s": max(median_s, 0.01)}

    def now(self) -> float:
        """Return the seconds since the start; the clock stops at the end."""
        return self._running().now() if self._ended_at is None else self._ended_at

    def stats(self) -> EmulatorStats:
        """Return everything counted so far."""
        return self._simulator.stats(self.now(), connections=self._running().connections())

    def jobs(self) -> Iterator[JobFacts]:
        """Yield the facts of each accepted create, oldest first."""
        return self._simulator.jobs(self.now())

    def add_foreign_tasks(self, *created_at: float, duration_s: float = 0.5) -> list[str]:
        """Add API Mall tasks that another client created at these times of `now()`; return their ids.

        The history lists them, and queries answer about them. They take no slot and no credits: for those, create them
        with a second client.
        """
        return self._simulator.add_foreign_tasks(self.now(), created_at, duration_s=duration_s)

    async def wait_for_no_connections(self, *, timeout_s: float = 5.0) -> None:
        """Wait until all clients have closed their connections; raise `TimeoutError` after `timeout_s`."""
        async with asyncio.timeout(timeout_s):
            while self._running().connections():  # noqa: ASYNC110 - aiohttp has no event for closed connections
                await asyncio.sleep(0.005)

    def queue_faults(self, endpoint: Endpoint, *faults: Fault | None) -> None:
        """Apply these faults to the next requests of an endpoint, one each; None is a normal response."""
        self._simulator.queue_faults(endpoint, *faults)

    def set_job_limit(self, limit: int | None, gateway: Gateway | None = None) -> None:
        """Change the job limit. Running jobs continue."""
        self._simulator.set_job_limit(limit, gateway)

    def set_limit_schedule(self, schedule: Sequence[tuple[float, int | None]], gateway: Gateway | None = None) -> None:
        """Change the job limit at these times of `now()`."""
        self._simulator.set_limit_schedule(schedule, gateway)

    def add_credits(self, amount: Decimal | int | str, gateway: Gateway | None = None) -> None:
        """Add credits to the account; no effect if they are unlimited."""
        self._simulator.add_credits(amount, gateway)

    def _running(self) -> EmulatorServer:
        if self._server is None:
            raise RuntimeError("the emulator is not running yet: use 'async with Emulator() as emulator'")
        return self._server


_HOW_TO = """\
Both gateways are emulated at {url}
No credits are spent here. Stop it with Ctrl-C.

API Mall:  export NANOBANANA_GATEWAY=apimall NANOBANANA_BASE_URL={url} APIMALL_API_KEY={key}
defapi:    export NANOBANANA_GATEWAY=defapi NANOBANANA_BASE_URL={url} DEFAPI_API_KEY={key}"""


_REACHABLE_NOTE = """

It listens on {host}: every machine and container that can reach this one can use it. Clients outside put its name
into NANOBANANA_BASE_URL, such as http://emulator:{port}, and set NANOBANANA_ALLOW_HTTP=1, since it has no TLS."""


def how_to(url: str, host: str) -> str:
    """Return how to configure a client, and who can reach an emulator that listens on this host."""
    text = _HOW_TO.format(url=url, key=API_KEY)
    return (
        text if is_loopback(f"http://{host}") else text + _REACHABLE_NOTE.format(host=host, port=url.rpartition(":")[2])
    )


async def serve(port: int = 8080, *, host: str = "127.0.0.1", **settings: Unpack[EmulatorOptions]) -> None:
    """Print how to configure a client, then serve until cancelled."""
    require_pillow()
    async with Emulator(host=host, port=port, **settings) as emulator:
        print(how_to(emulator.url, host), flush=True)
        await asyncio.Event().wait()

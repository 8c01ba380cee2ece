"""The emulator as users hold it."""

import asyncio
import random
import statistics
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from types import TracebackType
from typing import Any, Self, Unpack

from nanobanana_async import ApiMall, DefApi
from nanobanana_async.emulator.faults import Fault
from nanobanana_async.emulator.images import require_pillow
from nanobanana_async.emulator.messages import Endpoint, Gateway
from nanobanana_async.emulator.server import EmulatorServer
from nanobanana_async.emulator.settings import API_KEY, EmulatorOptions, EmulatorSettings
from nanobanana_async.emulator.simulator import GatewaySimulator
from nanobanana_async.emulator.stats import EmulatorStats, JobFacts


class Emulator:
    """Run both gateways on loopback for as long as the `async with` lasts.

    Takes the fields of `EmulatorSettings` as keyword arguments. Port 0 takes a free one. After the
    end the counts can still be read.
    """

    def __init__(self, *, host: str = "127.0.0.1", port: int = 0, **settings: Unpack[EmulatorOptions]) -> None:
        options: dict[str, Any] = {"started_at": datetime.now(UTC), **settings}
        self._world = GatewaySimulator(EmulatorSettings(**options))
        self._host = host
        self._port = port
        self._server: EmulatorServer | None = None
        self._ended_at: float | None = None

    async def __aenter__(self) -> Self:
        """Start to listen."""
        if self._server is not None:
            raise RuntimeError("an emulator is started once; make another one")
        self._server = await EmulatorServer.started(self._world, host=self._host, port=self._port)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop at once, with no connection or asyncio task left behind."""
        server = self._running()
        if self._ended_at is None:
            self._ended_at = server.now()
        await server.aclose()

    @property
    def url(self) -> str:
        """Return the base URL of both gateways, without a slash at the end."""
        return self._running().url

    @property
    def world(self) -> GatewaySimulator:
        """Return the world behind the sockets."""
        return self._world

    def apimall(self, **settings: Any) -> ApiMall:
        """Return the client's settings for API Mall that lead here, and tell how long jobs take in the middle."""
        return ApiMall(**{**self._told(), **settings})

    def defapi(self, **settings: Any) -> DefApi:
        """Return the client's settings for defapi that lead here, and tell how long jobs take in the middle."""
        return DefApi(**{**self._told(), **settings})

    def _told(self) -> dict[str, Any]:
        rng = random.Random(0)
        settings = self._world.settings
        middle_s = statistics.median(settings.duration(rng) for _ in range(101)) / settings.speed
        return {"api_key": API_KEY, "base_url": self.url, "expected_job_s": max(middle_s, 0.01)}

    def now(self) -> float:
        """Return the emulated time: seconds since the start, standing still after the end."""
        return self._running().now() if self._ended_at is None else self._ended_at

    def stats(self) -> EmulatorStats:
        """Return everything counted so far."""
        return self._world.stats(self.now(), connections=self._running().connections())

    def jobs(self) -> Iterator[JobFacts]:
        """Yield what is known about each accepted create, oldest first."""
        return self._world.jobs(self.now())

    async def no_connections(self, *, timeout_s: float = 5.0) -> None:
        """Wait until every caller has closed its connections, or raise TimeoutError."""
        async with asyncio.timeout(timeout_s):
            while self._running().connections():  # noqa: ASYNC110 - the server has no event for it
                await asyncio.sleep(0.005)

    def queue_faults(self, endpoint: Endpoint, *faults: Fault | None) -> None:
        """Let the next calls of an endpoint meet these, one each; None is a normal answer."""
        self._world.queue_faults(endpoint, *faults)

    def set_job_limit(self, limit: int | None, gateway: Gateway | None = None) -> None:
        """Change the limit from now on; what runs already goes on."""
        self._world.set_job_limit(limit, gateway)

    def set_limit_schedule(self, schedule: Sequence[tuple[float, int | None]], gateway: Gateway | None = None) -> None:
        """Let the limit change at these moments of `now()`."""
        self._world.set_limit_schedule(schedule, gateway)

    def add_credits(self, amount: Decimal | int | str, gateway: Gateway | None = None) -> None:
        """Put credits on the account; without effect where they are endless."""
        self._world.add_credits(amount, gateway)

    def _running(self) -> EmulatorServer:
        if self._server is None:
            raise RuntimeError("the emulator is not running yet: async with Emulator() as emulator")
        return self._server


_HOW_TO = """\
Both gateways are emulated at {url}
No credits are spent here. Stop it with Ctrl-C.

API Mall:  export NANOBANANA_GATEWAY=apimall NANOBANANA_BASE_URL={url} APIMALL_API_KEY={key}
defapi:    export NANOBANANA_GATEWAY=defapi NANOBANANA_BASE_URL={url} DEFAPI_API_KEY={key}"""


async def serve(port: int = 8080, *, host: str = "127.0.0.1", **settings: Unpack[EmulatorOptions]) -> None:
    """Serve until cancelled, after printing how to point a client here."""
    require_pillow()
    async with Emulator(host=host, port=port, **settings) as emulator:
        print(_HOW_TO.format(url=emulator.url, key=API_KEY), flush=True)
        await asyncio.Event().wait()

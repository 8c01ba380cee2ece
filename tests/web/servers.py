"""Web servers in processes of their own, which tests start, call, stop and kill."""

import asyncio
import os
import signal
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp

from nanobanana_async.emulator import API_KEY, Emulator

ROOT = Path(__file__).parents[2]
STUDIO = ROOT / "docs/examples/studio"


def free_port() -> int:
    """Return an unused port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Server:
    """One command that listens on one port, as often as it is started."""

    def __init__(self, arguments: Sequence[str], port: int, environ: Mapping[str, str], folder: Path) -> None:
        self._arguments = [sys.executable, *arguments]
        self._environ = {**os.environ, **environ}
        self._folder = folder
        self._process: Process | None = None
        self.url = f"http://127.0.0.1:{port}"
        self.log = folder / f"server-{port}.log"

    async def start(self) -> None:
        """Start, and wait until it answers anything."""
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._arguments, env=self._environ, cwd=self._folder, stdout=log, stderr=log, start_new_session=True
            )
        async with asyncio.timeout(20), aiohttp.ClientSession() as http:
            while self._process.returncode is None:
                with suppress(aiohttp.ClientError):
                    async with http.get(f"{self.url}/is-it-up"):
                        return
                await asyncio.sleep(0.05)
        raise AssertionError(f"the server did not start:\n{self.log_text()}")

    async def stop(self, *, within_s: float = 15) -> None:
        """Ask it to stop, as an operator does, and wait until it has."""
        assert self._process is not None
        self._process.terminate()
        async with asyncio.timeout(within_s):
            code = await self._process.wait()
        # A single uvicorn ends with the signal that it was sent, after it has closed everything.
        assert code in (0, -signal.SIGTERM), self.log_text()

    async def kill(self) -> None:
        """Kill it with all its workers, wherever they are."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            await self._process.wait()

    def log_text(self) -> str:
        """Return what it has logged."""
        return self.log.read_text("utf-8", "replace")


@asynccontextmanager
async def running(server: Server) -> AsyncIterator[Server]:
    """Run a server until the end of the block, also when it raises."""
    try:
        await server.start()
        yield server
    finally:
        await server.kill()


def pointed_at(emulator: Emulator, gateway: str = "apimall") -> dict[str, str]:
    """Return the environment that leads a session to the emulator."""
    return {
        "NANOBANANA_GATEWAY": gateway,
        "NANOBANANA_BASE_URL": emulator.url,
        "NANOBANANA_EXPECTED_JOB_S": "0.3",
        f"{gateway.upper()}_API_KEY": API_KEY,
    }


def uvicorn(app: str, folder: Path, emulator: Emulator, *, gateway: str = "apimall", **environ: str) -> Server:
    """Return a server of an ASGI application in this folder."""
    port = free_port()
    arguments = ["-m", "uvicorn", app, "--port", str(port), "--log-level", "warning", "--app-dir", str(folder)]
    arguments += ["--timeout-graceful-shutdown", "2"]
    return Server(arguments, port, {**pointed_at(emulator, gateway), **environ}, folder)


def studio(
    folder: Path,
    emulator: Emulator,
    *,
    workers: int = 1,
    gateway: str = "apimall",
    callbacks: bool = False,
    ledger: str = "",
) -> Server:
    """Return the example as its README starts it; servers with one folder share its ledger, unless one is given."""
    port = free_port()
    arguments = ["-m", "uvicorn", "app:app", "--app-dir", str(STUDIO), "--port", str(port), "--log-level", "warning"]
    arguments += ["--workers", str(workers), "--timeout-graceful-shutdown", "5"]
    environ = {"STUDIO_FOLDER": str(folder / "data"), "NANOBANANA_LEDGER": ledger}
    if callbacks:
        environ["STUDIO_PUBLIC_URL"] = f"http://127.0.0.1:{port}"
    return Server(arguments, port, {**pointed_at(emulator, gateway), **environ}, folder)

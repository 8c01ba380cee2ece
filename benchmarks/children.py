"""Child processes: each reads its task as one JSON line and writes its result as one."""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_ROOT = Path(__file__).parent.parent


class Child:
    """A Python module run in a process of its own, for as long as the `async with` lasts."""

    def __init__(self, module: str, orders: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> None:
        self._module = module
        self._orders = orders
        paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._environ = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **(environ or {})}
        self._process: Process | None = None

    async def __aenter__(self) -> Self:
        """Start it and give it its orders."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", self._module, stdin=PIPE, stdout=PIPE, env=self._environ, limit=2**26
        )
        self.send(self._orders)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it if it has not ended."""
        process = self._running()
        if process.returncode is None:
            with suppress(ProcessLookupError):  # not `process.kill`, which may take the exit code from asyncio
                os.kill(process.pid, signal.SIGKILL)
        await process.wait()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._running().pid

    def send(self, words: Mapping[str, Any]) -> None:
        """Send it a line."""
        stdin = self._running().stdin
        assert stdin is not None
        stdin.write(json.dumps(words).encode() + b"\n")

    async def answer(self, within_s: float) -> dict[str, Any]:
        """Return its next line; raise TimeoutError when it takes longer, RuntimeError when it died."""
        stdout = self._running().stdout
        assert stdout is not None
        async with asyncio.timeout(within_s):
            line = await stdout.readline()
        if not line:
            raise RuntimeError(f"{self._module} ended without an answer")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _running(self) -> Process:
        assert self._process is not None, "use it in an async with"
        return self._process


def orders() -> dict[str, Any]:
    """In the child: read the task."""
    options: dict[str, Any] = json.loads(sys.stdin.readline())
    return options


def reply(words: Mapping[str, Any]) -> None:
    """In the child: answer."""
    print(json.dumps(words), flush=True)


async def dismissed() -> None:
    """In the child: wait until another line comes, or until the parent is gone."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.readline()


def peak_mb() -> float:
    """Return the most memory that this process ever used."""
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says there is not less than what the parent had when it forked
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

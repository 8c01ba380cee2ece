"""What the tests of all engines share: rows to buy, an emulated account, a ledger, and processes to kill."""

import asyncio
import importlib.util
import os
import secrets
import shutil
import signal
import sys
from asyncio.subprocess import Process
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest

from nanobanana_async.emulator import API_KEY, Emulator, Fixed
from nanobanana_async.emulator.faults import RandomFault, delay, reset
from tests.support.postgres import Server, free_port

ROOT = Path(__file__).parents[2]
PYTHON = sys.executable
RECIPES = ROOT / "docs/examples/engines"
LIMIT = 12
JOB_S = 1.5
WITHIN_S = 120.0


class Shop:
    """Rows, the account that they are bought from, and the processes of one engine."""

    def __init__(self, folder: Path, emulator: Emulator, ledger: str, rows: int, stack: AsyncExitStack) -> None:
        self.folder, self.emulator, self.ledger, self._stack = folder, emulator, ledger, stack
        self.images, self.starts_file = folder / "images", folder / "starts"
        self.rows = {f"row-{number:03}": f"a fox with the number {number:03}" for number in range(rows)}
        self.kills = 0
        self.environ = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(RECIPES), os.environ.get("PYTHONPATH", "")]),
            "NANOBANANA_LEDGER": ledger,
            "NANOBANANA_BASE_URL": emulator.url,
            "NANOBANANA_EXPECTED_JOB_S": str(JOB_S),
            "APIMALL_API_KEY": API_KEY,
            "STARTS_FILE": str(self.starts_file),
        }

    async def start(self, *command: str) -> Process:
        """Start a command in a process group of its own, which ends with the test."""
        with (self.folder / "log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *command, cwd=self.folder, env=self.environ, stdout=log, stderr=log, start_new_session=True
            )
        self._stack.push_async_callback(end, process)
        return process

    async def finish(self, *command: str) -> None:
        """Run a command to its end."""
        await self.wait_for(await self.start(*command))

    async def wait_for(self, process: Process) -> None:
        """Wait until a process has ended well."""
        async with asyncio.timeout(WITHIN_S):
            assert await process.wait() == 0, self.log()

    async def until(self, condition: Callable[[], bool | Awaitable[bool]]) -> None:
        """Wait until a condition holds."""
        async with asyncio.timeout(WITHIN_S):
            while not ((found := condition()) is True or (not isinstance(found, bool) and await found)):
                await asyncio.sleep(0.05)

    def starts(self) -> list[tuple[int, str]]:
        """Return which process began which row, in order; the engine's process writes these lines."""
        text = self.starts_file.read_text() if self.starts_file.exists() else ""
        return [(int(line.split()[0]), line.split()[1]) for line in text.splitlines()]

    def running(self) -> set[str]:
        """Return the keys of the rows whose paid jobs run."""
        prompts = {job.prompt for job in self.emulator.jobs() if job.ends_at > self.emulator.now()}
        return {key for key, prompt in self.rows.items() if prompt in prompts}

    async def kill_one(self, *, jobs: int = 2) -> int:
        """Kill the process that has most paid jobs running, once one has as many as `jobs`; return its id."""
        busiest: list[tuple[int, int]] = []

        def is_busy() -> bool:
            running, last = self.running(), {key: pid for pid, key in self.starts()}
            busiest[:] = Counter(pid for key, pid in last.items() if key in running and is_alive(pid)).most_common(1)
            return bool(busiest) and busiest[0][1] >= jobs

        await self.until(is_busy)
        pid = busiest[0][0]
        os.kill(pid, signal.SIGKILL)
        self.kills += 1
        return pid

    def check(self, starts: int) -> None:
        """Check that rows were begun again, each was paid once, and each has its image."""
        stats = self.emulator.stats()
        print(f"{len(self.rows)} rows, {self.kills} kills: {starts / len(self.rows):.2f} starts a row,", end=" ")
        print(f"{stats.creates_accepted / len(self.rows):.2f} purchases a row, {stats.replays} replays")
        assert self.kills > 0
        assert starts > len(self.rows)
        assert stats.creates_accepted == len(self.rows)
        assert stats.double_charges == 0
        assert {job.prompt for job in self.emulator.jobs()} == set(self.rows.values())
        assert sorted(path.stem for path in self.images.glob("*.png")) == sorted(self.rows)

    def log(self) -> str:
        """Return what the engine has printed."""
        return (self.folder / "log").read_text("utf-8", "replace")[-5000:]


async def end(process: Process) -> None:
    """Kill a process with all its children."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


def is_alive(pid: int) -> bool:
    """Whether a process runs: one that was killed and not yet waited for is a zombie."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def need(*modules: str, program: str | None = None) -> None:
    """Skip the test, with the reason, where a package or a program is missing."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed (pip install 'nanobanana-async[engines]')")
    if program is not None and shutil.which(program) is None:
        pytest.skip(f"{program} is not installed (apt-get install {program})")


@asynccontextmanager
async def opened_shop(folder: Path, postgres: Server, *, rows: int) -> AsyncIterator[Shop]:
    """Open a shop: some creates are answered late, so that kills hit them, and some answers are lost."""
    name = f"shop_{secrets.token_hex(6)}"
    postgres.execute(f"CREATE DATABASE {name}")
    ledger = postgres.url.replace("@/postgres?", f"@/{name}?")
    chances = [
        RandomFault(0.05, reset(processed=True), "apimall.create"),
        RandomFault(0.4, delay(0.3), "apimall.create"),
    ]
    options = {"job_limit": LIMIT, "duration": Fixed(JOB_S), "unique_by": "prompt", "image_scale": 0.02}
    async with Emulator(chances=chances, **options) as emulator, AsyncExitStack() as stack:  # type: ignore[arg-type]
        yield Shop(folder, emulator, ledger, rows, stack)


@asynccontextmanager
async def redis(shop: Shop) -> AsyncIterator[str]:
    """Run a Redis server in memory; return its URL."""
    port = free_port()
    server = await shop.start(
        "redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"
    )
    async with asyncio.timeout(10):
        while True:
            with suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                break
            await asyncio.sleep(0.02)
    yield f"redis://127.0.0.1:{port}/0"
    await end(server)


def record_start(key: str) -> None:
    """Write down that this process begins a row."""
    line = f"{os.getpid()} {key}\n".encode()
    file = os.open(os.environ["STARTS_FILE"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, line)
    finally:
        os.close(file)

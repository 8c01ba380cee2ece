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
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from nanobanana_async.emulator import API_KEY, Emulator, EmulatorOptions, Fixed
from nanobanana_async.emulator.faults import RandomFault, delay, reset
from tests.support.postgres import Server, why_no_server

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "docs/examples/engines"
PYTHON = sys.executable
JOB_S = 1.5
WITHIN_S = 240.0

ACCOUNT: EmulatorOptions = {
    "job_limit": 16,
    "duration": Fixed(JOB_S),
    "double_charges_by": "prompt",
    "image_scale": 0.02,
    # Kills hit creates whose answer is late, too, and some answers are lost.
    "random_faults": [
        RandomFault(0.05, reset(processed=True), "apimall.create"),
        RandomFault(0.4, delay(0.3), "apimall.create"),
    ],
}


def marks(*modules: str, program: str | None = None) -> list[pytest.MarkDecorator]:
    """Return the marks of an engine's tests: among them why they are skipped, where something is missing."""
    missing = [f"{name} is not installed (pip install '.[engines]')" for name in modules if not _is_installed(name)]
    if program is not None and shutil.which(program) is None:
        missing.append(f"{program} is not installed (apt-get install {program})")
    if (reason := why_no_server()) is not None:
        missing.append(reason)
    return [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.skipif(bool(missing), reason="; ".join(missing))]


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


class Shop:
    """Rows, the account that they are bought from, and the processes of one engine."""

    def __init__(self, folder: Path, emulator: Emulator, ledger: str, rows: int, stack: AsyncExitStack) -> None:
        self.folder, self.emulator, self.ledger, self._stack = folder, emulator, ledger, stack
        self.images, self._starts = folder / "images", folder / "starts"
        self.rows = {f"row-{number:03}": f"a fox with the number {number:03}" for number in range(rows)}
        self.kills = 0
        self.environ = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(RECIPES), os.environ.get("PYTHONPATH", "")]),
            "HOME": str(folder),  # where Ray writes the token of its cluster
            "NANOBANANA_LEDGER": ledger,
            "NANOBANANA_BASE_URL": emulator.url,
            "NANOBANANA_EXPECTED_JOB_S": str(JOB_S),
            "APIMALL_API_KEY": API_KEY,
            "STARTS_FILE": str(self._starts),
        }

    async def start(self, *command: str) -> Process:
        """Start a command in a process group of its own, which ends with the test."""
        with (self.folder / "log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *command, cwd=self.folder, env=self.environ, stdout=log, stderr=log, start_new_session=True
            )
        self._stack.push_async_callback(_end, process)
        return process

    async def wait_for(self, process: Process) -> None:
        """Wait until a process has ended well."""
        async with asyncio.timeout(WITHIN_S):
            assert await process.wait() == 0, self._log()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds."""
        try:
            async with asyncio.timeout(WITHIN_S):
                while not condition():  # noqa: ASYNC110 - other processes set no event
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(self._log()) from None

    def starts(self) -> list[tuple[int, str]]:
        """Return which process began which row, in order, as `record_start` wrote it down."""
        lines = self._starts.read_text().splitlines() if self._starts.exists() else []
        return [(int(pid), key) for pid, key in (line.split() for line in lines)]

    def running(self) -> set[str]:
        """Return the keys of the rows whose paid jobs run."""
        prompts = {job.prompt for job in self.emulator.jobs() if job.ends_at > self.emulator.now()}
        return {key for key, prompt in self.rows.items() if prompt in prompts}

    async def kill_one(self, jobs: int, among: Callable[[int], bool] = lambda pid: True) -> None:
        """Kill the process that has most paid jobs running, once one has as many as `jobs`."""
        busy: Counter[int] = Counter()

        def is_busy() -> bool:
            running, begun_by = self.running(), {key: pid for pid, key in self.starts()}
            pids = [begun_by[key] for key in running if key in begun_by]
            busy.clear()
            busy.update(pid for pid in pids if among(pid) and _is_alive(pid))
            return max(busy.values(), default=0) >= jobs

        await self.until(is_busy)
        os.kill(busy.most_common(1)[0][0], signal.SIGKILL)
        self.kills += 1

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        """Return the rows of a statement on the database of the ledger."""
        import psycopg

        with psycopg.connect(self.ledger, autocommit=True) as db:
            return db.execute(statement.encode()).fetchall()

    def living_owners(self) -> int:
        """Return how many owners of the ledger were neither closed nor buried."""
        ((count,),) = self.query("SELECT count(*) FROM nanobanana.owners WHERE buried_by IS NULL")
        return int(count)

    def check(self, starts: int) -> None:
        """Check that rows were begun again, that each was paid once, and that each has its image."""
        stats = self.emulator.stats()
        print(
            f"{len(self.rows)} rows, {self.kills} kills: {starts / len(self.rows):.2f} starts a row,"
            f" {stats.creates_accepted / len(self.rows):.2f} purchases a row"
        )
        assert self.kills > 0
        assert starts > len(self.rows)
        assert stats.creates_accepted == len(self.rows)
        assert stats.double_charges == 0
        assert {job.prompt for job in self.emulator.jobs()} == set(self.rows.values())
        assert sorted(path.stem for path in self.images.glob("*.png")) == sorted(self.rows)

    def _log(self) -> str:
        return (self.folder / "log").read_text("utf-8", "replace")[-5000:]


@asynccontextmanager
async def opened_shop(folder: Path, postgres: Server, *, rows: int) -> AsyncIterator[Shop]:
    """Open a shop with a database of its own. At the end all its processes are killed."""
    name = f"shop_{secrets.token_hex(6)}"
    postgres.execute(f"CREATE DATABASE {name}")
    ledger = postgres.url.replace("@/postgres?", f"@/{name}?")
    async with Emulator(**ACCOUNT) as emulator, AsyncExitStack() as stack:
        yield Shop(folder, emulator, ledger, rows, stack)


def record_start(key: str) -> None:
    """Write down that this process begins a row."""
    file = os.open(os.environ["STARTS_FILE"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(file, f"{os.getpid()} {key}\n".encode())
    os.close(file)


def without_image(files: Iterable[str]) -> list[str]:
    """Return the paths at which there is no file."""
    return [file for file in files if not Path(file).is_file()]


def _is_alive(pid: int) -> bool:
    with suppress(OSError):  # a process that was killed and not waited for yet is a zombie
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


async def _end(process: Process) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()

"""A job that can't be stored is not bought: `LedgerError`, and no request reaches the gateway."""
# ruff: noqa: ASYNC240 - small files, and no other task runs

import asyncio
import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path

import pytest

from nanobanana_async import ConcurrencyPolicy, GenerationResult, LedgerError, Session, SqliteLedger
from nanobanana_async.emulator import Emulator, Fixed
from nanobanana_async.ledger.statements import JobTable
from tests.durability.emulator_process import ROOT
from tests.support.ledger_file import all_keys
from tests.support.loopback import BOTH, GatewayName, charged, emulated, quick

pytestmark = pytest.mark.slow

Trouble = Callable[[Path], AbstractContextManager[None]]

KEYS = [f"row-{number}" for number in range(5)]
LONG = "a fox " * 2000  # a short record may still fit into a file that can't grow


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.sqlite"


@contextmanager
def full_disk(path: Path) -> Iterator[None]:
    """Limit this process's files to the current size of the write-ahead log, so that the next commit fails."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.with_name(f"{path.name}-wal").stat().st_size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the database lock for longer than a write waits."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


@contextmanager
def moved_away(path: Path) -> Iterator[None]:
    """Move the file away, and back at the end."""
    aside = path.rename(path.with_name("aside"))
    yield
    aside.replace(path)


TROUBLES = pytest.mark.parametrize(
    ("name", "trouble"), [("apimall", full_disk), ("defapi", locked), ("apimall", moved_away)]
)
GATEWAYS = pytest.mark.parametrize("name", BOTH)


def quickly(path: Path) -> SqliteLedger:
    """Return a ledger that does not wait long for a lock."""
    return SqliteLedger(path, busy_timeout_s=0.1)


def nothing_arrived(emulator: Emulator) -> bool:
    return sum(emulator.stats().requests.values()) == 0


async def nothing_is_bought(session: Session) -> None:
    """Request every row: each caller gets its own error, and may repeat."""
    outcomes = await all_keys(session, KEYS, LONG)
    assert {type(each) for each in outcomes.values()} == {LedgerError}
    assert [(key, error.key) for key, error in outcomes.items() if isinstance(error, LedgerError)] == list(
        zip(KEYS, KEYS, strict=True)
    )


async def all_is_bought(session: Session, emulator: Emulator) -> None:
    outcomes = await all_keys(session, KEYS, LONG)
    assert {type(each) for each in outcomes.values()} == {GenerationResult}
    assert charged(emulator.stats(), len(KEYS))


async def within(ledger: SqliteLedger, statement: str) -> None:
    """Run a statement on the ledger's own connection."""

    def run(table: JobTable) -> None:
        table.connection.execute(statement).fetchall()

    await ledger._submit(run)


@TROUBLES
async def test_unwritable_new_job_is_not_sent(path: Path, name: GatewayName, trouble: Trouble) -> None:
    async with emulated(double_charges_by="prompt") as emulator, quick(emulator, name, ledger=quickly(path)) as session:
        with trouble(path):
            await nothing_is_bought(session)
        assert nothing_arrived(emulator)
        await all_is_bought(session, emulator)


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("apimall", "PRAGMA max_page_count = 1", "PRAGMA max_page_count = 100000"),
        ("defapi", "PRAGMA query_only = ON", "PRAGMA query_only = OFF"),
    ],
    ids=["full", "read-only"],
)
async def test_write_refused_by_sqlite_sends_nothing(path: Path, name: GatewayName, before: str, after: str) -> None:
    ledger = quickly(path)
    async with emulated(double_charges_by="prompt") as emulator, quick(emulator, name, ledger=ledger) as session:
        await within(ledger, before)
        await nothing_is_bought(session)
        assert nothing_arrived(emulator)
        await within(ledger, after)
        await all_is_bought(session, emulator)


@TROUBLES
async def test_waiting_job_is_not_sent_when_the_ledger_fails(path: Path, name: GatewayName, trouble: Trouble) -> None:
    one = ConcurrencyPolicy(max_jobs=1, learn=False)
    async with (
        emulated(duration=Fixed(0.3), double_charges_by="prompt") as emulator,
        quick(emulator, name, ledger=quickly(path), concurrency=one) as session,
    ):
        first = await session.submit("a fox", idempotency_key="first")
        await first.wait_for_task_id()
        second = await session.submit("a crow", idempotency_key="second")
        with trouble(path):
            assert (await first).images  # the bought image is still returned
            with pytest.raises(LedgerError) as caught:
                await second
        assert (caught.value.key, caught.value.safe_to_repeat) == ("second", True)
        assert emulator.stats().creates_received == 1
        assert (await session.generate("a crow", idempotency_key="second")).images
        assert charged(emulator.stats(), 2)


@GATEWAYS
async def test_damaged_ledger_buys_nothing(path: Path, name: GatewayName) -> None:
    async with emulated() as emulator, quick(emulator, name, ledger=path) as session:
        await all_keys(session, [f"earlier-{number}" for number in range(100)])
    pages = bytearray(path.read_bytes())
    pages[2 * 4096 :] = os.urandom(len(pages) - 2 * 4096)
    path.write_bytes(pages)
    async with emulated() as emulator:
        with suppress(LedgerError):  # the damage shows at opening or at the first write, as the random bytes have it
            async with quick(emulator, name, ledger=path) as session:
                await nothing_is_bought(session)
        assert nothing_arrived(emulator)


@GATEWAYS
@pytest.mark.parametrize(
    "content", [b"key,prompt\n" * 1000, b"SQLite format 3\0" + b"\xff" * 4080], ids=["csv", "header"]
)
async def test_file_that_is_no_ledger_opens_no_session(path: Path, name: GatewayName, content: bytes) -> None:
    path.write_bytes(content)
    async with emulated() as emulator:
        with pytest.raises(LedgerError):
            await quick(emulator, name, ledger=path).open()
        assert nothing_arrived(emulator)
    assert path.read_bytes() == content


@GATEWAYS
async def test_read_only_ledger_buys_nothing(path: Path, name: GatewayName) -> None:
    async with emulated() as emulator:
        async with quick(emulator, name, ledger=path):
            pass
        async with quick(emulator, name, ledger=SqliteLedger(path, read_only=True)) as session:
            await nothing_is_bought(session)
        assert nothing_arrived(emulator)


def output_of_another_user(*arguments: str) -> str:
    command = [sys.executable, "-m", "tests.durability.unprivileged", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=50, check=False)
    return done.stdout + done.stderr


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions work differently here")
@pytest.mark.parametrize(
    ("name", "mode", "folder_mode"),
    [("apimall", 0o444, 0o755), ("defapi", 0o444, 0o555), ("apimall", 0o644, 0o555)],
)
async def test_file_without_write_permission_buys_nothing(name: GatewayName, mode: int, folder_mode: int) -> None:
    with tempfile.TemporaryDirectory() as folder:  # another user can't enter a folder of tmp_path
        path = Path(folder) / "jobs.sqlite"
        async with emulated() as emulator:
            async with quick(emulator, name, ledger=path):
                pass
            path.chmod(mode)
            path.parent.chmod(folder_mode)
            try:
                output = await asyncio.to_thread(output_of_another_user, name, emulator.url, str(path))
            finally:
                path.parent.chmod(0o755)
            assert output.startswith("LedgerError"), output
            assert nothing_arrived(emulator)

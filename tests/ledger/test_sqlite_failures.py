"""A ledger that can't be read or written: the error says what to do, and nothing is changed."""
# ruff: noqa: ASYNC240 - small files, and no other task runs

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from nanobanana_async.errors import LedgerError
from nanobanana_async.jobs import JobState
from nanobanana_async.ledger.connection import from_sqlite_error
from nanobanana_async.ledger.sqlite import SqliteLedger
from nanobanana_async.ledger.statements import JobTable
from nanobanana_async.testing import FakeTransport
from tests.ledger.test_sqlite_file import asked, ledger_at
from tests.support.fakes import FakeGateway, Opening, apimall_now, defapi_now
from tests.support.ledger_contract import adopted, job, running, sent

BIG = b"x" * 100_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.sqlite"


async def within(ledger: SqliteLedger, statement: str) -> None:
    """Run a statement on the ledger's own connection."""

    def run(table: JobTable) -> None:
        table.connection.execute(statement).fetchall()

    await ledger._submit(run)


async def test_full_disk_fails_the_whole_batch_without_changes(path: Path) -> None:
    async with ledger_at(path) as ledger:
        first = sent()
        await ledger.claim(first)
        await within(ledger, "PRAGMA max_page_count = 1")
        results = await asyncio.gather(  # noqa: TID251
            ledger.claim(job("small")),
            ledger.claim(job("big", body=BIG)),
            ledger.advance(first, first.transition_to(JobState.RUNNING, task_id="t1")),
            return_exceptions=True,
        )
        errors = [result for result in results if isinstance(result, LedgerError)]
        assert len({id(error) for error in errors}) == 3  # a separate exception for each caller
        assert all("free some disk space" in str(error) for error in errors)
        assert [error.key for error in errors] == ["small", "big", "order-1"]
        assert [error.safe_to_repeat for error in errors] == [True, True, False]
        assert await ledger.find("small") is None
        assert await ledger.find("order-1") == first
        await within(ledger, "PRAGMA max_page_count = 100000")
        assert (await ledger.claim(job("big", body=BIG))).is_new  # the disk has room again
        await ledger.advance(first, first.transition_to(JobState.RUNNING, task_id="t1"))


async def test_failed_commit_fails_the_whole_batch_without_changes(path: Path) -> None:
    resource = pytest.importorskip("resource")
    async with ledger_at(path) as ledger:
        first = sent()
        await ledger.claim(first)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        log_size = path.with_name("jobs.sqlite-wal").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (log_size + 10_000, limits[1]))  # the log is written at the commit
        try:
            results = await asyncio.gather(  # noqa: TID251
                ledger.advance(first, first.transition_to(JobState.RUNNING, task_id="t1")),
                ledger.find("order-1"),
                *(ledger.claim(job(f"k{number}", body=BIG[:5000])) for number in range(20)),
                return_exceptions=True,
            )
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        failed = [isinstance(result, LedgerError) and "check disk and file system" in str(result) for result in results]
        assert all(failed)
        assert await ledger.find("order-1") == first
        assert await ledger.find("k0") is None
        await ledger.advance(first, first.transition_to(JobState.RUNNING, task_id="t1"))
        assert (await ledger.claim(job("k0"))).is_new


async def test_long_lock_fails_writes_but_not_reads(path: Path) -> None:
    async with ledger_at(path) as ledger:
        await ledger.claim(running())
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(
                LedgerError, match=r"locked by another process for more than 0\.2 s.*end that, then repeat"
            ) as caught:
                await ledger.claim(job("new"))
            assert caught.value.safe_to_repeat
            assert await ledger.find("order-1") == running()
            with pytest.raises(LedgerError, match="locked"):
                await adopted(ledger)
        assert (await ledger.claim(job("new"))).is_new


async def test_damaged_file_fails_reads_and_writes(path: Path) -> None:
    async with ledger_at(path) as ledger:
        for number in range(200):
            await ledger.claim(job(f"k{number}"))
    pages = bytearray(path.read_bytes())
    for row in asked(path, "SELECT rootpage FROM sqlite_schema WHERE tbl_name = 'jobs' AND rootpage > 0"):
        start = 4096 * (int(str(row[0])) - 1)
        pages[start : start + 4096] = os.urandom(4096)
    path.write_bytes(pages)
    async with ledger_at(path) as ledger:
        with pytest.raises(LedgerError, match="restore a backup") as caught:
            await ledger.claim(job("new"))
        assert caught.value.key == "new"
        with pytest.raises(LedgerError, match="restore a backup") as caught:
            await ledger.find("k1")
        assert not caught.value.safe_to_repeat  # the damaged record may have been bought


async def test_write_without_permission_fails(path: Path) -> None:
    async with ledger_at(path) as ledger:
        await within(ledger, "PRAGMA query_only = ON")
        with pytest.raises(LedgerError, match="read-only"):
            await ledger.claim(job())


@pytest.mark.parametrize("manner", ["deleted", "replaced"])
async def test_replaced_database_is_noticed_before_a_write(path: Path, manner: str) -> None:
    async with ledger_at(path) as ledger:
        await ledger.claim(job())
        aside = path.rename(path.with_name("aside"))
        if manner == "replaced":
            shutil.copy(aside, path)
        with pytest.raises(LedgerError, match="moved, deleted or replaced"):
            await ledger.claim(job("new"))
        aside.replace(path)
        assert (await ledger.claim(job("new"))).is_new


async def test_unexpected_exception_becomes_a_ledger_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> None:
        raise RuntimeError("a bug")

    async with ledger_at(path) as ledger:
        monkeypatch.setattr(JobTable, "find", crash)
        with pytest.raises(LedgerError, match="RuntimeError: a bug"):
            await ledger.find("order-1")
        monkeypatch.undo()
        assert await ledger.find("order-1") is None


async def test_file_in_place_of_the_owners_folder_fails_open(path: Path) -> None:
    path.with_name("jobs.sqlite-owners").touch()
    with pytest.raises(LedgerError, match="check that this user may write"):
        await SqliteLedger(path).open()


async def test_file_is_read_where_shm_can_not_be_created(path: Path) -> None:
    async with ledger_at(path) as ledger:
        await ledger.claim(running())
    path.with_name("jobs.sqlite-shm").symlink_to("no-such-folder/shm")
    with pytest.raises(LedgerError, match="can't be opened"):
        await SqliteLedger(path).open()
    async with ledger_at(path, read_only=True) as ledger:
        assert await ledger.find("order-1") == running()
    path.with_name("jobs.sqlite-wal").write_bytes(b"x" * 5000)  # it may hold rows that the file lacks
    with pytest.raises(LedgerError, match="can't be opened"):
        await SqliteLedger(path, read_only=True).open()


def test_unknown_sqlite_error_is_passed_on(path: Path) -> None:
    assert "SQLite failed [strange]" in str(from_sqlite_error(sqlite3.Error("strange"), path, busy_s=1.0))


@pytest.mark.parametrize("query", ["SELECT budget FROM jobs", "SELECT * FROM charges"])
def test_tables_of_another_state_are_said_with_what_to_do(path: Path, query: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE jobs (key TEXT)")
        with pytest.raises(sqlite3.OperationalError) as caught:
            connection.execute(query)
    assert "name another file, or use the library that made it" in str(
        from_sqlite_error(caught.value, path, busy_s=1.0)
    )


async def test_file_is_read_where_wal_can_not_be_created(path: Path) -> None:
    async with ledger_at(path) as ledger:
        await ledger.claim(running())
    path.with_name("jobs.sqlite-wal").symlink_to("no-such-folder/wal")
    async with ledger_at(path, read_only=True) as ledger:
        assert await ledger.find("order-1") == running()


UNPRIVILEGED = """
import asyncio, os, sys
from nanobanana_async.errors import LedgerError
from nanobanana_async.ledger.sqlite import SqliteLedger
from nanobanana_async.ledger.file import current_schema
from tests.support.ledger_contract import job

async def main(path, read_only):
    ledger = SqliteLedger(path, read_only=read_only)
    try:
        await ledger.open()
        print("found", (await ledger.find("order-1")).key)
        await ledger.claim(job("new"))
    except LedgerError as error:
        print(error)
    await ledger.aclose()

if os.geteuid() == 0:
    current_schema()  # that user may be unable to read the package
    os.setgroups([]), os.setgid(65534), os.setuid(65534)
asyncio.run(main(sys.argv[1], bool(sys.argv[2])))
"""


def unprivileged(path: Path, *, read_only: bool = False) -> str:
    """Return what the command prints for a user without special rights."""
    done = subprocess.run(
        [sys.executable, "-c", UNPRIVILEGED, path, "yes" if read_only else ""],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    return done.stdout + done.stderr


@pytest.fixture
def shown() -> Iterator[Path]:
    """A ledger in a folder that every user can read."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "jobs.sqlite"

        async def fill() -> None:
            async with ledger_at(path) as ledger:
                await ledger.claim(job())

        asyncio.run(fill())
        Path(folder).chmod(0o755)
        path.chmod(0o644)
        yield path
        Path(folder).chmod(0o755)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions work differently here")
def test_read_only_folder_is_named_in_the_error(shown: Path) -> None:
    shown.chmod(0o444)
    shown.parent.chmod(0o555)
    output = unprivileged(shown)
    assert "found" not in output
    assert "folder" in output
    assert "writable" in output or "may read and write" in output
    output = unprivileged(shown, read_only=True)
    assert output.splitlines()[0] == "found order-1"
    assert "was opened read-only" in output
    assert sorted(shown.parent.iterdir()) == [shown]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions work differently here")
def test_file_of_another_user_is_named_in_the_error(shown: Path) -> None:
    shown.chmod(0o000)
    for read_only in (False, True):
        output = unprivileged(shown, read_only=read_only)
        assert "found" not in output
        assert "check that this user may" in output


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions work differently here")
def test_new_file_in_a_read_only_folder_fails(shown: Path) -> None:
    shown.parent.chmod(0o555)
    output = unprivileged(shown.with_name("new.sqlite"))
    assert "check that this user may write the file and its folder" in output


def part(path: Path, name: str) -> Path:
    """Return a file beside the ledger that durability depends on."""
    if name == "lock":
        (lock,) = path.with_name("jobs.sqlite-owners").iterdir()
        return lock
    return path.with_name(f"jobs.sqlite-{name}")


@pytest.mark.parametrize("manner", ["deleted", "replaced"])
@pytest.mark.parametrize("name", ["wal", "shm", "lock"])
async def test_replaced_wal_shm_or_lock_file_stops_writes(path: Path, name: str, manner: str) -> None:
    async with ledger_at(path) as ledger:
        await ledger.claim(job())
        file = part(path, name)
        aside = file.rename(path.with_name("aside"))
        if manner == "replaced":
            shutil.copy(aside, file)
        for _ in range(2):
            with pytest.raises(LedgerError, match=f"{file.name} was moved, deleted or replaced"):
                await ledger.claim(job("new"))
        aside.replace(file)
        assert (await ledger.claim(job("new"))).is_new


async def test_deleted_wal_is_checkpointed_into_the_database(path: Path, tmp_path: Path) -> None:
    async with ledger_at(path) as ledger:
        for number in range(20):
            await ledger.claim(running(f"k{number}", f"t{number}"))
        part(path, "wal").unlink()
        with pytest.raises(LedgerError, match="-wal was moved"):
            await ledger.claim(job("new"))
        after_a_kill = tmp_path / "after.sqlite"
        shutil.copy(path, after_a_kill)  # a kill leaves only this file
    async with ledger_at(after_a_kill) as ledger:
        for number in range(20):
            assert await ledger.find(f"k{number}") == running(f"k{number}", f"t{number}")
        assert await ledger.find("new") is None


async def test_wal_deleted_during_the_commit_fails_the_write(path: Path) -> None:
    async with ledger_at(path) as ledger:
        await ledger.claim(job())

        def vanish(table: JobTable) -> None:
            del table
            part(path, "wal").unlink()

        claim = ledger.claim(job("new"))
        with pytest.raises(LedgerError, match="-wal was moved"):
            await asyncio.gather(claim, ledger._submit(vanish, writes=True))  # noqa: TID251


@pytest.mark.parametrize("opening", [apimall_now, defapi_now], ids=["apimall", "defapi"])
async def test_deleted_wal_stops_creates_and_nothing_is_bought_twice(
    path: Path, tmp_path: Path, opening: Opening
) -> None:
    gateway = FakeGateway(job_s=0.01)
    transport = FakeTransport(gateway.answer, latency_s=0.001)
    async with opening(transport, ledger=path) as session:
        first = await session.generate("a fox", idempotency_key="order-17")
        part(path, "wal").unlink()
        with pytest.raises(LedgerError, match="-wal was moved") as caught:
            await session.generate("a crow", idempotency_key="order-18")
        assert caught.value.key == "order-18"
        assert len(transport.creates) == 1
        after_a_kill = tmp_path / "after.sqlite"
        shutil.copy(path, after_a_kill)
    async with opening(transport, ledger=after_a_kill) as session:
        assert (await session.generate("a fox", idempotency_key="order-17")).task_id == first.task_id
        await session.generate("a crow", idempotency_key="order-18")
    assert gateway.sold == 2

"""When the ledger can't be read or written: an error that says what to do, and nothing was changed."""
# ruff: noqa: ASYNC240 - small files, and nothing else runs

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
from tests.engine.scenes import Opening, Shop, apimall, defapi
from tests.ledger.contract import adopted, job, running, sent
from tests.ledger.test_sqlite_file import asked, ledger_at

BIG = b"x" * 100_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.sqlite"


async def within(ledger: SqliteLedger, statement: str) -> None:
    """Set the ledger's own connection."""

    def run(desk: JobTable) -> None:
        desk.connection.execute(statement).fetchall()

    await ledger._ask(run)


async def test_a_full_disk_fails_all_of_a_batch_and_changes_nothing(path: Path) -> None:
    async with ledger_at(path) as ledger:
        first = sent()
        await ledger.claim(first)
        await within(ledger, "PRAGMA max_page_count = 1")
        told = await asyncio.gather(  # noqa: TID251
            ledger.claim(job("small")),
            ledger.claim(job("big", body=BIG)),
            ledger.advance(first, first.transition_to(JobState.RUNNING, task_id="t1")),
            return_exceptions=True,
        )
        errors = [each for each in told if isinstance(each, LedgerError)]
        assert len({id(error) for error in errors}) == 3  # each raises his own
        assert all("free some disk space" in str(error) for error in errors)
        assert [error.key for error in errors] == ["small", "big", "order-1"]
        assert [error.safe_to_repeat for error in errors] == [True, True, False]
        assert await ledger.find("small") is None
        assert await ledger.find("order-1") == first
        await within(ledger, "PRAGMA max_page_count = 100000")
        assert (await ledger.claim(job("big", body=BIG))).new  # there is room again
        await ledger.advance(first, first.transition_to(JobState.RUNNING, task_id="t1"))


async def test_a_commit_that_fails_fails_all_of_it_and_changes_nothing(path: Path) -> None:
    resource = pytest.importorskip("resource")
    async with ledger_at(path) as ledger:
        first = sent()
        await ledger.claim(first)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        log_size = path.with_name("jobs.sqlite-wal").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (log_size + 10_000, limits[1]))  # it is written at the commit
        try:
            told = await asyncio.gather(  # noqa: TID251
                ledger.advance(first, first.transition_to(JobState.RUNNING, task_id="t1")),
                ledger.find("order-1"),
                *(ledger.claim(job(f"k{number}", body=BIG[:5000])) for number in range(20)),
                return_exceptions=True,
            )
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert all(isinstance(each, LedgerError) and "check disk and file system" in str(each) for each in told)
        assert await ledger.find("order-1") == first
        assert await ledger.find("k0") is None
        await ledger.advance(first, first.transition_to(JobState.RUNNING, task_id="t1"))
        assert (await ledger.claim(job("k0"))).new


async def test_a_lock_that_is_kept_too_long_is_an_error_and_reading_goes_on(path: Path) -> None:
    async with ledger_at(path) as ledger:
        await ledger.claim(running())
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(LedgerError, match=r"locked for more than 0\.2 s.*end that, then repeat") as caught:
                await ledger.claim(job("new"))
            assert caught.value.safe_to_repeat
            assert await ledger.find("order-1") == running()
            with pytest.raises(LedgerError, match="locked"):
                await adopted(ledger)
        assert (await ledger.claim(job("new"))).new


async def test_a_damaged_file_is_named_and_not_trusted(path: Path) -> None:
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
        assert not caught.value.safe_to_repeat  # what stood there may have been bought


async def test_a_write_that_may_not_be_made_is_an_error(path: Path) -> None:
    async with ledger_at(path) as ledger:
        await within(ledger, "PRAGMA query_only = ON")
        with pytest.raises(LedgerError, match="read-only"):
            await ledger.claim(job())


@pytest.mark.parametrize("manner", ["deleted", "replaced"])
async def test_a_file_that_was_taken_away_is_noticed_before_the_write(path: Path, manner: str) -> None:
    async with ledger_at(path) as ledger:
        await ledger.claim(job())
        aside = path.rename(path.with_name("aside"))
        if manner == "replaced":
            shutil.copy(aside, path)
        with pytest.raises(LedgerError, match="moved, deleted or replaced"):
            await ledger.claim(job("new"))
        aside.replace(path)
        assert (await ledger.claim(job("new"))).new


async def test_a_bug_is_told_to_all_whom_it_hits(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> None:
        raise RuntimeError("a bug")

    async with ledger_at(path) as ledger:
        monkeypatch.setattr(JobTable, "find", crash)
        with pytest.raises(LedgerError, match="RuntimeError: a bug"):
            await ledger.find("order-1")
        monkeypatch.undo()
        assert await ledger.find("order-1") is None


async def test_without_a_place_for_the_owners_nothing_is_open(path: Path) -> None:
    path.with_name("jobs.sqlite-owners").touch()
    with pytest.raises(LedgerError, match="check that this user may write"):
        await SqliteLedger(path).open()


async def test_where_nothing_can_be_written_beside_it_the_file_is_still_read(path: Path) -> None:
    async with ledger_at(path) as ledger:
        await ledger.claim(running())
    path.with_name("jobs.sqlite-shm").symlink_to("no-such-folder/shm")
    with pytest.raises(LedgerError, match="can't be opened"):
        await SqliteLedger(path).open()
    async with ledger_at(path, read_only=True) as ledger:
        assert await ledger.find("order-1") == running()
    path.with_name("jobs.sqlite-wal").write_bytes(b"x" * 5000)  # something may be in it that is not in the file
    with pytest.raises(LedgerError, match="can't be opened"):
        await SqliteLedger(path, read_only=True).open()


def test_what_sqlite_does_not_explain_is_passed_on(path: Path) -> None:
    assert "see the message of SQLite [strange]" in str(from_sqlite_error(sqlite3.Error("strange"), path, busy_s=1.0))


async def test_where_even_the_wal_cannot_be_made_the_file_is_still_read(path: Path) -> None:
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
from tests.ledger.contract import job

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
    current_schema()  # perhaps that user may not look into the library
    os.setgroups([]), os.setgid(65534), os.setuid(65534)
asyncio.run(main(sys.argv[1], bool(sys.argv[2])))
"""


def unprivileged(path: Path, *, read_only: bool = False) -> str:
    """Return what a user without special rights is told."""
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
    """A ledger in a folder into which everybody can look."""
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


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions work differently here")
def test_a_read_only_folder_and_file_are_told(shown: Path) -> None:
    shown.chmod(0o444)
    shown.parent.chmod(0o555)
    told = unprivileged(shown)
    assert "found" not in told
    assert "folder" in told
    assert "writable" in told or "may read and write" in told
    told = unprivileged(shown, read_only=True)
    assert told.splitlines()[0] == "found order-1"
    assert "for reading only" in told
    assert sorted(shown.parent.iterdir()) == [shown]


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions work differently here")
def test_a_file_of_somebody_else_is_told(shown: Path) -> None:
    shown.chmod(0o000)
    for read_only in (False, True):
        told = unprivileged(shown, read_only=read_only)
        assert "found" not in told
        assert "check that this user may" in told


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions work differently here")
def test_a_new_file_where_nothing_may_be_made_is_told(shown: Path) -> None:
    shown.parent.chmod(0o555)
    told = unprivileged(shown.with_name("new.sqlite"))
    assert "check that this user may write the file and its folder" in told


def part(path: Path, name: str) -> Path:
    """Return a file that durability rests on beside the ledger."""
    if name == "lock":
        (lock,) = path.with_name("jobs.sqlite-owners").iterdir()
        return lock
    return path.with_name(f"jobs.sqlite-{name}")


@pytest.mark.parametrize("manner", ["deleted", "replaced"])
@pytest.mark.parametrize("name", ["wal", "shm", "lock"])
async def test_a_file_beside_the_ledger_that_was_taken_away_stops_the_writing(
    path: Path, name: str, manner: str
) -> None:
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
        assert (await ledger.claim(job("new"))).new


async def test_what_only_a_deleted_log_held_is_saved_for_whoever_comes_after_a_kill(path: Path, tmp_path: Path) -> None:
    async with ledger_at(path) as ledger:
        for number in range(20):
            await ledger.claim(running(f"k{number}", f"t{number}"))
        part(path, "wal").unlink()
        with pytest.raises(LedgerError, match="-wal was moved"):
            await ledger.claim(job("new"))
        after_a_kill = tmp_path / "after.sqlite"
        shutil.copy(path, after_a_kill)  # all that is left under its name
    async with ledger_at(after_a_kill) as ledger:
        for number in range(20):
            assert await ledger.find(f"k{number}") == running(f"k{number}", f"t{number}")
        assert await ledger.find("new") is None


async def test_a_file_that_is_taken_away_during_the_commit_is_noticed_before_anybody_is_told(path: Path) -> None:
    async with ledger_at(path) as ledger:
        await ledger.claim(job())

        def vanish(desk: JobTable) -> None:
            del desk
            part(path, "wal").unlink()

        told = ledger.claim(job("new"))
        with pytest.raises(LedgerError, match="-wal was moved"):
            await asyncio.gather(told, ledger._ask(vanish, writes=True))  # noqa: TID251


@pytest.mark.parametrize("opening", [apimall, defapi])
async def test_no_create_leaves_once_the_log_was_deleted_and_nothing_is_paid_twice_after_a_kill(
    path: Path, tmp_path: Path, opening: Opening
) -> None:
    shop = Shop(job_s=0.01)
    transport = FakeTransport(shop.answer, latency_s=0.001)
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
    assert shop.sold == 2

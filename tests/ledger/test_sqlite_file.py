"""The ledger's file: created, identified, migrated; and unchanged when it is no ledger."""
# ruff: noqa: ASYNC240 - small files, and no other task runs

import sqlite3
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
from attrs import evolve

from nanobanana_async.errors import ConfigurationError, LedgerError
from nanobanana_async.ledger import file, statements
from nanobanana_async.ledger.connection import open_file
from nanobanana_async.ledger.file import APPLICATION_ID, Schema, current_schema, open_read_only, open_writable
from nanobanana_async.ledger.sqlite import SqliteLedger
from tests.support.ledger_contract import job, running

WIDER = Schema(
    script=current_schema().script.replace(
        "owner            TEXT ", "owner TEXT, label TEXT, note TEXT DEFAULT 'none' "
    ),
    steps=(
        "-- the first step\nALTER TABLE jobs ADD COLUMN label TEXT;\nUPDATE jobs SET label = key;\n",
        "ALTER TABLE jobs ADD COLUMN note TEXT DEFAULT 'none';\n",
    ),
    first_version=current_schema().version,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.sqlite"


@asynccontextmanager
async def ledger_at(path: Path, *, read_only: bool = False, busy_timeout_s: float = 0.2) -> AsyncIterator[SqliteLedger]:
    ledger = SqliteLedger(path, read_only=read_only, busy_timeout_s=busy_timeout_s)
    await ledger.open()
    try:
        yield ledger
    finally:
        await ledger.aclose()


def asked(path: Path, *questions: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        return [row for question in questions for row in connection.execute(question).fetchall()]


async def refused(path: Path, *, read_only: bool = False) -> str:
    """Return why a ledger can't be opened; check that the file is unchanged and no owner is left."""
    before = path.read_bytes() if path.is_file() else None
    ledger = SqliteLedger(path, read_only=read_only, busy_timeout_s=0.1)
    with pytest.raises(LedgerError) as caught:
        await ledger.open()
    assert before == (path.read_bytes() if path.is_file() else None)
    assert not path.with_name(f"{path.name}-owners").exists()
    assert str(path) in str(caught.value)
    assert caught.value.safe_to_repeat
    return str(caught.value)


async def test_new_file_has_application_id_version_and_wal(path: Path) -> None:
    async with ledger_at(path):
        pass
    assert asked(path, "PRAGMA application_id", "PRAGMA user_version", "PRAGMA journal_mode") == [
        (APPLICATION_ID,),
        (current_schema().version,),
        ("wal",),
    ]


async def test_commits_are_flushed(path: Path) -> None:
    connection = open_writable(path, current_schema(), busy_s=1.0)
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    connection.close()


async def test_empty_file_becomes_a_ledger(path: Path) -> None:
    path.touch()
    async with ledger_at(path) as ledger:
        assert (await ledger.claim(job())).is_new


async def test_tilde_is_expanded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(path.parent))
    async with ledger_at(Path("~/jobs.sqlite")) as ledger:
        assert ledger.path == path
        assert repr(ledger) == f"SqliteLedger('{path}')"
    assert path.exists()
    assert repr(SqliteLedger(path, read_only=True)) == f"SqliteLedger('{path}', read_only=True)"


@pytest.mark.parametrize("name", ["", ":memory:"])
def test_path_that_is_no_file_is_refused_at_construction(name: str) -> None:
    with pytest.raises(ConfigurationError, match="MemoryLedger"):
        SqliteLedger(name)


async def test_missing_folder_is_not_created(path: Path) -> None:
    lost = path.parent / "lost" / "jobs.sqlite"
    with pytest.raises(LedgerError, match="create it first"):
        await SqliteLedger(lost).open()
    assert not lost.parent.exists()


async def test_folder_is_refused(path: Path) -> None:
    assert "name a file in it" in await refused(path.parent)


async def test_text_file_is_refused(path: Path) -> None:
    path.write_text("prompts, prompts, prompts\n" * 100)
    assert "not a SQLite database" in await refused(path)
    assert "not a SQLite database" in await refused(path, read_only=True)


@pytest.mark.parametrize("version", [0, 1])
async def test_database_of_another_application_is_refused_unchanged(path: Path, version: int) -> None:
    asked(path, "CREATE TABLE notes (note TEXT)", f"PRAGMA user_version = {version}")
    assert "another application" in await refused(path)
    assert "another application" in await refused(path, read_only=True)


async def test_newer_ledger_version_is_refused(path: Path) -> None:
    async with ledger_at(path):
        pass
    asked(path, f"PRAGMA user_version = {current_schema().version + 1}")
    assert "upgrade the library" in await refused(path)
    assert "upgrade the library" in await refused(path, read_only=True)


async def test_ledger_of_an_unreleased_version_is_refused(path: Path) -> None:
    async with ledger_at(path):
        pass
    asked(path, "PRAGMA user_version = 1")
    assert "move the file away" in await refused(path)
    assert "move the file away" in await refused(path, read_only=True)


async def test_older_ledger_is_migrated_and_keeps_its_jobs(path: Path) -> None:
    async with ledger_at(path) as ledger:
        await ledger.claim(running())
    open_writable(path, WIDER, busy_s=1.0).close()
    open_writable(path, WIDER, busy_s=1.0).close()  # once only
    assert asked(path, "PRAGMA user_version", "SELECT key, label, note FROM jobs") == [
        (WIDER.version,),
        ("order-1", "order-1", "none"),
    ]


async def test_only_missing_migration_steps_run(path: Path) -> None:
    async with ledger_at(path):
        pass
    open_writable(path, evolve(WIDER, steps=WIDER.steps[:1]), busy_s=1.0).close()
    open_writable(path, WIDER, busy_s=1.0).close()
    assert asked(path, "PRAGMA user_version") == [(WIDER.version,)]


async def test_new_ledger_has_the_schema_of_a_migrated_one(path: Path, tmp_path: Path) -> None:
    async with ledger_at(path):
        pass
    open_writable(path, WIDER, busy_s=1.0).close()
    open_writable(tmp_path / "new.sqlite", WIDER, busy_s=1.0).close()
    columns = [
        asked(each, "SELECT name, type FROM pragma_table_info('jobs')") for each in (path, tmp_path / "new.sqlite")
    ]
    assert columns[0] == columns[1]


async def test_failed_migration_leaves_the_version(path: Path) -> None:
    async with ledger_at(path) as ledger:
        await ledger.claim(running())
    wrong = evolve(WIDER, steps=("ALTER TABLE jobs ADD COLUMN label TEXT;\nSELECT no_such_thing();\n",))
    with pytest.raises(LedgerError, match="no_such_thing"):
        open_file(path, read_only=False, busy_s=0.1, schema=wrong)
    async with ledger_at(path) as ledger:
        assert await ledger.find("order-1") == running()


async def test_unknown_columns_are_ignored(path: Path) -> None:
    async with ledger_at(path):
        pass
    asked(path, "ALTER TABLE jobs ADD COLUMN later TEXT DEFAULT 'x'")
    async with ledger_at(path) as ledger:
        await ledger.claim(running())
        assert await ledger.find("order-1") == running()


async def test_older_ledger_is_not_opened_read_only(path: Path) -> None:
    async with ledger_at(path):
        pass
    with pytest.raises(LedgerError, match="open it for writing once"):
        open_read_only(path, WIDER, busy_s=0.1)


@pytest.mark.parametrize("content", [None, b""])
async def test_read_only_needs_an_existing_ledger(path: Path, content: bytes | None) -> None:
    if content is not None:
        path.write_bytes(content)
    assert ("no such file" if content is None else "open it for writing once") in await refused(path, read_only=True)


async def test_wal_switch_waits_for_a_lock(path: Path) -> None:
    path.touch()
    # A reader blocks the switch of a file that is not in WAL mode yet.
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN EXCLUSIVE")
        threading.Timer(0.1, other.execute, ["COMMIT"]).start()
        open_writable(path, current_schema(), busy_s=5.0).close()
    assert asked(path, "PRAGMA journal_mode") == [("wal",)]


@pytest.mark.slow
async def test_wal_switch_times_out(path: Path) -> None:
    asked(
        path,
        "PRAGMA journal_mode = DELETE",
        f"PRAGMA application_id = {APPLICATION_ID}",
        f"PRAGMA user_version = {current_schema().version}",
    )
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN")
        other.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        with pytest.raises(LedgerError, match="locked by another process"):
            open_file(path, read_only=False, busy_s=0.1)


async def test_file_system_without_wal_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file, "_try_wal_mode", lambda *_, **__: "delete")
    with pytest.raises(LedgerError, match="use a file on a local disk"):
        open_writable(path, current_schema(), busy_s=0.1)


@pytest.mark.parametrize(
    "question",
    [
        (statements.COUNT_FOREIGN_SLOTS, ("mine", "me", None, None)),
        (statements.SELECT_OWNERS, ("mine",)),
        (statements.SELECT_ACTIVE_PAGE.format("?, ?"), ("mine", 0, "me", "you", 200)),
    ],
    ids=["held", "owners", "unfinished"],
)
async def test_queries_of_active_jobs_use_the_partial_index(
    path: Path, question: tuple[str, tuple[object, ...]]
) -> None:
    connection = open_writable(path, current_schema(), busy_s=1.0)
    plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {question[0]}", question[1])]
    connection.close()
    assert not any("ORDER BY" in step for step in plan)
    assert "SEARCH jobs USING" in plan[0]
    assert "INDEX jobs_open (account=?" in plan[0]
    # The index leaves out terminal jobs.
    assert asked(path, "SELECT partial FROM pragma_index_list('jobs') WHERE name = 'jobs_open'") == [(1,)]


@pytest.mark.parametrize(
    ("statement", "index"),
    [
        (statements.SELECT_BY_KEY, "sqlite_autoindex_jobs_1 (key=?)"),
        (statements.SELECT_BY_TASK, "jobs_task (account=? AND task_id=?)"),
        (statements.SELECT_PAGE_OF_STATE, "jobs_state (state=?"),
        (statements.COUNT_BY_STATE, "COVERING INDEX jobs_state"),
        (statements.UPDATE_PROGRESS, "sqlite_autoindex_jobs_1 (key=?)"),
        (statements.UPDATE_ALL, "sqlite_autoindex_jobs_1 (key=?)"),
    ],
)
async def test_other_queries_use_an_index(path: Path, statement: str, index: str) -> None:
    connection = open_writable(path, current_schema(), busy_s=1.0)
    plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", (None,) * statement.count("?"))]
    connection.close()
    assert len(plan) == 1
    assert index in plan[0]

"""The file: made, recognised, brought up to date; and left as it is when it is not ours."""
# ruff: noqa: ASYNC240 - small files, and nothing else runs

import sqlite3
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from nanobanana_async.errors import ConfigurationError, LedgerError
from nanobanana_async.ledger import file
from nanobanana_async.ledger import statements as desk
from nanobanana_async.ledger.connection import open_file
from nanobanana_async.ledger.file import APPLICATION_ID, Schema, current_schema, open_read_only, open_writable
from nanobanana_async.ledger.sqlite import SqliteLedger
from tests.ledger.contract import job, running

WIDER = Schema(
    script=current_schema().script.replace(
        "owner            TEXT ", "owner TEXT, label TEXT, note TEXT DEFAULT 'none' "
    ),
    steps=(
        "-- 1 to 2\nALTER TABLE jobs ADD COLUMN label TEXT;\nUPDATE jobs SET label = key;\n",
        "ALTER TABLE jobs ADD COLUMN note TEXT DEFAULT 'none';\n",
    ),
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
    """Return why a ledger can't be opened; the file is as before, and nobody owns anything."""
    before = path.read_bytes() if path.is_file() else None
    ledger = SqliteLedger(path, read_only=read_only, busy_timeout_s=0.1)
    with pytest.raises(LedgerError) as caught:
        await ledger.open()
    assert before == (path.read_bytes() if path.is_file() else None)
    assert not path.with_name(f"{path.name}-owners").exists()
    assert str(path) in str(caught.value)
    assert caught.value.safe_to_repeat
    return str(caught.value)


async def test_a_new_file_says_what_it_is(path: Path) -> None:
    async with ledger_at(path):
        pass
    assert asked(path, "PRAGMA application_id", "PRAGMA user_version", "PRAGMA journal_mode") == [
        (APPLICATION_ID,),
        (1,),
        ("wal",),
    ]


async def test_every_commit_is_flushed(path: Path) -> None:
    connection = open_writable(path, current_schema(), busy_s=1.0)
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    connection.close()


async def test_an_empty_file_becomes_a_ledger(path: Path) -> None:
    path.touch()
    async with ledger_at(path) as ledger:
        assert (await ledger.claim(job())).new


async def test_a_home_is_found(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(path.parent))
    async with ledger_at(Path("~/jobs.sqlite")) as ledger:
        assert ledger.path == path
        assert repr(ledger) == f"SqliteLedger('{path}')"
    assert path.exists()
    assert repr(SqliteLedger(path, read_only=True)) == f"SqliteLedger('{path}', read_only=True)"


@pytest.mark.parametrize("name", ["", ":memory:"])
def test_what_is_no_file_is_refused_at_birth(name: str) -> None:
    with pytest.raises(ConfigurationError, match="MemoryLedger"):
        SqliteLedger(name)


async def test_a_folder_that_is_missing_is_not_made(path: Path) -> None:
    lost = path.parent / "lost" / "jobs.sqlite"
    with pytest.raises(LedgerError, match="make it first"):
        await SqliteLedger(lost).open()
    assert not lost.parent.exists()


async def test_a_folder_is_no_ledger(path: Path) -> None:
    assert "name a file in it" in await refused(path.parent)


async def test_a_text_file_is_no_ledger(path: Path) -> None:
    path.write_text("prompts, prompts, prompts\n" * 100)
    assert "no SQLite database" in await refused(path)
    assert "no SQLite database" in await refused(path, read_only=True)


@pytest.mark.parametrize("version", [0, 1])
async def test_another_applications_database_is_left_alone(path: Path, version: int) -> None:
    asked(path, "CREATE TABLE notes (note TEXT)", f"PRAGMA user_version = {version}")
    assert "another application" in await refused(path)
    assert "another application" in await refused(path, read_only=True)


async def test_a_newer_ledger_asks_for_an_upgrade(path: Path) -> None:
    async with ledger_at(path):
        pass
    asked(path, "PRAGMA user_version = 2")
    assert "upgrade the library" in await refused(path)
    assert "upgrade the library" in await refused(path, read_only=True)


async def test_an_older_ledger_is_brought_up_to_date_and_keeps_its_jobs(path: Path) -> None:
    async with ledger_at(path) as ledger:
        await ledger.claim(running())
    open_writable(path, WIDER, busy_s=1.0).close()
    open_writable(path, WIDER, busy_s=1.0).close()  # once only
    assert asked(path, "PRAGMA user_version", "SELECT key, label, note FROM jobs") == [
        (3,),
        ("order-1", "order-1", "none"),
    ]


async def test_only_the_steps_that_are_missing_are_made(path: Path) -> None:
    async with ledger_at(path):
        pass
    open_writable(path, Schema(script="", steps=WIDER.steps[:1]), busy_s=1.0).close()
    open_writable(path, WIDER, busy_s=1.0).close()
    assert asked(path, "PRAGMA user_version") == [(3,)]


async def test_a_new_ledger_is_made_as_the_last_step_leaves_an_old_one(path: Path, tmp_path: Path) -> None:
    async with ledger_at(path):
        pass
    open_writable(path, WIDER, busy_s=1.0).close()
    open_writable(tmp_path / "new.sqlite", WIDER, busy_s=1.0).close()
    columns = [
        asked(each, "SELECT name, type FROM pragma_table_info('jobs')") for each in (path, tmp_path / "new.sqlite")
    ]
    assert columns[0] == columns[1]


async def test_a_step_that_fails_leaves_the_ledger_at_its_version(path: Path) -> None:
    async with ledger_at(path) as ledger:
        await ledger.claim(running())
    wrong = Schema(script="", steps=("ALTER TABLE jobs ADD COLUMN label TEXT;\nSELECT no_such_thing();\n",))
    with pytest.raises(LedgerError, match="no_such_thing"):
        open_file(path, read_only=False, busy_s=0.1, schema=wrong)
    async with ledger_at(path) as ledger:
        assert await ledger.find("order-1") == running()


async def test_columns_of_the_future_are_passed_over(path: Path) -> None:
    async with ledger_at(path):
        pass
    asked(path, "ALTER TABLE jobs ADD COLUMN later TEXT DEFAULT 'x'")
    async with ledger_at(path) as ledger:
        await ledger.claim(running())
        assert await ledger.find("order-1") == running()


async def test_an_older_ledger_is_not_read_before_it_is_brought_up_to_date(path: Path) -> None:
    async with ledger_at(path):
        pass
    with pytest.raises(LedgerError, match="open it for writing once"):
        open_read_only(path, WIDER, busy_s=0.1)


@pytest.mark.parametrize("content", [None, b""])
async def test_for_reading_there_must_be_a_ledger(path: Path, content: bytes | None) -> None:
    if content is not None:
        path.write_bytes(content)
    assert ("no such file" if content is None else "open it for writing once") in await refused(path, read_only=True)


async def test_the_switch_to_wal_waits_for_its_turn(path: Path) -> None:
    path.touch()
    # In a file that is not in WAL mode yet, a reader is in the way.
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN EXCLUSIVE")
        threading.Timer(0.1, other.execute, ["COMMIT"]).start()
        open_writable(path, current_schema(), busy_s=5.0).close()
    assert asked(path, "PRAGMA journal_mode") == [("wal",)]


async def test_the_switch_to_wal_does_not_wait_for_ever(path: Path) -> None:
    asked(path, "PRAGMA journal_mode = DELETE", f"PRAGMA application_id = {APPLICATION_ID}", "PRAGMA user_version = 1")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN")
        other.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        with pytest.raises(LedgerError, match="somebody else has kept it locked"):
            open_file(path, read_only=False, busy_s=0.1)


async def test_a_file_system_without_wal_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file, "_wal_mode", lambda *_, **__: "delete")
    with pytest.raises(LedgerError, match="put it on a local disk"):
        open_writable(path, current_schema(), busy_s=0.1)


@pytest.mark.parametrize(
    "question",
    [
        (desk.SLOTS_OF_OTHERS, ("mine", "me", None, None)),
        (desk.OWNERS, ("mine",)),
        (desk.UNFINISHED_PAGE.format("?, ?"), ("mine", 0, "me", "you", 200)),
    ],
    ids=["held", "owners", "unfinished"],
)
async def test_what_is_unfinished_is_found_without_looking_at_the_rest(
    path: Path, question: tuple[str, tuple[object, ...]]
) -> None:
    connection = open_writable(path, current_schema(), busy_s=1.0)
    plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {question[0]}", question[1])]
    connection.close()
    assert not any("ORDER BY" in step for step in plan)
    assert "SEARCH jobs USING" in plan[0]
    assert "INDEX jobs_open (account=?" in plan[0]
    # And what has ended for good is not in it.
    assert asked(path, "SELECT partial FROM pragma_index_list('jobs') WHERE name = 'jobs_open'") == [(1,)]


@pytest.mark.parametrize(
    ("statement", "index"),
    [
        (desk.FIND, "sqlite_autoindex_jobs_1 (key=?)"),
        (desk.FIND_TASK, "jobs_task (account=? AND task_id=?)"),
        (desk.PAGE_OF_STATE, "jobs_state (state=?"),
        (desk.COUNTS, "COVERING INDEX jobs_state"),
        (desk.UPDATE_PROGRESS, "sqlite_autoindex_jobs_1 (key=?)"),
        (desk.UPDATE_ALL, "sqlite_autoindex_jobs_1 (key=?)"),
    ],
)
async def test_every_other_question_has_its_index(path: Path, statement: str, index: str) -> None:
    connection = open_writable(path, current_schema(), busy_s=1.0)
    plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", (None,) * statement.count("?"))]
    connection.close()
    assert len(plan) == 1
    assert index in plan[0]

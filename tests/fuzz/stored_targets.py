"""Ledgers as a whole: damaged files, odd cells in tables, edited facts about accounts."""

import functools
import json
import sqlite3
from contextlib import suppress
from typing import Any

from hypothesis import strategies as st

from nanobanana_async.engine.unlisted_registrations import UnlistedRegistrations
from nanobanana_async.errors import LedgerError
from nanobanana_async.jobs import JobState
from nanobanana_async.ledger.columns import COLUMNS
from nanobanana_async.ledger.connection import LedgerConnection, open_file, run_in_transaction
from nanobanana_async.ledger.memory import MemoryLedger
from nanobanana_async.ledger.statements import INSERT_JOB, JobTable
from nanobanana_async.ledger.uploads import find_upload
from nanobanana_async.ledger.writer import WorkItem
from nanobanana_async.policy.account_state import AccountState, Share
from nanobanana_async.policy.learned import LearnedAccount, is_fresh
from tests.fuzz.ledger_targets import SUCCEEDED, UNCERTAIN, as_row, is_hex, use
from tests.fuzz.scratch import file_with, in_loop, scratch
from tests.fuzz.target import LEAVES, VALUES, Target, json_of, json_shapes, objects_with, texts_of
from tests.support.records import NOON


@functools.cache
def _file() -> bytes:
    """Return the content of a ledger's file with two jobs, and with something in each other table."""
    path = scratch() / "whole.sqlite"
    file = open_file(path, read_only=False, busy_s=1.0)
    execute = file.connection.execute
    for job in (SUCCEEDED, UNCERTAIN):
        execute(INSERT_JOB, (*as_row(job), None))
    execute("INSERT INTO charges VALUES (1, 1, 'b-', 'a', 'c', 8000000000, 'reported')")
    execute("INSERT INTO budgets VALUES ('studio', 9000000000, 'day')")
    execute("INSERT INTO prices VALUES ('a', 'c', 8000000000)")
    execute("INSERT INTO learned VALUES ('a', '{}')")
    execute("INSERT INTO uploads VALUES ('a', 'd', 'https://a.example/1.png', 9, '2026-01-01T00:00:00+00:00')")
    file.table.callback_secret()
    execute("PRAGMA wal_checkpoint(TRUNCATE)")
    file.close()
    return path.read_bytes()


def _read_all(table: JobTable) -> None:
    """Everything that a session or a command reads in a ledger."""
    for job in table.jobs_page(None, 2**63 - 1, 200)[1]:
        use(job)
    table.jobs_page({JobState.UNCERTAIN, JobState.SUCCEEDED}, 2**63 - 1, 200)
    table.uncertain_page("a", 0, 200)
    table.adoptable_page("a", table.live_owners("a"), 0, 200)
    table.find("order-1")
    table.find_task("a", "t1")
    table.count_by_state()
    table.count_by_account()
    table.count_unowned()
    table.count_foreign_slots("a", NOON)
    table.count_prunable(NOON)
    table.batch_prefixes()
    table.recall("a")
    table.charges.budgets(NOON, None)
    assert table.charges.spent_or_reserved("b-").is_finite()
    assert table.charges.reserved("b-").is_finite()
    find_upload(table.connection, "a", "d")


def _run(file: LedgerConnection) -> None:
    """Read all as the writer's thread does, which turns errors into `LedgerError`."""

    async def read() -> Any:
        import asyncio

        item: WorkItem[None] = WorkItem(
            _read_all, asyncio.get_running_loop().create_future(), writes=False, key=None, safe=True
        )
        ((_, _, error),) = run_in_transaction(file, [item])
        return error

    error = in_loop(read())
    if error is not None:
        raise error


def _damaged_file(data: bytes) -> None:
    """An input replaces bytes of a ledger's file: each line is an offset and the bytes from there on."""
    content = bytearray(_file())
    for line in data.split(b"\n\n"):
        place, _, part = line.partition(b":")
        at = int(place) % len(content) if place.isdigit() and len(place) < 9 else sum(place) * 97 % len(content)
        content[at : at + len(part)] = part
    path = file_with(bytes(content[: 1 << 20]), "damaged.sqlite")
    file = open_file(path, read_only=True, busy_s=0.1)
    try:
        _run(file)
    finally:
        file.close()


def _odd_cells(data: bytes) -> None:
    """An input changes cells of a ledger's tables, as far as SQLite lets it."""
    given = json_of(data)
    connection = sqlite3.connect(":memory:", isolation_level=None)
    try:
        connection.deserialize(_file().replace(b"\x02\x02", b"\x01\x01", 1))  # in memory there is no WAL
        for place, cell in given.items() if isinstance(given, dict) else ():
            table, _, column = place.partition(".")
            if isinstance(cell, dict) and is_hex(cell.get("hex")):
                cell = sqlite3.Binary(bytes.fromhex(cell["hex"]))
            with suppress(sqlite3.Error, ValueError, TypeError, OverflowError):
                value = json.dumps(cell) if isinstance(cell, (list, dict)) else cell
                if table in _TABLES and column in _TABLES[table]:
                    connection.execute(f"UPDATE {table} SET {column} = ?", (value,))
        try:
            _read_all(JobTable(connection, None, lambda _: False))
        except (LedgerError, sqlite3.Error, ValueError, OverflowError):  # `_run_item` makes a LedgerError of these
            raise LedgerError("not readable") from None
    finally:
        connection.close()


_TABLES = {
    "jobs": (*COLUMNS, "owner"),
    "charges": ("credits", "basis", "batch"),
    "spending": ("batch", "credits", "unpriced"),
    "budgets": ("name", "max_credits", "per"),
    "learned": ("facts",),
    "uploads": ("url", "size", "uploaded_at"),
}


def _learned(data: bytes) -> None:
    """What the engine does with stored knowledge; any exception of `from_json` means a start without it."""
    with suppress(Exception):
        found = LearnedAccount.from_json(texts_of(data))
        found.merge_changes(LearnedAccount(), found)
        _use_learned(found)


def _use_learned(found: LearnedAccount) -> None:
    try:
        LearnedAccount.from_json(found.to_json())
        assert all(0.0 <= each.faded_weight(NOON) <= 8.0 for each in found.classes.values())
        assert found.limits is None or is_fresh(found.limits.at, NOON) in (True, False)
    except Exception as error:
        raise BrokenFacts(repr(error)) from error


class BrokenFacts(BaseException):
    """Facts that were read and can't be used. No `Exception`, since the reader may raise any of those."""


def _account_state(data: bytes) -> None:
    state = AccountState.from_json(texts_of(data), {1: Share(held=2, queued=3), 2: Share(interactive=True, reserve=1)})
    room = state.room(10.0, 1)
    assert isinstance(room, int)
    assert sum(state.targets(10.0, min(room, 1000)).values()) <= 2000
    AccountState.from_json(state.to_json(), {})


def _unlisted_registrations(data: bytes) -> None:
    async def count() -> int:
        ledger = MemoryLedger()
        await ledger.open()
        await ledger.remember("a webhooks", texts_of(data))
        return await UnlistedRegistrations(ledger, "a", lambda: NOON).count()

    assert isinstance(in_loop(count()), int)


_STATE = AccountState().to_json().encode()
_LEARNED = json.dumps(
    {"limits": {"at": NOON.isoformat(), "job_limit": 5}, "classes": {"c": {"at": NOON.isoformat(), "count": 2}}}
).encode()
_CELLS = st.dictionaries(
    st.sampled_from([f"{table}.{column}" for table, columns in _TABLES.items() for column in columns]),
    LEAVES
    | st.binary(max_size=9).map(lambda raw: {"hex": raw.hex()})
    | json_shapes(VALUES).map(lambda text: text.decode()),
    max_size=4,
)
_STATE_NAMES = [
    "limiter",
    "job_limit",
    "cap",
    "mode",
    "budget",
    "gate_until",
    "prober",
    "cut_off",
    "spoke_at",
    "policy",
]
_STATE_NAMES += ["mean_job_s", "_slots_without_ramp", "blocked_until", "rate_log_odds", "outage_owner", "probe_turn_s"]

TARGETS = (
    Target(
        name="sqlite-cells",
        run=_odd_cells,
        errors=(LedgerError,),
        seeds=(b"{}", b'{"jobs.request": "{}", "spending.credits": -5}'),
        words=tuple(f'"{table}.{column}"'.encode() for table, columns in _TABLES.items() for column in columns),
        shapes=json_shapes(_CELLS),
        cost=5,
    ),
    Target(
        name="sqlite-file",
        run=_damaged_file,
        errors=(LedgerError,),
        seeds=(b"100:\0\0", b"4096:\x0d", b"16:\xff\xff"),
        shapes=st.builds(lambda at, part: b"%d:%s" % (at, part), st.integers(0, 120_000), st.binary(max_size=20)),
        cost=20,
    ),
    Target(
        name="learned",
        run=_learned,
        seeds=(_LEARNED,),
        words=(b'"limits"', b'"rates"', b"NaN", b"1e999"),
        shapes=json_shapes(
            objects_with(
                [
                    "limits",
                    "classes",
                    "at",
                    "job_limit",
                    "rates",
                    "log_odds",
                    "count",
                    "price",
                    "log_mean",
                    "create",
                    "rate",
                ]
            )
        ),
    ),
    Target(
        name="account-state",
        run=_account_state,
        seeds=(_STATE, b'{"limiter":{"policy":{},"job_limit":{"policy":{},"mode":"HOLD","cap":3.0}}}'),
        words=(b"NaN", b"Infinity", b'"HOLD"', b'"CLIMB"', b'"cap"'),
        shapes=json_shapes(objects_with(_STATE_NAMES)),
    ),
    Target(
        name="unlisted-registrations",
        run=_unlisted_registrations,
        seeds=(b'{"at": "2026-03-12T12:00:00+00:00", "count": 1}',),
        shapes=json_shapes(
            st.fixed_dictionaries({"at": LEAVES | st.just("2026-03-12T12:00:00+00:00"), "count": VALUES}) | VALUES
        ),
        cost=3,
    ),
)

"""The users and the queries of docs/many-hosts.md, as they stand there: each may do what the page says, and no more."""

import asyncio
import json
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from nanobanana_async import PostgresLedger, Session
from nanobanana_async.emulator import Emulator, Fixed
from nanobanana_async.errors import LedgerError
from nanobanana_async.ledger.postgres.schema import Step, Tables, current_tables
from tests.support.command import environment, nanobanana
from tests.support.postgres import Server, new_schema

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs/many-hosts.md"
ROLES = ("studio_owner", "studio_app", "studio_reader")


class Users:
    """The three users, with names and a schema of their own, on a server that trusts them."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.schema, self._suffix = new_schema(), secrets.token_hex(4)
        text = re.sub(r"studio_(owner|app|reader)\b", rf"studio_\1_{self._suffix}", PAGE.read_text("utf-8"))
        self.creation, self.grants, queries = re.findall(
            r"^```sql\n(.*?)^```$",
            text.replace("nanobanana.", f"{self.schema}.").replace("SCHEMA nanobanana", f"SCHEMA {self.schema}"),
            re.MULTILINE | re.DOTALL,
        )
        self.queries: dict[str, str] = dict(re.findall(r"^-- (.*?)\n(.*?;)\n", queries, re.MULTILINE | re.DOTALL))

    def url(self, role: str) -> str:
        return self._server.url.replace("postgres@", f"{role}_{self._suffix}@") + f"&schema={self.schema}"

    def execute(self, role: str, statements: str) -> list[tuple[Any, ...]]:
        """Run statements in one transaction, as one of the users; return the rows of the last one."""
        user = "postgres" if role == "postgres" else f"{role}_{self._suffix}"
        with psycopg.connect(self._server.url.replace("postgres@", f"{user}@")) as db:
            cursor = db.execute(statements.encode())
            while cursor.nextset():
                pass
            return cursor.fetchall() if cursor.description is not None else []

    def remove(self) -> None:
        for role in ROLES:
            self._server.execute(f"DROP OWNED BY {role}_{self._suffix} CASCADE", f"DROP ROLE {role}_{self._suffix}")


@pytest.fixture
def users(postgres: Server) -> Iterator[Users]:
    made = Users(postgres)
    made.execute("postgres", made.creation)
    yield made
    made.remove()


@pytest.fixture
async def granted(users: Users) -> Users:
    said = await nanobanana("ledger", "migrate", "--ledger", users.url("studio_owner"), environ=environment())
    assert said.code == 0
    users.execute("studio_owner", users.grants)
    return users


async def test_application_buys_and_reader_sees_all_but_prompts(granted: Users) -> None:
    async with Emulator(duration=Fixed(0.1)) as emulator:
        async with Session(emulator.apimall(), ledger=granted.url("studio_app")) as session:
            await session.generate("a secret fox", idempotency_key="order-17")
            await session.feed(["a fox", "a hen"], batch="spring", max_credits=80)
            assert [outcome.ok async for outcome in session.work("spring")] == [True, True]
            said = await nanobanana("hosts", "--json", "--ledger", granted.url("studio_reader"), environ=environment())
        assert emulator.stats().creates_accepted == 3
    seen = json.loads(said.out)
    assert (len(seen["owners"]), seen["batches"][0]["name"], seen["batches"][0]["credits"]) == (1, "spring", 16)
    assert "secret fox" not in said.out
    for table in ("jobs", "fed_rows", "secrets", "learned"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            granted.execute("studio_reader", f"SELECT * FROM {granted.schema}.{table}")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        granted.execute("studio_app", f"UPDATE {granted.schema}.meta SET version = 2")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        granted.execute("studio_app", f"DROP TABLE {granted.schema}.jobs")


async def test_application_may_use_a_table_that_a_migration_adds(granted: Users) -> None:
    granted.execute("studio_owner", f"CREATE TABLE {granted.schema}.notes (note text)")
    granted.execute("studio_app", f"INSERT INTO {granted.schema}.notes VALUES ('a')")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        granted.execute("studio_reader", f"SELECT * FROM {granted.schema}.notes")


@pytest.mark.parametrize("script", ["ALTER TABLE jobs ADD COLUMN note text", "CREATE TABLE notes (note text)"])
async def test_application_that_may_not_migrate_says_who_must(
    granted: Users, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    newer = Tables(script=current_tables().script, steps=[Step(script=script)])
    monkeypatch.setattr("nanobanana_async.ledger.postgres.connection.current_tables", lambda: newer)
    with pytest.raises(LedgerError, match="run `nanobanana ledger migrate` once as their owner"):
        await PostgresLedger(granted.url("studio_app")).open()
    owner = PostgresLedger(granted.url("studio_owner"))
    await owner.open()
    await owner.aclose()
    app = PostgresLedger(granted.url("studio_app"))
    await app.open()
    await app.aclose()


async def test_each_panel_of_the_page_has_a_query_that_the_reader_may_run(granted: Users) -> None:
    panels = [line.split(" | ")[0].removeprefix("| ") for line in _table_of_panels()]
    assert [name for name in panels if name not in granted.queries] == []
    assert len(panels) == len(granted.queries) - 1  # one query is a table without an alarm
    async with (
        Emulator(duration=Fixed(30), job_limit=4) as emulator,
        Session(emulator.apimall(), ledger=granted.url("studio_app")) as session,
    ):
        await session.feed(["a fox"], batch="spring", max_credits=80)
        for number in range(3):
            await (await session.submit(f"a fox, number {number}")).wait_for_task_id()
        shares = granted.queries["owners and their shares, as a table"]
        async with asyncio.timeout(20):  # the owner reports its slots every two seconds
            while granted.execute("studio_reader", shares)[0][3] != 3:  # noqa: ASYNC110 - there is no event for it
                await asyncio.sleep(0.2)
        found = {name: granted.execute("studio_reader", query) for name, query in granted.queries.items()}
        account = emulator.apimall().account
    assert found["uncertain jobs"] == [(account, 0, None)]
    assert found["owners that are silent"] == []
    assert found["burials"] == [(0, None)]
    ((filled_of, waiting, gate_s, limit, filled),) = found["slots filled"]
    assert (filled_of, waiting, gate_s) == (account, 1, 0)
    assert filled is None if limit is None else filled == 3 / limit
    assert found["jobs without an owner"] == [(account, 0)]
    assert found["caps"] == [("spring", 0, 80, 0)]


async def test_reader_sees_the_long_transaction_of_another_user(granted: Users, postgres: Server) -> None:
    query = granted.queries["the oldest transaction, dead rows"]
    with psycopg.connect(postgres.url) as db:
        db.execute("SELECT pg_sleep(1.5)")
        ((oldest_s, dead_rows),) = granted.execute("studio_reader", query)
    assert oldest_s >= 1.5
    assert dead_rows == 0


def _table_of_panels() -> list[str]:
    text = PAGE.read_text("utf-8")
    table = text[text.index("| panel | alarm |") :].split("\n\n")[0]
    return table.splitlines()[2:]

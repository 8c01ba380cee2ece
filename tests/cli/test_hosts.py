"""`nanobanana hosts` on a real server: the owners and their shares, what waits, and what needs a person."""

import json
from pathlib import Path
from typing import Any

import pytest

from nanobanana_async import PostgresLedger, Session
from nanobanana_async.emulator import Emulator, Fixed
from tests.support.command import Said, environment, nanobanana
from tests.support.postgres import QUOTED_PASSWORD, Server, new_schema

pytestmark = pytest.mark.slow


class Hosts:
    """A ledger of its own on the server, and the command that looks at it."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.schema = new_schema()
        self.url = f"{server.tcp_url}?schema={self.schema}"

    async def __call__(self, *options: str) -> Said:
        said = await nanobanana("hosts", "--ledger", self.url, *options, environ=environment())
        assert QUOTED_PASSWORD not in said.out + said.err
        return said

    async def facts(self) -> Any:
        return json.loads((await self("--json")).out)

    def execute(self, statement: str) -> None:
        self._server.execute(statement, schema=self.schema)


@pytest.fixture
async def hosts(postgres: Server) -> Hosts:
    found = Hosts(postgres)
    ledger = PostgresLedger(found.url)
    await ledger.open()
    await ledger.aclose()
    return found


async def test_ledger_that_no_process_has_open_says_so(hosts: Hosts) -> None:
    said = await hosts()
    assert (said.code, said.err) == (0, "")
    assert "no process has this ledger open" in said.out


async def test_two_sessions_are_shown_with_their_shares_of_the_account(hosts: Hosts) -> None:
    async with Emulator(duration=Fixed(30), job_limit=3) as emulator:
        gateway = emulator.apimall()
        async with (
            Session(gateway, ledger=hosts.url) as first,
            Session(gateway, ledger=hosts.url) as second,
        ):
            for session in (first, first, second):
                await (await session.submit("a fox")).wait_for_task_id()
            text = (await hosts()).out
            facts = await hosts.facts()
    assert [owner["held"] + owner["in_flight"] for owner in facts["owners"]] == [2, 1]
    assert not any(owner["silent_s"] > owner["lease_s"] for owner in facts["owners"])
    (account,) = facts["accounts"]
    assert (account["account"], account["running"], account["uncertain"]) == (gateway.account, 3, 0)
    assert f"account {gateway.account}" in text
    assert "3 running, 0 waiting" in text


async def test_silent_owner_and_uncertain_job_need_a_person(hosts: Hosts) -> None:
    async with Emulator(duration=Fixed(30)) as emulator, Session(emulator.apimall(), ledger=hosts.url) as session:
        await (await session.submit("a fox")).wait_for_task_id()
    hosts.execute("UPDATE jobs SET state = 'uncertain', task_id = NULL")
    hosts.execute("INSERT INTO owners (host, process, client, lease_s, beat_at) VALUES ('gone', 7, '0', 1, 'epoch')")
    said = await hosts()
    assert said.code == 1
    assert "silent for longer than its lease" in said.out
    assert "1 job uncertain" in said.out
    assert "jobs reconcile" in said.out


async def test_cap_of_a_batch_and_what_was_spent_are_shown(hosts: Hosts) -> None:
    async with Emulator(duration=Fixed(0.1)) as emulator, Session(emulator.apimall(), ledger=hosts.url) as session:
        await session.feed(["a fox", "a hen"], batch="spring", max_credits=80)
        async for outcome in session.work("spring"):
            assert outcome.ok
    (batch,) = (await hosts.facts())["batches"]
    assert (batch["fed"], batch["max_credits"], batch["credits"]) == (2, 80, 16)
    assert "2 rows fed, 16 credits spent or reserved of 80 credits" in (await hosts()).out


async def test_reader_without_rights_on_the_tables_can_read_the_views(hosts: Hosts) -> None:
    hosts.execute(f"CREATE ROLE reader_{hosts.schema}")
    hosts.execute(f"GRANT USAGE ON SCHEMA {hosts.schema} TO reader_{hosts.schema}")
    hosts.execute(f"GRANT SELECT ON owner_metrics, account_metrics, batch_metrics TO reader_{hosts.schema}")
    try:
        hosts.execute(f"SET ROLE reader_{hosts.schema}; SELECT * FROM account_metrics, owner_metrics, batch_metrics")
    finally:
        hosts.execute(f"DROP OWNED BY reader_{hosts.schema}; DROP ROLE reader_{hosts.schema}")


async def test_ledger_file_is_refused_with_what_to_pass(tmp_path: Path) -> None:
    said = await nanobanana("hosts", environ=environment())
    assert said.code == 2
    assert "postgresql://" in said.complaint

"""`nanobanana hosts` on a real server: the owners and their shares, what waits, and what needs a person."""

import asyncio
import fcntl
import json
import os
import re
import signal
import struct
import sys
import termios
from pathlib import Path
from typing import Any

import pytest

from nanobanana_async import PostgresLedger, Session
from nanobanana_async.emulator import Emulator, Fixed
from nanobanana_async.keys import batch_key_prefix
from tests.support.command import Said, ended, environment, nanobanana, started
from tests.support.postgres import QUOTED_PASSWORD, Server, new_schema

pytestmark = pytest.mark.slow


class Hosts:
    """A ledger of its own on the server, and the command that looks at it."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.schema = new_schema()
        self.url = f"{server.tcp_url}?schema={self.schema}"

    async def __call__(self, *options: str, columns: int = 200) -> Said:
        environ = environment(COLUMNS=str(columns))
        said = await nanobanana("hosts", "--ledger", self.url, *options, environ=environ)
        assert QUOTED_PASSWORD not in said.out + said.err
        return said

    async def facts(self) -> Any:
        return json.loads((await self("--json")).out)

    def execute(self, *statements: str) -> list[tuple[Any, ...]]:
        return self._server.execute(*statements, schema=self.schema)

    def fill(self, count: int) -> None:
        """Add owners with shares: the seventh is silent, the ninth interactive, the last one on another account."""
        self.execute(
            "INSERT INTO owners (host, process, client, lease_s, beat_at)"
            " SELECT format('worker-%s.eu-west.shop', n), n, '0', 3600,"
            " clock_timestamp() - interval '2 h' * (n = 7)::int"
            f" FROM generate_series(1, {count}) AS n"
        )
        self.execute("INSERT INTO accounts (account) VALUES ('defapi:other'), ('mine')")
        self.execute(
            "INSERT INTO shares (account, owner, granted, target, held, in_flight, queued, interactive, reserve, used,"
            " spoke_at, reports) SELECT CASE process WHEN 32 THEN 'defapi:other' ELSE 'mine' END, id, 6, 6, 5, 1, 8,"
            " process = 9, 0, 0, 0, 1 FROM owners WHERE buried_by IS NULL"
        )


async def watched(url: str, *, lines: int, columns: int) -> list[str]:
    """Return the first screen of `hosts --watch` on a terminal of this size."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    environ = {name: value for name, value in environment(TERM="xterm").items() if name not in ("COLUMNS", "LINES")}
    command = [sys.executable, "-m", "nanobanana_async", "hosts", "--ledger", url, "--watch"]
    process = await asyncio.create_subprocess_exec(*command, env=environ, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    screen = b""
    try:
        async with asyncio.timeout(30):
            while screen.count(b"\n") < lines - 1:
                screen += await asyncio.to_thread(os.read, ours, 4096)
    finally:
        process.kill()
        await process.wait()
        os.close(ours)
    first = re.split(r"\x1b\[1A", screen.decode())[0]  # the next one begins with the cursor's way back to the top
    return [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line).strip("\r") for line in first.split("\n")]


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
            facts: Any = {}
            async with asyncio.timeout(20):  # each owner reports its slots every two seconds
                while [owner["held"] for owner in facts.get("owners", ())] != [2, 1]:
                    facts = await hosts.facts()
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
    assert (batch["name"], batch["fed"], batch["max_credits"], batch["credits"]) == ("spring", 2, 80, 16)
    assert "batch spring: 2 rows fed, 16 credits spent or reserved of 80 credits (20%)" in (await hosts()).out


async def test_name_of_a_batch_that_postgresql_cannot_hold_is_shown_escaped(hosts: Hosts) -> None:
    async with Emulator() as emulator, Session(emulator.apimall(), ledger=hosts.url) as session:
        await session.feed(["a fox"], batch="spring\ud800")
    (batch,) = (await hosts.facts())["batches"]
    assert batch["name"] == "spring\ud800"
    assert "1 row fed, 0 credits spent or reserved" in (await hosts()).out


async def test_batch_that_was_not_fed_is_shown_by_the_prefix_of_its_keys(hosts: Hosts) -> None:
    async with (
        Emulator(duration=Fixed(0.1)) as emulator,
        Session(emulator.apimall(), ledger=hosts.url) as session,
        session.generate_many(["a fox"], batch="autumn") as batch,
    ):
        assert [outcome.ok async for outcome in batch] == [True]
    assert f"batch {batch_key_prefix('autumn')}: not fed, 8 credits spent or reserved\n" in (await hosts()).out


@pytest.mark.parametrize("columns", [80, 120, 200])
async def test_each_of_32_owners_has_one_line_under_its_account(hosts: Hosts, columns: int) -> None:
    hosts.fill(32)
    lines = (await hosts(columns=columns)).out.splitlines()
    assert max(map(len, lines)) <= columns
    numbers = [int(words[2]) for line in lines if (words := line.split()) and words[0].isdecimal()]
    assert sorted(numbers) == list(range(1, 33))
    assert numbers.index(32) < numbers.index(1)  # "defapi:other" comes before "mine"
    (late,) = [line for line in lines if line.rstrip().endswith("overdue")]
    assert late.split()[2] == "7"
    assert sum(line.rstrip().endswith("interactive") for line in lines) == 1


async def test_low_terminal_shows_what_needs_a_person_first(hosts: Hosts) -> None:
    hosts.fill(32)
    screen = await watched(hosts.url, lines=12, columns=100)
    assert "Ctrl-C" in screen[0]
    assert screen[1].startswith("silent for longer than its lease: owner")
    assert len(screen) == 12


@pytest.mark.usefixtures("real_processes")
async def test_watching_with_json_prints_a_line_every_two_seconds(hosts: Hosts) -> None:
    async with started("hosts", "--ledger", hosts.url, "--watch", "--json", environ=environment()) as process:
        assert process.stdout is not None
        async with asyncio.timeout(30):
            seen = [json.loads(await process.stdout.readline()) for _ in range(2)]
        process.send_signal(signal.SIGINT)
        said = await ended(process)
    assert [overview["owners"] for overview in seen] == [[], []]
    assert said.code == 130


async def test_reader_without_rights_on_the_tables_can_read_the_views(hosts: Hosts) -> None:
    hosts.execute(f"CREATE ROLE reader_{hosts.schema}")
    hosts.execute(f"GRANT USAGE ON SCHEMA {hosts.schema} TO reader_{hosts.schema}")
    hosts.execute(f"GRANT SELECT ON owner_metrics, account_metrics, batch_metrics TO reader_{hosts.schema}")
    try:
        views = "SELECT count(*) FROM account_metrics, owner_metrics, batch_metrics"
        assert hosts.execute(f"SET ROLE reader_{hosts.schema}", views) == [(0,)]
    finally:
        hosts.execute(f"DROP OWNED BY reader_{hosts.schema}; DROP ROLE reader_{hosts.schema}")


async def test_ledger_file_is_refused_with_what_to_pass(tmp_path: Path) -> None:
    said = await nanobanana("hosts", environ=environment())
    assert said.code == 2
    assert "postgresql://" in said.complaint

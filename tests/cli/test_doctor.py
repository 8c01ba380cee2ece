"""`nanobanana doctor`: each check says what is wrong and what to do, and nothing is bought or created."""

import asyncio
import json
import os
import re
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from nanobanana_async import ApiMall, Session, SqliteLedger
from nanobanana_async.cli.doctor import ledger_checks
from nanobanana_async.emulator import API_KEY, Emulator, Fixed, faults
from nanobanana_async.policy.account_state import AccountState
from nanobanana_async.policy.learned import LearnedAccount, LearnedLimits, LearnedPace, LearnedRates
from tests.support.command import Said, environment, nanobanana
from tests.support.postgres import Server, new_schema

Facts = dict[str, tuple[str, str]]


def facts(said: Said) -> Facts:
    """Return subject -> verdict and text."""
    found = [json.loads(line) for line in said.out.splitlines()]
    return {each["subject"]: (each["verdict"], f"{each['text']} {each['advice']}".strip()) for each in found}


@pytest.mark.parametrize("gateway", ["apimall", "defapi"])
async def test_all_is_well_with_either_gateway_and_nothing_is_bought(gateway: str) -> None:
    async with Emulator(credits=40, web_credits=Decimal(40)) as emulator:
        environ = environment(emulator, DEFAPI_API_KEY=API_KEY, NANOBANANA_GATEWAY=gateway)
        said = await nanobanana("doctor", "--json", environ=environ)
        stats = emulator.stats()
    found = facts(said)
    assert (said.code, {verdict for verdict, _ in found.values()}) == (0, {"ok"})
    assert found["API key"] == ("ok", "accepted")
    assert found["balance"] == ("ok", "40 credits")
    assert found["clock"] == ("ok", "agrees with the gateway's")
    assert stats.creates_received == 0
    assert not await asyncio.to_thread(os.path.exists, environ["NANOBANANA_LEDGER"])


@pytest.mark.parametrize("variable", ["APIMALL_API_KEY", "DEFAPI_API_KEY"])
async def test_wrong_key_is_a_problem_and_an_unknown_task_is_none(variable: str) -> None:
    async with Emulator() as emulator:
        environ = environment(emulator, NANOBANANA_GATEWAY=variable.partition("_")[0].lower())
        said = await nanobanana("doctor", "--json", environ={**environ, variable: "sk-another-0123456789"})
    found = facts(said)
    assert (said.code, found["API key"][0], "balance" in found) == (1, "problem", False)
    assert "check the API key" in found["API key"][1]
    assert "sk-another" not in said.out + said.err


async def test_lines_for_people_name_the_problem_and_count_it() -> None:
    environ = environment(APIMALL_API_KEY="k" * 20, NANOBANANA_BASE_URL="http://127.0.0.1:9")
    said = await nanobanana("doctor", environ=environ)
    assert (said.code, said.err) == (1, "1 problem\n")
    (line,) = [line for line in said.out.splitlines() if line.startswith("problem")]
    assert line.split()[1] == "network"
    assert "127.0.0.1" in line
    assert "--base-url" in line


async def test_missing_key_does_not_keep_the_ledger_from_being_checked(tmp_path: Path) -> None:
    said = await nanobanana("doctor", "--json", "--ledger", str(tmp_path / "jobs.sqlite"), environ=environment())
    found = facts(said)
    assert (said.code, found["settings"][0], found["ledger"][0]) == (1, "problem", "ok")
    assert "APIMALL_API_KEY" in found["settings"][1]


async def test_clock_that_is_wrong_is_a_problem() -> None:
    async with Emulator() as emulator:
        old = {"Date": "Mon, 01 Jan 2024 00:00:00 GMT"}
        emulator.queue_faults("apimall.query", faults.answer(404, headers=old, body=b'{"success": false}'))
        said = await nanobanana("doctor", "--json", environ=environment(emulator))
    verdict, text = facts(said)["clock"]
    assert (said.code, verdict) == (1, "problem")
    assert "ahead of the gateway's" in text


async def test_empty_account_is_a_problem() -> None:
    async with Emulator(credits=0) as emulator:
        said = await nanobanana("doctor", "--json", environ=environment(emulator))
    assert (said.code, facts(said)["balance"]) == (1, ("problem", "0 credits add credits at the gateway"))


async def test_what_was_learned_and_unfinished_jobs_are_shown(tmp_path: Path) -> None:
    async with Emulator(duration=Fixed(60)) as emulator:
        environ = environment(emulator, NANOBANANA_LEDGER=str(tmp_path / "jobs.sqlite"))
        gateway = emulator.apimall()
        async with Session(gateway, ledger=tmp_path / "jobs.sqlite") as session:
            await (await session.submit("a fox")).wait_for_task_id()
        ledger = SqliteLedger(tmp_path / "jobs.sqlite")
        await ledger.open()
        rates = LearnedRates(log_odds=3.0, both=LearnedPace(rate=1.0))
        limits = LearnedLimits(at=datetime.now(UTC), job_limit=5, rates=rates)
        await ledger.remember(gateway.account, LearnedAccount(limits=limits).to_json())
        await ledger.aclose()
        said = await nanobanana("doctor", "--json", environ=environ)
    found = facts(said)
    assert (said.code, found["ledger"][0]) == (0, "note")
    assert "1 job, 1 unfinished without a session" in found["ledger"][1]
    assert "jobs resume" in found["ledger"][1]
    assert "5 jobs at once, 60 requests a minute" in found["limits"][1]


@pytest.mark.slow
async def test_limits_that_hosts_learned_together_are_shown(postgres: Server) -> None:
    url = f"{postgres.tcp_url}?schema={new_schema()}"
    async with Emulator(duration=Fixed(0.3), job_limit=3) as emulator:
        environ = environment(emulator, NANOBANANA_LEDGER=url)
        async with Session(emulator.apimall(), ledger=url) as session:
            before = await nanobanana("doctor", "--json", environ=environ)
            async with asyncio.TaskGroup() as group:
                for number in range(10):
                    group.create_task(session.generate(f"a fox {number}"))
        after = await nanobanana("doctor", "--json", environ=environ)
    assert "nothing learned yet" in facts(before)["limits"][1]
    assert (after.code, facts(after)["limits"][0]) == (0, "ok")
    assert "3 jobs at once" in facts(after)["limits"][1]


@pytest.mark.slow
async def test_pause_that_a_host_met_is_shown(postgres: Server) -> None:
    schema = new_schema()
    url = f"{postgres.tcp_url}?schema={schema}"
    async with Emulator() as emulator:
        gateway = emulator.apimall()
        async with Session(gateway, ledger=url):
            pass
        state = AccountState(gate_until=datetime.now(UTC).timestamp() + 300).to_json()
        postgres.execute(f"UPDATE accounts SET state = '{state}'", schema=schema)
        said = await nanobanana("doctor", "--json", environ=environment(emulator, NANOBANANA_LEDGER=url))
    verdict, text = facts(said)["limits"]
    assert verdict == "note"
    assert re.search(r"paused for [45] min", text)


async def test_table_or_column_that_a_ledger_lacks_is_a_problem(tmp_path: Path) -> None:
    file = tmp_path / "jobs.sqlite"
    for change, lacks in (
        ("ALTER TABLE jobs DROP COLUMN model", f"{file} lacks column jobs.model"),
        ("DROP TABLE uploads", f"{file} lacks table uploads, column jobs.model"),
    ):
        async with Session(ApiMall(api_key=API_KEY), ledger=file):
            pass
        with closing(sqlite3.connect(file)) as db:
            db.execute(change)
            before = db.execute("SELECT name FROM sqlite_schema").fetchall()
        said = await nanobanana("doctor", "--json", "--ledger", str(file), environ=environment())
        verdict, text = facts(said)["ledger"]
        assert (said.code, verdict) == (1, "problem")
        assert text.startswith(lacks)
        assert "restore a backup" in text
        checked = await nanobanana("ledger", "check", "--ledger", str(file), environ=environment())
        assert (checked.code, checked.out) == (2, "")
        assert f"{lacks}: it was changed by hand" in checked.err
        with closing(sqlite3.connect(file)) as db:
            assert db.execute("SELECT name FROM sqlite_schema").fetchall() == before


@pytest.mark.slow
async def test_parts_that_a_shared_ledger_lacks_are_a_problem(postgres: Server) -> None:
    schema = new_schema()
    url = f"{postgres.tcp_url}?schema={schema}"
    async with Session(ApiMall(api_key=API_KEY), ledger=url):
        pass
    postgres.execute(
        "DROP TABLE uploads", "ALTER TABLE shares DROP COLUMN urgent", "DROP INDEX fed_rows_free", schema=schema
    )
    said = await nanobanana("doctor", "--json", "--ledger", url, environ=environment())
    verdict, text = facts(said)["ledger"]
    assert (said.code, verdict) == (1, "problem")
    assert "lacks index fed_rows_free, column shares.urgent, table uploads " in text


@pytest.mark.slow
async def test_only_a_ledger_that_can_be_made_or_migrated_is_said_to(postgres: Server) -> None:
    missing, newer = (f"{postgres.tcp_url}?schema={new_schema()}" for _ in range(2))
    async with Session(ApiMall(api_key=API_KEY), ledger=newer):
        pass
    postgres.execute("UPDATE meta SET min_client = 9", schema=newer.rpartition("=")[2])
    for url, said_so in ((missing, True), (newer, False)):
        said = await nanobanana("doctor", "--json", "--ledger", url, environ=environment())
        assert facts(said)["ledger"][0] == "problem"
        assert ("ledger migrate" in facts(said)["ledger"][1]) is said_so


async def test_file_that_is_no_ledger_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a ledger" * 100)
    said = await nanobanana("doctor", "--json", "--ledger", str(tmp_path / "notes.txt"), environ=environment())
    assert facts(said)["ledger"][0] == "problem"


def test_file_system_of_a_folder_is_that_of_its_nearest_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "mounts"
    table.write_text(
        f"a / ext4 rw 0 0\nb {tmp_path.resolve()}/with\\040space nfs4 rw 0 0\nc {tmp_path}/wi xfs rw 0 0\n"
    )
    monkeypatch.setattr(ledger_checks, "MOUNTS", table)
    (tmp_path / "with space" / "inner").mkdir(parents=True)
    assert ledger_checks.file_system_type(tmp_path / "with space" / "inner") == "nfs4"
    assert ledger_checks.file_system_type(tmp_path) == "ext4"

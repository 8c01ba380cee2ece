"""The commands on a ledger in PostgreSQL, named by `--ledger` or NANOBANANA_LEDGER."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from nanobanana_async import PostgresLedger
from nanobanana_async.emulator import Emulator, Fixed
from tests.ledger.child import line
from tests.ledger.postgres_child import host
from tests.support.command import Said, environment, nanobanana
from tests.support.ledger_contract import job
from tests.support.postgres import QUOTED_PASSWORD, Server, new_schema

pytestmark = pytest.mark.slow


class Commands:
    """Runs commands with a ledger of their own on the server."""

    def __init__(self, server: Server, emulator: Emulator, folder: Path) -> None:
        self.schema = new_schema()
        self.url = f"{server.tcp_url}?schema={self.schema}"
        self._environ: Mapping[str, str] = environment(emulator)
        self._folder = folder

    async def __call__(self, *words: str, by_option: bool = False) -> Said:
        named = {} if by_option else {"NANOBANANA_LEDGER": self.url}
        option = ["--ledger", self.url] if by_option else []
        said = await nanobanana(*words, *option, environ={**self._environ, **named}, folder=self._folder)
        for output in (said.out, said.err):
            assert QUOTED_PASSWORD not in output
        return said


@pytest.fixture
async def commands(postgres: Server, tmp_path: Path) -> AsyncIterator[Commands]:
    async with Emulator(duration=Fixed(0.1), image_scale=0.1) as emulator:
        yield Commands(postgres, emulator, tmp_path)


@pytest.mark.parametrize("by_option", [False, True])
async def test_job_of_generate_is_listed_shown_and_fetched(
    commands: Commands, tmp_path: Path, *, by_option: bool
) -> None:
    assert (await commands("generate", "a fox", "-o", "out", by_option=by_option)).code == 0
    listed = await commands("jobs", "--json", by_option=by_option)
    key = json.loads(listed.out)["key"]
    assert "succeeded" in (await commands("jobs", "show", key, by_option=by_option)).out
    assert (await commands("jobs", "fetch", key, "-o", "again", by_option=by_option)).code == 0
    images = {name: next((tmp_path / name).glob("*.*g")).read_bytes() for name in ("out", "again")}
    assert images["out"] == images["again"]
    assert set(os.listdir(tmp_path)) == {"out", "again"}  # no part of the URL became a file
    assert (await commands("jobs", "prune", "--older-than", "1d", "--yes", by_option=by_option)).code == 0


# A pause of this machine ends no lease: it lasts an hour, and ends when the test says so.
LONG_LEASE = "UPDATE owners SET lease_s = 3600"
END_OF_LEASE = "UPDATE owners SET lease_s = 1, beat_at = 'epoch'"


async def test_job_of_a_killed_host_is_resumed(commands: Commands, postgres: Server) -> None:
    async with host("leave", postgres.url, commands.schema, "order-1") as other:
        assert await line(other) == "held"
        await asyncio.to_thread(postgres.execute, LONG_LEASE, schema=commands.schema)
        assert (await commands("jobs", "resume", "--buy", "--yes")).err == "no jobs to resume\n"
        other.kill()
    await asyncio.to_thread(postgres.execute, END_OF_LEASE, schema=commands.schema)
    assert "1 job never sent, without a session" in (await commands("jobs")).err
    resumed = await commands("jobs", "resume", "--buy", "--yes")  # it waits until it is certain that the host is dead
    assert resumed.code == 0
    assert "/cdn/" in resumed.out
    assert "order-1\tsucceeded" in (await commands("jobs")).out


async def test_jobs_are_handed_over_and_counted(commands: Commands, postgres: Server) -> None:
    ledger = PostgresLedger(postgres.url, schema=commands.schema)
    await ledger.open()
    await ledger.claim(job("y", account="0" * 24))
    await ledger.aclose()
    handed = await commands("jobs", "hand-over", "--from", "0" * 24, "--to", "mine", "--yes")
    assert (handed.code, handed.out) == (0, "")
    assert "account          apimall:mine" in (await commands("jobs", "show", "y")).out


async def test_missing_ledger_is_an_error_and_not_created(commands: Commands) -> None:
    said = await commands("jobs")
    assert said.code == 2
    assert "there is no ledger in this schema" in said.err
    assert f"postgresql://postgres:***@127.0.0.1:{commands.url.rpartition(':')[2].partition('/')[0]}" in said.err


async def test_migrate_creates_the_tables_and_check_names_the_owners(commands: Commands, postgres: Server) -> None:
    assert (await commands("ledger", "check")).code == 2
    migrated = await commands("ledger", "migrate")
    assert (migrated.code, migrated.out.endswith(" is up to date\n")) == (0, True)
    async with host("hold", postgres.url, commands.schema) as other:
        assert await line(other) == "held"
        await asyncio.to_thread(postgres.execute, LONG_LEASE, schema=commands.schema)
        checked = (await commands("ledger", "check")).out
        assert f"owner 2: process {other.pid} on " in checked
        assert "1 owner, 0 silent\n2 jobs, 0 unfinished without an owner" in checked
        other.kill()
        await other.wait()
        await asyncio.to_thread(postgres.execute, END_OF_LEASE, schema=commands.schema)
        assert "1 owner, 1 silent\n2 jobs, 2 unfinished without an owner" in (await commands("ledger", "check")).out


async def test_ledger_commands_take_a_file_too(commands: Commands) -> None:
    assert (await commands("ledger", "migrate", "--ledger", "jobs.sqlite")).out == "ledger jobs.sqlite is up to date\n"
    assert (await commands("ledger", "check", "--ledger", "jobs.sqlite")).out.endswith(
        "0 jobs, 0 unfinished without an owner\n"
    )

"""A batch whose ledger is older than its results buys nothing until the user consents."""

import asyncio
import json
import shutil
import sqlite3
import time
from contextlib import closing
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from nanobanana_async.cli import app as cli
from nanobanana_async.cli.batch.folder import BatchFolder, FolderOwner
from nanobanana_async.cli.batch.lost_ledger import refuse_lost_ledger
from nanobanana_async.cli.batch.results import Result
from nanobanana_async.emulator import Script
from nanobanana_async.emulator.faults import reset
from nanobanana_async.errors import ConfigurationError
from nanobanana_async.jobs import JobState
from nanobanana_async.ledger.sqlite import SqliteLedger
from nanobanana_async.report import ReportRow
from tests.cli.batch_kills import lines_of
from tests.cli.batches import Command, emulated, requests
from tests.support.ledger_contract import EIGHT, about_to_be_sent, moved
from tests.support.records import NOON

OWNER = FolderOwner("b", emulated=False)


def line(key: str, after: timedelta = timedelta(0), **facts: Any) -> str:
    """Return the line of a row that was bought so long after noon."""
    usual = {"status": "succeeded", "task_id": f"t-{key}", "credits": Decimal(8), "sent_at": NOON + after}
    return Result(row=ReportRow(**{"index": 0, "job_key": key, **usual, **facts})).to_json()


def write_results(folder: Path, *lines: str) -> None:
    (folder / "results.jsonl").write_text("".join(f"{each}\n" for each in lines), encoding="utf-8")


async def buy(folder: Path, *keys: str, prune: bool = False) -> None:
    """Buy jobs at noon, which end an hour later, with the ledger of a folder."""
    ledger = SqliteLedger(folder / "jobs.sqlite")
    await ledger.open()
    for key in keys:
        record, _ = await about_to_be_sent(ledger, key, EIGHT, 1000)
        facts = {"task_id": f"t-{key}", "credits_used": Decimal(8), "running_since": NOON}
        record = await moved(ledger, record, JobState.RUNNING, **facts)
        await moved(ledger, record, JobState.SUCCEEDED, ended_at=NOON + timedelta(hours=1))
    if prune:
        assert await ledger.prune(NOON + timedelta(days=1)) == len(keys)
    await ledger.aclose()


async def check(folder: Path, found: FolderOwner = OWNER, *, new_ledger: bool = False) -> FolderOwner:
    return await asyncio.to_thread(refuse_lost_ledger, folder, OWNER, found, new_ledger=new_ledger)


async def test_results_that_the_ledger_knows_are_no_reason_to_refuse(tmp_path: Path) -> None:
    await buy(tmp_path, "b-0", prune=True)
    await buy(tmp_path, "b-1", "b-2")
    write_results(tmp_path, line("b-1"), line("b-2"), line("b-0", -timedelta(days=9)))  # the last one is pruned
    assert await check(tmp_path) == OWNER


async def test_rows_that_were_sent_after_all_that_the_ledger_knows_are_refused(tmp_path: Path) -> None:
    await buy(tmp_path, "b-1")
    later = timedelta(hours=2)
    doubtful = {"status": "uncertain", "task_id": None, "credits": None}
    write_results(tmp_path, line("b-1"), line("b-2", later), line("b-3", later, **doubtful), line("b-2", later))
    with pytest.raises(ConfigurationError, match=r"older than .*, which lists 2 rows bought since, for 8 credits"):
        await check(tmp_path)


@pytest.mark.parametrize(
    "facts",
    [
        {"status": "refused", "task_id": None, "credits": None},
        {"status": "failed", "credits": Decimal(0)},
        {
            "status": "unfinished",
            "task_id": None,
            "credits": None,
            "sent_at": None,
            "metadata": {"sent_at": "2030-01-01T00:00+00:00"},
        },
    ],
)
async def test_rows_that_cost_nothing_are_no_reason_to_refuse(tmp_path: Path, facts: dict[str, Any]) -> None:
    await buy(tmp_path, "b-1")
    write_results(tmp_path, line("b-1"), line("b-2", **{"sent_at": NOON + timedelta(days=1), **facts}))
    assert await check(tmp_path) == OWNER


async def test_a_ledger_from_which_all_was_pruned_is_not_older(tmp_path: Path) -> None:
    await buy(tmp_path, "b-1", "b-2", prune=True)
    write_results(tmp_path, line("b-1"), line("b-2"))
    assert await check(tmp_path) == OWNER
    write_results(tmp_path, line("b-1"), line("b-2"), line("b-3", timedelta(days=2)))  # more than it has counted
    with pytest.raises(ConfigurationError, match="is older than"):
        await check(tmp_path)


async def test_rows_that_an_older_ledger_lacks_are_refused_after_newer_purchases(tmp_path: Path) -> None:
    await buy(tmp_path, "b-0", prune=True)  # the oldest line is of this one
    await buy(tmp_path, "b-1", "other")
    hour = timedelta(hours=1)
    write_results(tmp_path, line("b-0", -hour), line("b-1"), line("b-2", -hour / 2), line("b-3", -hour / 4))
    with pytest.raises(ConfigurationError, match=r"lists 2 rows bought since, for 16 credits"):
        await check(tmp_path)


@pytest.mark.parametrize("facts", [{"status": "uncertain", "task_id": None}, {}, {"status": "unfinished"}])
async def test_rows_of_unknown_cost_are_lost_only_if_an_older_job_is_still_there(
    tmp_path: Path, facts: dict[str, Any]
) -> None:
    await buy(tmp_path)
    later = timedelta(hours=2)
    write_results(tmp_path, line("b-1"), line("b-2", later, **{"credits": None, **facts}))
    await buy(tmp_path, "b-1", prune=True)
    assert await check(tmp_path) == OWNER  # it may have been resolved and pruned, too
    await buy(tmp_path, "b-1")
    with pytest.raises(ConfigurationError, match=r"lists 1 row bought since: "):
        await check(tmp_path)


async def test_an_empty_ledger_knows_nothing(tmp_path: Path) -> None:
    await buy(tmp_path)
    write_results(tmp_path, line("b-1"))
    with pytest.raises(ConfigurationError, match="1 row bought since"):
        await check(tmp_path)


async def test_a_job_that_was_begun_again_is_newer_than_the_line_of_its_first_purchase(tmp_path: Path) -> None:
    await buy(tmp_path, "b-1")
    ledger = SqliteLedger(tmp_path / "jobs.sqlite")
    await ledger.open()
    record = await ledger.find("b-1")
    assert record is not None
    await ledger.advance(record, record.next_generation(body=b"{}", created_at=NOON + timedelta(hours=2)))
    await ledger.aclose()
    write_results(tmp_path, line("b-1"))
    assert await check(tmp_path) == OWNER


async def test_foreign_lines_are_ignored(tmp_path: Path) -> None:
    await buy(tmp_path, "b-1")
    foreign = (
        '"sent_at": "2030-01-01T00:00:00+00:00"',
        '{"sent_at": "tomorrow"}',
        '{"sent_at": "2030-01-01"}',
        "[" * 9000,
        "null",
        "\udcff",
    )
    content = "\n".join([*foreign, line("b-1")]).encode("utf-8", "surrogateescape")
    (tmp_path / "results.jsonl").write_bytes(content[:-9])
    assert await check(tmp_path) == OWNER


async def test_consent_is_remembered_for_the_rows_of_then(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    await buy(tmp_path, "b-1")
    later = timedelta(hours=2)
    write_results(tmp_path, line("b-1"), line("b-2", later))
    with BatchFolder(tmp_path / "marked", OWNER):
        pass
    consented = await check(tmp_path, new_ledger=True)
    assert consented == evolve(OWNER, unknown_until=NOON + later)
    said = " ".join(capsys.readouterr().err.split())
    assert "does not know 1 row of " in said
    assert "that were bought, for 8 credits: --max-credits and the credits spent leave them out" in said
    with BatchFolder(tmp_path / "marked", consented):
        assert FolderOwner.from_json((tmp_path / "marked" / ".nanobanana-batch").read_bytes()) == consented
    assert await check(tmp_path, consented) == consented
    with pytest.raises(ConfigurationError, match=r"exists, and knows what .* lists: --new-ledger is for"):
        await check(tmp_path, consented, new_ledger=True)
    write_results(tmp_path, line("b-1"), line("b-2", later), line("b-3", 2 * later))
    with pytest.raises(ConfigurationError, match="lists 1 row bought since"):
        await check(tmp_path, consented)


@pytest.mark.slow
async def test_results_of_many_rows_are_compared_in_little_time(tmp_path: Path) -> None:
    await buy(tmp_path, "b-0")
    keys = [f"b-{number}" for number in range(100_000)]
    write_results(tmp_path, *(line("b-0").replace('"b-0"', f'"{key}"') for key in keys))
    with closing(sqlite3.connect(tmp_path / "jobs.sqlite")) as ledger, ledger:
        names = [name for (name,) in ledger.execute("SELECT name FROM pragma_table_info('jobs')")]
        copied = ", ".join(name for name in names if name not in ("id", "key"))
        copy = f"INSERT INTO jobs (key, {copied}) SELECT ?, {copied} FROM jobs WHERE key = 'b-0'"
        ledger.executemany(copy, [(key,) for key in keys[1:]])
    began_at = time.perf_counter()
    assert await check(tmp_path) == OWNER
    assert time.perf_counter() - began_at < 3  # half a second on one core that has nothing else to do


@pytest.mark.slow
async def test_one_uncertain_row_that_was_resolved_and_pruned_is_bought_again(batch: Command) -> None:
    async with emulated(batch, "defapi", script=Script({"defapi.create": [reset(processed=True)]})) as emulator:
        await batch(batch.prompts(1))
        (row,) = lines_of(batch.out)
        assert row["status"] == "uncertain"
        for command in (("resolve", row["job_key"], "--as", "not-bought"), ("prune", "--older-than", "0h")):
            tokens = ["jobs", *command, "--ledger", "out/jobs.sqlite", "--yes"]
            assert await asyncio.to_thread(cli.run, tokens) == 0
        assert (await batch(batch.prompts(1))).code == 0
        assert emulator.stats().creates_accepted == 2


@pytest.mark.slow
async def test_an_older_copy_with_newer_purchases_buys_nothing_until_the_user_consents(batch: Command) -> None:
    ledger = batch.out / "jobs.sqlite"
    async with emulated(batch, "defapi") as emulator:
        assert (await batch(batch.prompts(1))).code == 0
        shutil.copy(ledger, batch.folder / "older.sqlite")
        assert (await batch(batch.prompts(4))).code == 0
        shutil.copy(batch.folder / "older.sqlite", ledger)
        assert await asyncio.to_thread(cli.run, ["generate", "an owl", "--ledger", "out/jobs.sqlite"]) == 0
        for image in (batch.out / "images").glob("*.png"):
            image.unlink()
        before = requests(emulator)
        assert "which lists 3 rows bought since, for 1.5 credits" in (await batch(batch.prompts(4))).complaint
        assert requests(emulator) == before


@pytest.mark.slow
async def test_an_older_copy_of_the_ledger_buys_nothing_until_the_user_consents(batch: Command) -> None:
    file, ledger = batch.prompts(5), batch.out / "jobs.sqlite"
    async with emulated(batch, "defapi") as emulator:
        assert (await batch(file, "--max-credits", "1")).code == 3
        shutil.copy(ledger, batch.folder / "older.sqlite")
        assert (await batch(file, "--max-credits", "2.5")).code == 0
        shutil.copy(ledger, batch.folder / "newer.sqlite")
        shutil.copy(batch.folder / "older.sqlite", ledger)
        file, before = batch.prompts(8), requests(emulator)
        for options in ((), ("--max-credits", "2.5"), ("--dry-run",)):
            said = await batch(file, *options)
            assert (said.code, said.out) == (2, "")
            expected = (
                "out/jobs.sqlite is older than out/results.jsonl, which lists 3 rows bought since, for 1.5 credits"
            )
            assert expected in said.complaint
        assert requests(emulator) == before
        assert (await batch(file, "--max-credits", "1.5", "--new-ledger")).code == 3
        assert emulator.stats().credits_charged == 3  # those of the unknown rows are not in the cap
        assert "unknown_until" in json.loads((batch.out / ".nanobanana-batch").read_text())
        shutil.copy(batch.folder / "newer.sqlite", ledger)
        assert "which lists 1 row bought since" in (await batch(file)).complaint

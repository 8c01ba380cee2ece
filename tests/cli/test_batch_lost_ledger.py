"""A batch whose ledger is older than its results buys nothing until the user consents."""

import asyncio
import json
import shutil
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from nanobanana_async.cli.batch.folder import BatchFolder, FolderOwner
from nanobanana_async.cli.batch.lost_ledger import refuse_lost_ledger
from nanobanana_async.cli.batch.results import Result
from nanobanana_async.errors import ConfigurationError
from nanobanana_async.jobs import JobState
from nanobanana_async.ledger.sqlite import SqliteLedger
from nanobanana_async.report import ReportRow
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
    assert await ledger.last_time() == NOON + timedelta(hours=2)
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

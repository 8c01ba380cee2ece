"""The credits that `nanobanana batch` prints are those of its ledger; without the ledger nothing is bought."""

import asyncio
import re
import signal
import sqlite3
from contextlib import closing
from decimal import Decimal
from pathlib import Path

import pytest

from nanobanana_async import SqliteLedger
from nanobanana_async.emulator import Emulator, Script
from nanobanana_async.emulator.faults import reset
from tests.cli.batch_kills import lines_of
from tests.cli.batches import Command, emulated, requests
from tests.support.command import Said, ended, environment, started
from tests.support.held import HeldJobs

pytestmark = pytest.mark.slow

NONE = Decimal(0)


def credits_of(said: Said) -> tuple[Decimal, Decimal]:
    """Return the credits that the summary says are spent and reserved."""
    # A slow run also has lines that show its progress, which begin otherwise.
    summary = re.compile(r"^\d+ rows: .*; ([\d.]+) credits spent(?:, and ([\d.]+) reserved)?", re.MULTILINE)
    (amounts,) = summary.findall(said.err)
    return Decimal(amounts[0]), Decimal(amounts[1] or 0)


def creates_in_flight(ledger: Path) -> int:
    """Return how many creates have no stored answer."""
    with closing(sqlite3.connect(ledger)) as connection:
        found = connection.execute("SELECT count(*) FROM jobs WHERE state = 'submitting'").fetchone()
    return int(found[0])


async def stopped_run(
    batch: Command, emulator: Emulator, *signals: signal.Signals, accepted: int, gateway: str
) -> Said:
    """Start a batch, and send it signals once the gateway has accepted so many jobs and their answers are stored."""
    environ = environment(emulator, NANOBANANA_GATEWAY=gateway, DEFAPI_API_KEY="emulator-key")
    async with started("batch", "foxes.txt", "-o", "out", environ=environ, folder=batch.folder) as process:
        while emulator.stats().creates_accepted < accepted:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.01)
        for _ in range(200):
            process.send_signal(signal.SIGSTOP)  # no create leaves between the look and the signals
            await asyncio.sleep(0.4)  # a thread stops when its write to the disk is over
            if not creates_in_flight(batch.folder / "out" / "jobs.sqlite"):
                break
            process.send_signal(signal.SIGCONT)
            await asyncio.sleep(0.01)
        for number in signals:
            process.send_signal(number)
        process.send_signal(signal.SIGCONT)
        return await ended(process)


@pytest.mark.parametrize("gateway", ["apimall", "defapi"])
async def test_adopted_jobs_count_once_after_a_kill(batch: Command, gateway: str) -> None:
    batch.prompts(12)
    held = HeldJobs(quick=4)
    async with emulated(batch, gateway, job_limit=4, duration=held) as emulator:
        await stopped_run(batch, emulator, signal.SIGKILL, accepted=8, gateway=gateway)
        held.release(emulator)
        said = await batch("foxes.txt")
        assert (said.code, credits_of(said)) == (0, (emulator.stats().credits_charged, NONE))
        assert credits_of(await batch("foxes.txt")) == (emulator.stats().credits_charged, NONE)
        assert emulator.stats().creates_accepted == 12


async def test_two_signals_print_spent_and_reserved_credits_apart(batch: Command) -> None:
    batch.prompts(12)
    held = HeldJobs(quick=4)
    async with emulated(batch, "defapi", job_limit=4, duration=held) as emulator:
        said = await stopped_run(batch, emulator, signal.SIGTERM, signal.SIGINT, accepted=8, gateway="defapi")
        assert said.code == 130
        assert emulator.stats().creates_accepted == 8
        assert len(lines_of(batch.out)) <= 4  # their images may not have arrived
        assert credits_of(said) == (Decimal("0.5") * 4, Decimal("0.5") * 4)
        assert "2 reserved for jobs that run or are in doubt" in said.err
        held.release(emulator)
        assert (await batch("foxes.txt")).code == 0


async def test_an_uncertain_row_is_reserved_in_every_run(batch: Command) -> None:
    file = batch.prompts(2)
    async with emulated(batch, "defapi", script=Script({"defapi.create": [reset(processed=True)]})):
        for _ in range(3):
            assert credits_of(await batch(file, "--max-jobs", "1")) == (Decimal("0.5"), Decimal("0.5"))
            page = (batch.out / "index.html").read_text(encoding="utf-8")
            facts = dict(re.findall(r"<dt>(credits \w+)</dt><dd>(.*?)</dd>", page))
            assert facts == {"credits spent": "0.5", "credits reserved": "0.5"}


async def test_the_ledger_knows_a_batch_by_its_name(batch: Command) -> None:
    async with emulated(batch) as emulator:
        await batch(batch.prompts(3), "--name", "spring")
        assert emulator.stats().credits_charged == 24
    ledger = SqliteLedger(batch.out / "jobs.sqlite")
    await ledger.open()
    assert [await ledger.spent_or_reserved(name) for name in ("spring", "autumn")] == [24, 0]
    assert await ledger.reserved("spring") == 0
    await ledger.aclose()


@pytest.mark.parametrize("left", ["results", "page", "images"])
async def test_a_missing_ledger_is_refused_until_the_user_consents(batch: Command, left: str) -> None:
    file = batch.prompts(2)
    async with emulated(batch) as emulator:
        await batch(file, "--max-credits", "16")
        _lose_the_ledger(batch.out, keep={"results": "results.jsonl", "page": "index.html"}.get(left, "images"))
        before = requests(emulator)
        for options in ((), ("--max-credits", "16"), ("--dry-run",)):
            said = await batch(file, *options)
            assert (said.code, said.out) == (2, "")
            assert "out/jobs.sqlite is missing, the record of what this batch has bought" in said.complaint
            assert "--new-ledger" in said.complaint
        assert (requests(emulator), (batch.out / "jobs.sqlite").exists()) == (before, False)
        assert (await batch(file, "--new-ledger")).code == 0
        assert emulator.stats().creates_accepted == 2  # API Mall knows the keys of a lost ledger
        said = await batch(file, "--new-ledger")
        assert "exists, and knows what out/results.jsonl lists: --new-ledger is for" in said.complaint


async def test_a_first_run_that_bought_nothing_needs_no_consent(batch: Command) -> None:
    async with emulated(batch) as emulator:
        await batch(batch.prompts(1))
        for path in sorted(batch.out.rglob("*"), reverse=True):
            if path.name != ".nanobanana-batch":
                path.rmdir() if path.is_dir() else path.unlink()
        (batch.out / "images").mkdir()
        await batch("foxes.txt")
        assert emulator.stats().creates_received == 2


def _lose_the_ledger(folder: Path, *, keep: str) -> None:
    (folder / "jobs.sqlite").unlink()
    for name in {"results.jsonl", "index.html"} - {keep}:
        (folder / name).unlink()
    if keep != "results.jsonl":
        (folder / "results.jsonl").unlink(missing_ok=True)
    if keep in ("index.html",):
        for image in (folder / "images").iterdir():
            image.unlink()

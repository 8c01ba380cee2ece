"""`nanobanana jobs reconcile`, and what `jobs show` says about an uncertain job."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from nanobanana_async import ImageRequest, JobState
from nanobanana_async.candidates import MOST_CANDIDATES, Candidate
from nanobanana_async.cli.jobs.format import job_details
from nanobanana_async.emulator import Emulator, Fixed
from nanobanana_async.engine.doubt import candidate_count_text
from nanobanana_async.jobs import JobRecord
from tests.cli.test_jobs import opened
from tests.support.command import environment, nanobanana
from tests.support.ledger_contract import job
from tests.support.loopback import emulated

NOW = datetime(2026, 3, 12, 12, tzinfo=UTC)


def uncertain(emulator: Emulator, *, began_s: float, **facts: Any) -> JobRecord:
    """Return an uncertain job that was sent at a time of the emulator's clock, long ago."""
    gateway = emulator.apimall()
    request = ImageRequest("a fox", model=gateway.model)
    sent_at = datetime.now(UTC) - timedelta(hours=1) + timedelta(seconds=began_s)
    usual: dict[str, Any] = {
        "account": gateway.account,
        "request": request,
        "body": gateway.encode(request),
        "state": JobState.UNCERTAIN,
        "in_doubt": True,
        "first_sent_at": sent_at,
        "sent_at": sent_at,
        "lost_at": sent_at + timedelta(seconds=1),
    }
    return job("fox-1", **{**usual, **facts})


async def write(path: Path, record: JobRecord) -> None:
    async with opened(path) as ledger:
        await ledger.claim(record)


async def test_reconcile_reports_a_job_that_was_not_bought(tmp_path: Path) -> None:
    async with emulated(history=True) as emulator:
        await write(tmp_path / "jobs.sqlite", uncertain(emulator, began_s=0.0))
        environ = environment(emulator, NANOBANANA_LEDGER=str(tmp_path / "jobs.sqlite"))
        said = await nanobanana("jobs", "reconcile", environ=environ)
        assert (said.code, said.out) == (0, "")
        assert "job fox-1 was not bought" in said.err
        assert "1 job not bought: `nanobanana jobs resume --buy" in said.err
        again = await nanobanana("jobs", "reconcile", environ=environ)
        assert (again.code, "no uncertain jobs" in again.err) == (0, True)
        assert emulator.stats().creates_received == 0


async def test_reconcile_leaves_a_job_with_one_candidate_and_show_lists_it(tmp_path: Path) -> None:
    async with emulated(history=True, started_at=datetime.now(UTC), duration=Fixed(0.01)) as emulator:
        (foreign,) = emulator.add_foreign_tasks(-3599.5)
        await write(tmp_path / "jobs.sqlite", uncertain(emulator, began_s=0.0))
        environ = environment(emulator, NANOBANANA_LEDGER=str(tmp_path / "jobs.sqlite"))
        said = await nanobanana("jobs", "reconcile", environ=environ)
        assert said.code == 1
        assert "job fox-1 stays uncertain: 1 task could be it" in said.err
        shown = (await nanobanana("jobs", "show", "fox-1", environ=environ)).out
        assert f"candidate 1      task {foreign}, created" in shown
        assert f"to take it       `nanobanana jobs resolve fox-1 {foreign} --as task-id" in shown


async def test_show_has_a_command_for_each_of_several_candidates(tmp_path: Path) -> None:
    async with emulated(history=True, started_at=datetime.now(UTC), duration=Fixed(0.01)) as emulator:
        tasks = emulator.add_foreign_tasks(-3599.5, -3599.4)
        await write(tmp_path / "jobs.sqlite", uncertain(emulator, began_s=0.0))
        environ = environment(emulator, NANOBANANA_LEDGER=str(tmp_path / "jobs.sqlite"))
        await nanobanana("jobs", "reconcile", environ=environ)
        shown = (await nanobanana("jobs", "show", "fox-1", environ=environ)).out
    assert "to take one      compare their images and times with the prompt and the first send" in shown
    assert all(f"`nanobanana jobs resolve fox-1 {task} --as task-id" in shown for task in tasks)
    assert " ID " not in shown.partition("to take one")[2]


async def test_reconcile_follows_a_job_that_was_bought(tmp_path: Path) -> None:
    async with emulated(history=True, started_at=datetime.now(UTC), duration=Fixed(0.01)) as emulator:
        emulator.add_foreign_tasks(-3599.5)
        found = uncertain(emulator, began_s=0.0)
        assert found.lost_at is not None
        await write(
            tmp_path / "jobs.sqlite",
            uncertain(emulator, began_s=0.0, conflict_at=found.lost_at + timedelta(seconds=100)),
        )
        environ = environment(emulator, NANOBANANA_LEDGER=str(tmp_path / "jobs.sqlite"))
        said = await nanobanana("jobs", "reconcile", environ=environ)
        assert said.code == 0
        assert said.out.startswith("fox-1\thttp://127.0.0.1")
        assert "job fox-1 is task img_" in said.err


@pytest.mark.parametrize(
    ("facts", "line"),
    [
        ({}, "in doubt         no"),
        ({"in_doubt": True}, "in doubt         yes: a create may have been accepted"),
        ({"in_doubt": True, "conflict_at": NOW}, "(the gateway knows its key: 409)"),
    ],
)
def test_show_says_what_is_known_of_a_doubt(facts: dict[str, Any], line: str) -> None:
    assert line in job_details(job(**facts), Path("jobs.sqlite"), followed=False, now=NOW)


def test_show_lists_candidates_with_their_images() -> None:
    candidates = (
        Candidate(task_id="t1", created_at=NOW, image_url="https://cdn.example/1.png"),
        Candidate(task_id="t2", created_at=NOW),
    )
    record = job(state=JobState.UNCERTAIN, in_doubt=True, candidates=candidates)
    shown = job_details(record, Path("jobs.sqlite"), followed=False, now=NOW)
    assert "task t1, created" in shown
    assert "https://cdn.example/1.png" in shown
    assert "no image yet" in shown
    assert "`nanobanana jobs resolve order-1 t2 --as task-id --ledger jobs.sqlite`" in shown


@pytest.mark.parametrize(("known", "more"), [(2, False), (MOST_CANDIDATES, True)])
def test_show_says_that_there_may_be_more_candidates(known: int, more: bool) -> None:
    candidates = tuple(Candidate(task_id=f"t{number}", created_at=NOW) for number in range(known))
    record = job(state=JobState.UNCERTAIN, in_doubt=True, candidates=candidates)
    shown = job_details(record, Path("jobs.sqlite"), followed=False, now=NOW)
    assert (f"only the {MOST_CANDIDATES} nearest in time" in shown) is more
    assert candidate_count_text(candidates) == ("20 tasks or more" if more else "2 tasks")

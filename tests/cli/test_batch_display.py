"""The batch display: on a terminal, in a pipe, for large batches and for an unknown number of rows."""

import io
import time
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from attrs import evolve
from rich.console import Console

from nanobanana_async import RateLimited, SessionStats
from nanobanana_async.cli.batch.display import COLLECTING, BatchDisplay
from nanobanana_async.errors import TransportError
from nanobanana_async.events import BudgetUsedUp, CreateFailed, JobStateChanged
from nanobanana_async.jobs import JobState
from tests.support.ledger_contract import job

STATS = SessionStats(
    job_limit=12,
    max_creates_per_s=None,
    limit_kind=None,
    creates_paused=False,
    outage=None,
    slots_held=12,
    queued=3,
    requests_in_flight=1,
    polls=9,
    throttled=1,
    job_duration_median_s=30.0,
    job_duration_sigma=0.0,
    succeeded=0,
    failed=0,
    refused=0,
    uncertain=0,
    withdrawn=0,
    credits_spent=Decimal(99),
    credits_remaining=None,
)


class Scene:
    """A display with a clock that tests set."""

    def __init__(self, total: int | None, *, terminal: bool = True, **settings: Any) -> None:
        self.now = 0.0
        self.output = io.StringIO()
        console = Console(file=self.output, force_terminal=terminal, width=80, height=24, color_system=None)
        self.display = BatchDisplay(total, console, lambda: self.now, **settings)
        self.display.phase = ""
        self.display.spent = Decimal("16.50")

    def rendered(self, width: int = 80) -> list[str]:
        output = io.StringIO()
        Console(file=output, width=width, color_system=None).print(self.display._render())
        return output.getvalue().splitlines()


def test_the_display_shows_rows_slots_credits_and_remaining_time() -> None:
    scene = Scene(300, max_credits=Decimal(60))
    for status in ["succeeded"] * 50 + ["failed", "uncertain"]:
        scene.display.add_from_earlier_run(status)
    scene.display.tick(STATS)
    scene.display.reserved = Decimal(2)
    bar, rows, facts = scene.rendered()
    assert bar.endswith("17 %")
    assert rows == "52/300 rows, 50 succeeded, 1 failed, 1 uncertain, 12 running, limit 12"
    assert facts == "16.5 of 60 credits spent, 2 reserved, about 10 min 20 s left"  # 248 rows of 30 s, twelve at a time


def test_the_bar_counts_what_running_rows_have_done_and_never_goes_back() -> None:
    scene = Scene(10)
    scene.display.add_from_earlier_run("succeeded")
    percents = []
    for running in (0.0, 2.5, 5.5, 1.0):  # the last: rows have ended whose results are not written yet
        scene.display.tick(STATS, running)
        percents.append(scene.rendered()[0].split()[-2])
    assert percents == ["10", "35", "65", "65"]
    assert scene.rendered()[1].startswith("1/10 rows")
    for _ in range(9):
        scene.display.add_from_earlier_run("succeeded")
    scene.display.tick(STATS, 0.0)
    assert scene.rendered()[0].endswith("100 %")


def test_the_remaining_time_follows_the_pace() -> None:
    scene = Scene(300)
    for _ in range(60):
        scene.now += 1
        scene.display.ended("key", "succeeded", "a fox", None)
        scene.display.tick(STATS)
    assert round(scene.display.rows_per_minute() or 0) == 60
    assert round(scene.display.left_s() or 0) == 240
    assert "60 rows a minute, about 4 min left" in scene.rendered()[2]


def running(key: str) -> JobStateChanged:
    return JobStateChanged(before=JobState.SUBMITTING, record=evolve(job(), key=key, state=JobState.RUNNING))


def succeeded(key: str) -> JobStateChanged:
    return JobStateChanged(before=JobState.RUNNING, record=evolve(job(), key=key, state=JobState.SUCCEEDED))


def paced(total: int = 300) -> Scene:
    """Return a scene after a minute at 60 rows a minute, with jobs that began 10, 5 and 4 seconds ago."""
    scene = Scene(total)
    for number in range(60):
        scene.now += 1
        scene.display.ended(f"row-{number}", "succeeded", "a fox", None)
        scene.display.tick(STATS)
        if number in (49, 54, 55):
            scene.display(running(f"late-{number}"))
    return scene


def test_a_stopped_batch_shows_what_is_left_to_collect() -> None:
    scene = paced()
    scene.display.phase = COLLECTING
    scene.display.tick(evolve(STATS, slots_held=3))
    assert scene.rendered()[2] == "collecting 3 running jobs, 16.5 credits spent, about 26 s left"
    scene.display(succeeded("late-54"))
    scene.display(succeeded("late-55"))
    scene.display.tick(evolve(STATS, slots_held=1))
    expected = "collecting 1 running job and saving the images of 2 jobs, 16.5 credits spent, about 20 s left"
    assert " ".join(scene.rendered(120)[2].split()) == expected
    scene.display.ended("late-54", "succeeded", "a fox", None)
    scene.display.ended("late-55", "unfinished", "a fox", "the link has expired")
    scene.now += 25
    assert scene.rendered()[2] == "collecting 1 running job, 16.5 credits spent"  # it should have ended 5 seconds ago
    scene.display(succeeded("late-49"))
    scene.display.tick(evolve(STATS, slots_held=0))
    assert scene.rendered()[2] == "saving the images of 1 job, 16.5 credits spent"
    scene.display.ended("late-49", "succeeded", "a fox", None)
    assert scene.rendered()[2] == "collecting running jobs, 16.5 credits spent"


def test_the_last_rows_of_a_batch_are_estimated_by_their_jobs() -> None:
    scene = paced(total=63)
    scene.display.tick(evolve(STATS, slots_held=3))
    assert scene.rendered()[2] == "collecting 3 running jobs, 16.5 credits spent, about 26 s left"
    scene.display.tick(evolve(STATS, slots_held=2))  # a row waits to be sent
    assert "60 rows a minute, about 3 s left" in scene.rendered()[2]


def test_no_time_is_left_while_the_run_is_closing() -> None:
    scene = paced()
    assert scene.display.left_s() is not None
    for scene.display.phase in ("closing", "writing index.html"):
        assert scene.display.left_s() is None
        assert "left" not in scene.rendered()[2]


def test_the_number_of_rows_may_be_unknown() -> None:
    scene = Scene(None)
    scene.display.ended("key", "succeeded", "a fox", None)
    scene.display.tick(evolve(STATS, job_limit=None, job_duration_median_s=None))
    assert scene.rendered()[1] == "1 row, 1 succeeded, 12 running, limit unknown"
    assert scene.display.left_s() is None


def test_the_last_problem_is_shown_for_a_while_except_throttling() -> None:
    scene = Scene(9)
    scene.display(CreateFailed(record=job(), error=RateLimited("too many"), action="again", wait_s=1.0))
    assert len(scene.rendered()) == 3 - 1 + 1
    error = TransportError("the line is cut\x1b[2J " + "x" * 300, possibly_sent=True)
    scene.display(CreateFailed(record=job(), error=error, action="again", wait_s=1.0))
    scene.now = 4.0
    problem = scene.rendered()[-1]
    assert problem.startswith("4 s ago: the line is cut\\x1b[2J xxx")
    assert len(problem) <= 80
    scene.now = 60.0
    assert not any("ago" in line for line in scene.rendered())


def test_a_small_batch_in_a_pipe_prints_a_line_per_row() -> None:
    scene = Scene(2, terminal=False)
    scene.display.ended("key", "succeeded", "a fox", None)
    scene.display.ended("key", "failed", "a\nlynx", "no\x1b[31m")
    scene.display.tick(STATS)
    assert scene.output.getvalue().splitlines() == ["1/2 succeeded: a fox", "2/2 failed: a lynx: no\\x1b[31m"]


def test_rows_with_a_line_on_stdout_are_not_printed_again() -> None:
    scene = Scene(2, terminal=False, on_stdout=True)
    scene.display.ended("key", "succeeded", "a fox", None)
    scene.now += 6
    scene.display.tick(STATS)
    (line,) = scene.output.getvalue().splitlines()
    assert line.startswith("1/2 rows, 1 succeeded, 12 running, limit 12; ")


def test_a_large_batch_in_a_pipe_prints_periodic_summaries() -> None:
    scene = Scene(100_000, terminal=False)
    for _ in range(100):
        scene.now += 0.25
        scene.display.ended("key", "succeeded", "a fox", None)
        scene.display.tick(STATS)
    lines = scene.output.getvalue().splitlines()
    assert len(lines) == 5
    assert lines[-1].startswith("100/100000 rows, 100 succeeded, 12 running, limit 12; 16.5 credits spent, 2")


def test_a_hundred_thousand_rows_are_cheap_to_show() -> None:
    scene = Scene(100_000)
    began_at = time.process_time()
    for number in range(100_000):
        scene.now += 0.001
        scene.display.ended("key", "succeeded", "a fox", None)
        if number % 250 == 0:
            scene.display.tick(STATS)
    took_s = time.process_time() - began_at
    assert took_s < 2
    assert len(scene.rendered()) == 3
    assert len(scene.display._ended) <= 61


def test_the_display_shows_when_a_used_up_budget_is_filled_again() -> None:
    scene = Scene(300, terminal=False)
    until = datetime(2026, 1, 2, tzinfo=UTC)
    scene.display(BudgetUsedUp(record=job(), error=RateLimited("no more"), until=until))
    assert scene.output.getvalue() == (
        "nanobanana: the account's daily budget of requests is used up; goes on at 2 Jan 2026, 00:00 UTC\n"
    )
    scene.display.tick(evolve(STATS, creates_paused=True, paused_until=until))
    shown = " ".join(scene.rendered(200))
    assert "the account's daily budget is used up; goes on at 2 Jan 2026, 00:00 UTC" in shown
    assert "paused by the gateway" not in shown


def test_outage_is_shown_with_its_reason_and_is_no_pause_of_the_gateway() -> None:
    scene = Scene(300)
    why = "can't reach gateway.example: Connection refused"
    scene.display.tick(evolve(STATS, creates_paused=True, outage=why))
    text = " ".join(scene.rendered(200))
    assert why in text
    assert "paused" not in text
    scene.display.tick(evolve(STATS, creates_paused=True))
    assert "paused by the gateway" in " ".join(scene.rendered(200))


def test_each_of_several_accounts_has_a_line_with_its_slots_and_why_it_waits() -> None:
    scene = Scene(300)
    scene.display.accounts = {
        "apimall:a": evolve(STATS, job_limit=5, slots_held=4),
        "apimall:b": evolve(
            STATS, job_limit=None, slots_held=0, queued=0, rests_for_s=42.3, rests_because="no credits"
        ),
    }
    scene.display.tick(STATS)
    lines = scene.rendered(200)
    assert lines[1].endswith("12 running, limit 12")
    assert lines[2] == "apimall:a: 4 running, limit 5, 3 waiting"
    assert lines[3] == "apimall:b: 0 running, limit unknown, 0 waiting, rests for 42 s: no credits"
    scene.display.accounts = {"apimall:a": STATS}
    assert "apimall:a" not in " ".join(scene.rendered(200))

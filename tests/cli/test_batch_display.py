"""The batch display: on a terminal, in a pipe, for large batches and for an unknown number of rows."""

import io
import time
from decimal import Decimal
from typing import Any

from attrs import evolve
from rich.console import Console

from nanobanana_async import RateLimited, SessionStats
from nanobanana_async.cli.batch.display import BatchDisplay
from nanobanana_async.errors import TransportError
from nanobanana_async.events import CreateFailed
from tests.support.ledger_contract import job

STATS = SessionStats(
    job_limit=12,
    creates_per_s=None,
    limit_kind=None,
    creates_paused=False,
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


def test_stopped_batch_shows_what_is_left_to_collect_and_no_remaining_time() -> None:
    scene = Scene(300)
    scene.display.tick(STATS)
    assert "left" in scene.rendered()[2]
    scene.display.collecting = True
    assert scene.rendered()[2].endswith("12 running jobs left to collect, no more are bought")
    scene.display.tick(evolve(STATS, slots_held=1))
    assert scene.rendered()[2].endswith("1 running job left to collect, no more are bought")
    scene.display.tick(evolve(STATS, slots_held=0))
    assert scene.rendered()[2].endswith("the last images are being saved, no more are bought")


def test_the_display_shows_rows_slots_credits_and_remaining_time() -> None:
    scene = Scene(300, max_credits=Decimal(60))
    for status in ["succeeded"] * 50 + ["failed", "uncertain"]:
        scene.display.add_finished(status)
    scene.display.tick(STATS)
    scene.display.reserved = Decimal(2)
    bar, rows, facts = scene.rendered()
    assert bar.endswith("17 %")
    assert rows == "52/300 rows, 50 succeeded, 1 failed, 1 uncertain, 12 running, limit 12"
    assert facts == "16.5 of 60 credits, 2 reserved, about 10 min 20 s left"  # 248 rows of 30 s, twelve at a time


def test_the_remaining_time_follows_the_pace() -> None:
    scene = Scene(300)
    for _ in range(60):
        scene.now += 1
        scene.display.ended("succeeded", "a fox", None)
        scene.display.tick(STATS)
    assert round(scene.display.rows_per_minute() or 0) == 60
    assert round(scene.display.left_s() or 0) == 240
    assert "60 rows a minute, about 4 min left" in scene.rendered()[2]


def test_the_number_of_rows_may_be_unknown() -> None:
    scene = Scene(None)
    scene.display.ended("succeeded", "a fox", None)
    scene.display.tick(evolve(STATS, job_limit=None, job_duration_median_s=None))
    assert scene.rendered()[1] == "1 rows, 1 succeeded, 12 running, limit unknown"
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
    scene.display.ended("succeeded", "a fox", None)
    scene.display.ended("failed", "a\nlynx", "no\x1b[31m")
    scene.display.tick(STATS)
    assert scene.output.getvalue().splitlines() == ["1/2 succeeded: a fox", "2/2 failed: a lynx: no\\x1b[31m"]


def test_a_large_batch_in_a_pipe_prints_periodic_summaries() -> None:
    scene = Scene(100_000, terminal=False)
    for _ in range(100):
        scene.now += 0.25
        scene.display.ended("succeeded", "a fox", None)
        scene.display.tick(STATS)
    lines = scene.output.getvalue().splitlines()
    assert len(lines) == 5
    assert lines[-1].startswith("100/100000 rows, 100 succeeded, 12 running, limit 12; 16.5 credits, 2")


def test_a_hundred_thousand_rows_are_cheap_to_show() -> None:
    scene = Scene(100_000)
    began_at = time.process_time()
    for number in range(100_000):
        scene.now += 0.001
        scene.display.ended("succeeded", "a fox", None)
        if number % 250 == 0:
            scene.display.tick(STATS)
    took_s = time.process_time() - began_at
    assert took_s < 2
    assert len(scene.rendered()) == 3
    assert len(scene.display._ended) <= 61

"""What a batch shows: on a terminal, without one, with a hundred thousand rows, without a known number."""

import io
import time
from decimal import Decimal
from typing import Any

from attrs import evolve
from rich.console import Console

from nanobanana_async import RateLimited, SessionStats
from nanobanana_async.cli.batch.display import BatchDisplay, duration
from nanobanana_async.errors import TransportError
from nanobanana_async.events import CreateFailed
from tests.ledger.contract import job

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
    credits_spent=Decimal("16.50"),
    credits_remaining=None,
)


class Scene:
    """A board whose clock stands still until it is moved."""

    def __init__(self, total: int | None, *, terminal: bool = True, **settings: Any) -> None:
        self.now = 0.0
        self.page = io.StringIO()
        console = Console(file=self.page, force_terminal=terminal, width=80, height=24, color_system=None)
        self.board = BatchDisplay(total, console, lambda: self.now, **settings)
        self.board.phase = ""

    def picture(self, width: int = 80) -> list[str]:
        page = io.StringIO()
        Console(file=page, width=width, color_system=None).print(self.board._picture())
        return page.getvalue().splitlines()


def test_it_tells_rows_slots_credits_and_the_time_that_is_left() -> None:
    scene = Scene(300, max_credits=Decimal(60))
    for status in ["succeeded"] * 50 + ["failed", "uncertain"]:
        scene.board.known(status)
    scene.board.tick(STATS)
    bar, rows, facts = scene.picture()
    assert bar.endswith("17 %")
    assert rows == "52/300 rows, 50 succeeded, 1 failed, 1 uncertain, 12 running, limit 12"
    assert facts == "16.5 of 60 credits, about 10 min left"  # 248 rows of half a minute, twelve at a time


def test_the_pace_counts_once_it_is_known() -> None:
    scene = Scene(300)
    for _ in range(60):
        scene.now += 1
        scene.board.ended("succeeded", "a fox", None)
        scene.board.tick(STATS)
    assert round(scene.board.rows_per_minute() or 0) == 60
    assert round(scene.board.left_s() or 0) == 240
    assert "60 rows a minute, about 4 min 00 s left" in scene.picture()[2]


def test_an_unknown_number_of_rows_is_no_obstacle() -> None:
    scene = Scene(None)
    scene.board.ended("succeeded", "a fox", None)
    scene.board.tick(evolve(STATS, job_limit=None, job_duration_median_s=None))
    assert scene.picture()[1] == "1 rows, 1 succeeded, 12 running, limit not met yet"
    assert scene.board.left_s() is None


def test_the_last_trouble_is_one_line_for_a_while_and_finding_the_limit_is_none() -> None:
    scene = Scene(9)
    scene.board(CreateFailed(record=job(), error=RateLimited("too many"), action="again", wait_s=1.0))
    assert len(scene.picture()) == 3 - 1 + 1
    error = TransportError("the line is cut\x1b[2J " + "x" * 300, possibly_sent=True)
    scene.board(CreateFailed(record=job(), error=error, action="again", wait_s=1.0))
    scene.now = 4.0
    trouble = scene.picture()[-1]
    assert trouble.startswith("4 s ago: the line is cut\\x1b[2J xxx")
    assert len(trouble) <= 80
    scene.now = 60.0
    assert not any("ago" in line for line in scene.picture())


def test_without_a_terminal_each_row_of_a_small_batch_is_a_line() -> None:
    scene = Scene(2, terminal=False)
    scene.board.ended("succeeded", "a fox", None)
    scene.board.ended("failed", "a\nlynx", "no\x1b[31m")
    scene.board.tick(STATS)
    assert scene.page.getvalue().splitlines() == ["1/2 succeeded: a fox", "2/2 failed: a lynx: no\\x1b[31m"]


def test_without_a_terminal_a_large_batch_says_how_it_stands_now_and_then() -> None:
    scene = Scene(100_000, terminal=False)
    for _ in range(100):
        scene.now += 0.25
        scene.board.ended("succeeded", "a fox", None)
        scene.board.tick(STATS)
    lines = scene.page.getvalue().splitlines()
    assert len(lines) == 5
    assert lines[-1].startswith("100/100000 rows, 100 succeeded, 12 running, limit 12; 16.5 credits, 2")


def test_a_hundred_thousand_rows_are_shown_as_cheaply_as_ten() -> None:
    scene = Scene(100_000)
    began_at = time.process_time()
    for number in range(100_000):
        scene.now += 0.001
        scene.board.ended("succeeded", "a fox", None)
        if number % 250 == 0:
            scene.board.tick(STATS)
    took_s = time.process_time() - began_at
    assert took_s < 2
    assert len(scene.picture()) == 3
    assert len(scene.board._ended) <= 61


def test_durations_are_told_in_what_fits_them() -> None:
    told = [duration(seconds) for seconds in (-1, 0.4, 99, 100, 125, 3000, 6000, 90_000, 400_000)]
    assert told == ["0 s", "0 s", "99 s", "1 min 40 s", "2 min 05 s", "50 min", "1 h 40 min", "25 h 00 min", "5 days"]

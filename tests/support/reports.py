"""Example reports: generated rows, painted images, and a run with a limit, refusals and a pause.

`python tests/support/reports.py FOLDER [ROWS]` writes one.
"""

import itertools
import math
import random
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from attrs import evolve

from nanobanana_async.emulator.composition import ImageSpec
from nanobanana_async.emulator.images import paint, size_of
from nanobanana_async.events import JobPolled, JobStateChanged, LimitsChanged
from nanobanana_async.jobs import JobRecord, JobState
from nanobanana_async.report import Recorder, ReportRow, write_report

START = datetime(2026, 3, 14, 9, 26, 53, tzinfo=UTC)
LIMIT = 20

_SUBJECTS = ("a lighthouse", "an old library", "a greenhouse", "a night train", "a harbour", "a clock tower", "a fjord")
_MOODS = ("in fog", "at first light", "under the northern lights", "in a summer storm", "on the last day of autumn")
_STYLES = (
    "",
    ", oil on canvas",
    ", long exposure, 35 mm film, muted palette, the foreground out of focus and a single figure with an umbrella",
)
_REASONS = (
    ("failed", "JobFailed", "The model could not generate an image for this prompt. Try to rephrase it."),
    ("refused", "PromptBlocked", "451: the prompt was blocked by the content filter [content_policy, req_81f3]"),
    ("uncertain", "JobUncertain", "the answer to the create was lost after it was sent; check before you pay twice"),
    ("unfinished", None, None),
    (
        "invalid",
        "InvalidRequest",
        "aspect_ration: unknown field: the fields are prompt, images, num_images",
    ),
)


def row(index: int = 0, **facts: Any) -> ReportRow:
    """Return a succeeded row, changed by the given fields."""
    known: dict[str, Any] = {
        "index": index,
        "job_key": f"5f1c0ffee{index:07x}",
        "status": "succeeded",
        "prompt": f"a lighthouse, number {index}",
        "settings": {"model": "nano-banana-pro", "resolution": "1K", "aspect_ratio": "4:3", "num_images": 1},
        "images": (f"images/{index:05}.png",),
        "credits": Decimal(4),
        "task_id": f"task_{index:06}",
        "created_at": START,
        "sent_at": START + timedelta(seconds=index),
        "ended_at": START + timedelta(seconds=index + 8),
    }
    return ReportRow(**(known | facts))


def without_image(index: int, status: str, error: str | None = None, **facts: Any) -> ReportRow:
    """Return a row without images."""
    return row(index, status=status, error=error, images=(), credits=None, **facts)


def made_rows(count: int, *, seed: int = 1) -> Iterator[ReportRow]:
    """Yield rows of a batch with two runs, a day apart, and a growing number of slots."""
    rng = random.Random(seed)
    free = [0.0] * LIMIT
    prompts = itertools.cycle(f"{a} {b}{c}" for c in _STYLES for a in _SUBJECTS for b in _MOODS)
    for index, prompt in zip(range(count), prompts, strict=False):
        slot = min(range(min(LIMIT, 2 + index // 3)), key=free.__getitem__)
        took_s = 8.0 * math.exp(rng.gauss(0, 0.35))
        pause_s = 86_400.0 if index > count * 0.7 else 0.0
        sent_at = START + timedelta(seconds=max(free[slot], 0.08 * index) + pause_s)
        free[slot] = max(free[slot], 0.08 * index) + took_s + 0.1
        made = row(
            index,
            prompt=prompt,
            sent_at=sent_at,
            ended_at=sent_at + timedelta(seconds=took_s),
            settings={
                "model": "nano-banana-pro",
                "resolution": "2K" if index % 5 == 0 else "1K",
                "aspect_ratio": ("4:3", "4:3", "16:9", "3:4", "1:1")[index % 5],
                "num_images": 4 if index % 23 == 7 else 1,
            },
        )
        yield _with_outcome(made, rng)


def _with_outcome(made: ReportRow, rng: random.Random) -> ReportRow:
    if made.index % 17 == 11:
        status, kind, error = _REASONS[made.index // 17 % len(_REASONS)]
        sent_at = made.sent_at if status in {"failed", "uncertain"} else None
        ended_at = None if status in {"unfinished", "uncertain"} else made.ended_at
        facts: dict[str, Any] = {"status": status, "error": error, "error_kind": kind}
        return evolve(made, images=(), credits=None, sent_at=sent_at, ended_at=ended_at, **facts)
    number = int(made.settings["num_images"])
    images = tuple(f"images/{made.job_key}-{part + 1:02}.jpg" for part in range(number))
    price = Decimal("4.5") if made.settings["resolution"] == "2K" else Decimal(3)
    return evolve(made, images=images, credits=price * number)


def paint_images(folder: Path, rows: list[ReportRow], *, scale: float = 0.5) -> None:
    """Paint the images of rows."""
    for made in rows:
        for part, image in enumerate(made.images):
            width, height = size_of(str(made.settings.get("aspect_ratio", "1:1")), "1K", scale)
            path = folder / image
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(paint(ImageSpec(made.prompt, 0, part, width, height, path.suffix == ".png")))


class Clock:
    """A wall clock that tests set."""

    def __init__(self, now: datetime = START) -> None:
        self.now = now

    def __call__(self) -> datetime:
        """Return the current time."""
        return self.now

    def pass_s(self, seconds: float) -> None:
        """Advance the clock."""
        self.now += timedelta(seconds=seconds)


def limits_changed(limit: int | None, throttled: int = 0, *, creates_paused: bool = False) -> LimitsChanged:
    """Return a LimitsChanged event."""
    return LimitsChanged(
        job_limit=limit,
        max_creates_per_s=None,
        limit_kind=None,
        creates_paused=creates_paused,
        slots_held=0,
        throttled=throttled,
    )


def record(key: str, state: JobState = JobState.RUNNING) -> JobRecord:
    """Return the record of a job in a state."""
    return JobRecord(key=key, gateway="apimall", account="a", request=None, body=b"", created_at=START, state=state)


def run_job(recorder: Recorder, clock: Clock, key: str, *gaps_s: float) -> None:
    """Record a job that is polled after each gap and ends at the last poll."""
    recorder(JobStateChanged(before=JobState.SUBMITTING, record=record(key)))
    for gap_s in gaps_s:
        clock.pass_s(gap_s)
        recorder(JobPolled(record=record(key), status="processing", polls=1))
    recorder(JobStateChanged(before=JobState.RUNNING, record=record(key, JobState.SUCCEEDED)))


def made_run(rows: list[ReportRow], *, seed: int = 2) -> Recorder:
    """Return the recorder of the last run: a limit is learned from refusals, and creates pause once."""
    rng = random.Random(seed)
    latest = max(made.sent_at for made in rows if made.sent_at is not None)
    began = min(
        made.sent_at for made in rows if made.sent_at is not None and latest - made.sent_at < timedelta(hours=6)
    )
    clock = Clock(began)
    recorder = Recorder(utcnow=clock)
    length_s = (latest - began).total_seconds()
    for number, (limit, refusals) in enumerate(((None, 0), (21, 1), (20, 1), (20, 2), (19, 3), (20, 3), (20, 4))):
        clock.now = began + timedelta(seconds=length_s * number / 8)
        recorder(limits_changed(limit, refusals, creates_paused=number == 4))
    for number in range(len(rows)):
        run_job(recorder, clock, f"job-{number}", 6.0, math.exp(rng.gauss(-0.4, 0.6)))
        clock.now = began + timedelta(seconds=length_s)
    return recorder


def main(folder: Path, count: int) -> None:
    """Write an example report."""
    rows = list(made_rows(count))
    folder.mkdir(parents=True, exist_ok=True)
    paint_images(folder, rows)
    write_report(folder / "index.html", rows, title="spring catalogue", run=made_run(rows))
    print(folder / "index.html")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 300)

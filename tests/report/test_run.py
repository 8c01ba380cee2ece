"""From a session to the page: a batch against the emulator with its rows and its recorder."""

import asyncio
import re
from pathlib import Path

import pytest

from nanobanana_async import Outcome, Session
from nanobanana_async.emulator import Emulator, LogNormal
from nanobanana_async.report import Recorder, ReportRow, write_report

pytestmark = pytest.mark.slow


def row_of(outcome: Outcome, folder: Path) -> ReportRow:
    """Convert an outcome to a row."""
    result = outcome.unwrap()
    assert outcome.request is not None
    return ReportRow(
        index=outcome.index,
        key=outcome.key,
        status="succeeded",
        prompt=outcome.request.prompt,
        images=tuple(Path(path).relative_to(folder).as_posix() for path in outcome.saved),
        credits=result.credits,
        task_id=result.task_id,
        sent_at=result.created_at,
        ended_at=result.completed_at,
    )


async def test_the_report_shows_the_batch(tmp_path: Path) -> None:
    recorder = Recorder()
    emulator = Emulator(job_limit=6, credits=1000, duration=LogNormal(median_s=0.3, sigma=0.2), image_scale=0.03)
    async with emulator, Session(emulator.apimall(expected_job_s=0.3), observers=[recorder]) as session:
        prompts = [f"a lighthouse, number {number}" for number in range(24)]
        async with session.generate_many(prompts, save_to=tmp_path / "images") as outcomes:
            rows = [row_of(outcome, tmp_path) async for outcome in outcomes]
        stats = session.stats()
    await asyncio.to_thread(write_report, tmp_path / "index.html", rows, title="lighthouses", run=recorder)

    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert (recorder.throttled_count, recorder.job_limit) == (stats.throttled, stats.job_limit)
    assert recorder.throttled_count > 0
    assert len(recorder.delays_s()) == 24
    assert f"limit {stats.job_limit} learned · {stats.throttled} refusal" in page
    assert re.search(r'class="throttled" d="M', page)
    assert f"<dt>credits spent</dt><dd>{stats.credits_spent}" in page
    for image in re.findall(r'<img src="\./([^"]+)"', page):
        assert (tmp_path / image).is_file()

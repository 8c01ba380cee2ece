"""Downloads that are slower than the generation: the slots stay filled, and the backlog is bounded."""

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from nanobanana_async.image_saver import ImageSaver
from nanobanana_async.models import GenerationResult
from nanobanana_async.testing import FakeTransport, run_virtual
from tests.batch.fakes import PromptGateway, slots
from tests.support.fakes import apimall, now

pytestmark = pytest.mark.slow

AT_ONCE = 8  # downloads
JOB_S = 60
QUEUED = 24 + 64  # results that may wait for a download, and outcomes that may wait to be taken


async def watched(
    monkeypatch: pytest.MonkeyPatch, *, job_slots: int, save_s: float, rows: int
) -> tuple[list[int], int, float]:
    """Run a batch, and return how many slots were held each second, the largest backlog, and how long it took."""
    saved = 0

    async def save(_: ImageSaver, result: GenerationResult, folder: Path, *__: Any, **___: Any) -> tuple[Path, ...]:
        nonlocal saved
        await asyncio.sleep(save_s)
        saved += 1
        return (folder / result.key,)

    async def check(_: ImageSaver, folder: Path) -> None:
        return None

    monkeypatch.setattr(ImageSaver, "save", save)
    monkeypatch.setattr(ImageSaver, "check", check)
    chance = random.Random(5)
    prompts = [f"{chance.uniform(0.8, 1.2) * JOB_S:.2f} s" for _ in range(rows)]
    gateway = PromptGateway()
    held: list[int] = []
    backlog = 0
    async with apimall(FakeTransport(gateway.answer), concurrency=slots(job_slots)) as session:

        async def watch() -> None:
            nonlocal backlog
            while True:
                await asyncio.sleep(1)
                held.append(gateway.running)
                backlog = max(backlog, len(gateway.sold) - gateway.running - saved)

        async with asyncio.TaskGroup() as group:
            watching = group.create_task(watch())
            begun = now()
            async for _ in session.generate_many(prompts, save_to="out"):
                pass
            took = now() - begun
            watching.cancel()
    return held, backlog, took


@pytest.mark.parametrize("job_slots", [20, 60])
def test_slots_stay_filled_while_downloads_are_a_little_slower(job_slots: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Eight downloads at once, which take 4 % more time than the slots need for as many images.
    save_s = 1.04 * AT_ONCE * JOB_S / job_slots
    held, backlog, _ = run_virtual(watched(monkeypatch, job_slots=job_slots, save_s=save_s, rows=9 * job_slots))
    middle = held[2 * JOB_S : -3 * JOB_S]
    assert sum(middle) / len(middle) >= 0.9 * job_slots
    assert min(middle) >= 0.5 * job_slots
    assert backlog <= job_slots + QUEUED


def test_slow_downloads_neither_empty_the_slots_nor_wait_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    save_s, rows = 1.8 * AT_ONCE * JOB_S / 100, 700
    held, backlog, took = run_virtual(watched(monkeypatch, job_slots=100, save_s=save_s, rows=rows))
    middle = held[4 * JOB_S : -4 * JOB_S]
    assert min(middle) >= 30  # 55 on average: the downloads let no more through
    assert backlog <= 100 + QUEUED
    assert took <= 1.1 * rows * save_s / AT_ONCE + JOB_S

"""`nanobanana demo`: run the client against an emulated gateway with a job limit and a lost answer."""

import asyncio
import itertools
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from nanobanana_async import GenerationResult, NanoBananaError, Session, SessionStats
from nanobanana_async.cli.display import JobsDisplay, shorten
from nanobanana_async.cli.generate import check_output
from nanobanana_async.emulator import Emulator, EmulatorStats, LogNormal, Script
from nanobanana_async.emulator.faults import reset
from nanobanana_async.emulator.images import require_pillow
from nanobanana_async.escaping import exact, one_line

JOB_LIMIT = 6  # the session has to find it
JOB_SECONDS = 2.0
LOST = 4  # number of the create whose answer is lost after its job was accepted and charged

_SUBJECTS = ("a lighthouse", "an old library", "a greenhouse", "a night train", "a harbour", "a clock tower")
_MOODS = ("in fog", "at first light", "under the northern lights", "in a summer storm")


def _prompts(count: int) -> list[str]:
    prompts = itertools.cycle(f"{subject} {mood}" for mood in _MOODS for subject in _SUBJECTS)
    return list(itertools.islice(prompts, count))


async def demonstrate(folder: Path, count: int, console: Console) -> int:
    """Generate and save `count` images, print what happened, and return 0, or 1 if one of them failed."""
    require_pillow()
    await check_output(folder)
    prompts = _prompts(count)
    console.print(
        f"{count} images from an emulated gateway that runs {JOB_LIMIT} jobs at once. The session does not know the\n"
        f"limit, and the answer to create number {LOST} will be lost.",
        highlight=False,
        soft_wrap=True,
    )
    script = Script({"apimall.create": (*[None] * (LOST - 1), reset(processed=True))})
    emulator = Emulator(
        job_limit=JOB_LIMIT,
        credits=1000,
        duration=LogNormal(median_s=JOB_SECONDS, sigma=0.3),
        image_scale=0.5,
        script=script,
    )
    display = JobsDisplay(count, console)
    async with emulator:
        gateway = emulator.apimall(expected_job_s=JOB_SECONDS)
        async with Session(gateway, observers=[display]) as session, asyncio.TaskGroup() as group:
            started_at = asyncio.get_running_loop().time()
            with display:
                tasks = [group.create_task(_one(session, prompt, folder, console)) for prompt in prompts]
                await asyncio.wait(tasks)
            took_s = asyncio.get_running_loop().time() - started_at
            stats = session.stats()
        gateway_stats = emulator.stats()
    saved = [path for task in tasks for path in task.result()]
    _print_facts(stats, gateway_stats, took_s, console)
    print(f"{len(saved)} images in {exact(str(folder))}")
    return 0 if len(saved) == count and not gateway_stats.double_charges else 1


async def _one(session: Session, prompt: str, folder: Path, console: Console) -> Sequence[Path]:
    try:
        result: GenerationResult = await session.generate(prompt, aspect_ratio="16:9", resolution="1K")
        return await session.save(result, folder)
    except NanoBananaError as error:
        console.print(f"{shorten(prompt)}: {one_line(str(error))}", markup=False, highlight=False, soft_wrap=True)
        return ()


def _print_facts(stats: SessionStats, gateway: EmulatorStats, took_s: float, console: Console) -> None:
    table = Table.grid(padding=(0, 2))
    rows = [
        ("jobs", f"{gateway.creates_accepted} bought, {stats.succeeded} finished, in {took_s:.1f} s"),
        (
            "lost answers",
            f"{gateway.lost_creates}, repeated under the same key without a second job: {gateway.replays}",
        ),
        ("charges", f"{gateway.credits_charged} credits, {gateway.double_charges} paid twice"),
        ("job limit", f"{JOB_LIMIT} at the gateway, {stats.job_limit} learned; refused with 429: {stats.throttled}"),
        ("running", f"{gateway.running_max} jobs at once at most"),
        (
            "polls",
            f"{gateway.polls_per_job_mean:.1f} per job, {gateway.seen_delay_mean_s:.2f} s mean detection delay",
        ),
    ]
    for name, value in rows:
        table.add_row(name, value)
    console.print(table, highlight=False)

"""`nanobanana demo`: run the client against an emulated gateway with a job limit and a lost answer."""

import asyncio
import hashlib
import itertools
import stat
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated

import anyio.to_thread
from cyclopts import Parameter
from rich.console import Console

from nanobanana_async import Outcome, PollPolicy, Session
from nanobanana_async.cli.batch.folder import REPORT, BatchFolder, FolderOwner
from nanobanana_async.cli.batch.results import IMAGES
from nanobanana_async.cli.demo_display import SPEED, DemoDisplay
from nanobanana_async.cli.options import FolderOption
from nanobanana_async.cli.signals import run_until_signal
from nanobanana_async.commands import program
from nanobanana_async.emulator import Emulator, LogNormal
from nanobanana_async.emulator.faults import reset
from nanobanana_async.emulator.images import require_pillow
from nanobanana_async.escaping import escape_exactly
from nanobanana_async.formatting import plural as counted
from nanobanana_async.images.manifest import NAME as MANIFEST
from nanobanana_async.jobs import JobRecord
from nanobanana_async.report import Credits, Recorder, ReportRow, write_report
from nanobanana_async.validators import as_count

JOB_LIMIT = 6  # the session has to find it
JOB_S = 25.0
EXPECTED_JOB_S = 20.0  # the client's default guess
TARGET_DELAY_S = 1.5  # the mean delay of a fixed interval of 3 s
LOST = 4  # number of the create whose answer is lost after its job was accepted and charged
LOSE_AFTER = 3  # images; in a demo of more than two rounds the next create loses it, when there is time to read

OWNER = FolderOwner("nanobanana demo", emulated=True)

_SUBJECTS = ("a lighthouse", "an old library", "a greenhouse", "a night train", "a harbour", "a clock tower")
_MOODS = ("in fog", "at first light", "under the northern lights", "in a summer storm")

_NEXT = """\
Try next, still without a key or cost:
  echo "a fox in snow" | {program} batch - -o foxes --gateway emulator
or buy a real image; the command asks for your API key:
  {program} generate "a fox in snow" --gateway apimall -o images"""


def demo(
    *,
    output: Annotated[Path, FolderOption] = Path("nanobanana-demo"),
    prompts: Annotated[int, Parameter(help="The number of images.")] = 24,
) -> int:
    """Generate images through an emulated gateway: no key, no network, no cost, about 15 seconds.

    For example: `nanobanana demo -o demo --prompts 12`

    Parameters
    ----------
    output
        The folder for the images and their page. Another demo in it replaces those of the last one.
    """
    as_count("--prompts", prompts)
    return run_until_signal(demonstrate(output, prompts, Console(stderr=True)))


def _prompts(count: int) -> list[str]:
    prompts = itertools.cycle(f"{subject} {mood}" for mood in _MOODS for subject in _SUBJECTS)
    return list(itertools.islice(prompts, count))


async def demonstrate(folder: Path, count: int, console: Console) -> int:
    """Generate and save `count` images, print what happens, and return 0, or 1 if one of them failed."""
    require_pillow()
    with BatchFolder(folder, OWNER):
        _remove_images(folder / IMAGES)
        return await _run(folder, count, console)


async def _run(folder: Path, count: int, console: Console) -> int:
    emulator = Emulator(
        job_limit=JOB_LIMIT,
        credits=50 * count,
        duration=LogNormal(median_s=JOB_S, sigma=0.25),
        speed=SPEED,
        image_scale=0.5,
    )
    recorder, display = Recorder(), DemoDisplay(count, emulator, console)
    async with emulator:
        session = Session(
            emulator.apimall(expected_job_s=EXPECTED_JOB_S / SPEED),
            polling=PollPolicy(target_delay_s=TARGET_DELAY_S / SPEED, min_gap_s=0.5 / SPEED),
            observers=[display, recorder],
        )
        async with session, asyncio.TaskGroup() as group:
            with display:
                ticking = group.create_task(display.follow(session.stats))
                rows = await _generate(session, emulator, display, folder, count)
                ticking.cancel()
        display.print_summary(session.stats(), recorder.delays_s())
    spent = Credits(spent=emulator.stats().credits_charged)
    write = partial(write_report, folder / REPORT, rows, title=OWNER.batch, run=recorder, credits=spent)
    await anyio.to_thread.run_sync(write)
    saved = sum(len(row.images) for row in rows)
    display.say(f"\n{counted(saved, 'image')} and a page of them, with charts of the run:")
    print(escape_exactly(str(folder / REPORT)), flush=True)
    display.say(f"\n{_NEXT.format(program=program())}")
    return 0 if saved == count and not emulator.stats().double_charges else 1


async def _generate(
    session: Session, emulator: Emulator, display: DemoDisplay, folder: Path, count: int
) -> list[ReportRow]:
    """Buy and save the images, lose one answer, and return the rows in input order."""
    late, lost_answer = count > 2 * JOB_LIMIT, reset(processed=True)
    if not late:
        emulator.queue_faults("apimall.create", *[None] * (min(LOST, count) - 1), lost_answer)
    requests = [{"prompt": prompt, "aspect_ratio": "16:9", "resolution": "1K"} for prompt in _prompts(count)]
    rows: list[ReportRow] = []
    async with session.generate_many(requests, save_to=folder / IMAGES) as batch:
        async for outcome in batch:
            rows.append(_row(outcome, display.records.get(outcome.key), folder))
            display.ended(outcome)
            if late and len(rows) == LOSE_AFTER:
                emulator.queue_faults("apimall.create", lost_answer)
    return sorted(rows, key=lambda row: row.index)


def _remove_images(images: Path) -> None:
    """Remove the images of an earlier demo: those in its list whose content has not changed since."""
    manifest = images / MANIFEST
    with suppress(FileNotFoundError):
        for line in manifest.read_text(encoding="utf-8", errors="replace").splitlines():
            digest, _, name = line.partition("  ")
            path = images / Path(name).name
            with suppress(OSError):  # removed or renamed by hand
                if stat.S_ISREG(path.lstat().st_mode) and hashlib.sha256(path.read_bytes()).hexdigest() == digest:
                    path.unlink()
        manifest.unlink()


def _row(outcome: Outcome, record: JobRecord | None, folder: Path) -> ReportRow:
    result, error = outcome.result, outcome.error
    return ReportRow(
        index=outcome.index,
        job_key=outcome.key,
        status="succeeded" if error is None else "failed",
        prompt="" if outcome.request is None else outcome.request.prompt,
        settings={"resolution": "1K", "aspect_ratio": "16:9"},
        images=tuple(Path(path).relative_to(folder).as_posix() for path in outcome.saved),
        credits=None if result is None else result.credits,
        task_id=None if result is None else result.task_id,
        error=None if error is None else str(error),
        error_kind=None if error is None else type(error).__name__,
        sent_at=None if record is None else record.may_run_since,
        ended_at=None if record is None else record.ended_at,
    )

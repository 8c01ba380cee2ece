"""`nanobanana generate`: run all prompts in one session, and print the results in the order of the prompts."""

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from attrs import frozen
from rich.console import Console

from nanobanana_async import (
    ConcurrencyPolicy,
    Gateway,
    GeneratedImage,
    GenerationResult,
    ImageRequest,
    JobError,
    NanoBananaError,
    Session,
)
from nanobanana_async.cli.display import JobsDisplay, shorten
from nanobanana_async.escaping import exact, one_line
from nanobanana_async.models import shorten as shorten_url


class Interrupted(Exception):
    """The user pressed Ctrl-C; the message lists the tasks that are paid for and still run."""


@frozen
class _Outcome:
    result: GenerationResult | None = None
    lines: Sequence[str] = ()
    error: NanoBananaError | None = None


async def generate_all(
    gateway: Gateway,
    requests: Sequence[ImageRequest],
    policy: ConcurrencyPolicy,
    folder: Path | None,
    timeout: float | None,
    console: Console,
) -> int:
    """Run all requests, print the results, and return 0, or 1 if one of them failed."""
    display = JobsDisplay(len(requests), console)
    try:
        session = Session(gateway, concurrency=policy, observers=[display], trust_env=True)
        async with session, asyncio.TaskGroup() as group:
            with display:
                tasks = [group.create_task(_one(session, request, folder, timeout)) for request in requests]
                await asyncio.wait(tasks)
    except asyncio.CancelledError:
        if running := display.running_task_ids:
            raise Interrupted(f"interrupted; paid for and still running: {', '.join(running)}") from None
        raise
    outcomes = [task.result() for task in tasks]
    for outcome in outcomes:
        for line in outcome.lines:
            print(exact(line), flush=True)
    return _report(requests, outcomes, console)


async def _one(session: Session, request: ImageRequest, folder: Path | None, timeout: float | None) -> _Outcome:
    try:
        result = await session.generate(request, timeout=timeout)
    except NanoBananaError as error:
        return _Outcome(error=error)
    urls = [link_of(image, terminal=sys.stdout.isatty()) for image in result.images]
    if folder is None:
        return _Outcome(result, urls)
    try:
        return _Outcome(result, [str(path) for path in await session.save(result, folder)])
    except NanoBananaError as error:
        return _Outcome(result, urls, error)  # paid for: print the links despite the error


def link_of(image: GeneratedImage, *, terminal: bool) -> str:
    """Return an image's URL; on a terminal the data of an inline image is truncated."""
    return shorten_url(image.url) if terminal and image.url[:5].lower() == "data:" else image.url


def _report(requests: Sequence[ImageRequest], outcomes: Sequence[_Outcome], console: Console) -> int:
    failed = 0
    for request, outcome in zip(requests, outcomes, strict=True):
        if outcome.error is not None:
            failed += 1
            sentence = _failure(outcome.error)
        elif outcome.result is not None and outcome.result.missing:
            sentence = missing_images(outcome.result)
        else:
            continue
        prefix = f"{shorten(request.prompt, 40)}: " if len(requests) > 1 else ""
        console.print(f"nanobanana: {prefix}{sentence}", markup=False, highlight=False, soft_wrap=True)
    return 1 if failed else 0


def missing_images(result: GenerationResult) -> str:
    """Return a sentence about the images that the gateway did not deliver."""
    reasons = "; ".join(f"image {index + 1}: {why}" for index, why in result.missing.items())
    return one_line(
        f"{len(result.missing)} of {len(result.images) + len(result.missing)} images are missing: {reasons}"
    )


def _failure(error: NanoBananaError) -> str:
    sentence = one_line(str(error))
    if isinstance(error, JobError) and error.job.task_id is not None:
        sentence += f" [task {one_line(error.job.task_id)}]"
    return sentence

"""Run jobs in one session, and print their results in the order of the arguments: `generate` and `jobs attach`."""

import asyncio
import shlex
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from attrs import frozen
from rich.console import Console

from nanobanana_async import (
    ConcurrencyPolicy,
    ConfigurationError,
    Gateway,
    GeneratedImage,
    GenerationResult,
    ImageRequest,
    JobError,
    JobState,
    JobUnfinished,
    NanoBananaError,
    Session,
)
from nanobanana_async.cli.display import JobsDisplay, shorten
from nanobanana_async.cli.signals import Interrupted
from nanobanana_async.escaping import exact, one_line
from nanobanana_async.formatting import count
from nanobanana_async.images.files import check_folder, why_unwritable
from nanobanana_async.models import shorten as shorten_url

CHECK_TASKS = "check the gateway's own list of tasks"


@frozen
class JobArgument:
    """One argument of the command: how it is shown, and how its job is started and awaited."""

    label: str
    run: Callable[[Session], Awaitable[GenerationResult]]


@frozen(kw_only=True)
class Delivery:
    """Where the images go, and the command that fetches those of jobs that still run."""

    folder: Path | None = None
    attach_options: Sequence[str] | None = None
    """The options of `nanobanana jobs attach`; None if no later command can reach the gateway."""

    async def check_folder(self) -> None:
        """Create the folder if it is missing; raise `ConfigurationError` if no file can be written in it."""
        if self.folder is None:
            return
        try:
            await asyncio.to_thread(check_folder, self.folder)
        except OSError as error:
            raise ConfigurationError(
                why_unwritable(self.folder, error, or_else="name another folder with -o")
            ) from None

    def advice(self, task_ids: Sequence[str]) -> str:
        """Return how to get the images of tasks that are paid for."""
        if self.attach_options is None:
            return f"task {', '.join(map(one_line, task_ids))}"
        output = () if self.folder is None else ("-o", str(self.folder))
        command = shlex.join(("nanobanana", "jobs", "attach", *task_ids, *self.attach_options, *output))
        return f"`{one_line(command)}` fetches {'its' if len(task_ids) == 1 else 'their'} images and buys nothing"


@frozen
class _Outcome:
    result: GenerationResult | None = None
    lines: Sequence[str] = ()
    error: NanoBananaError | None = None


def generations(requests: Sequence[ImageRequest], timeout: float | None) -> list[JobArgument]:
    """Return the jobs that buy these requests."""

    def one(request: ImageRequest) -> JobArgument:
        return JobArgument(request.prompt, lambda session: session.generate(request, timeout=timeout))

    return [one(request) for request in requests]


def attachments(task_ids: Sequence[str], timeout: float | None) -> list[JobArgument]:
    """Return the jobs that wait for tasks that were bought before."""

    async def wait(session: Session, task_id: str) -> GenerationResult:
        job = await session.attach(task_id)
        return await job.result(timeout=timeout)

    def one(task_id: str) -> JobArgument:
        return JobArgument(f"task {task_id}", lambda session: wait(session, task_id))

    return [one(task_id) for task_id in task_ids]


async def run_jobs(
    gateway: Gateway, jobs: Sequence[JobArgument], policy: ConcurrencyPolicy, delivery: Delivery, console: Console
) -> int:
    """Run all jobs, print their results, and return 0, or 1 if one of them failed.

    Raises `ConfigurationError` before anything is bought if the folder can't be written. After Ctrl-C or SIGTERM it
    prints the results so far and raises `Interrupted`, which names the tasks that are paid for and not delivered.
    """
    await delivery.check_folder()
    display = JobsDisplay(len(jobs), console)
    tasks: list[asyncio.Task[_Outcome]] = []
    interrupted = False
    try:
        session = Session(gateway, concurrency=policy, observers=[display], trust_env=True)
        async with session, asyncio.TaskGroup() as group:
            with display:
                tasks += [group.create_task(_one(session, job, delivery.folder)) for job in jobs]
                await asyncio.wait(tasks)
    except asyncio.CancelledError:
        interrupted = True
    outcomes = [_Outcome() if task.cancelled() else task.result() for task in tasks]
    for outcome in outcomes:
        for line in outcome.lines:
            print(exact(line), flush=True)
    code = _report(jobs, outcomes, delivery, display)
    if interrupted:
        raise Interrupted(_interruption(outcomes, delivery, display))
    return code


async def _one(session: Session, job: JobArgument, folder: Path | None) -> _Outcome:
    try:
        result = await job.run(session)
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


def _report(jobs: Sequence[JobArgument], outcomes: Sequence[_Outcome], delivery: Delivery, display: JobsDisplay) -> int:
    failed = 0
    for job, outcome in zip(jobs, outcomes, strict=False):  # an early interruption leaves jobs without an outcome
        if outcome.error is not None:
            failed += 1
            sentence = _failure(outcome.error, delivery, display)
        elif outcome.result is not None and outcome.result.missing:
            sentence = missing_images(outcome.result)
        else:
            continue
        prefix = f"{shorten(job.label, 40)}: " if len(jobs) > 1 else ""
        display.print_note(f"nanobanana: {prefix}{sentence}")
    return 1 if failed else 0


def missing_images(result: GenerationResult) -> str:
    """Return a sentence about the images that the gateway did not deliver."""
    reasons = "; ".join(f"image {index + 1}: {why}" for index, why in result.missing.items())
    return one_line(
        f"{len(result.missing)} of {len(result.images) + len(result.missing)} images are missing: {reasons}"
    )


def _failure(error: NanoBananaError, delivery: Delivery, display: JobsDisplay) -> str:
    """Return what went wrong with a job and, if it is paid for, how to get its images."""
    paid = display.paid_tasks([error.key] if error.key is not None else [])
    sentence = one_line(str(error))
    if isinstance(error, JobUnfinished) and not error.safe_to_repeat:
        sentence = "the waiting ended before the job, which goes on at the gateway and is paid for"
        if not paid:
            return f"the waiting ended and no answer says whether the job was bought: {CHECK_TASKS}"
    if paid:
        return f"{sentence}; {delivery.advice(paid)}"
    if isinstance(error, JobError) and error.job.task_id is not None:
        sentence += f" [task {one_line(error.job.task_id)}]"
    return sentence


def _interruption(outcomes: Sequence[_Outcome], delivery: Delivery, display: JobsDisplay) -> str:
    """Return what the interrupted command leaves at the gateway."""
    reported = {outcome.result.key for outcome in outcomes if outcome.result is not None}
    reported |= {outcome.error.key for outcome in outcomes if outcome.error is not None and outcome.error.key}
    left = [key for key in display.records if key not in reported]
    sentences = ["interrupted"]
    if paid := display.paid_tasks(left):
        sentences.append(f"{count(len(paid), 'job')} paid for and not delivered: {delivery.advice(paid)}")
    in_doubt = sum(display.records[key].state in (JobState.SUBMITTING, JobState.UNCERTAIN) for key in left)
    if in_doubt:
        sentences.append(f"{count(in_doubt, 'job')} perhaps bought, without an answer: {CHECK_TASKS}")
    if not any(record.possibly_bought for record in list(display.records.values())):
        sentences.append("nothing was bought")
    return "; ".join(sentences)

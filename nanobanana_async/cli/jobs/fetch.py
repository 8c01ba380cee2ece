"""`nanobanana jobs fetch`: wait for jobs that were bought, and print or save their images; nothing is bought."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, get_args

from attrs import frozen
from cyclopts import Parameter
from rich.console import Console

from nanobanana_async import (
    ConfigurationError,
    Gateway,
    Job,
    JobState,
    JobUnfinished,
    NanoBananaError,
    Session,
    TaskNotFound,
)
from nanobanana_async.cli.display import JobsDisplay, shorten
from nanobanana_async.cli.find_gateway import find_gateway
from nanobanana_async.cli.jobs.actions import find_job, open_read_only, require_ledger
from nanobanana_async.cli.options import (
    DEFAULT_LEDGER,
    BaseUrl,
    Flag,
    GatewayFinder,
    GatewayName,
    LedgerOption,
    Name,
    TargetOption,
    Timeout,
    check_output,
    fetch_command,
    fetch_options,
    in_cli_words,
)
from nanobanana_async.cli.result_lines import ResultLines, missing_images_sentence
from nanobanana_async.cli.signals import Interrupted, run_until_signal
from nanobanana_async.escaping import one_line
from nanobanana_async.images.names import NameFacts, row_name
from nanobanana_async.images.target import Target
from nanobanana_async.keys import validate_task_id
from nanobanana_async.ledger.location import Location
from nanobanana_async.validators import as_number, as_timeout


@frozen
class FetchCommand:
    """The command `jobs fetch`."""

    find_gateway: GatewayFinder

    def fetch(
        self,
        names: Annotated[list[str], Parameter(name="KEY_OR_TASK_ID", negative=())],
        /,
        *,
        output: Annotated[Target | None, TargetOption] = None,
        sidecar: Flag = False,
        ledger: LedgerOption = DEFAULT_LEDGER,
        gateway: GatewayName = None,
        base_url: BaseUrl = None,
        timeout: Timeout = None,
    ) -> int:
        """Wait for jobs that were bought, and print their image URLs, or with -o the paths of the saved files.

        A job of the ledger is named by its key or its task id; any other task of the account by its task id. Nothing
        is bought: not even a job of the ledger that was never sent.

        Examples:

        nanobanana jobs fetch img_01HZX -o images

        nanobanana jobs fetch 5f0c3a9e1b2d4c68-1 --ledger jobs.sqlite

        Parameters
        ----------
        names
            The keys of jobs, or the gateway's ids of tasks.
        output
            Save the images in this folder, or in an object store: s3://bucket/prefix, gs:// or az://, with its
            credentials in the environment (extra `store`).
        sidecar
            Write prompt, settings, key and price of each image into NAME.json beside it.
        ledger
            The ledger: a file, or postgresql://user@host/database. If the file is missing, none is created.
        gateway
            The gateway; by default that of the first job in the ledger, or the one whose API key is set. It must be
            the account that bought the tasks.
        base_url
            The gateway's URL, if not the usual one.
        timeout
            Seconds to wait for each job.
        """
        unique = list(dict.fromkeys(map(validate_task_id, names)))
        if timeout is not None:
            as_number("--timeout", timeout, above=0, endless=True)
        asyncio.run(check_output(output, create=False))
        exists = not isinstance(ledger, Path) or ledger.exists()
        if exists:
            require_ledger(ledger)
        known = asyncio.run(_gateway_in(ledger, unique)) if exists and gateway is None else None
        selected = self.find_gateway(gateway or known, base_url)
        fetching = _FetchPlan(
            names=unique,
            target=output,
            sidecar=sidecar,
            ledger=ledger if exists else None,
            timeout=as_timeout("--timeout", timeout),
            again=fetch_command(
                unique, fetch_options(ledger if exists else None, gateway, base_url), output, sidecar=sidecar
            ),
        )
        return run_until_signal(_fetch(fetching, selected, Console(stderr=True)))


@frozen(kw_only=True)
class _FetchPlan:
    """What to fetch, and the command that does so again."""

    names: Sequence[str]
    target: Target | None
    sidecar: bool
    ledger: Location | None
    """None if the file is missing: none is created."""
    timeout: float | None
    again: str


async def _gateway_in(ledger: Location, names: Sequence[str]) -> Name | None:
    """Return the gateway of the first of these jobs that the ledger has under its key."""
    async with open_read_only(ledger) as opened:
        for name in names:
            record = await opened.find(name)
            if record is not None:
                return next((each for each in get_args(Name) if each == record.gateway), None)
    return None


async def _fetch(fetching: _FetchPlan, gateway: Gateway, console: Console) -> int:
    """Fetch all jobs and return 0, or 1 if one of them has no image."""
    await check_output(fetching.target)
    display = JobsDisplay(len(fetching.names), console)
    lines = ResultLines(console)
    again = f"nothing was bought: `{one_line(fetching.again)}` fetches them again"
    try:
        async with Session(gateway, ledger=fetching.ledger, observers=[display], trust_env=True, adopt=None) as session:
            with display:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(_fetch_one(session, name, fetching, lines)) for name in fetching.names]
                    found = [await _print(await task, display, lines) for task in tasks]  # in the order of the names
    except asyncio.CancelledError:
        raise Interrupted(f"interrupted; {again}") from None
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    if lines.failure is not None and fetching.target is None:
        display.print_note(f"nanobanana: standard output can't be written; {again}")
        return 1
    return 0 if all(found) else 1


@frozen
class _Fetched:
    """The lines to print about one job, and what went wrong."""

    lines: Sequence[str]
    failure: str | None
    has_images: bool


async def _print(fetched: _Fetched, display: JobsDisplay, lines: ResultLines) -> bool:
    for line in fetched.lines:
        await lines.print(line)
    if fetched.failure is not None:
        display.print_note(f"nanobanana: {fetched.failure}")
    return fetched.has_images


async def _fetch_one(session: Session, name: str, fetching: _FetchPlan, lines: ResultLines) -> _Fetched:
    """Wait for one job, and save its images if they are to be saved."""
    printed: list[str] = []
    failure: str | None = None
    try:
        job = await _find(session, name, fetching.ledger)
        # The file of a row has the key of the row; braces would be fields.
        by_row = name not in (job.key, job.task_id)
        row = row_name(None, NameFacts(key=name)).replace("{", "{{").replace("}", "}}") if by_row else None
        result = await job.result(timeout=fetching.timeout)
        printed += lines.links(result)
        if result.missing:
            failure = missing_images_sentence(result)
        if fetching.target is not None:
            printed = [
                str(path) for path in await session.save(result, fetching.target, name=row, sidecar=fetching.sidecar)
            ]
        fetched = True
    except NanoBananaError as error:  # after a result: paid for, so its links are printed despite the error
        failure, fetched = one_line(in_cli_words(error)), False
        if isinstance(error, JobUnfinished) and not error.safe_to_repeat:
            failure = f"the waiting ended before the job, which goes on; `{one_line(fetching.again)}` waits again"
    if failure is not None and len(fetching.names) > 1:
        failure = f"{shorten(name, 60)}: {failure}"
    return _Fetched(printed, failure, fetched)


async def _find(session: Session, name: str, ledger: Location | None) -> Job:
    """Return the job of the ledger with this key or of the row with it, or else the task with this id."""
    job = await session.job(name)
    if job is None and ledger is not None:
        with suppress(ConfigurationError):  # no such row
            async with open_read_only(ledger) as reader:
                job = await session.job((await find_job(reader, name)).key)
    if job is not None and job.state is JobState.PENDING:
        raise ConfigurationError(f"job {name} was never bought: there is nothing to fetch", key=name)
    if job is not None:
        return job
    try:
        return await session.attach(name)
    except TaskNotFound as error:
        where = (
            "there is no ledger to find it by its key"
            if ledger is None
            else f"it is the key of no job in ledger {ledger}"
        )
        raise TaskNotFound(f"{error.message}; {where}", status=error.status, code=error.code) from None


fetch = FetchCommand(find_gateway).fetch

"""`nanobanana batch`: a file of rows bought into a folder; the same command again goes on."""

import asyncio
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal

from attrs import frozen
from cyclopts import Parameter
from rich.console import Console

from nanobanana_async import ApiMall, ConcurrencyPolicy, ConfigurationError, Gateway
from nanobanana_async.cli.batch.display import rows
from nanobanana_async.cli.batch.dry_run import show_dry_run
from nanobanana_async.cli.batch.folder import FILES, BatchFolder, FolderOwner, check_owner
from nanobanana_async.cli.batch.input_file import Format, InputFile, open_input
from nanobanana_async.cli.batch.run import Plan, Run
from nanobanana_async.emulator import API_KEY, Emulator
from nanobanana_async.escaping import one_line
from nanobanana_async.gateways import registry
from nanobanana_async.policy.prices import as_credits

Name = registry.GatewayName
Flag = Annotated[bool, Parameter(negative=())]
GatewayFinder = Callable[[Name | None, str | None], Gateway]
"""Finds the gateway that options and environment name."""

USAGE = 2
MAX_ERRORS = 20  # bad rows that are told one by one


@frozen
class BatchCommand:
    """The command; `seller` finds the gateway."""

    seller: GatewayFinder

    def batch(
        self,
        file: Annotated[str, Parameter(allow_leading_hyphen=True)],
        /,
        *,
        output: Annotated[Path, Parameter(name=["--output", "-o"])],
        gateway: Annotated[Name | Literal["emulator"] | None, Parameter(env_var="NANOBANANA_GATEWAY")] = None,
        base_url: Annotated[str | None, Parameter(env_var="NANOBANANA_BASE_URL")] = None,
        max_credits: Decimal | None = None,
        expected_credits: Decimal | None = None,
        max_jobs: Annotated[int | None, Parameter(env_var="NANOBANANA_MAX_JOBS")] = None,
        retry_failed: Flag = False,
        ordered: Flag = False,
        name: str | None = None,
        format: Format | None = None,  # noqa: A002 - the option's name
        dry_run: Flag = False,
    ) -> int:
        """Buy a picture for each row of a file; the same command again goes on where it stopped, and buys none twice.

        A .txt file has a prompt a line, a .jsonl file an object a line, a .csv file a header; their fields are prompt,
        images, num_images, aspect_ratio, resolution, output_format, model, task_type, key, metadata. Empty lines are
        skipped, a prompt's spaces at both ends are cut off, and there are no comments. In CSV several images are
        separated by spaces or |, and columns named metadata.NAME make up the metadata. The whole file is looked at
        before anything is bought.

        The folder gets images/, results.jsonl (a line for each row that has ended), index.html (the same to look at)
        and jobs.sqlite (the ledger). A row is known by its key, or else by what it wants: lines may be moved or put in.

        Stdout, unless it is a terminal: a line for each picture, of key, status and path, separated by tabs; first
        those of rows that had ended before. The first Ctrl-C buys no more and collects what runs, the second one stops
        at once.

        Exit codes: 0 all is well, 1 some rows brought nothing, 2 usage or a bad file, 3 the buying stopped early
        (credits, API key, a folder that can't be written) or a price that was not known passed --max-credits,
        130 interrupted.

        Parameters
        ----------
        file
            The rows; `-` is standard input.
        output
            The folder; made if missing. It belongs to one batch. One that holds files of these names from elsewhere is
            refused, other files in it are left alone, and no link in it is followed.
        gateway
            Whose pictures; the one whose API key is set when left out. `emulator` runs one in this process, for a try.
        base_url
            Where the gateway is, if not at its usual place.
        max_credits
            Buy nothing that would pass this, all that was ever spent on the batch included. The first job of a kind
            goes alone, at the example of the gateway's reference, until its price is told.
        expected_credits
            What a job costs, instead of the reference's example, for kinds of jobs whose price is not known yet.
        max_jobs
            Never hold more jobs at once than this.
        retry_failed
            Buy rows again that had failed, or were refused for what they want.
        ordered
            Write results in the order of the file instead of as they come.
        name
            The batch's name, if not the file's: the keys follow from it, so it must stay what it was. The same rows
            under another name are bought anew; under the same name, in another folder, they may be answered with what
            the gateway remembers of the first purchase.
        format
            What the file is, if its name does not tell; txt for standard input.
        dry_run
            Look at the file and say what it would cost; buy and write nothing.
        """
        as_credits("--max-credits", max_credits)
        as_credits("--expected-credits", expected_credits)
        ConcurrencyPolicy(max_jobs=max_jobs)
        emulated = gateway == "emulator"
        seller = ApiMall(api_key=API_KEY) if gateway == "emulator" else self.seller(gateway, base_url)
        with open_input(file, name, format) as source:
            if Path(file).exists() and Path(file).resolve() in [(output / name).resolve() for name in FILES]:
                raise ConfigurationError(f"{file} would be written over: name another folder with -o")
            identity = FolderOwner(source.batch, emulated)
            check_owner(output, identity)
            total = _checked(source, seller)
            if total is None:
                return USAGE
            plan = Plan(
                file=source,
                total=total,
                folder=output,
                max_credits=max_credits,
                expected_credits=expected_credits,
                max_jobs=max_jobs,
                retry_failed=retry_failed,
                ordered=ordered,
            )
            if dry_run:
                return asyncio.run(show_dry_run(plan, seller))
            with BatchFolder(output, identity) as folder:
                return asyncio.run(_run(plan, None if emulated else seller, folder))


async def _run(plan: Plan, seller: Gateway | None, folder: BatchFolder) -> int:
    console = Console(stderr=True)
    if seller is not None:
        return await Run(plan, seller, folder, console)()
    async with Emulator() as emulator:
        return await Run(plan, emulator.apimall(), folder, console)()


def _checked(source: InputFile, gateway: Gateway) -> int | None:
    """Return how many rows there are; None when some are bad, which is told."""
    console, bad, total = Console(stderr=True), 0, 0
    for row in source.rows(gateway):
        total += 1
        if row.error is not None:
            bad += 1
            if bad <= MAX_ERRORS:
                _tell(console, f"{source.title}, line {row.line}: {row.error}")
    if bad > MAX_ERRORS:
        _tell(console, f"... and {bad - MAX_ERRORS} more bad rows")
    if not total:
        _tell(console, f"{source.title} is empty: there is not a single row")
    elif bad > 1:
        _tell(console, f"nothing was bought: {rows(bad)} of {total} must be put right first")
    return None if bad or not total else total


def _tell(console: Console, sentence: str) -> None:
    console.print(f"nanobanana: {one_line(sentence)}", markup=False, highlight=False, emoji=False, soft_wrap=True)

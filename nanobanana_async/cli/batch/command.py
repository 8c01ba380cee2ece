"""`nanobanana batch`: buy the images of a file of rows into a folder; the same command continues an earlier run."""

import asyncio
import secrets
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

from attrs import frozen
from cyclopts import Parameter
from rich.console import Console

from nanobanana_async import ApiMall, ConcurrencyPolicy, ConfigurationError, Gateway, ImageRequest
from nanobanana_async.cli.batch.dry_run import show_dry_run
from nanobanana_async.cli.batch.folder import FILES, BatchFolder, FolderOwner, check_owner, refuse_lost_ledger
from nanobanana_async.cli.batch.input_file import Format, InputFile, ReadingOptions, open_input
from nanobanana_async.cli.batch.notes import Notes
from nanobanana_async.cli.batch.plan import Plan
from nanobanana_async.cli.batch.run import Run
from nanobanana_async.cli.options import RunFolder, TargetOption
from nanobanana_async.emulator import API_KEY, Emulator
from nanobanana_async.escaping import one_line
from nanobanana_async.formatting import count
from nanobanana_async.gateways import registry
from nanobanana_async.images.names import NameTemplate, safe_name
from nanobanana_async.images.target import Target
from nanobanana_async.policy.prices import as_credits
from nanobanana_async.validators import as_number

Name = registry.GatewayName
Flag = Annotated[bool, Parameter(negative=())]
GatewayFinder = Callable[[Name | None, str | None], Gateway]
"""Returns the gateway that options and environment select."""

USAGE = 2
MAX_WAIT_S = 600.0
MAX_ERRORS = 20  # bad rows that are printed one by one


@frozen
class BatchCommand:
    """The command `batch`."""

    find_gateway: GatewayFinder

    def batch(
        self,
        file: Annotated[str, Parameter(allow_leading_hyphen=True)],
        /,
        *,
        output: Annotated[Target, TargetOption],
        folder: RunFolder = None,
        sidecar: Flag = False,
        gateway: Annotated[Name | Literal["emulator"] | None, Parameter(env_var="NANOBANANA_GATEWAY")] = None,
        base_url: Annotated[str | None, Parameter(env_var="NANOBANANA_BASE_URL")] = None,
        max_credits: Decimal | None = None,
        expected_credits: Decimal | None = None,
        max_jobs: Annotated[int | None, Parameter(env_var="NANOBANANA_MAX_JOBS")] = None,
        max_requests_per_minute: Annotated[int | None, Parameter(env_var="NANOBANANA_MAX_REQUESTS_PER_MINUTE")] = None,
        max_wait: float = MAX_WAIT_S,
        retry_failed: Flag = False,
        buy_changed: Flag = False,
        ordered: Flag = False,
        name: str | None = None,
        format: Format | None = None,  # noqa: A002 - the option's name
        encoding: str | None = None,
        sheet: str | None = None,
        comments: str | None = None,
        strict: Flag = False,
        names: str | None = None,
        num_images: int | None = None,
        aspect_ratio: str | None = None,
        resolution: str | None = None,
        output_format: str | None = None,
        model: str | None = None,
        new_ledger: Flag = False,
        dry_run: Flag = False,
    ) -> int:
        """Buy an image for each row of a file; the same command continues a stopped run and buys no row twice.

        A .txt file has a prompt per line, a .jsonl file an object per line, a .csv or .xlsx file a header; the fields
        are prompt, images, num_images, aspect_ratio, resolution, output_format, model, task_type, key, metadata, in any
        case, with spaces or dashes. Other columns are kept as metadata. Empty lines and columns are skipped, prompts
        are stripped. In tables several images are separated by spaces or |. The file is copied and checked as a whole
        before anything is bought. Rows are numbered by their line in a text file, and in a table as a spreadsheet shows
        them: the header is row 1.

        The folder gets images/ (with metadata.jsonl, a data set of the images), results.jsonl (a line for each row that
        has ended), results.csv (the same for spreadsheets), index.html (the same as a page), thumbnails/ (small images
        for the page) and jobs.sqlite (the ledger). A row is identified by its key, or else by its request: lines may be
        moved or inserted.

        Stdout, unless it is a terminal: a line for each image with key, status and path, separated by tabs; rows of
        earlier runs come first. The first Ctrl-C (or SIGTERM, SIGHUP) stops the buying and collects running jobs; the
        second one stops at once.

        Exit codes: 0 success, 1 some rows have no images, 2 usage or a bad file, 3 the buying stopped early (credits,
        API key, a folder that can't be written) or an unknown price exceeded --max-credits, 130 interrupted.

        Examples:

        nanobanana batch prompts.txt -o spring --dry-run

        nanobanana batch prompts.csv -o spring --max-credits 800

        Parameters
        ----------
        file
            The file of rows; `-` is standard input.
        output
            The folder, created if missing. It belongs to one batch. A folder with foreign files of these names is
            refused; other files in it are left alone, and no link in it is followed. Or an object store for the images,
            s3://bucket/prefix, gs:// or az://, with its credentials in the environment (extra `store`).
        folder
            The folder for everything but the images, if they go to an object store; by default the batch's name.
        sidecar
            Write prompt, settings, key and price of each image into NAME.json beside it.
        gateway
            The gateway; by default the one whose API key is set. `emulator` runs an emulated one in this process.
        base_url
            The gateway's URL, if not the usual one.
        max_credits
            Buy nothing that would exceed this total cost of the batch, earlier runs included. The first job of each
            price class runs alone, at the example price of the gateway's reference, until its price is known.
        expected_credits
            The assumed price of a job whose price is not known yet, instead of the reference's example.
        max_jobs
            The most jobs to run at once.
        max_requests_per_minute
            The most requests to the gateway in a minute, if you know what the account allows.
        max_wait
            Seconds to wait when the account's daily budget of requests is used up; if that takes longer, the run stops,
            and the same command continues it later.
        retry_failed
            Buy rows again that failed, or whose request was refused.
        buy_changed
            Buy rows again whose request has changed under their key since they were bought. Their images of before
            stay, and the results list them.
        ordered
            Write results in file order instead of the order in which rows end.
        name
            The batch's name, by default the file's. Keys are derived from it, so it must not change: under another
            name the same rows are bought again. Under the same name in another folder, the gateway may answer with
            the job of the first purchase.
        format
            The file format, if its name does not show it; txt for standard input.
        encoding
            The encoding of a text file. Default: UTF-8, UTF-16 or Windows-1252, whichever it is; a guess is said.
        sheet
            The sheet of a workbook; by default the first.
        comments
            Skip lines that begin with this text, such as '#'.
        strict
            Refuse columns and fields that are not known, instead of keeping them as metadata.
        names
            The names of the images, without extension: a template with {row}, {slug} (of the prompt), {key} and
            {metadata[NAME]}. Default: the row's key, or {row:04}-{slug}. Saved images keep their names.
        num_images
            Images per prompt, 1 to 6, for rows that do not say it. This and the next four are part of the request:
            another value buys these rows again.
        aspect_ratio
            Aspect ratio, such as 16:9, for rows that have none.
        resolution
            1K, 2K or 4K, for rows that have none.
        output_format
            jpeg, jpg or png, for rows that have none.
        model
            The model, for rows that have none.
        new_ledger
            Begin a new ledger where that of earlier runs is lost. Rows without a result are bought, perhaps a second
            time, and --max-credits counts from 0.
        dry_run
            Check the file and print what it would cost; buy and write nothing.
        """
        as_credits("--max-credits", max_credits)
        as_credits("--expected-credits", expected_credits)
        max_wait_s = as_number("--max-wait", max_wait, endless=True)
        concurrency = ConcurrencyPolicy(max_jobs=max_jobs, max_requests_per_minute=max_requests_per_minute)
        emulated = gateway == "emulator"
        selected = ApiMall(api_key=API_KEY) if gateway == "emulator" else self.find_gateway(gateway, base_url)
        given = {
            "num_images": num_images,
            "aspect_ratio": aspect_ratio,
            "resolution": resolution,
            "output_format": output_format,
            "model": model,
        }
        defaults: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        ImageRequest("a prompt", **defaults)  # raises for a wrong option, once, and not for each row
        template = None if names is None else NameTemplate("--names", names)
        options = ReadingOptions(defaults=defaults, comments=comments, strict=strict, names=template)
        with open_input(file, name, format, options, encoding=encoding, sheet=sheet) as source:
            store = None if isinstance(output, Path) else output
            path = _folder_of_run(output, folder, source.batch)
            if Path(file).exists() and Path(file).resolve() in [(path / name).resolve() for name in FILES]:
                raise ConfigurationError(f"{file} would be overwritten: name another folder with -o")
            owner = FolderOwner(source.batch, emulated, None if store is None else store.url)
            if check_owner(path, owner):
                refuse_lost_ledger(path, new_ledger=new_ledger)
            notes = Notes()
            total = _count_valid_rows(source, selected, notes)
            if total is None:
                return USAGE
            plan = Plan(
                file=source,
                total=total,
                folder=path,
                store=store,
                sidecar=sidecar,
                max_credits=max_credits,
                expected_credits=expected_credits,
                concurrency=concurrency,
                max_wait_s=max_wait_s,
                retry_failed=retry_failed,
                buy_changed=buy_changed,
                ordered=ordered,
                delimiter=notes.delimiter,
            )
            if dry_run:
                return asyncio.run(show_dry_run(plan, selected))
            with BatchFolder(path, owner) as held:
                return asyncio.run(_run(plan, None if emulated else selected, held))


def _folder_of_run(output: Target, folder: Path | None, batch: str) -> Path:
    """Return the folder of results and ledger; the images are there too, unless they go to a store."""
    if isinstance(output, Path):
        if folder is not None:
            raise ConfigurationError("--folder is for images in an object store: here -o is the folder")
        return output
    return Path(safe_name(batch)) if folder is None else folder


async def _run(plan: Plan, gateway: Gateway | None, folder: BatchFolder) -> int:
    console = Console(stderr=True)
    if gateway is not None:
        return await Run(plan, gateway, folder, console).run()
    async with Emulator(seed=secrets.randbits(32)) as emulator:  # task ids that no earlier emulator had
        return await Run(plan, emulator.apimall(), folder, console).run()


def _count_valid_rows(source: InputFile, gateway: Gateway, notes: Notes) -> int | None:
    """Return the number of rows; print the errors and return None if a row is bad or there are none."""
    console, bad, total = Console(stderr=True), 0, 0
    for row in source.rows(gateway, notes):
        total += 1
        if row.error is not None:
            bad += 1
            if bad <= MAX_ERRORS:
                _print_error(console, f"{source.title}, {source.unit} {row.number}: {row.error}")
    if bad > MAX_ERRORS:
        _print_error(console, f"... and {bad - MAX_ERRORS} more bad rows")
    for note in filter(None, (source.note, *(f"{source.title}: {note}" for note in notes.sentences()))):
        _print_error(console, note)
    if not total:
        _print_error(console, f"{source.title} is empty: it has no rows")
    elif bad > 1:
        _print_error(console, f"nothing was bought: correct {count(bad, 'row')} of {total} first")
    return None if bad or not total else total


def _print_error(console: Console, sentence: str) -> None:
    console.print(f"nanobanana: {one_line(sentence)}", markup=False, highlight=False, emoji=False, soft_wrap=True)

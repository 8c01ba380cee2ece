"""`nanobanana batch`: buy the images of a file of rows into a folder; the same command continues an earlier run."""

import asyncio
import secrets
from pathlib import Path
from typing import Annotated, Any

from attrs import frozen
from cyclopts import Parameter
from rich.console import Console

from nanobanana_async import ConcurrencyPolicy, ImageRequest
from nanobanana_async.cli.batch.checks import count_valid_rows
from nanobanana_async.cli.batch.consent import may_buy
from nanobanana_async.cli.batch.dry_run import show_dry_run
from nanobanana_async.cli.batch.folder import BatchFolder, FolderOwner, check_owner, folder_of_run
from nanobanana_async.cli.batch.formats import Format
from nanobanana_async.cli.batch.input_file import open_input
from nanobanana_async.cli.batch.keyless import gateway_without_key
from nanobanana_async.cli.batch.lost_ledger import refuse_lost_ledger
from nanobanana_async.cli.batch.naming import template_of, with_names
from nanobanana_async.cli.batch.notes import Notes
from nanobanana_async.cli.batch.own_files import refuse_own_results
from nanobanana_async.cli.batch.parsers import ReadingOptions
from nanobanana_async.cli.batch.rehearsal import emulated_account
from nanobanana_async.cli.batch.run import Run
from nanobanana_async.cli.batch.run_options import RunOptions
from nanobanana_async.cli.batch.shared import check_ledger_options, feed_and_work
from nanobanana_async.cli.batch.sweeping import open_sweep, sweep_options
from nanobanana_async.cli.find_gateway import find_gateway, find_gateways
from nanobanana_async.cli.options import (
    MAX_BUDGET_WAIT_S,
    BaseUrl,
    Credits,
    ExtraOption,
    Flag,
    GatewayFinder,
    GatewayOrEmulator,
    MaxJobs,
    MaxRequestsPerMinute,
    RunFolder,
    Seconds,
    TargetOption,
    Yes,
    check_output,
    extra_of,
    repeatable,
)
from nanobanana_async.cli.shared_ledger import SharedLedgerOption
from nanobanana_async.cli.turns import NO_TURN, TurnOptions
from nanobanana_async.images.target import Target
from nanobanana_async.policy.prices import parse_credits
from nanobanana_async.validators import as_number

USAGE = 2


@frozen
class BatchCommand:
    """The command `batch`."""

    find_gateway: GatewayFinder

    def batch(
        self,
        file: str | None = None,
        /,
        *,
        output: Annotated[Target | None, TargetOption] = None,
        folder: RunFolder = None,
        ledger: SharedLedgerOption = None,
        feed_only: Flag = False,
        sidecar: Flag = False,
        prompt: str | None = None,
        vary: Annotated[list[str] | None, repeatable("NAME=VALUES")] = None,
        vary_file: Annotated[list[Path] | None, repeatable("FILE")] = None,
        gateway: GatewayOrEmulator = None,
        base_url: BaseUrl = None,
        max_credits: Credits = None,
        expected_credits: Credits = None,
        turn: TurnOptions = NO_TURN,
        max_jobs: MaxJobs = None,
        max_requests_per_minute: MaxRequestsPerMinute = None,
        max_budget_wait: Seconds = MAX_BUDGET_WAIT_S,
        retry_failed: Flag = False,
        buy_changed: Flag = False,
        ordered: Flag = False,
        name: Annotated[str | None, Parameter(metavar="NAME")] = None,
        format: Format | None = None,  # noqa: A002 - the option's name
        encoding: str | None = None,
        sheet: str | None = None,
        comments: str | None = None,
        strict: Flag = False,
        names: Annotated[str | None, Parameter(metavar="PATTERN")] = None,
        num_images: int | None = None,
        aspect_ratio: str | None = None,
        resolution: str | None = None,
        output_format: str | None = None,
        model: str | None = None,
        extra: ExtraOption = None,
        new_ledger: Flag = False,
        yes: Yes = False,
        dry_run: Flag = False,
    ) -> int:
        """Buy the images of a file with a prompt in each row. To continue a stopped run, run the same command again.

        No row is bought twice. Start with --dry-run, which buys nothing and prints what the run would cost, and set
        --max-credits.

        The file is .txt with a prompt on each line; .csv, .tsv or .xlsx with names of columns in the first row; .jsonl
        with an object on each line, such as {"prompt": "a fox", "num_images": 2}; or .json with an array of prompts or
        objects. The names are prompt, which is needed, and num_images, aspect_ratio, resolution, output_format, model,
        image (one reference image: a link, or a file, whose path starts from the folder of the file of rows), images
        (several, in tables separated by spaces or |), task_type, extra (a JSON object, or columns extra.NAME), key
        (your name for the row) and metadata. AspectRatio or "Num Images" are recognised too. Other columns are copied
        into the results as metadata. Empty rows are skipped. The whole file is checked, with all reference images,
        before anything is bought; messages number its lines, and the rows of a table as a spreadsheet does, from 1.

        The folder gets images/ (with metadata.jsonl, which describes each image), results.jsonl (a line for each row
        that has ended), results.csv (the same for spreadsheets), index.html (the same as a page, with the small images
        in thumbnails/) and jobs.sqlite (the ledger, which remembers what was bought: keep it). A row is known by its
        key if it has one, otherwise by its prompt and settings: rows may be moved and inserted, a row whose
        settings were edited is bought again only with --buy-changed. An edited prompt without a key is a new row.

        If stdout is not a terminal, it gets a line for each image: key, status and path, separated by tabs; rows of
        earlier runs come first. The first Ctrl-C (or SIGTERM, SIGHUP) buys no more and waits for the jobs that run; the
        second one stops at once, and the next run collects what was bought.

        Exit codes: 0 every row has its images; 1 some rows have none; 2 a wrong option or file, and nothing was bought;
        3 the buying stopped early (credits, API key, a folder that can't be written), or the batch cost more than
        --max-credits because a price was above its estimate; 130 interrupted.

        Examples:

        nanobanana batch prompts.txt -o spring --dry-run

        nanobanana batch prompts.csv -o spring --max-credits 800

        nanobanana batch -o shop --prompt "a {product} in {style}" --vary product=mug,cup --vary style=oil,ink

        Parameters
        ----------
        file
            The file of rows; `-` is standard input.
        output
            The folder for the images and results, created if missing. Each batch needs a folder of its own; other files
            in it are left alone, and no link in it is followed. Or an object store for the images, s3://bucket/prefix,
            gs:// or az://, with its credentials in the environment (extra `store`).
        folder
            The folder for everything but the images, if they go to an object store; by default the batch's name.
        ledger
            A ledger that hosts share, postgresql://user@host/database (or NANOBANANA_LEDGER). The rows are fed into it,
            and this host buys some of them, as `nanobanana worker` does on others; -o gets the images.
        feed_only
            Feed the rows into the shared ledger and buy none here.
        sidecar
            Write prompt, settings, key and price of each image into NAME.json beside it.
        prompt
            A sweep instead of a file: a prompt such as "a {product} in {style}", bought for each value with each other
            one. Values name rows and files (mug-oil) and are metadata; the rows of added values alone are bought.
        vary
            NAME=VALUE,VALUE of a sweep, or NAME=@FILE with a value a line; can be repeated. A value with commas is
            quoted as in CSV: 'style="oil, thick",ink'. NAME may be a field, such as image, num_images or extra.seed.
        vary_file
            A table (.csv, .tsv, .xlsx) of a sweep whose columns go together, such as product and image; other columns
            become metadata. Its `key`, if it has one, names the row; can be repeated.
        gateway
            The gateway; by default the one whose API key is set. `emulator` runs an emulated one in this process.
        base_url
            The gateway's URL, if not the usual one.
        max_credits
            The cap: stop before the batch costs more than this, all its runs together. As long as the price of a model
            and resolution is unknown, one such job runs alone, at the price in the gateway's reference.
        expected_credits
            What a job is assumed to cost until its price is known, instead of the price in the gateway's reference.
        max_jobs
            The most jobs to run at once.
        max_requests_per_minute
            The most requests to the gateway in a minute, if you know what the account allows.
        max_budget_wait
            Seconds to wait when the account's daily budget of requests is used up; if that takes longer, the run stops,
            and the same command continues it later. Other waits, such as for a gateway that is down, do not count.
        retry_failed
            Buy rows again that failed or were refused.
        buy_changed
            Buy rows again whose prompt or settings were edited since they were bought, under the same key. Their images
            of before stay, and the results list them.
        ordered
            Write the results in the order of the file instead of the order in which rows end.
        name
            The batch's name, by default that of the file without its ending. It must stay the same: under another name
            the same rows are bought again. Under the same name in another folder, the gateway may answer with the jobs
            that were bought first.
        format
            The file's format, if its name does not show it. Standard input is txt unless this says otherwise.
        encoding
            The encoding of a text file. By default it is found: UTF-8, UTF-16, UTF-32 or Windows-1252; a guess is
            printed.
        sheet
            The sheet of a workbook; by default the first.
        comments
            Skip lines that begin with this text, such as '#', and rows of a table that do or whose prompt does.
        strict
            Refuse columns and fields that are not known, instead of copying them into the results.
        names
            How the image files are named: a text with at least one of {row} (its number), {slug} (the prompt in a form
            for file names), {key} and {metadata[NAME]} (the value in the column NAME), or default, which is the row's
            key, or else {row:04}-{slug}. The folder remembers it for later runs. Saved images keep their names.
        num_images
            Images per prompt, 1 to 6, for rows that have no value. If you change this or one of the next five for a
            batch that was bought, its rows have changed, and are bought again only with --buy-changed.
        aspect_ratio
            Aspect ratio, such as 16:9, for rows that have no value; in a sweep several: 1:1,16:9.
        resolution
            1K, 2K or 4K, for rows that have no value; in a sweep several: 1K,2K.
        output_format
            jpeg, jpg or png, for rows that have no value.
        model
            The model, for rows that have no value.
        extra
            NAME=VALUE: what the model takes beside these options, such as seed=7, for rows that have no value; can be
            repeated. A value that is JSON is sent as JSON, any other as text.
        new_ledger
            Begin a new ledger in a folder whose jobs.sqlite is lost, go on with one that is older than results.jsonl,
            or begin one for a batch whose images another ledger has put into the object store. Rows without a result
            are bought, perhaps a second time, and --max-credits leaves out what the ledger does not know.
        yes
            Buy lines that begin with # as prompts, and a sweep of more than 100 rows, without asking.
        dry_run
            Check the file, and print how many rows would be bought, what they would cost, the balance of the account,
            whether --max-credits is enough, and the settings. Nothing is bought or written. Needs no API key: without
            one the balance is left out.
        """
        emulated = gateway == "emulator"
        in_folder = {"--folder": folder, "--buy-changed": buy_changed, "--ordered": ordered, "--new-ledger": new_ledger}
        in_folder["--gateway emulator"] = emulated
        output = check_ledger_options(ledger, output, in_folder, feed_only=feed_only)
        asyncio.run(check_output(output, create=False))
        max_credits = parse_credits("--max-credits", max_credits)
        expected_credits = parse_credits("--expected-credits", expected_credits)
        max_budget_wait_s = as_number("--max-budget-wait", max_budget_wait, endless=True)
        concurrency = ConcurrencyPolicy(max_jobs=max_jobs, max_requests_per_minute=max_requests_per_minute)
        keyless = gateway_without_key(gateway, base_url, folder or output) if dry_run and not emulated else None
        accounts = () if gateway == "emulator" or keyless else find_gateways(self.find_gateway, gateway, base_url)
        selected = accounts[0] if accounts else keyless or emulated_account()
        crossed = {"aspect_ratio": aspect_ratio, "resolution": resolution}
        for_files = {"--format": format, "--comments": comments, "--strict": strict}
        swept = sweep_options(file, prompt, vary, vary_file, crossed, for_files, encoding=encoding, sheet=sheet)
        given = {
            "num_images": num_images,
            "aspect_ratio": None if swept else aspect_ratio,
            "resolution": None if swept else resolution,
            "output_format": output_format,
            "model": model,
            "extra": extra_of(extra) or None,
        }
        options_given: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        example = ImageRequest("a prompt", **options_given)  # raises for a wrong option, once, and not for each row
        defaults = {name: getattr(example, name) for name in options_given}
        options = ReadingOptions(defaults=defaults, comments=comments, strict=strict, names=template_of(names))
        opened = (
            open_sweep(swept, name, options)
            if swept is not None
            else open_input(str(file), name, format, options, encoding=encoding, sheet=sheet)
        )
        with opened as source:
            store = None if isinstance(output, Path) else output
            path = folder_of_run(output, folder, source.batch)
            refuse_own_results(path, file, swept)
            owner = FolderOwner(source.batch, emulated, None if store is None else store.url)
            if ledger is None:
                if (found := check_owner(path, owner)) is not None:
                    owner = refuse_lost_ledger(path, owner, found, new_ledger=new_ledger)
                source, owner = with_names(source, names, owner, found, path)
            notes = Notes()
            source.read_stored_images(selected)
            total = count_valid_rows(source, selected, notes)
            if total is None:
                return USAGE
            run_options = RunOptions(
                file=source,
                total=total,
                accounts=accounts,
                folder=path,
                ledger=ledger,
                emulated=emulated,
                store=store,
                sidecar=sidecar,
                max_credits=max_credits,
                expected_credits=expected_credits,
                turn=turn,
                concurrency=concurrency,
                max_budget_wait_s=max_budget_wait_s,
                retry_failed=retry_failed,
                buy_changed=buy_changed,
                new_ledger=new_ledger,
                ordered=ordered,
                results_delimiter=notes.delimiter,
            )
            if dry_run:
                return asyncio.run(show_dry_run(run_options, selected, asks_balance=not emulated and keyless is None))
            if not may_buy(run_options, selected, notes, owner, yes=yes):
                return USAGE
            if ledger is not None:
                return asyncio.run(feed_and_work(run_options, selected, None if feed_only else output))
            with BatchFolder(path, owner) as held:
                return asyncio.run(_run(run_options, held))


async def _run(options: RunOptions, folder: BatchFolder) -> int:
    console = Console(stderr=True)
    if options.accounts:
        return await Run(options, options.accounts, folder, console).run()
    from nanobanana_async.emulator import Emulator  # takes a fifth of a second to import

    async with Emulator(seed=secrets.randbits(32)) as emulator:  # task ids that no earlier emulator had
        return await Run(options, [emulator.apimall()], folder, console).run()


batch = BatchCommand(find_gateway).batch

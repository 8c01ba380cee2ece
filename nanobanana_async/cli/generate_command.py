"""`nanobanana generate`: the options of the command, and how they select gateway and ledger."""

import asyncio
import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from attrs import frozen
from cyclopts import Parameter
from rich.console import Console

from nanobanana_async import ConcurrencyPolicy, ConfigurationError, Gateway, ImageRequest
from nanobanana_async.cli.display import shorten
from nanobanana_async.cli.find_gateway import find_gateway, find_gateways
from nanobanana_async.cli.generate import GenerateOptions, GenerateRun
from nanobanana_async.cli.jobs.actions import open_read_only
from nanobanana_async.cli.jobs.consent import confirm, print_note
from nanobanana_async.cli.options import (
    DEFAULT_LEDGER,
    BaseUrl,
    ExtraOption,
    Flag,
    GatewayFinder,
    GatewayOrEmulator,
    LedgerOption,
    MaxJobs,
    MaxRequestsPerMinute,
    TargetOption,
    Timeout,
    Yes,
    check_output,
    extra_of,
    fetch_options,
    repeatable,
)
from nanobanana_async.cli.turns import NO_TURN, TurnOptions
from nanobanana_async.commands import as_value, command_line
from nanobanana_async.formatting import plural
from nanobanana_async.images.local import digest_local_images
from nanobanana_async.images.target import Target
from nanobanana_async.ledger.postgres.url import PostgresUrl
from nanobanana_async.models import OutputFormat, Resolution
from nanobanana_async.references import text_to_reference
from nanobanana_async.validators import as_number, as_timeout

CANCELLED = 1
MAX_WORDS = 12
"""How many prompts the question about single words lists."""


@frozen
class GenerateCommand:
    """The command `generate`."""

    find_gateway: GatewayFinder

    def generate(
        self,
        prompts: Annotated[list[str], Parameter(name="PROMPT", negative=())],
        /,
        *,
        output: Annotated[Target | None, TargetOption] = None,
        sidecar: Flag = False,
        gateway: GatewayOrEmulator = None,
        base_url: BaseUrl = None,
        image: Annotated[list[str] | None, repeatable("IMAGE")] = None,
        num_images: int = 1,
        aspect_ratio: str | None = None,
        resolution: Resolution | None = None,
        output_format: OutputFormat | None = None,
        model: str | None = None,
        extra: ExtraOption = None,
        max_jobs: MaxJobs = None,
        max_requests_per_minute: MaxRequestsPerMinute = None,
        turn: TurnOptions = NO_TURN,
        timeout: Timeout = None,
        ordered: Flag = False,
        ledger: LedgerOption = DEFAULT_LEDGER,
        buy_again: Flag = False,
        yes: Yes = False,
    ) -> int:
        """Generate images for all prompts concurrently and print their URLs, or with -o the paths of the saved files.

        Every job is in a ledger before it is bought. After a kill, a crash, Ctrl-C or --timeout the same command
        continues: what was bought is delivered and not bought again, and a prompt that failed or was refused is bought
        again. Once everything is delivered, the same command buys new images. The first Ctrl-C (or SIGTERM, SIGHUP)
        stops the buying and waits for what is bought; the second one stops at once.

        Examples:

        nanobanana generate "a lighthouse in fog" --aspect-ratio 16:9 -o images

        nanobanana generate "a fox" "an owl" --resolution 2K --max-jobs 2

        nanobanana generate "as a watercolour" --image cat.png -o images

        Parameters
        ----------
        prompts
            The prompts; each one is one purchase. Quote a prompt of several words: two or more prompts of one word each
            are asked about on a terminal, and so is the name of a file.
        output
            Save the images in this folder, or in an object store: s3://bucket/prefix, gs:// or az://, with its
            credentials in the environment (extra `store`).
        sidecar
            Write prompt, settings, key and price of each image into NAME.json beside it.
        gateway
            The gateway; by default the one whose API key is set. `emulator` runs an emulated one in this process.
        base_url
            The gateway's URL, if not the usual one.
        image
            A reference image: a file, a URL, or an object in a store such as s3://bucket/cat.png (extra `store`); can
            be repeated. The same content is the same request under any name.
        num_images
            Images per prompt, 1 to 6.
        aspect_ratio
            Aspect ratio, such as 16:9.
        resolution
            1K, 2K or 4K.
        output_format
            Format of the images.
        model
            Another model of the gateway.
        extra
            NAME=VALUE: what the model takes beside these options, such as seed=7; can be repeated. A value that is JSON
            is sent as JSON, any other as text.
        max_jobs
            The most jobs to run at once.
        max_requests_per_minute
            The most requests to the gateway in a minute, if you know what the account allows.
        timeout
            Seconds to wait for the images; jobs that take longer continue at the gateway.
        ordered
            Print results in the order of the prompts instead of the order in which they end.
        ledger
            The ledger: a file, or postgresql://user@host/database.
        buy_again
            Buy new images although an earlier run of the command did not end; `nanobanana jobs fetch` fetches its
            images.
        yes
            Do not ask for confirmation.
        """
        more = extra_of(extra)
        references = [text_to_reference(text, Path()) for text in image or ()]
        requests = [
            ImageRequest(
                prompt,
                images=references,
                num_images=num_images,
                aspect_ratio=aspect_ratio,
                resolution=resolution,
                output_format=output_format,
                model=model,
                extra=more,
            )
            for prompt in prompts
        ]
        concurrency = ConcurrencyPolicy(max_jobs=max_jobs, max_requests_per_minute=max_requests_per_minute)
        if timeout is not None:
            as_number("--timeout", timeout, above=0, endless=True)
        emulated = gateway == "emulator"
        if emulated and output is None:
            raise ConfigurationError(
                "--gateway emulator needs -o DIR, which saves the images: their URLs end with the command"
            )
        options = GenerateOptions(
            requests=requests,
            target=output,
            sidecar=sidecar,
            ledger=None if emulated else ledger,
            timeout=as_timeout("--timeout", timeout),
            concurrency=concurrency,
            turn=turn,
            ordered=ordered,
            buy_again=buy_again,
            fetch_options=fetch_options(ledger, gateway, base_url),
        )
        asyncio.run(check_output(output, create=False))
        selected = None if gateway == "emulator" else find_gateways(self.find_gateway, gateway, base_url)
        files = _about_file_names(prompts)
        sentence = files or _about_single_words(requests)
        if sentence and selected is not None and (files or sys.stdin.isatty()):
            asyncio.run(_check(options, selected[0]))  # what is refused anyway needs no answer
            if not confirm(sentence, yes=yes):
                return CANCELLED
        elif sentence:
            print_note(sentence)
        return asyncio.run(_run(options, selected))


def _about_single_words(requests: Sequence[ImageRequest]) -> str:
    """Return what to say about prompts that may be the words of one prompt without quotes; each would be bought."""
    prompts = [request.prompt for request in requests]
    if len(prompts) < 2 or any(len(prompt.split()) > 1 for prompt in prompts):
        return ""
    listed = ", ".join(repr(shorten(prompt, 40)) for prompt in prompts[:MAX_WORDS])
    more = ", ..." if len(prompts) > MAX_WORDS else ""
    images = plural(sum(request.num_images for request in requests), "image")
    return f"{plural(len(prompts), 'prompt')}, {images}: {listed}{more}. Quote a prompt of several words."


def _about_file_names(prompts: Sequence[str]) -> str:
    """Return what to say about prompts that are names of files: their text would be bought, not what is in them.

    A folder counts if its name looks like one of a file: `fox` may be a prompt that has images in the folder `fox`.
    """
    name = next(filter(os.path.isfile, prompts), None)
    if name is None:
        folder = next((each for each in prompts if Path(each).suffix and os.path.isdir(each)), None)
        if folder is None:
            return ""
        return (
            f"The prompt {shorten(folder, 60)!r} is the name of a folder, which `generate` does not read: --image names"
            " the file of a reference image."
        )
    command = command_line("batch", as_value(name), "-o", "FOLDER")
    return (
        f"The prompt {shorten(name, 60)!r} is the name of a file, which `generate` does not read: `{command}` buys the"
        " prompts in it, --image names a reference image."
    )


async def _check_requests(options: GenerateOptions, gateway: Gateway) -> None:
    for request in options.requests:
        gateway.check(request)
        await asyncio.to_thread(digest_local_images, request, gateway)  # raises for a local image that can't be used


async def _check(options: GenerateOptions, gateway: Gateway) -> None:
    """Raise what would end the run before it buys; nothing is written."""
    await _check_requests(options, gateway)
    ledger = options.ledger
    if isinstance(ledger, PostgresUrl) or (ledger is not None and ledger.is_file() and ledger.stat().st_size):
        async with open_read_only(ledger):
            pass


async def _run(options: GenerateOptions, gateways: Sequence[Gateway] | None) -> int:
    """Buy what the options say with one account of a gateway or several; without any, at an emulated one."""
    console = Console(stderr=True)
    if gateways is None:
        from nanobanana_async.emulator import Emulator  # takes longer to import than the rest of the command

        async with Emulator(seed=secrets.randbits(32)) as emulator:  # task ids that no earlier emulator had
            return await _run(options, [emulator.apimall()])
    await _check_requests(options, gateways[0])
    return await GenerateRun(options, gateways, console).run()


generate = GenerateCommand(find_gateway).generate

"""The commands and their exit codes: 0 all is well, 1 a job failed, 2 usage or settings, 130 interrupted.

A batch knows 3, too: the buying stopped early.
"""

import asyncio
import getpass
import os
import sys
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console

from nanobanana_async import (
    ConcurrencyPolicy,
    ConfigurationError,
    Gateway,
    ImageRequest,
    InvalidRequest,
    NanoBananaError,
    __version__,
)
from nanobanana_async.cli.batch.command import BatchCommand
from nanobanana_async.cli.demo import demonstrate
from nanobanana_async.cli.generate import Interrupted, generate_all
from nanobanana_async.cli.jobs.command import job_commands
from nanobanana_async.config import gateway_from_env
from nanobanana_async.emulator import Emulator, LogNormal, serve
from nanobanana_async.escaping import one_line
from nanobanana_async.gateways import registry
from nanobanana_async.models import OutputFormat, Resolution
from nanobanana_async.validators import as_count, as_number

GatewayName = registry.GatewayName | Literal["emulator"]

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

app = App(
    name="nanobanana",
    version=__version__,
    help="""Generate pictures through the Nano Banana Pro gateways API Mall and defapi.

    The API key comes from APIMALL_API_KEY or DEFAPI_API_KEY, or is asked for on a terminal; it is never an argument.
    `nanobanana demo` and `--gateway emulator` need no key and no network.""",
    suppress_keyboard_interrupt=False,
    result_action="return_value",
)


def run(tokens: Sequence[str]) -> int:
    """Run one command and return its exit code; whatever goes wrong is one clear line on stderr."""
    try:
        code = app(list(tokens), exit_on_error=False, print_error=False)
    except CycloptsError as error:
        return _print_error(error, USAGE)
    except Interrupted as interrupted:
        return _print_error(interrupted, INTERRUPTED)
    except KeyboardInterrupt:
        return _print_error("interrupted", INTERRUPTED)
    except (ConfigurationError, InvalidRequest) as error:
        # A gateway's own 400 carries a status; without one it was found here, before anything was sent.
        local = not isinstance(error, InvalidRequest) or error.status is None
        return _print_error(error, USAGE if local else FAILED)
    except BrokenPipeError:
        # Who read our output has gone: say nothing, and let Python's last flush find nowhere to complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except ImportError as error:  # an emulator without Pillow
        return _print_error(error, USAGE)
    except (NanoBananaError, OSError) as error:
        return _print_error(error, FAILED)
    except Exception as bug:
        if os.environ.get("NANOBANANA_DEBUG"):
            raise
        return _print_error(f"a bug: {type(bug).__name__}: {bug} (NANOBANANA_DEBUG=1 shows where)", FAILED)
    return code if isinstance(code, int) else OK


def _print_error(what: object, code: int) -> int:
    line = one_line(str(what)) or type(what).__name__
    print(f"nanobanana: {line}", file=sys.stderr)
    return code


@app.command
def demo(
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])] = Path("nanobanana-demo"),
    prompts: Annotated[int, Parameter(help="How many pictures.")] = 24,
) -> int:
    """Show it all against an emulated gateway: no key, no network, no cost, about a quarter of a minute.

    Parameters
    ----------
    output
        Where the pictures go.
    """
    as_count("--prompts", prompts)
    return asyncio.run(demonstrate(output, prompts, Console(stderr=True)))


@app.command
def generate(
    prompts: Annotated[list[str], Parameter(name="PROMPT", negative=())],
    /,
    *,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    gateway: Annotated[GatewayName | None, Parameter(env_var="NANOBANANA_GATEWAY")] = None,
    base_url: Annotated[str | None, Parameter(env_var="NANOBANANA_BASE_URL")] = None,
    image: Annotated[list[str] | None, Parameter(negative=())] = None,
    num_images: int = 1,
    aspect_ratio: str | None = None,
    resolution: Resolution | None = None,
    output_format: OutputFormat | None = None,
    model: str | None = None,
    max_jobs: Annotated[int | None, Parameter(env_var="NANOBANANA_MAX_JOBS")] = None,
    timeout: Annotated[float | None, Parameter(env_var="NANOBANANA_TIMEOUT")] = None,
) -> int:
    """Generate pictures, all prompts at once, and print their URLs, or with -o the files they were saved to.

    Parameters
    ----------
    prompts
        What is wanted; each prompt is one purchase.
    output
        Save the pictures into this folder.
    gateway
        Whose pictures; the one whose API key is set when left out. `emulator` runs one in this process.
    base_url
        Where the gateway is, if not at its usual place.
    image
        URL of a reference image; may be given several times.
    num_images
        Pictures per prompt, 1 to 6.
    aspect_ratio
        Such as 16:9.
    max_jobs
        Never hold more jobs at once than this.
    timeout
        Seconds to wait for each prompt; a job that is not done by then goes on at the gateway.
    """
    requests = [
        ImageRequest(
            prompt,
            images=image or (),
            num_images=num_images,
            aspect_ratio=aspect_ratio,
            resolution=resolution,
            output_format=output_format,
            model=model,
        )
        for prompt in prompts
    ]
    policy = ConcurrencyPolicy(max_jobs=max_jobs)
    if timeout is not None:
        as_number("--timeout", timeout, above=0, endless=True)

    async def buy(seller: Gateway) -> int:
        for request in requests:
            seller.check(request)
        return await generate_all(seller, requests, policy, output, timeout, Console(stderr=True))

    async def buy_for_nothing() -> int:
        async with Emulator() as emulator:
            return await buy(emulator.apimall())

    if gateway == "emulator":
        if output is None:
            raise ConfigurationError("--gateway emulator needs -o DIR: its pictures are gone when it ends")
        return asyncio.run(buy_for_nothing())
    return asyncio.run(buy(_find_gateway(gateway, base_url)))


@app.command
def emulate(
    *,
    port: Annotated[int, Parameter(env_var="NANOBANANA_EMULATOR_PORT")] = 8080,
    job_limit: int | None = None,
    creates_per_minute: float | None = None,
    credits: Decimal | None = None,  # noqa: A002 - the word of the gateways
    job_seconds: float = 8.0,
    speed: float = 1.0,
    failure_probability: float = 0.0,
    seed: int = 0,
) -> int:
    """Run both gateways on this machine, until Ctrl-C. It takes any prompt, and the key that it prints.

    Parameters
    ----------
    port
        Where to listen; 0 takes a free one.
    job_limit
        How many jobs may run at once; more are refused with 429. Left out: no limit.
    creates_per_minute
        How many creates a minute may arrive. Left out: no limit.
    credits
        What is on the account. Left out: endless.
    job_seconds
        How long a job takes, as median.
    speed
        Emulated seconds per second.
    failure_probability
        How likely a job is to fail, from 0 to 1.
    seed
        The same seed gives the same durations, failures and pictures.
    """
    try:
        duration = LogNormal(median_s=job_seconds)
        serving = serve(
            port,
            job_limit=job_limit,
            creates_per_minute=creates_per_minute,
            credits=credits,
            duration=duration,
            speed=speed,
            failure_probability=failure_probability,
            seed=seed,
        )
        asyncio.run(serving)
    except (ValueError, OverflowError) as error:  # a setting out of range, a port that is none
        raise ConfigurationError(str(error)) from None
    return OK


def _find_gateway(name: GatewayName | None, base_url: str | None) -> Gateway:
    """Return the gateway that options and environment name; ask for a missing key where there is somebody to ask."""
    return gateway_from_env(_environ(name, base_url))  # into no variable: a traceback that shows locals would show it


def _environ(name: GatewayName | None, base_url: str | None) -> dict[str, str]:
    environ = dict(os.environ)
    if name is not None:
        environ["NANOBANANA_GATEWAY"] = name
    if base_url is not None:
        environ["NANOBANANA_BASE_URL"] = base_url
    kind = registry.GATEWAYS.get(environ.get("NANOBANANA_GATEWAY", "").strip().lower())
    if kind is not None and not environ.get(kind.key_variable) and sys.stdin.isatty():
        environ[kind.key_variable] = getpass.getpass(f"API key of {kind.title}: ", stream=sys.stderr)
    return environ


app.command(BatchCommand(_find_gateway).batch)
app.command(job_commands(_find_gateway))

"""Define the commands and their exit codes: 0 success, 1 a job failed, 2 usage or settings, 130 interrupted.

`nanobanana batch` also exits with 3: the buying stopped early.
"""

import getpass
import os
import sys
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console

from nanobanana_async import ConfigurationError, Gateway, InvalidRequest, NanoBananaError, __version__
from nanobanana_async.cli.balance import BalanceCommand
from nanobanana_async.cli.batch.command import BatchCommand
from nanobanana_async.cli.demo import demonstrate
from nanobanana_async.cli.generate_command import GenerateCommand
from nanobanana_async.cli.jobs.command import job_commands
from nanobanana_async.cli.ledger import ledger_commands
from nanobanana_async.cli.logs import plain_logs
from nanobanana_async.cli.options import FolderOption, Name, setting_message, usage_message
from nanobanana_async.cli.signals import Interrupted, interrupted_by_signals, run_until_signal
from nanobanana_async.cli.streams import silence, usable_streams
from nanobanana_async.cli.webhooks import webhook_commands
from nanobanana_async.commands import command_line
from nanobanana_async.config import gateway_from_env
from nanobanana_async.emulator import ACCOUNTS, EmulatorOptions, LogNormal, serve
from nanobanana_async.emulator.rates import RateWindow
from nanobanana_async.emulator.settings import AccountName
from nanobanana_async.escaping import one_line
from nanobanana_async.gateways import registry
from nanobanana_async.validators import as_count

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

_KEY_VARIABLES = tuple(kind.key_variable for kind in registry.GATEWAYS.values())

app = App(
    name="nanobanana",
    version=__version__,
    help="""Generate images through the Nano Banana Pro gateways API Mall and defapi.

    The API key comes from APIMALL_API_KEY or DEFAPI_API_KEY, or from a prompt on a terminal; it is never an argument.
    HTTPS_PROXY, HTTP_PROXY and NO_PROXY set the proxy, SSL_CERT_FILE trusts a certificate authority of your own, and
    NANOBANANA_ALLOW_NETWORKS allows images from private networks.
    `nanobanana demo` and `--gateway emulator` need no key and no network.""",
    suppress_keyboard_interrupt=False,
    result_action="return_value",
)


def run(tokens: Sequence[str]) -> int:
    """Run one command and return its exit code; an error is printed as one line on stderr."""
    with usable_streams(), plain_logs(), interrupted_by_signals():
        return _run(tokens)


def _run(tokens: Sequence[str]) -> int:
    _remove_empty_variables()
    try:
        code = app(list(tokens), exit_on_error=False, print_error=False)
    except CycloptsError as error:
        return _print_error(usage_message(error), USAGE)
    except Interrupted as interrupted:
        return _print_error(interrupted, INTERRUPTED)
    except KeyboardInterrupt:
        return _print_error("interrupted", INTERRUPTED)
    except (ConfigurationError, InvalidRequest) as error:
        # An InvalidRequest of the gateway (400) has a status; without one it was raised here, before anything was sent.
        local = not isinstance(error, InvalidRequest) or error.status is None
        return _print_error(setting_message(error), USAGE if local else FAILED)
    except BrokenPipeError:
        silence(sys.stdout)  # the reader closed our output
        return FAILED
    except ImportError as error:  # the emulator needs Pillow
        return _print_error(error, USAGE)
    except (NanoBananaError, OSError) as error:
        return _print_error(error, FAILED)
    except Exception as bug:
        if os.environ.get("NANOBANANA_DEBUG"):
            raise
        return _print_error(f"a bug: {type(bug).__name__}: {bug} (NANOBANANA_DEBUG=1 shows where)", FAILED)
    return code if isinstance(code, int) else OK


def _remove_empty_variables() -> None:
    """Treat empty variables as unset, as the library does: `NANOBANANA_GATEWAY=` is no gateway without a name."""
    for name in [name for name in os.environ if name.startswith("NANOBANANA_")]:
        if not os.environ[name].strip():
            del os.environ[name]


def _print_error(error: object, code: int) -> int:
    line = one_line(str(error)) or type(error).__name__
    print(f"nanobanana: {line}", file=sys.stderr)
    return code


@app.command
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


@app.command
def emulate(
    *,
    port: Annotated[int, Parameter(env_var="NANOBANANA_EMULATOR_PORT")] = 8080,
    host: Annotated[str, Parameter(env_var="NANOBANANA_EMULATOR_HOST")] = "127.0.0.1",
    account: AccountName | None = None,
    job_limit: int | None = None,
    creates_per_minute: float | None = None,
    requests_per_minute: float | None = None,
    requests_per_day: float | None = None,
    rate_window: RateWindow = "bucket",
    credits: Decimal | None = None,  # noqa: A002 - the option's name
    job_seconds: float = 8.0,
    speed: float = 1.0,
    failure_probability: float = 0.0,
    seed: int = 0,
) -> int:
    """Emulate both gateways on this machine until Ctrl-C. The emulator accepts any prompt and the API key it prints.

    Of API Mall it has creates, queries, the history of tasks, the balance, uploads (inline, by pre-signed URL, by URL)
    and webhooks; of defapi creates, queries, the balance and callbacks. Webhooks and callbacks reach this machine only.

    Examples:

    nanobanana emulate --account small

    nanobanana emulate --host 0.0.0.0 --port 8080 --job-seconds 2

    Parameters
    ----------
    port
        The port; 0 selects a free one.
    host
        The address to listen on. 127.0.0.1 is reached from this machine only, 0.0.0.0 by every machine and container
        that reaches this one; a client there needs NANOBANANA_ALLOW_HTTP=1.
    account
        The limits of an account as they are sold: small is 5 jobs at once, 60 requests a minute and 10,000 a day.
        Other options change them.
    job_limit
        The most jobs that run at once; more are refused with 429. Default: no limit.
    creates_per_minute
        The most creates per minute; more are refused with 429. Default: no limit.
    requests_per_minute
        The most requests of all kinds per minute, counted together. Default: no limit.
    requests_per_day
        The most requests of all kinds per day. Default: no limit.
    rate_window
        How requests are counted: by a token bucket, in windows by the clock, or in a sliding window.
    credits
        Credits of the account. Default: unlimited.
    job_seconds
        Median duration of a job.
    speed
        Emulated seconds per second.
    failure_probability
        Probability that a job fails, from 0 to 1.
    seed
        The same seed gives the same durations, failures and images.
    """

    async def serve_until_signal() -> int:
        await serve(port, host=host, **options)
        return OK

    try:
        options: EmulatorOptions = {
            "credits": credits,
            "duration": LogNormal(median_s=job_seconds),
            "speed": speed,
            "failure_probability": failure_probability,
            "seed": seed,
            "rate_window": rate_window,
        }
        if account is not None:
            options |= ACCOUNTS[account]
        if job_limit is not None:
            options["job_limit"] = job_limit
        if creates_per_minute is not None:
            options["creates_per_minute"] = creates_per_minute
        if requests_per_minute is not None:
            options["requests_per_minute"] = requests_per_minute
        if requests_per_day is not None:
            options["requests_per_day"] = requests_per_day
        return run_until_signal(serve_until_signal())
    except (ValueError, OverflowError) as error:  # a setting or a port out of range
        raise ConfigurationError(str(error)) from None


def _find_gateway(name: Name | None, base_url: str | None) -> Gateway:
    """Return the gateway that options and environment select; on a terminal, prompt for a missing key."""
    if name is None and not any(map(os.environ.get, ("NANOBANANA_GATEWAY", *_KEY_VARIABLES))):
        raise ConfigurationError(
            "no gateway: pass --gateway apimall or --gateway defapi, which ask for the API key on a terminal, or set"
            f" {' or '.join(_KEY_VARIABLES)}; `--gateway emulator` with `generate` and `batch` is a rehearsal without"
            f" key and cost, `{command_line('demo')}` shows what the client does"
        )
    return gateway_from_env(_environ(name, base_url))  # no variable holds the key: tracebacks with locals would show it


def _environ(name: Name | None, base_url: str | None) -> dict[str, str]:
    environ = dict(os.environ)
    if name is not None:
        environ["NANOBANANA_GATEWAY"] = name
    if base_url is not None:
        environ["NANOBANANA_BASE_URL"] = base_url
    kind = registry.GATEWAYS.get(environ.get("NANOBANANA_GATEWAY", "").strip().lower())
    if kind is not None and not environ.get(kind.key_variable, "").strip() and sys.stdin.isatty():
        state = "empty" if kind.key_variable in environ else "not set"
        question = f"{kind.key_variable} is {state}. Type the API key of {kind.title} (it is not shown): "
        try:
            # Where stderr is a file, the question goes to the terminal itself.
            environ[kind.key_variable] = getpass.getpass(question, stream=sys.stderr if sys.stderr.isatty() else None)
        except EOFError:
            raise ConfigurationError(f"no API key was typed: set {kind.key_variable}") from None
    return environ


app.command(GenerateCommand(_find_gateway).generate)
app.command(BatchCommand(_find_gateway).batch)
app.command(BalanceCommand(_find_gateway).balance)
app.command(job_commands(_find_gateway))
app.command(ledger_commands())
app.command(webhook_commands(_find_gateway))

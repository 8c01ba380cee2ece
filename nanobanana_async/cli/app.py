"""Define the commands and their exit codes: 0 success, 1 a job failed, 2 usage or settings, 130 interrupted.

`nanobanana batch` also exits with 3: the buying stopped early.
"""

import getpass
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console

from nanobanana_async import ConfigurationError, Gateway, InvalidRequest, NanoBananaError, __version__
from nanobanana_async.cli.balance import BalanceCommand
from nanobanana_async.cli.batch.command import BatchCommand
from nanobanana_async.cli.demo import demonstrate
from nanobanana_async.cli.emulate import emulate
from nanobanana_async.cli.generate_command import GenerateCommand
from nanobanana_async.cli.jobs.command import job_commands
from nanobanana_async.cli.logs import plain_logs
from nanobanana_async.cli.options import FolderOption, Name, in_cli_words, setting_message, usage_message
from nanobanana_async.cli.settings.command import ConfigFile, Profile, config
from nanobanana_async.cli.settings.sources import apply_settings, choose, current, settings_of_run
from nanobanana_async.cli.signals import Interrupted, interrupted_by_signals, run_until_signal
from nanobanana_async.cli.streams import silence, usable_streams
from nanobanana_async.cli.webhooks import webhook_commands
from nanobanana_async.commands import command_line
from nanobanana_async.config import gateway_from_env
from nanobanana_async.escaping import one_line
from nanobanana_async.gateways import registry
from nanobanana_async.validators import as_count

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

_KEY_VARIABLES = tuple(kind.key_variable for kind in registry.GATEWAYS.values())

app = App(
    name="nanobanana",
    version=__version__,
    help="""Generate images through the Nano Banana Pro gateways API Mall and defapi.

    The API key comes from APIMALL_API_KEY or DEFAPI_API_KEY, from a file or variable that the settings file names, or
    from a prompt on a terminal; it is never an argument. `nanobanana config` shows the settings file.
    HTTPS_PROXY, HTTP_PROXY and NO_PROXY set the proxy, SSL_CERT_FILE trusts a certificate authority of your own, and
    NANOBANANA_ALLOW_NETWORKS allows images from private networks.
    `nanobanana demo` and `--gateway emulator` need no key and no network.""",
    suppress_keyboard_interrupt=False,
    result_action="return_value",
    config=apply_settings,
)
app.meta.suppress_keyboard_interrupt = False  # it is not inherited


@app.meta.default
def with_settings(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    config: ConfigFile = None,
    profile: Profile = None,
) -> object:
    """Run a command with the settings of a file.

    Parameters
    ----------
    config
        The settings file, instead of the one in your own configuration folder.
    profile
        The profile of the settings file, such as work for its table [profile.work].
    """
    choose(config, profile)
    return app(_with_stdin_last(tokens), exit_on_error=False, print_error=False)


def _with_stdin_last(tokens: tuple[str, ...]) -> list[str]:
    """Return the tokens of `batch` with a lone `-`, standard input, behind `--` at the end: else it would be an option.

    A FILE that may begin with a hyphen would take the name of an option for its own, as in `batch --profile work`.
    """
    if tokens[:1] != ("batch",) or "-" not in tokens or "--" in tokens:
        return list(tokens)
    at = tokens.index("-")
    return [*tokens[:at], *tokens[at + 1 :], "--", "-"]


def run(tokens: Sequence[str]) -> int:
    """Run one command and return its exit code; an error is printed as one line on stderr."""
    with usable_streams(), plain_logs(), interrupted_by_signals(), settings_of_run():
        return _run(tokens)


def _run(tokens: Sequence[str]) -> int:
    _remove_empty_variables()
    try:
        code = app.meta(list(tokens), exit_on_error=False, print_error=False)
    except CycloptsError as error:
        return _print_error(usage_message(error), USAGE)
    except Interrupted as interrupted:
        return _print_error(interrupted, INTERRUPTED)
    except KeyboardInterrupt:
        return _print_error("interrupted", INTERRUPTED)
    except (ConfigurationError, InvalidRequest) as error:
        # An InvalidRequest of the gateway (400) has a status; without one it was raised here, before anything was sent.
        local = not isinstance(error, InvalidRequest) or error.status is None
        return _print_error(current().name_origin(setting_message(error)), USAGE if local else FAILED)
    except BrokenPipeError:
        silence(sys.stdout)  # the reader closed our output
        return FAILED
    except ImportError as error:  # the emulator needs Pillow
        return _print_error(error, USAGE)
    except (NanoBananaError, OSError) as error:
        return _print_error(in_cli_words(error), FAILED)
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


app.command(emulate)
app.command(GenerateCommand(_find_gateway).generate)
app.command(BatchCommand(_find_gateway).batch)
app.command(BalanceCommand(_find_gateway).balance)
app.command(job_commands(_find_gateway))
app.command(webhook_commands(_find_gateway))
app.command(config)
app.register_install_completion_command()

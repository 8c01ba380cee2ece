"""Define the commands and their exit codes: 0 success, 1 a job failed, 2 usage or settings, 130 interrupted.

`nanobanana batch` also exits with 3: the buying stopped early.
"""

import functools
import os
import sys
from collections.abc import Sequence
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter

from nanobanana_async import ConfigurationError, InvalidRequest, NanoBananaError, __version__
from nanobanana_async.cli.logs import plain_logs
from nanobanana_async.cli.options import in_cli_words, setting_message
from nanobanana_async.cli.settings.command import ConfigFile, Profile
from nanobanana_async.cli.settings.sources import apply_settings, choose, current, settings_of_run
from nanobanana_async.cli.signals import Interrupted, interrupted_by_signals
from nanobanana_async.cli.streams import silence, usable_streams
from nanobanana_async.cli.usage import usage_message
from nanobanana_async.escaping import one_line

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

app = App(
    name="nanobanana",
    version=__version__,
    help="""Generate images through the Nano Banana Pro gateways API Mall and defapi.

    The API key comes from APIMALL_API_KEY or DEFAPI_API_KEY, from a file or variable that the settings file names, or
    from a prompt on a terminal; it is never an argument. `nanobanana config` shows the settings file.
    HTTPS_PROXY, HTTP_PROXY and NO_PROXY set the proxy, SSL_CERT_FILE trusts a certificate authority of your own, and
    NANOBANANA_ALLOW_NETWORKS allows images from private networks.
    `nanobanana demo` and `--gateway emulator` need no key and no network.""",
    version_format="plaintext",  # Markdown takes half of the time
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
    with interrupted_by_signals():
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
    with usable_streams(), plain_logs(), settings_of_run():
        return _run(tokens)


def _run(tokens: Sequence[str]) -> int:
    _remove_empty_variables()
    try:
        tokens = _without_help_for_no_command(tokens)
        _import_command(tokens)
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
    except ImportError as error:
        why = error.__cause__ if isinstance(error.__cause__, ImportError) else error  # cyclopts adds the module's name
        if isinstance(why, ModuleNotFoundError):
            raise why from None
        return _print_error(why, USAGE)  # the emulator needs Pillow
    except (NanoBananaError, OSError) as error:
        return _print_error(in_cli_words(error), FAILED)
    except Exception as bug:
        if os.environ.get("NANOBANANA_DEBUG"):
            raise
        return _print_error(f"a bug: {type(bug).__name__}: {bug} (NANOBANANA_DEBUG=1 shows where)", FAILED)
    return code if isinstance(code, int) else OK


def _without_help_for_no_command(tokens: Sequence[str]) -> Sequence[str]:
    """Return the tokens without --help where they name no command: cyclopts would print the help of the whole group."""
    if {*app.help_flags}.isdisjoint(tokens):
        return tokens
    _, apps, unused = app.meta.parse_commands(list(tokens))
    has_commands = any(not name.startswith("-") for name in apps[-1]) or apps[-1] is app.meta
    if not has_commands or not unused or unused[0].startswith("-"):
        return tokens
    return [token for token in tokens if token not in app.help_flags]


def _import_command(tokens: Sequence[str]) -> None:
    """Import the command before Ctrl-C may raise; for help all commands, whose docstrings it shows."""
    chain, _, _ = app.meta.parse_commands(list(tokens))
    if not tokens or not {*app.help_flags}.isdisjoint(tokens):
        names = [name for name in chain if name not in app.help_flags]
        functools.reduce(App.__getitem__, names, app).resolved_commands()


def _remove_empty_variables() -> None:
    """Treat empty variables as unset, as the library does: `NANOBANANA_GATEWAY=` is no gateway without a name."""
    for name in [name for name in os.environ if name.startswith("NANOBANANA_")]:
        if not os.environ[name].strip():
            del os.environ[name]


def _print_error(error: object, code: int) -> int:
    line = one_line(str(error)) or type(error).__name__
    print(f"nanobanana: {line}", file=sys.stderr)
    return code


# cyclopts would write ARGS for a FILE that may be left out, and nothing that shows that PROMPT can be repeated.
_USAGE = {
    "batch": {"usage": f"Usage: {app.name[0]} batch [OPTIONS] [FILE]"},
    "generate": {"usage": f"Usage: {app.name[0]} generate PROMPT... [OPTIONS]"},
}

for _name, _attribute in {
    "demo": "demo:demo",
    "emulate": "emulate:emulate",
    "generate": "generate_command:generate",
    "batch": "batch.command:batch",
    "worker": "worker:worker",
    "serve": "serve:serve",
    "mcp": "mcp:mcp",
    "balance": "balance:balance",
    "budgets": "budgets:budgets",
    "jobs": "jobs.command:jobs",
    "hosts": "hosts:hosts",
    "ledger": "ledger:ledger",
    "doctor": "doctor.command:doctor",
    "webhooks": "webhooks:webhooks",
    "config": "settings.command:config",
}.items():  # imported when the command is used: the others, the emulator and the report take longer than most commands
    app.command(f"nanobanana_async.cli.{_attribute}", name=_name, **_USAGE.get(_name, {}))
app.register_install_completion_command()

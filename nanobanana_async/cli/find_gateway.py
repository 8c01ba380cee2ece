"""Find the gateway that options and environment select, and ask for its API key on a terminal."""

import getpass
import os
import sys

from nanobanana_async.cli.options import GatewayFinder, Name
from nanobanana_async.cli.settings.sources import current
from nanobanana_async.commands import command_line
from nanobanana_async.config import gateway_from_env, similar_variables
from nanobanana_async.errors import ConfigurationError
from nanobanana_async.gateways import registry
from nanobanana_async.gateways.contract import Gateway

_KEY_VARIABLES = tuple(kind.key_variable for kind in registry.GATEWAYS.values())


def find_gateways(find: GatewayFinder, name: Name | None, base_url: str | None) -> tuple[Gateway, ...]:
    """Return the accounts of the chosen profile, if it names several, or else the gateway that `find` returns."""
    return current().gateways() or (find(name, base_url),)


def find_gateway(name: Name | None, base_url: str | None) -> Gateway:
    """Return the gateway that options and environment select; on a terminal, prompt for a missing key."""
    if name is None and not any(map(os.environ.get, ("NANOBANANA_GATEWAY", *_KEY_VARIABLES))):
        raise ConfigurationError(
            f"no gateway: {similar_variables(os.environ)}pass --gateway apimall or --gateway defapi, which ask for the"
            " API key on a terminal, or set"
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
            environ[kind.key_variable] = ""
        if not environ[kind.key_variable].strip():
            raise ConfigurationError(f"no API key was typed: set {kind.key_variable}")
    return environ

"""`nanobanana config`, and the options --config and --profile."""

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, Token
from cyclopts.completion import CompletionContext

from nanobanana_async.cli.settings.file import NETWORK, OPTIONS, TABLES, SettingsFile, chosen_path, load, user_file
from nanobanana_async.cli.settings.sources import (
    CONNECTION_VARIABLES,
    OTHER_VARIABLES,
    Chosen,
    connection_in,
    current,
    options_of,
)
from nanobanana_async.errors import ConfigurationError
from nanobanana_async.escaping import one_line
from nanobanana_async.gateways.registry import GATEWAYS
from nanobanana_async.validators import as_file

Row = tuple[str, str, str]
"""A setting, its value, and where it comes from."""


def _to_file(_: Any, tokens: Sequence[Token]) -> Path:
    return as_file("--config", tokens[0].value)


def _profile_names(context: CompletionContext) -> list[str]:
    given = next((token.value for each in context.arguments if "--config" in each.names for token in each.tokens), None)
    with suppress(ConfigurationError, AttributeError):
        path = chosen_path(None if given is None else Path(given).expanduser())
        return [] if path is None else list(load(path).get("profile", {}))
    return []


ConfigFile = Annotated[Path | None, Parameter(env_var="NANOBANANA_CONFIG", metavar="FILE", converter=_to_file)]
Profile = Annotated[str | None, Parameter(env_var="NANOBANANA_PROFILE", metavar="NAME", completer=_profile_names)]


def config() -> int:
    """Print which settings file is used, and each setting with its value and where it comes from; no secrets.

    In a pipe: tab-separated lines. --config and --profile choose a file and a profile, for this command as for others.

    Examples:

    nanobanana config

    nanobanana config --profile work
    """
    chosen = current().chosen
    rows = [*_file_rows(chosen), *_connection_rows(chosen.file), *_option_rows(chosen.file)]
    if not sys.stdout.isatty():
        for row in rows:
            print("\t".join(map(one_line, row)))
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("setting", "value", "from"):
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*map(one_line, row))
    Console(markup=False).print(table)
    return 0


def _file_rows(chosen: Chosen) -> Iterator[Row]:
    if chosen.path is None:
        own = user_file()
        yield "file", "none" if own is None else f"{own}, which does not exist", "your configuration folder"
    else:
        is_own = chosen.path == user_file()
        yield "file", str(chosen.path), "your configuration folder" if is_own else "--config or NANOBANANA_CONFIG"
    if chosen.profile is not None:
        yield "profile", chosen.profile, "--profile or NANOBANANA_PROFILE"


def _connection_rows(file: SettingsFile | None) -> Iterator[Row]:
    """Yield what is said about gateway and account. The API key itself is never printed."""
    if file is not None and file.accounts:
        for account in file.accounts:
            for name, value in account.values.items():
                yield name, _shown(value), account.source
        return
    layer = None if file is None else connection_in(file, None)
    for name, variable in CONNECTION_VARIABLES.items():
        value = os.environ.get(variable)
        if value is not None and (layer is None or not layer.in_profile):
            yield name, _masked(value), variable
        elif layer is not None and name in layer.values:
            yield name, _shown(layer.values[name]), layer.source
    for gateway, kind in GATEWAYS.items():
        ours = layer if layer is not None and layer.values["gateway"] == gateway else None
        named = {} if ours is None else ours.values
        key = next((name for name in ("api_key_file", "api_key_variable") if name in named), None)
        if ours is not None and key is not None and (ours.in_profile or not os.environ.get(kind.key_variable)):
            yield f"API key of {kind.title}", f"{key} {named[key]}", ours.source
        else:
            state = "set, not shown" if os.environ.get(kind.key_variable) else "not set"
            yield f"API key of {kind.title}", state, kind.key_variable


def _option_rows(file: SettingsFile | None) -> Iterator[Row]:
    """Yield the other settings; those of the table of one command with its name."""
    for name in (*NETWORK, *OPTIONS):
        if (variable := OTHER_VARIABLES.get(name, "")) in os.environ:
            yield name, _masked(os.environ[variable]), variable
            continue
        for command in (None, *TABLES):
            layers = () if file is None else file.layers
            known = (each for each in layers if name in each.values and each.command in (None, command))
            layer = next(known, None)
            if layer is not None and layer.command == command:
                label = name if command is None else f"{command}.{name}"
                yield label, _shown(options_of(layer, "").get(name, layer.values[name])), layer.source


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return _masked(", ".join(map(str, value)) if isinstance(value, list) else str(value))


def _masked(value: str) -> str:
    """Return a value without a password in a URL."""
    return re.sub(r"//[^/]*@", "//***@", value)

"""The settings file of the command line: which file is read, what may be in it, and its profiles."""

import difflib
import os
import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import platformdirs
from attrs import frozen

from nanobanana_async.cli.settings.private import check_not_writable, open_regular
from nanobanana_async.errors import ConfigurationError
from nanobanana_async.gateways.base import validate_base_url
from nanobanana_async.gateways.registry import GATEWAYS
from nanobanana_async.validators import shown

_TEXT = "text in quotation marks", (str,)
_WHOLE = "a whole number", (int,)
_NUMBER = "a number", (int, Decimal)
_SWITCH = "true or false", (bool,)
_LIST = "a list", (list,)
_TABLE = "a table, such as { seed = 7 }", (dict,)

CONNECTION: Mapping[str, tuple[str, tuple[type, ...]]] = {
    "gateway": _TEXT,
    "base_url": _TEXT,
    "account": _TEXT,
    "allow_http": _SWITCH,
    "api_key_file": _TEXT,
    "api_key_variable": _TEXT,
}
"""What belongs to one account of one gateway: these are taken from one table, all or none."""

ACCOUNTS = "accounts"
"""In a profile: the other profiles whose accounts its commands use together."""

NETWORK: Mapping[str, tuple[str, tuple[type, ...]]] = {
    "allow_networks": _LIST,
    "proxy": _TEXT,
    "expected_job_s": _NUMBER,
}

OPTIONS: Mapping[str, tuple[str, tuple[type, ...]]] = {
    "ledger": _TEXT,
    "output": _TEXT,
    "sidecar": _SWITCH,
    "ordered": _SWITCH,
    "num_images": _WHOLE,
    "aspect_ratio": _TEXT,
    "resolution": _TEXT,
    "output_format": _TEXT,
    "model": _TEXT,
    "extra": _TABLE,
    "max_jobs": _WHOLE,
    "max_requests_per_minute": _WHOLE,
    "priority": _WHOLE,
    "group": _TEXT,
    "budget": _TEXT,
    "max_credits": _NUMBER,
    "expected_credits": _NUMBER,
    "timeout": _NUMBER,
    "max_budget_wait": _NUMBER,
    "names": _TEXT,
    "comments": _TEXT,
    "strict": _SWITCH,
}
"""Options of commands under the names of their settings."""

PER_RUN = frozenset(
    {"as", "buy", "buy_again", "buy_changed", "dry_run", "folder", "name", "new_ledger", "retry_failed", "wait", "yes"}
)
"""Options that decide about one run, and what it buys: a file that is forgotten must not set them."""

TABLES = ("generate", "batch", "worker", "jobs", "mcp")
BATCHES = ("batch", "worker")
"""The commands whose folder belongs to one batch."""
_SECRETS = frozenset({"api_key", "apikey", "key", "password", "secret", "token"})
_VARIABLE = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_MAX_BYTES = 1_000_000


@frozen
class Layer:
    """The settings in one table of the file, and the command they are for; None: all commands that know them."""

    source: str
    """The file and the table, for messages."""
    values: dict[str, Any]
    command: str | None = None
    in_profile: bool = False


@frozen
class SettingsFile:
    """A checked settings file. Of two layers with a setting, the first one has the value."""

    path: Path
    layers: Sequence[Layer]
    accounts: Sequence[Layer] = ()
    """The connections of the accounts that the chosen profile names, in their order."""

    @property
    def connection(self) -> Layer | None:
        """The layer with the gateway: that of the profile, or else that outside of all profiles."""
        return next((layer for layer in self.layers if "gateway" in layer.values), None)


def user_file() -> Path | None:
    """Return the path of the user's own settings file; None if the system names no absolute folder for it.

    A relative folder would be in the working folder: a repository there could send the API key to its own address.
    """
    folder = platformdirs.user_config_path("nanobanana", appauthor=False)
    return folder / "config.toml" if folder.is_absolute() else None


def read(path: Path, profile: str | None) -> SettingsFile:
    """Return the settings in a file; raise `ConfigurationError`, which names the file and the key."""
    document = load(path)
    profiles = _profiles(path, document)
    layers: list[Layer] = []
    accounts: list[Layer] = []
    if profile is not None and profile not in profiles:
        raise ConfigurationError(f"{path}: {_unknown('profile', profile, profiles)}")
    for name, table in profiles.items():  # a mistake in another profile is found before it is chosen
        of_profile = _layers(path, f"profile.{name}", table)
        of_accounts = _accounts(path, name, profiles)
        if name == profile:
            layers, accounts = of_profile, of_accounts
    return SettingsFile(path, [*layers, *_layers(path, "", document)], accounts)


def load(path: Path) -> dict[str, Any]:
    """Return the contents of a settings file, unchecked."""
    try:
        with open_regular(path) as file:
            check_not_writable(path)
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        why = "it is a folder" if path.is_dir() else (error.strerror or str(error))
        raise ConfigurationError(f"the settings file {path} can't be read: {why}") from None
    if len(content) > _MAX_BYTES:
        raise ConfigurationError(f"{path} is no settings file: it has more than {_MAX_BYTES:,} bytes")
    try:
        return tomllib.loads(content.decode("utf-8-sig"), parse_float=Decimal)
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path} is not UTF-8: save it as UTF-8") from None
    except ValueError as error:  # also for a date that does not exist
        raise ConfigurationError(f"{path} is not valid TOML: {error}") from None
    except RecursionError:
        raise ConfigurationError(f"{path} is not valid TOML: it is nested too deeply") from None


def _profiles(path: Path, document: dict[str, Any]) -> dict[str, Any]:
    profiles = document.get("profile", {})
    if not isinstance(profiles, dict) or not all(isinstance(table, dict) for table in profiles.values()):
        raise ConfigurationError(f"{path}: profiles are tables, such as [profile.work]; --profile work chooses one")
    return profiles


def _accounts(path: Path, profile: str, profiles: Mapping[str, dict[str, Any]]) -> list[Layer]:
    """Return the connections of the accounts that a profile names: other profiles, each with the key of one account."""
    names = profiles[profile].get(ACCOUNTS)
    if names is None:
        return []
    source = f"{path} [profile.{profile}]"
    texts = [each for each in names if isinstance(each, str)] if isinstance(names, list) else []
    if len(texts) < 2 or len(set(texts)) < len(names):
        raise ConfigurationError(f'{source}: accounts must name two or more other profiles, such as ["one", "two"]')
    if both := [name for name in CONNECTION if name in profiles[profile]]:
        raise ConfigurationError(f"{source}: {both[0]} belongs into the profiles that accounts names")
    layers: list[Layer] = []
    for each in texts:
        if each not in profiles:
            raise ConfigurationError(f"{source}: {_unknown('profile', each, profiles)}")
        values = {name: value for name, value in profiles[each].items() if name in CONNECTION}
        if "gateway" not in values or not {"api_key_file", "api_key_variable"} & values.keys():
            why = "must name its gateway and, by api_key_file or api_key_variable, its own API key"
            raise ConfigurationError(f"{path} [profile.{each}] {why}: profile {profile} names it in accounts")
        layers.append(Layer(f"{path} [profile.{each}]", values, None, True))
    if len({(each.values["gateway"], each.values.get("base_url", "").rstrip("/")) for each in layers}) > 1:
        why = "a credit of another is worth something else"
        raise ConfigurationError(f"{source}: accounts must have the same gateway and base_url, since {why}")
    return layers


def _layers(path: Path, name: str, table: dict[str, Any]) -> list[Layer]:
    """Return the layers of the top of the file or of a profile: the tables of commands first."""
    source = f"{path} [{name}]" if name else str(path)
    layers = []
    for command in TABLES:
        if command in table:
            inner = f"{path} [{name}.{command}]" if name else f"{path} [{command}]"
            if not isinstance(table[command], dict):
                raise ConfigurationError(f"{source}: {command} must be a table, not {shown(table[command])}")
            _check(inner, table[command], OPTIONS, command)
            layers.append(Layer(inner, table[command], command, bool(name)))
    tables = {*TABLES, ACCOUNTS} if name else {*TABLES, "profile"}
    values = {key: value for key, value in table.items() if key not in tables}
    _check(source, values, {**CONNECTION, **NETWORK, **OPTIONS})
    _check_connection(source, values)
    return [*layers, Layer(source, values, None, bool(name))]


def _check(
    source: str,
    values: Mapping[str, Any],
    known: Mapping[str, tuple[str, tuple[type, ...]]],
    command: str | None = None,
) -> None:
    """Raise `ConfigurationError` for an unknown setting, whose value is never shown, or one of the wrong type."""
    for name, value in values.items():
        if name not in known or (command in BATCHES and name == "output"):
            raise ConfigurationError(f"{source}: {_why_refused(name, known, command)}")
        wanted, types = known[name]
        if type(value) not in types:
            raise ConfigurationError(f"{source}: {name} must be {wanted}, not {shown(value)}")
        if isinstance(value, str) and "\0" in value:
            raise ConfigurationError(f"{source}: {name} must hold no NUL character")
    ledger = values.get("ledger")
    if ledger is not None and not (ledger.startswith("~") or Path(ledger).is_absolute()):
        raise ConfigurationError(
            f"{source}: ledger must be the whole path of a file, or begin with ~: with {shown(ledger)} each folder"
            " would have a ledger of its own"
        )


def _check_connection(source: str, values: Mapping[str, Any]) -> None:
    gateway = values.get("gateway")
    if gateway is not None and gateway not in GATEWAYS:
        raise ConfigurationError(f"{source}: gateway must be one of {', '.join(GATEWAYS)}, not {shown(gateway)}")
    if alone := [name for name in CONNECTION if name in values and gateway is None]:
        raise ConfigurationError(f"{source}: {alone[0]} needs `gateway` beside it, whose API key is sent there")
    if "base_url" in values:
        permitted = values.get("allow_http") is True
        checked = validate_base_url(values["base_url"], allow_http=permitted, permission="allow_http = true beside it")
        if isinstance(checked, ConfigurationError):
            raise ConfigurationError(f"{source}: {checked}")
    if "api_key_file" in values and "api_key_variable" in values:
        raise ConfigurationError(f"{source}: name the API key by api_key_file or by api_key_variable, not by both")
    if not _VARIABLE.fullmatch(values.get("api_key_variable", "NONE")):  # not shown: it may be the key itself
        raise ConfigurationError(f"{source}: api_key_variable must be the name of a variable, such as WORK_KEY")
    if "allow_networks" in values:
        from nanobanana_async.images.addresses import to_networks  # imports aiohttp

        to_networks(values["allow_networks"], f"{source}: allow_networks")
    if "@" in values.get("proxy", ""):
        raise ConfigurationError(f"{source}: proxy must hold no password: set HTTPS_PROXY, which may hold one")


def _why_refused(name: str, known: Collection[str], command: str | None) -> str:
    word = name.strip().casefold().replace("-", "_")
    if word in _SECRETS:
        return (
            f"{name} is no setting, since files are copied: write the API key into a file of its own that only you can"
            " read, and name it in api_key_file, or name a variable in api_key_variable"
        )
    if command in BATCHES and name == "output":
        return f"output is no setting of {command}, since each batch needs a folder of its own: pass -o"
    if word in PER_RUN:
        return f"{name} is no setting, since it decides about one run: pass --{word.replace('_', '-')} to the command"
    if word == ACCOUNTS:
        return "accounts belongs into a profile: it names other profiles, each with the gateway and key of an account"
    if command is not None and (name in CONNECTION or name in NETWORK):
        return f"{name} is for all commands: write it above the tables, or into a profile"
    return _unknown("setting", name, [*known, *(TABLES if command is None else ())])


def _unknown(kind: str, name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name.casefold().replace("-", "_"), known, n=1)
    if near:
        return f"unknown {kind} {name!r}: did you mean {near[0]}?"
    return f"unknown {kind} {name!r}: {'there are ' + ', '.join(known) if known else 'the file has none'}"


def chosen_path(given: Path | None) -> Path | None:
    """Return the path of the file to read: the given one, or else the user's own if it exists."""
    own = user_file()
    return given if given is not None else (own if own is not None and os.path.lexists(own) else None)

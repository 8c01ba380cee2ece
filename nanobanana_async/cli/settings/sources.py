"""The settings of the file in the command: after those of the command line and of the environment."""

import json
import os
import re
from collections.abc import Collection, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from attrs import define, field, frozen
from cyclopts import App, ArgumentCollection
from cyclopts.config import Dict

from nanobanana_async.cli.settings.file import BATCHES, OPTIONS, Layer, SettingsFile, chosen_path, read, user_file
from nanobanana_async.cli.settings.private import read_key_file
from nanobanana_async.commands import SETTINGS_OPTIONS
from nanobanana_async.config import gateway_from_env
from nanobanana_async.errors import ConfigurationError
from nanobanana_async.gateways.contract import Gateway
from nanobanana_async.gateways.registry import GATEWAYS

COMMANDS = ("balance", "batch", "budgets", "doctor", "generate", "jobs", "ledger", "mcp", "serve", "webhooks", "worker")
"""The commands that the file is for: demo and emulator have no account, and `hosts` needs a ledger on a server."""

SEVERAL_ACCOUNTS = ("balance", "batch", "doctor", "generate", "mcp", "serve")
"""Those that can use several accounts together."""

CONNECTION_VARIABLES = {
    "gateway": "NANOBANANA_GATEWAY",
    "base_url": "NANOBANANA_BASE_URL",
    "account": "NANOBANANA_ACCOUNT",
    "allow_http": "NANOBANANA_ALLOW_HTTP",
}
OTHER_VARIABLES = {
    "allow_networks": "NANOBANANA_ALLOW_NETWORKS",
    "expected_job_s": "NANOBANANA_EXPECTED_JOB_S",
    "ledger": "NANOBANANA_LEDGER",
    "max_jobs": "NANOBANANA_MAX_JOBS",
    "max_requests_per_minute": "NANOBANANA_MAX_REQUESTS_PER_MINUTE",
    "timeout": "NANOBANANA_TIMEOUT",
}
_PROXIES = ("https_proxy", "http_proxy", "HTTPS_PROXY", "HTTP_PROXY")


@frozen
class Chosen:
    """What --config and --profile choose."""

    path: Path | None
    profile: str | None
    file: SettingsFile | None


@define
class FileSettings:
    """Fills options that neither the command line nor the environment sets; cyclopts calls it for each command."""

    chosen: Chosen
    origins: dict[str, str] = field(factory=dict)
    """The tables of the settings that the file has set, by their names."""
    accounts: Sequence[Layer] = ()
    """The connections of the accounts that the command uses together; none: it has one account."""

    def __call__(self, app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
        file = self.chosen.file
        if file is None or commands[:1] == () or commands[0] not in COMMANDS:
            return
        self._connect(file, app, commands, arguments)
        for layer in file.layers:
            if layer.command in (None, commands[0]):
                self._fill(layer, options_of(layer, commands[0]), app, commands, arguments)
                self._set_variables(layer)

    def _connect(self, file: SettingsFile, app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
        """Select the gateway of the file, with all that belongs to its account, unless another one is selected."""
        option = next((each for each in arguments if "--gateway" in each.names), None)
        if option is None:
            return
        typed = next((token.value for token in option.tokens if token.source == "cli"), None)
        if file.accounts:
            self._connect_accounts(file, commands[0], typed, arguments)
            return
        layer = connection_in(file, typed)
        if layer is None:
            return
        if layer.in_profile:
            _forget_environment(arguments)
        tokens = [token for each in arguments if "--base-url" in each.names for token in each.tokens]
        if not layer.in_profile and all(token.source != "cli" for token in tokens):
            _refuse_mixed_accounts(layer)
        given = {name: value for name, value in layer.values.items() if name in ("gateway", "base_url")}
        self._fill(layer, given, app, commands, arguments)
        for name in ("account", "allow_http"):
            if name in layer.values:
                self._set_variable(layer, name, CONNECTION_VARIABLES[name], _as_text(layer.values[name]))
        _take_key(layer)

    def _connect_accounts(
        self, file: SettingsFile, command: str, typed: str | None, arguments: ArgumentCollection
    ) -> None:
        """Select the accounts of the profile, unless the command line selects the emulator."""
        if typed == "emulator":
            return
        profile = self.chosen.profile
        if command not in SEVERAL_ACCOUNTS:
            names = [each.source.rpartition("[profile.")[2].removesuffix("]") for each in file.accounts]
            choices = " or ".join(f"--profile {name}" for name in names)
            raise ConfigurationError(f"profile {profile} has several accounts, and {command} needs one: pass {choices}")
        for each in arguments:
            typed_here = {"--gateway", "--base-url"}.intersection(each.names)
            if typed_here and any(token.source == "cli" for token in each.tokens):
                what = f"{typed_here.pop()} does not go with the accounts of profile {profile}"
                raise ConfigurationError(f"{what}: leave it out, or choose another profile")
        _forget_environment(arguments)
        self.accounts = file.accounts

    def gateways(self) -> tuple[Gateway, ...]:
        """Return the accounts that the command uses together; none if it has one account."""
        return tuple(map(_gateway_of, self.accounts))

    def _fill(
        self, layer: Layer, values: dict[str, Any], app: App, commands: tuple[str, ...], arguments: ArgumentCollection
    ) -> None:
        nested: dict[str, Any] = values  # else cyclopts leaves out what has the name of a command, such as `ledger`
        for command in reversed(commands):
            nested = {command: nested}
        Dict(nested, source=layer.source, allow_unknown=True)(app, commands, arguments)
        for argument in arguments:
            if any(token.source == layer.source for token in argument.tokens):
                self.origins[argument.name.strip("-").replace("-", "_")] = layer.source

    def _set_variables(self, layer: Layer) -> None:
        for name, value in layer.values.items():
            if name == "allow_networks":
                self._set_variable(layer, name, "NANOBANANA_ALLOW_NETWORKS", ",".join(value))
            elif name == "expected_job_s":
                self._set_variable(layer, name, "NANOBANANA_EXPECTED_JOB_S", str(value))
            elif name == "proxy" and not any(map(os.environ.get, _PROXIES)):
                self._set_variable(layer, name, "HTTPS_PROXY", value)
                self._set_variable(layer, name, "HTTP_PROXY", value)

    def _set_variable(self, layer: Layer, name: str, variable: str, value: str) -> None:
        """Set a variable, unless the environment has it."""
        if variable not in os.environ:
            os.environ[variable] = value
            self.origins[name] = layer.source

    def name_origin(self, sentence: str, own_fields: Collection[str] = ()) -> str:
        """Return a message about a setting with the table that the setting comes from, if it comes from the file.

        `own_fields` are settings that have another value there, such as those that a row has itself.
        """
        name = _setting_in(sentence)
        origin = None if name in own_fields else self.origins.get(name)
        if origin is None:
            return sentence
        begins = sentence.removeprefix("--").replace("-", "_").startswith(name)
        return f"{sentence} ({'' if begins else f'{name} is '}set in {origin})"


_REFUSALS = (
    re.compile(r"\bdoes not take (\w+)|, not (extra)="),
    re.compile(r"(?:HTTPS?_)?(PROXY)\b|(?:--)?([a-z][\w-]*)"),
)
"""How messages name their setting: the gateway's own, then those that begin with it."""


def _setting_in(sentence: str) -> str:
    """Return the name of the setting that a message is about; empty if it names none."""
    found = _REFUSALS[0].search(sentence) or _REFUSALS[1].match(sentence)
    return "" if found is None else found[found.lastindex or 0].lower().replace("-", "_")


def connection_in(file: SettingsFile, typed: str | None) -> Layer | None:
    """Return the layer that names gateway and account; None if the command line or the environment selects another.

    A profile that names a gateway replaces what the environment says about the account: it was chosen on purpose, and
    half of each could send one account's key to the other's address.
    """
    layer = file.connection
    if layer is None or (typed is not None and typed != layer.values["gateway"]):
        return None
    variable = os.environ.get("NANOBANANA_GATEWAY", "").strip().lower()
    if typed is None and not layer.in_profile and variable not in ("", layer.values["gateway"]):
        return None
    return layer


def options_of(layer: Layer, command: str) -> dict[str, Any]:
    """Return the options that a layer has for a command, as the command line would have them."""
    values = {name: value for name, value in layer.values.items() if name in OPTIONS}
    if command in BATCHES:
        values.pop("output", None)  # each batch needs a folder of its own
    if "extra" in values:
        values["extra"] = [f"{name}={json.dumps(value, default=str)}" for name, value in values["extra"].items()]
    return values


def _refuse_mixed_accounts(layer: Layer) -> None:
    """Raise `ConfigurationError` where the environment has half of an account whose other half the file names.

    The key of one would be sent to the address of the other.
    """
    variable = GATEWAYS[layer.values["gateway"]].key_variable
    key, url = (bool(os.environ.get(name, "").strip()) for name in (variable, CONNECTION_VARIABLES["base_url"]))
    if not {"api_key_file", "api_key_variable"} & set(layer.values) or key == url:
        return
    ours = layer.values.get("base_url")
    if key and ours is not None and layer.values.get("api_key_variable") != variable:
        raise ConfigurationError(
            f"{variable} is set, and {layer.source} names another API key for {ours}: unset {variable}, or set"
            f" {CONNECTION_VARIABLES['base_url']} to the address that its key is for"
        )
    if url and os.environ[CONNECTION_VARIABLES["base_url"]].strip().rstrip("/") != (ours or "").rstrip("/"):
        raise ConfigurationError(
            f"{CONNECTION_VARIABLES['base_url']} is set, and the API key that {layer.source} names is for another"
            f" address: set {variable} too, or unset {CONNECTION_VARIABLES['base_url']}"
        )


def _take_key(layer: Layer) -> None:
    """Set the variable of the API key, unless the environment has it and no profile was chosen."""
    variable = GATEWAYS[layer.values["gateway"]].key_variable
    if layer.in_profile or not os.environ.get(variable, "").strip():
        _copy_key(layer, os.environ)


def _copy_key(layer: Layer, environ: MutableMapping[str, str]) -> None:
    """Write the API key that a layer names into an environment, if it names one."""
    variable = GATEWAYS[layer.values["gateway"]].key_variable
    if (name := layer.values.get("api_key_variable")) is not None:
        if not os.environ.get(name, "").strip():
            raise ConfigurationError(f"{layer.source}: api_key_variable names {name}, which is not set")
        environ[variable] = os.environ[name]
    elif (path := layer.values.get("api_key_file")) is not None:
        environ[variable] = read_key_file(layer.source, path)


def _gateway_of(layer: Layer) -> Gateway:
    """Return the gateway of one of several accounts, with its own key."""
    return gateway_from_env(_environment_of(layer))  # no variable holds the key: tracebacks with locals would show it


def _environment_of(layer: Layer) -> dict[str, str]:
    environ = {name: value for name, value in os.environ.items() if name == OTHER_VARIABLES["expected_job_s"]}
    for name, variable in CONNECTION_VARIABLES.items():
        if name in layer.values:
            environ[variable] = _as_text(layer.values[name])
    _copy_key(layer, environ)
    return environ


def _forget_environment(arguments: ArgumentCollection) -> None:
    """Forget what the environment says about the account: a profile was chosen that names it."""
    for each in arguments:
        if each.names and {"--gateway", "--base-url"} & set(each.names):
            each.tokens[:] = [token for token in each.tokens if token.source != "env"]
    for variable in CONNECTION_VARIABLES.values():
        os.environ.pop(variable, None)


def _as_text(value: Any) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


_current: ContextVar[FileSettings | None] = ContextVar("settings", default=None)


def current() -> FileSettings:
    """Return the settings of the command that runs."""
    return _current.get() or FileSettings(Chosen(None, None, None))


def apply_settings(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Fill the options of a command from the file that was chosen."""
    current()(app, commands, arguments)


@contextmanager
def settings_of_run() -> Iterator[None]:
    """Begin without a file, and restore the environment at the end: the file's values are for one command."""
    names = [*CONNECTION_VARIABLES.values(), *OTHER_VARIABLES.values(), *_PROXIES]
    names += [kind.key_variable for kind in GATEWAYS.values()]
    before = {name: os.environ.get(name) for name in names}
    token, options = _current.set(None), SETTINGS_OPTIONS.set(())
    try:
        yield
    finally:
        _current.reset(token)
        SETTINGS_OPTIONS.reset(options)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def choose(config: Path | None, profile: str | None) -> None:
    """Read the file for the command that follows; raise `ConfigurationError` if it or the profile is wrong."""
    path = chosen_path(config)
    if path is None and profile is not None:
        own = user_file()
        where = "" if own is None else f"write it into {own}, or "
        raise ConfigurationError(f"there is no profile {profile!r} without a settings file: {where}pass --config FILE")
    given = {"--config": ("NANOBANANA_CONFIG", None if config is None else str(config.absolute()))}
    given["--profile"] = ("NANOBANANA_PROFILE", profile)
    options = [
        part
        for option, (variable, value) in given.items()
        if value is not None and not os.environ.get(variable)
        for part in (option, value)
    ]
    SETTINGS_OPTIONS.set(tuple(options))
    _current.set(FileSettings(Chosen(path, profile, None if path is None else read(path, profile))))

"""Timeouts, and the gateway that the environment variables select."""

import os
import re
from collections.abc import Mapping
from typing import Any

from attrs import field, frozen
from attrs.validators import optional

from nanobanana_async.commands import command_line
from nanobanana_async.errors import ConfigurationError
from nanobanana_async.gateways.base import environ_value, settings_in
from nanobanana_async.gateways.contract import Gateway
from nanobanana_async.gateways.registry import GATEWAYS, GatewayClass
from nanobanana_async.misspelt import by_name
from nanobanana_async.validators import within

# How long a wait follows a job that runs, unless that is set; hardly a job takes three times the median.
LEAST_JOB_S = 1800.0
EXPECTED_MULTIPLE = 3.0
_KEY_NAME = re.compile(r"(API_?MALL|DEF_?API|NANO_?BANANA)_?(API_?)?(KEY|TOKEN|SECRET)", re.IGNORECASE)
"""What people call the variable of an API key."""


@by_name
@frozen(kw_only=True)
class Timeouts:
    """How long each step may take, in seconds; `math.inf` means no limit."""

    connect_s: float = field(default=10.0, validator=within(above=0, endless=True))  # until a connection stands
    create_s: float = field(default=120.0, validator=within(above=0, endless=True))
    """Long, because a create whose answer did not come in time may have been bought."""
    query_s: float = field(default=15.0, validator=within(above=0, endless=True))  # for the answer to a poll
    job_s: float | None = field(default=None, validator=optional(within(above=0, endless=True)))
    """How long a wait follows a job that runs; None: 1,800, or three times `expected_job_s` of the gateway if that is
    more. The last poll is due then. The job stays in the ledger and can be followed again."""
    close_s: float = field(default=10.0, validator=within(above=0, endless=True))
    """How long `aclose` waits for creates in flight, and for their answers to be written to the ledger."""


def job_s_of(timeouts: Timeouts, gateway: Gateway) -> float:
    """Return how long a wait follows a job of this gateway that runs."""
    if timeouts.job_s is not None:
        return timeouts.job_s
    return max(LEAST_JOB_S, EXPECTED_MULTIPLE * gateway.expected_job_s)


def gateway_from_env(environ: Mapping[str, str] | None = None) -> Gateway:
    """Return the gateway that the environment variables select.

    `NANOBANANA_GATEWAY` is `apimall` or `defapi`. Without it the gateway is the one whose API key is set
    (`APIMALL_API_KEY`, `DEFAPI_API_KEY`). `NANOBANANA_BASE_URL` sets another base URL, `NANOBANANA_ACCOUNT` names the
    account. Raises `ConfigurationError` if no gateway is selected, or more than one.
    """
    found = _gateway_class_and_settings(os.environ if environ is None else environ)
    del environ  # it holds the API key, and some tools show the locals of a traceback
    if isinstance(found, ConfigurationError):
        raise found
    kind, settings = found
    return kind(**settings)


def similar_variables(environ: Mapping[str, str]) -> str:
    """Return which variables are set that may have been meant for that of an API key: their names alone."""
    known = [kind.key_variable for kind in GATEWAYS.values()]
    found = [name for name in sorted(environ) if name not in known and environ[name] and _KEY_NAME.fullmatch(name)]
    return f"{' and '.join(found)} {'is' if len(found) == 1 else 'are'} set, but not read; " if found else ""


def _gateway_class_and_settings(
    environ: Mapping[str, str],
) -> tuple[GatewayClass, dict[str, Any]] | ConfigurationError:
    """Return the class of the gateway and its settings, or the error in the environment."""
    keyed = [name for name, kind in GATEWAYS.items() if environ_value(environ, kind.key_variable)]
    name = environ_value(environ, "NANOBANANA_GATEWAY").lower()
    if name and name not in GATEWAYS:
        return ConfigurationError(f"NANOBANANA_GATEWAY must be one of {', '.join(GATEWAYS)}, not {name!r}")
    if not name and not keyed:
        variables = " or ".join(kind.key_variable for kind in GATEWAYS.values())
        empty = "".join(f"{each.key_variable} is empty; " for each in GATEWAYS.values() if each.key_variable in environ)
        return ConfigurationError(
            f"no gateway: {empty}{similar_variables(environ)}pass one, or set {variables}; to try it without a key, run"
            f" `{command_line('demo')}`, or pass --gateway emulator to a command"
        )
    if not name and len(keyed) > 1:
        variables = " and ".join(GATEWAYS[each].key_variable for each in keyed)
        return ConfigurationError(f"{variables} are set: choose one gateway with NANOBANANA_GATEWAY")
    kind = GATEWAYS[name or keyed[0]]
    settings = settings_in(environ, kind)
    return settings if isinstance(settings, ConfigurationError) else (kind, settings)

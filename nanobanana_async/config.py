"""Settings that belong to no policy, and the environment: read in one place."""

import os
from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from nanobanana_async.errors import ConfigurationError
from nanobanana_async.gateways.apimall import ApiMall
from nanobanana_async.gateways.base import settings_in, variable_in
from nanobanana_async.gateways.contract import Gateway
from nanobanana_async.gateways.defapi import DefApi
from nanobanana_async.validators import within


@frozen(kw_only=True)
class Timeouts:
    """How long each kind of waiting may take, in seconds; `math.inf` means no limit."""

    connect_s: float = field(default=10.0, validator=within(above=0, endless=True))
    create_s: float = field(default=120.0, validator=within(above=0, endless=True))
    """A create that is cut off may have been bought, so patience is cheaper than haste."""
    query_s: float = field(default=15.0, validator=within(above=0, endless=True))
    job_s: float = field(default=1800.0, validator=within(above=0, endless=True))
    """From RUNNING until following stops; the job itself stays in the ledger and can be followed again."""
    close_s: float = field(default=10.0, validator=within(above=0, endless=True))
    """What `aclose` gives POSTs on the wire to be answered and written down."""


_KINDS: dict[str, type[ApiMall] | type[DefApi]] = {"apimall": ApiMall, "defapi": DefApi}


def gateway_from_env(environ: Mapping[str, str] | None = None) -> Gateway:
    """Return the gateway that the environment names.

    `NANOBANANA_GATEWAY` is `apimall` or `defapi`; without it, the one whose API key is set (`APIMALL_API_KEY`,
    `DEFAPI_API_KEY`). `NANOBANANA_BASE_URL` moves it elsewhere, `NANOBANANA_ACCOUNT` names its account. Raises
    `ConfigurationError` when nothing, or too much, is set.
    """
    found = _chosen(os.environ if environ is None else environ)
    del environ  # a traceback that shows locals must not show it
    if isinstance(found, ConfigurationError):
        raise found
    kind, settings = found
    return kind(**settings)


def _chosen(
    environ: Mapping[str, str],
) -> tuple[type[ApiMall] | type[DefApi], dict[str, Any]] | ConfigurationError:
    """Return the kind of gateway and its settings, or what is wrong with the environment."""
    keyed = [name for name, kind in _KINDS.items() if variable_in(environ, kind.key_variable)]
    name = variable_in(environ, "NANOBANANA_GATEWAY").lower()
    if name and name not in _KINDS:
        return ConfigurationError(f"NANOBANANA_GATEWAY must be one of {', '.join(_KINDS)}, not {name!r}")
    if not name and not keyed:
        return ConfigurationError("no gateway: pass one, or set APIMALL_API_KEY or DEFAPI_API_KEY")
    if not name and len(keyed) > 1:
        return ConfigurationError("both APIMALL_API_KEY and DEFAPI_API_KEY are set: say which in NANOBANANA_GATEWAY")
    kind = _KINDS[name or keyed[0]]
    settings = settings_in(environ, kind)
    return settings if isinstance(settings, ConfigurationError) else (kind, settings)

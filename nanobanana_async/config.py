"""Settings that belong to no policy, and the environment: read in one place."""

import os
from collections.abc import Mapping

from attrs import field, frozen

from nanobanana_async.checks import within
from nanobanana_async.errors import ConfigurationError
from nanobanana_async.gateways.apimall import ApiMall
from nanobanana_async.gateways.contract import Gateway
from nanobanana_async.gateways.defapi import DefApi


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


def gateway_from_env(environ: Mapping[str, str] = os.environ) -> Gateway:
    """Return the gateway that the environment names.

    `NANOBANANA_GATEWAY` is `apimall` or `defapi`; without it, the one whose API key is set (`APIMALL_API_KEY`,
    `DEFAPI_API_KEY`). `NANOBANANA_BASE_URL` moves it elsewhere, `NANOBANANA_ACCOUNT` names its account. Raises
    `ConfigurationError` when nothing, or too much, is set.
    """
    kinds: dict[str, type[ApiMall] | type[DefApi]] = {"apimall": ApiMall, "defapi": DefApi}
    name = environ.get("NANOBANANA_GATEWAY", "").strip().lower()
    if name:
        if name not in kinds:
            raise ConfigurationError(f"NANOBANANA_GATEWAY must be one of {', '.join(kinds)}, not {name!r}")
        return kinds[name].from_env(environ)
    keyed = [kind for kind in kinds.values() if environ.get(kind.key_variable, "").strip()]
    if not keyed:
        raise ConfigurationError("no gateway: pass one, or set APIMALL_API_KEY or DEFAPI_API_KEY")
    if len(keyed) > 1:
        raise ConfigurationError("both APIMALL_API_KEY and DEFAPI_API_KEY are set: say which in NANOBANANA_GATEWAY")
    return keyed[0].from_env(environ)

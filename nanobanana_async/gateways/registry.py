"""The built-in gateways by name: the one table that the environment and the command line read."""

from collections.abc import Mapping
from typing import Literal

from nanobanana_async.gateways.apimall import ApiMall
from nanobanana_async.gateways.defapi import DefApi

GatewayName = Literal["apimall", "defapi"]
"""The names of `GATEWAYS`, written out again because type checkers and the command line need literals."""

GatewayClass = type[ApiMall] | type[DefApi]

GATEWAYS: Mapping[str, GatewayClass] = {kind.short_name: kind for kind in (ApiMall, DefApi)}
"""Each class names the environment variable of its API key in `key_variable`."""

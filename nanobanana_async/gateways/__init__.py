"""The gateways: settings, and a sans-I/O protocol, `Gateway`, that a third gateway can implement."""

from nanobanana_async.gateways.apimall import ApiMall
from nanobanana_async.gateways.contract import Gateway, HttpRequest, HttpResponse
from nanobanana_async.gateways.defapi import DefApi
from nanobanana_async.gateways.secret import Secret

__all__ = ["ApiMall", "DefApi", "Gateway", "HttpRequest", "HttpResponse", "Secret"]

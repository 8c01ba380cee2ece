"""The doors of a session, made together: what reaches one, a proxy or an authority of the user's, reaches the other."""

import ssl
from urllib.parse import urlsplit

import aiohttp

from nanobanana_async.config import Timeouts
from nanobanana_async.gateways.base import is_loopback
from nanobanana_async.gateways.contract import Gateway, Transport
from nanobanana_async.gateways.secret import Secret
from nanobanana_async.http.tls_and_proxies import Proxies, tls_of_borrowed, validate_tls
from nanobanana_async.http.transport import AiohttpTransport
from nanobanana_async.images.downloader import ImageDownloader


def make_connections(
    gateway: Gateway,
    timeouts: Timeouts,
    max_requests: int,
    *,
    http: aiohttp.ClientSession | Transport | None,
    tls: ssl.SSLContext | bool | None,
    proxy: str | Secret | None,
    trust_env: bool,
) -> tuple[Transport, ImageDownloader]:
    """Return the way to the gateway and the way to images; raise `ConfigurationError` for settings that do not fit."""
    proxies = Proxies(proxy, trust_env=trust_env)
    trusted = validate_tls(tls)
    transport: Transport
    if http is None or isinstance(http, aiohttp.ClientSession):
        if http is not None:
            trusted = tls_of_borrowed(http, tls=tls, proxied=proxy is not None or trust_env)
        most = 2 * max_requests
        transport = AiohttpTransport(
            gateway, timeouts=timeouts, http=http, tls=trusted, proxies=proxies, max_connections=most
        )
    else:
        transport = http
    local = is_loopback(urlsplit(gateway.base_url).hostname or "")
    downloads = ImageDownloader(allow_loopback=local, proxies=proxies, tls=trusted, connect_s=timeouts.connect_s)
    return transport, downloads

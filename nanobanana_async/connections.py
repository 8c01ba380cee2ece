"""Make a session's transport and image downloader with the same proxy and TLS settings."""

import ssl
from collections.abc import Mapping
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
    download_headers: Mapping[str, str] | None = None,
) -> tuple[Transport, ImageDownloader]:
    """Return the transport and the image downloader; raise `ConfigurationError` for settings that conflict."""
    proxies = Proxies(proxy, trust_env=trust_env)
    verified_tls = validate_tls(tls)
    transport: Transport
    if http is None or isinstance(http, aiohttp.ClientSession):
        if http is not None:
            verified_tls = tls_of_borrowed(http, tls=tls, proxied=proxy is not None or trust_env)
        transport = AiohttpTransport(
            gateway,
            timeouts=timeouts,
            http=http,
            tls=verified_tls,
            proxies=proxies,
            max_connections=2 * max_requests,
        )
    else:
        transport = http
    local = is_loopback(urlsplit(gateway.base_url).hostname or "")
    downloader = ImageDownloader(
        allow_loopback=local,
        proxies=proxies,
        tls=verified_tls,
        connect_s=timeouts.connect_s,
        headers=download_headers,
    )
    return transport, downloader

"""Whom the doors trust on the way out: certificate authorities of the user's own, and proxies."""

import ipaddress
import ssl
from urllib.request import getproxies_environment

import aiohttp
from yarl import URL

from nanobanana_async.errors import ConfigurationError
from nanobanana_async.gateways.settings import is_loopback

Tls = ssl.SSLContext | bool
"""A context, or True for the authorities that the system trusts."""


def checked_tls(tls: object) -> Tls:
    """Return the TLS settings of a session; raise `ConfigurationError` for what does not verify certificates."""
    if tls is None or tls is True:
        return True
    if not isinstance(tls, ssl.SSLContext):
        raise ConfigurationError(
            "tls must be an ssl.SSLContext: ssl.create_default_context(cafile='my-authority.pem') trusts an authority"
            " of your own, and certificates are always verified"
        )
    if not verifies(tls):
        raise ConfigurationError(
            "tls does not verify certificates: leave check_hostname and verify_mode as ssl.create_default_context()"
            " sets them, and load your own authority into it"
        )
    return tls


def tls_of_lent(lent: aiohttp.ClientSession, *, tls: object, proxied: bool) -> Tls:
    """Return the TLS settings that a lent session brings for images; raise `ConfigurationError` if it is not alone.

    A certificate that it pins is the gateway's own, and says nothing of the servers that images come from.
    """
    if tls is not None:
        raise ConfigurationError(
            "http= and tls= can't be given together: give the context to the connector of the aiohttp session you"
            " lend (aiohttp.TCPConnector(ssl=context)); images are fetched by it, too"
        )
    if proxied:
        raise ConfigurationError(
            "http= can't be given together with proxy= or trust_env=: lend no aiohttp session, and pass tls= and"
            " proxy= instead"
        )
    own = getattr(lent.connector, "_ssl", True)
    return own if isinstance(own, ssl.SSLContext) and verifies(own) else True


def verifies(tls: ssl.SSLContext) -> bool:
    """Tell whether a context looks at certificates."""
    return tls.check_hostname and tls.verify_mode is ssl.CERT_REQUIRED


class Proxies:
    """Which proxy a request goes through: always the one that the user names, else the environment's for its scheme.

    Of the environment only HTTP_PROXY, HTTPS_PROXY and NO_PROXY are read, in either case, once. A `.netrc` file is
    never read: aiohttp would send what it says instead of the API key. This machine is reached without a proxy of the
    environment.
    """

    def __init__(self, proxy: str | None = None, *, trust_env: bool = False) -> None:
        self._always = None if proxy is None else proxy_url(proxy, "proxy")
        self._of_scheme: dict[str, URL] = {}
        self._no_proxy: list[str] = []
        if proxy is None and trust_env:
            environ = getproxies_environment()
            self._no_proxy = [name.strip().lower().lstrip(".") for name in environ.get("no", "").split(",")]
            for scheme in ("http", "https"):
                if text := environ.get(scheme):
                    with_scheme = text if "://" in text else f"http://{text}"
                    self._of_scheme[scheme] = proxy_url(with_scheme, f"{scheme.upper()}_PROXY")

    def __repr__(self) -> str:  # a proxy's URL may hold a password
        return f"<Proxies {'of the user' if self._always else 'of the environment' if self._of_scheme else 'none'}>"

    def __bool__(self) -> bool:
        return self._always is not None or bool(self._of_scheme)

    def of(self, url: URL) -> URL | None:
        """Return the proxy for a URL, or None if it is reached without."""
        if self._always is not None or not self._of_scheme:
            return self._always
        host = (url.raw_host or "").lower()
        if is_loopback(host) or any(_names(name, host, url.port) for name in self._no_proxy):
            return None
        return self._of_scheme.get(url.scheme)


def _names(name: str, host: str, port: int | None) -> bool:
    """Tell whether an entry of NO_PROXY names a host: `*`, a name with all below it, an address or network, a port."""
    bare = name.removesuffix(f":{port}")
    if bare and (bare in ("*", host, f"[{host}]") or host.endswith(f".{bare}")):
        return True
    try:
        return "/" in name and ipaddress.ip_address(host) in ipaddress.ip_network(name, strict=False)
    except ValueError:
        return False


def proxy_url(text: str, name: str) -> URL:
    """Return a proxy's URL; raise `ConfigurationError` without showing it, since it may hold a password."""
    try:
        url = URL(text)
        if url.scheme in ("http", "https") and url.host and url.port:
            return url
    except (TypeError, ValueError):
        pass
    raise ConfigurationError(f"{name} must be a URL such as http://proxy.example:3128")

"""TLS and proxy settings of a session: the user's certificate authorities, and the proxy for each URL."""

import ipaddress
import ssl
from urllib.request import getproxies_environment

import aiohttp
from yarl import URL

from nanobanana_async.errors import ConfigurationError
from nanobanana_async.escaping import as_plain_str
from nanobanana_async.gateways.base import is_loopback
from nanobanana_async.gateways.contract import Gateway
from nanobanana_async.gateways.secret import Secret
from nanobanana_async.http.urls import parse_url

Tls = ssl.SSLContext | bool
"""A context, or True for the system's certificate authorities."""


def validate_tls(tls: object) -> Tls:
    """Return the TLS settings of a session; raise `ConfigurationError` if they don't verify certificates."""
    if tls is None or tls is True:
        return True
    if not isinstance(tls, ssl.SSLContext):
        raise ConfigurationError(
            "tls must be an ssl.SSLContext: ssl.create_default_context(cafile='my-authority.pem') trusts your own"
            " authority; certificates are always verified"
        )
    if not verifies(tls):
        raise ConfigurationError(
            "tls does not verify certificates: leave check_hostname and verify_mode as ssl.create_default_context()"
            " sets them, and load your own authority into it"
        )
    return tls


def tls_of_borrowed(lent: aiohttp.ClientSession, *, tls: object, proxied: bool) -> Tls:
    """Return the TLS settings of a borrowed session, for images; raise `ConfigurationError` if others are set too.

    A certificate that the session pins is the gateway's, and does not apply to the servers of images.
    """
    if tls is not None:
        raise ConfigurationError(
            "http= and tls= can't be given together: pass the context to the connector of the aiohttp session you"
            " lend (aiohttp.TCPConnector(ssl=context)); it applies to images, too"
        )
    if proxied:
        raise ConfigurationError(
            "http= can't be given together with proxy= or trust_env=: lend no aiohttp session, and pass tls= and"
            " proxy= instead"
        )
    own = getattr(lent.connector, "_ssl", True)
    return own if isinstance(own, ssl.SSLContext) and verifies(own) else True


def verifies(tls: ssl.SSLContext) -> bool:
    """Return whether a context verifies certificates."""
    return tls.check_hostname and tls.verify_mode is ssl.CERT_REQUIRED


class Proxies:
    """Chooses the proxy of a request: the user's proxy if one is set, otherwise the environment's for the URL's scheme.

    Of the environment only HTTP_PROXY, HTTPS_PROXY and NO_PROXY are read, in upper or lower case, once. A `.netrc` file
    is never read: aiohttp would send its credentials instead of the API key. The environment's proxies are not used for
    loopback addresses.
    """

    def __init__(self, proxy: str | Secret | None = None, *, trust_env: bool = False) -> None:
        secret = to_proxy_secret(proxy)
        given = proxy is not None
        del proxy  # it may hold a password, which the traceback of the error below would show
        if isinstance(secret, ConfigurationError):
            raise secret
        self._always = secret
        self._of_scheme: dict[str, Secret] = {}
        self._no_proxy: list[str] = []
        if trust_env and not given:
            found = _proxies_of_environment()
            if isinstance(found, ConfigurationError):
                raise found
            self._of_scheme, self._no_proxy = found

    def __repr__(self) -> str:  # a proxy's URL may hold a password
        known = self.__dict__  # a traceback or debugger may show one whose constructor raised
        kind = "of the user" if known.get("_always") else "of the environment" if known.get("_of_scheme") else "none"
        return f"<Proxies {kind}>"

    def __bool__(self) -> bool:
        return self._always is not None or bool(self._of_scheme)

    def proxy_for(self, url: URL) -> Secret | None:
        """Return the proxy for a URL; None for a direct connection."""
        if self._always is not None or not self._of_scheme:
            return self._always
        host = (url.raw_host or "").lower()
        if is_loopback(host) or any(_matches_no_proxy(name, host, url.port) for name in self._no_proxy):
            return None
        return self._of_scheme.get(url.scheme)


def allowed_http_origin(gateway: Gateway) -> URL | None:
    """Return the origin of a gateway that the user has allowed to be reached without TLS; None for every other one."""
    url = URL(gateway.base_url)
    return url.origin() if url.scheme == "http" and getattr(gateway, "allow_http", False) is True else None


def _matches_no_proxy(name: str, host: str, port: int | None) -> bool:
    """Return whether a NO_PROXY entry matches: `*`, a domain and its subdomains, an address, a network, with a port."""
    bare = name.removesuffix(f":{port}")
    if bare and (bare in ("*", host, f"[{host}]") or host.endswith(f".{bare}")):
        return True
    try:
        return "/" in name and ipaddress.ip_address(host) in ipaddress.ip_network(name, strict=False)
    except ValueError:
        return False


def proxy_url(proxy: Secret | None) -> URL | None:
    """Return the proxy's URL for aiohttp. Don't store it in a variable: a traceback with locals would show it."""
    return None if proxy is None else URL(proxy.reveal())


def to_proxy_secret(proxy: object, name: str = "proxy") -> Secret | ConfigurationError | None:
    """Return a proxy's URL as a secret, since it may hold a password, or an error for an invalid one.

    The error is returned, not raised: this frame holds the URL, and some tools show the locals of a traceback.
    """
    if proxy is None or isinstance(proxy, Secret):
        return proxy
    try:
        proxy = as_plain_str(proxy)
        url = parse_url(proxy) if isinstance(proxy, str) else URL()
        if url.scheme in ("http", "https") and url.host and url.port:
            return Secret(str(proxy))
    except ValueError:
        pass
    return ConfigurationError(f"{name} must be a URL such as http://proxy.example:3128")


def _proxies_of_environment() -> tuple[dict[str, Secret], list[str]] | ConfigurationError:
    """Return the environment's proxies by scheme and the entries of NO_PROXY, or an error for an invalid proxy."""
    environment = getproxies_environment()
    proxies: dict[str, Secret] = {}
    for scheme in ("http", "https"):
        if text := environment.get(scheme):
            checked = to_proxy_secret(text if "://" in text else f"http://{text}", f"{scheme.upper()}_PROXY")
            if isinstance(checked, ConfigurationError):
                return checked
            if checked is not None:
                proxies[scheme] = checked
    return proxies, [name.strip().lower().lstrip(".") for name in environment.get("no", "").split(",")]

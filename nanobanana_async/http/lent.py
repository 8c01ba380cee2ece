"""The connector of an aiohttp session that the user lends: what of it is used, and what is refused.

Everything leaves through the lent connector, so that its resolver, its SOCKS proxy, its local address and its
authorities hold for creates, polls and images alike. What can't be obeyed is refused rather than obeyed by half.
"""

import asyncio
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver
from aiohttp.client_proto import ResponseHandler

from nanobanana_async.errors import ConfigurationError
from nanobanana_async.http.sockets import SocketTracker
from nanobanana_async.http.threads import ThreadedResolver
from nanobanana_async.http.tls_and_proxies import Tls, verifies

_CONNECTING = ("_create_connection", "_create_direct_connection", "_wrap_create_connection", "_resolve_host")
_LOCAL = (aiohttp.UnixConnector, aiohttp.NamedPipeConnector)
_LEND_WITHOUT_ADVICE = "or lend one without it: aiohttp.ClientSession(connector=yours.connector, connector_owner=False)"


def check_lent(lent: aiohttp.ClientSession) -> None:
    """Raise `ConfigurationError` if a lent session has a setting that would not be obeyed.

    Cookies, timeouts, `base_url`, traces and `raise_for_status` are not used and not refused: they belong to its other
    users, and no request of this package needs them.
    """
    refused = {
        "a proxy": (lent._default_proxy, "lend none, and pass Session(proxy=...)"),
        "trust_env=True": (lent.trust_env, "lend none, and pass Session(trust_env=True)"),
        "auth=": (lent._default_auth, "the API key takes its place"),
        "headers of its own": (lent.headers, "for images there is Session(download_headers=...)"),
        "middlewares": (lent._middlewares, "they could repeat a purchase"),
    }
    for what, (value, advice) in refused.items():
        if value:
            raise ConfigurationError(
                f"the aiohttp session you lend has {what}, which would not be used: {advice}, {_LEND_WITHOUT_ADVICE}"
            )
    connector = lent.connector
    if isinstance(connector, aiohttp.TCPConnector) and not _verifies(connector._ssl):
        raise ConfigurationError(
            "the aiohttp session you lend does not verify TLS certificates: give its connector an ssl.SSLContext that"
            " trusts your certificate"
        )


def lent_connector(lent: aiohttp.ClientSession) -> aiohttp.BaseConnector:
    """Return the connector of a lent session; raise `ConfigurationError` if it can't be used now."""
    connector = lent.connector
    if connector is None or connector.closed:
        raise ConfigurationError("the aiohttp session you lend is closed")
    if connector._loop is not asyncio.get_running_loop():
        raise ConfigurationError("the aiohttp session you lend belongs to another event loop: make it in this one")
    check_lent(lent)
    return connector


def _verifies(tls: Any) -> bool:
    return verifies(tls) if hasattr(tls, "verify_mode") else tls is not False


class UnpooledLentConnector(aiohttp.BaseConnector):
    """Has each connection made by the lent connector, and keeps it out of that connector's pool.

    The lent connector's other users see none of these connections; its limits hold for them once more.
    """

    def __init__(self, lent: aiohttp.BaseConnector, *, force_close: bool) -> None:
        super().__init__(force_close=force_close, limit=lent.limit, limit_per_host=lent.limit_per_host)
        self.allowed_protocol_schema_set = lent.allowed_protocol_schema_set
        self._lent = lent

    async def _create_connection(
        self, req: aiohttp.ClientRequest, traces: list[Any], timeout: aiohttp.ClientTimeout
    ) -> ResponseHandler:
        try:
            return await self._lent._create_connection(req, traces, timeout)
        except (aiohttp.ClientError, TimeoutError):
            raise
        except Exception as error:
            # Of a connector such as aiohttp_socks: nothing was sent yet, which only this type says. Its text may hold a
            # password.
            why = OSError(None, f"the lent connector raised {type(error).__name__}")
        raise aiohttp.ClientConnectorError(req.connection_key, why)


def overrides_connecting(connector: aiohttp.BaseConnector | None) -> bool:
    """Return whether a connector connects in a way of its own, for example through a SOCKS proxy."""
    if connector is None or isinstance(connector, _LOCAL):
        return False
    if not isinstance(connector, aiohttp.TCPConnector):
        return True
    return any(getattr(type(connector), name) is not getattr(aiohttp.TCPConnector, name) for name in _CONNECTING)


def image_connector(
    lent: aiohttp.BaseConnector | None, tls: Tls, sockets: SocketTracker, resolver: AbstractResolver | None
) -> aiohttp.BaseConnector:
    """Return the connector for images: it connects as the lent one does, with sockets that are checked where it can.

    A Unix socket leads to the gateway alone, so images are fetched without it.
    """
    if lent is not None and overrides_connecting(lent):
        return UnpooledLentConnector(lent, force_close=False)
    plain = lent if isinstance(lent, aiohttp.TCPConnector) else None
    used = resolver or (ThreadedResolver() if plain is None else plain._resolver)
    connector = aiohttp.TCPConnector(ssl=tls, limit=0, resolver=used, socket_factory=sockets.make_socket)
    if plain is not None:
        connector._family = plain._family
        connector._local_addr_infos = plain._local_addr_infos
    return connector

"""Map aiohttp's exceptions to the errors of this package.

The texts of aiohttp's exceptions are not used, since some show request headers and some bytes of the answer; only the
operating system's reason is.
"""

import asyncio

import aiohttp

from nanobanana_async.errors import ConfigurationError, TransportError

# The first match counts: aiohttp's classes overlap (its certificate error is a ValueError, too).
_MESSAGES: tuple[tuple[type[BaseException], str], ...] = (
    (aiohttp.ClientConnectorDNSError, "the name {host} can't be resolved"),
    (aiohttp.ClientProxyConnectionError, "the proxy can't be reached"),
    (aiohttp.ClientHttpProxyError, "the proxy refused to connect to {host}"),
    (aiohttp.ClientConnectorCertificateError, "the TLS certificate of {host} is not trusted"),
    (aiohttp.ServerFingerprintMismatch, "the TLS certificate of {host} is not the expected one"),
    (aiohttp.ClientSSLError, "TLS with {host} failed"),
    (aiohttp.ClientConnectorError, "{host} can't be reached"),
    (aiohttp.ConnectionTimeoutError, "no connection to {host} within {connect_s:g} s"),
    (asyncio.TimeoutError, "no complete answer from {host} within {timeout_s:g} s"),
    (aiohttp.ServerDisconnectedError, "{host} closed the connection without an answer"),
    (aiohttp.ClientPayloadError, "the answer of {host} was cut short or malformed"),
    (aiohttp.ClientResponseError, "the answer of {host} is not valid HTTP"),
    (OSError, "the connection to {host} broke"),
    (aiohttp.ClientConnectionError, "the connection to {host} broke"),
)


def map_exception(
    error: Exception, *, host: str, sent: bool, connect_s: float, timeout_s: float
) -> TransportError | ConfigurationError:
    """Return the error of this package for an exception, without a reference to the exception."""
    for kind, template in _MESSAGES:
        if isinstance(error, kind):
            message = template.format(host=host, connect_s=connect_s, timeout_s=timeout_s)
            return TransportError(message + _os_reason(error), possibly_sent=sent)
    if isinstance(error, ValueError) and not sent:
        # A line break in a header, a URL without a host: nothing was sent, and a repeat would fail too.
        return ConfigurationError(f"the request to {host or 'the gateway'} can't be sent: check its settings")
    return TransportError(f"the request to {host} failed ({type(error).__name__})", possibly_sent=sent)


def _os_reason(error: Exception) -> str:
    # Only of a connector's error, whose text comes from the operating system or OpenSSL.
    reason = error.strerror if isinstance(error, aiohttp.ClientConnectorError) else None
    return f": {reason}" if reason else ""

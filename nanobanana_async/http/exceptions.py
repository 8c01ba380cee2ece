"""What went wrong on the wire, in our words: the one table that knows aiohttp's exceptions.

Their own texts are not passed on but for the operating system's: some show the headers of the request, some bytes of
the answer.
"""

import asyncio

import aiohttp

from nanobanana_async.errors import ConfigurationError, TransportError

# The first line that fits counts: aiohttp's classes overlap (its certificate error is a ValueError, too).
_MESSAGES: tuple[tuple[type[BaseException], str], ...] = (
    (aiohttp.ClientConnectorDNSError, "the name {host} can't be resolved"),
    (aiohttp.ClientProxyConnectionError, "the proxy can't be reached"),
    (aiohttp.ClientHttpProxyError, "the proxy refused to connect to {host}"),
    (aiohttp.ClientConnectorCertificateError, "the TLS certificate of {host} is not trusted"),
    (aiohttp.ServerFingerprintMismatch, "the TLS certificate of {host} is not the expected one"),
    (aiohttp.ClientSSLError, "TLS with {host} failed"),
    (aiohttp.ClientConnectorError, "{host} can't be reached"),
    (aiohttp.ConnectionTimeoutError, "no connection to {host} within {connect_s:g} s"),
    (asyncio.TimeoutError, "no whole answer from {host} within {timeout_s:g} s"),
    (aiohttp.ServerDisconnectedError, "{host} closed the connection without an answer"),
    (aiohttp.ClientPayloadError, "the answer of {host} was cut short or garbled"),
    (aiohttp.ClientResponseError, "the answer of {host} is not proper HTTP"),
    (OSError, "the connection to {host} broke"),
    (aiohttp.ClientConnectionError, "the connection to {host} broke"),
)


def map_exception(
    error: Exception, *, host: str, sent: bool, connect_s: float, timeout_s: float
) -> TransportError | ConfigurationError:
    """Return our own error for a foreign one, with nothing of it chained or kept."""
    for kind, words in _MESSAGES:
        if isinstance(error, kind):
            message = words.format(host=host, connect_s=connect_s, timeout_s=timeout_s)
            return TransportError(message + _os_reason(error), possibly_sent=sent)
    if isinstance(error, ValueError) and not sent:
        # A line break in a header, a URL without a host: nothing was sent, and no repeat would help.
        return ConfigurationError(
            f"the request to {host or 'the gateway'} can't be put on the wire: check its settings"
        )
    return TransportError(f"the request to {host} failed ({type(error).__name__})", possibly_sent=sent)


def _os_reason(error: Exception) -> str:
    # Of a connector's error only: its words are the operating system's or OpenSSL's.
    words = error.strerror if isinstance(error, aiohttp.ClientConnectorError) else None
    return f": {words}" if words else ""

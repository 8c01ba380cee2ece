"""Map aiohttp's exceptions to the errors of this package.

The texts of aiohttp's exceptions are not used, since some show request headers and some bytes of the answer; only the
operating system's reason is.
"""

import asyncio
import os
import ssl

import aiohttp

from nanobanana_async.errors import ConfigurationError, TransportError

_NETWORK_ADVICE = "check {setting} and the network"
_CERTIFICATE_ADVICE = "check {setting}; trust an authority of your own with tls= or SSL_CERT_FILE"
_PROXY_PASSWORD_ADVICE = "put the proxy's user name and password into its URL: proxy= or HTTPS_PROXY"
_PROXY_ADVICE = "check proxy= or HTTPS_PROXY"
_REFUSED_BY_PROXY = (400, 401, 403, 404, 405, 501)

# The first match counts: aiohttp's classes overlap (its certificate error is a ValueError, too).
_MESSAGES: tuple[tuple[type[BaseException], str], ...] = (
    (aiohttp.ClientProxyConnectionError, "can't reach {place}: the proxy can't be reached"),
    (aiohttp.ClientHttpProxyError, "can't reach {place}: the proxy could not connect"),
    (aiohttp.ServerFingerprintMismatch, "can't reach {place}: its TLS certificate is not the expected one"),
    (aiohttp.ClientSSLError, "can't reach {place}: TLS failed"),
    (aiohttp.ClientConnectorError, "can't reach {place}"),
    (aiohttp.ConnectionTimeoutError, "can't reach {place}: no connection within {connect_s:g} s"),
    (asyncio.TimeoutError, "no complete answer from {host} within {timeout_s:g} s"),
    (aiohttp.ServerDisconnectedError, "{host} closed the connection without an answer"),
    (aiohttp.ClientPayloadError, "the answer of {host} was cut short or malformed"),
    (aiohttp.ClientResponseError, "the answer of {host} is not valid HTTP"),
    (OSError, "the connection to {host} broke"),
    (aiohttp.ClientConnectionError, "the connection to {host} broke"),
)


def map_exception(
    error: Exception,
    *,
    host: str,
    port: int | None = None,
    sent: bool,
    connect_s: float,
    timeout_s: float,
    setting: str = "base_url",
) -> TransportError | ConfigurationError:
    """Return the error of this package for an exception, without a reference to the exception.

    `port` is a port that is not the usual one. `setting` says where the host comes from, for the advice.
    """
    lasting = _lasting_cause(error, host)
    named = f"[{host}]" if ":" in host else host
    place = host if port is None else f"{named}:{port}"
    if lasting is not None:
        why, advice = lasting[0], lasting[1].format(setting=setting)
        return TransportError(f"can't reach {place}: {why}", possibly_sent=sent, lasting=True, advice=advice)
    for kind, template in _MESSAGES:
        if isinstance(error, kind):
            message = template.format(host=host, place=place, connect_s=connect_s, timeout_s=timeout_s)
            return TransportError(message + _os_reason(error), possibly_sent=sent)
    if isinstance(error, ValueError) and not sent:
        # A line break in a header, a URL without a host: nothing was sent, and a repeat would fail too.
        return ConfigurationError(f"the request to {host or 'the gateway'} can't be sent: check its settings")
    return TransportError(f"the request to {host} failed ({type(error).__name__})", possibly_sent=sent)


def _lasting_cause(error: Exception, host: str) -> tuple[str, str] | None:
    """Return the cause and the advice for an error that only another setting cures; None for any other error."""
    match error:
        case aiohttp.ClientConnectorDNSError() if error.host != host:
            return f"the name of the proxy can't be resolved{_os_reason(error)}", _PROXY_ADVICE
        case aiohttp.ClientConnectorDNSError():
            return f"its name can't be resolved{_os_reason(error)}", _NETWORK_ADVICE
        case aiohttp.ClientHttpProxyError(status=407):
            return "the proxy refused with 407: it asks for a user name and a password", _PROXY_PASSWORD_ADVICE
        case aiohttp.ClientHttpProxyError(status=status) if status in _REFUSED_BY_PROXY:
            return f"the proxy refused with {status}", _PROXY_ADVICE
        case aiohttp.ClientConnectorCertificateError(certificate_error=reason):
            why = getattr(reason, "verify_message", None)  # of OpenSSL
            return f"its TLS certificate is not trusted{f': {why}' if why else ''}", _CERTIFICATE_ADVICE
        case aiohttp.ClientSSLError(os_error=ssl.SSLError(reason="WRONG_VERSION_NUMBER")):
            return "it does not speak TLS", _NETWORK_ADVICE
        case _:
            return None


def _os_reason(error: Exception) -> str:
    # Only of a connector's error, whose text comes from the operating system or OpenSSL.
    reason = error.strerror if isinstance(error, aiohttp.ClientConnectorError) else None
    if isinstance(error, OSError) and reason and reason.startswith("Connect call failed"):  # asyncio's words
        reason = os.strerror(error.errno or 0)
    return f": {reason}" if reason else ""

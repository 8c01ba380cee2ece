"""Send an image to a pre-signed URL: without the API key, to public addresses only, and through no redirect."""

import asyncio

import aiohttp
from yarl import URL

from nanobanana_async.errors import ConfigurationError, NanoBananaError, TransportError, UnexpectedResponse
from nanobanana_async.http.body import RequestBody
from nanobanana_async.http.tls_and_proxies import proxy_url
from nanobanana_async.images.fetch import ImageFetcher, parse_link
from nanobanana_async.images.inline import FetchError

_RETRYABLE_STATUSES = frozenset({408, 425, 429})


async def put_image(
    fetcher: ImageFetcher, link: str, content: bytes, *, content_type: str, timeout_s: float, allow_http: bool
) -> None:
    """PUT an image once.

    Raises `TransportError` for a failure that may be temporary, `UnexpectedResponse` for a refusal, and
    `ConfigurationError` for a link that must not be used: it is not public, redirects, or is plain http without
    `allow_http`.
    """
    try:
        url = parse_link(link)
        session, proxy = fetcher.session_and_proxy(url)
    except FetchError as error:
        raise _unusable(error.reason) from None
    if url.scheme != "https" and not allow_http:
        raise _unusable(f"{url.raw_host} takes it by plain http only, and the gateway is https: others could read it")
    failure: NanoBananaError
    try:
        async with asyncio.timeout(timeout_s):
            answer = await session.put(
                url,
                data=RequestBody(content),
                headers={"Content-Type": content_type},
                allow_redirects=False,
                proxy=proxy_url(proxy),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=session.timeout.sock_connect),
            )
            status = answer.status
            answer.close()
        return _check_status(url, status)
    except (ConfigurationError, TransportError, UnexpectedResponse):
        raise
    except TimeoutError:
        why = f"{url.raw_host} did not take the upload within {timeout_s:g} s"
        failure = TransportError(why, possibly_sent=True)
    except Exception as error:
        found = fetcher.fetch_error(error, url)
        failure = _unusable(found.reason)
        if found.retryable:
            failure = TransportError(f"the upload failed: {found.reason}", possibly_sent=True)
    except BaseException as interrupt:
        interrupt.__context__ = None  # the traceback of a cancellation holds aiohttp's frames, with a proxy's password
        raise interrupt.with_traceback(None) from None
    raise failure  # here, so that aiohttp's error is not chained to it: that names the URL with its signature


def _check_status(url: URL, status: int) -> None:
    if status in (200, 201, 204):
        return
    if 300 <= status < 400:  # a pre-signed URL holds for its own host only
        raise _unusable(f"{url.raw_host} redirects it (HTTP {status}), and it is sent to no other address")
    message = f"{url.raw_host} answered {status} to the upload"
    if status in _RETRYABLE_STATUSES or status >= 500:
        raise TransportError(message, possibly_sent=True)
    raise UnexpectedResponse(message, status=status)


def _unusable(why: str) -> ConfigurationError:
    return ConfigurationError(f"the image can't be uploaded to the address that the gateway gave: {why}")

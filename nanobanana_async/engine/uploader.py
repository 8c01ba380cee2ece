"""Upload one reference image to the gateway, again after failures that may pass."""

import asyncio
import random
from collections.abc import Callable
from functools import partial
from urllib.parse import urlsplit

from nanobanana_async.engine.contained_send import send_contained, wait_for_cap_and_pause
from nanobanana_async.engine.outage import Outage
from nanobanana_async.errors import (
    MAX_RETRY_AFTER_S,
    ConfigurationError,
    InvalidRequest,
    NanoBananaError,
    RateLimited,
    SessionClosed,
    UnexpectedResponse,
)
from nanobanana_async.events import log_failed_upload
from nanobanana_async.formatting import byte_count
from nanobanana_async.gateways.capabilities import HasUploads, UploadAnswer
from nanobanana_async.gateways.contract import Gateway, HttpRequest, HttpResponse, Transport
from nanobanana_async.http.threads import ThreadLimiter
from nanobanana_async.images.downloader import ImageDownloader
from nanobanana_async.jobs import JobRecord
from nanobanana_async.policy.retry import RetryPolicy, is_outage
from nanobanana_async.policy.session_budget import SessionBudget

UNEXPECTED_ATTEMPTS = 4
"""How often an upload is tried whose answer does not fit the reference: waiting hardly cures that."""

SLOWEST_BYTES_PER_S = 64 << 10


class Uploader:
    """Uploads images: small ones in one request, large ones by a pre-signed URL, whose host gets no API key."""

    def __init__(
        self,
        gateway: Gateway,
        transport: Transport,
        downloads: ImageDownloader,
        outage: Outage,
        budget: SessionBudget,
        retry: RetryPolicy,
        *,
        create_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._gateway = gateway
        self._transport = transport
        self._downloads = downloads
        self._outage = outage
        self._budget = budget
        self._retry = retry
        self._create_s = create_s
        self._clock = clock
        self._jitter = random.Random()
        self._threads = ThreadLimiter(4)
        self.on_retry: Callable[[], None] = lambda: None
        """Called before an upload is tried again."""

    async def upload(self, content: bytes, content_type: str, name: str, record: JobRecord) -> str:
        """Upload an image, again after failures that may pass; return its URL. `record` is of a job that waits."""
        began_at, failures = self._clock(), 0
        while True:
            try:
                return await self._upload_once(content, content_type, name)
            except NanoBananaError as error:
                failures += 1
                if not self._should_retry(error, failures, self._clock() - began_at):
                    log_failed_upload(record, error, wait_s=None)
                    raise
                self._outage.report(record, retried=True)
                asked_s = min(getattr(error, "retry_after_s", None) or 0.0, MAX_RETRY_AFTER_S)
                wait_s = self._outage.limited_wait_s(error, self._retry.backoff_s(failures, self._jitter.random()))
                wait_s = max(asked_s, wait_s)
                log_failed_upload(record, error, wait_s=wait_s)
            self.on_retry()
            await asyncio.sleep(wait_s)

    def _should_retry(self, error: NanoBananaError, failures: int, waited_s: float) -> bool:
        """Return whether a failed upload is tried again."""
        if isinstance(error, (ConfigurationError, SessionClosed)) or self._outage.is_hopeless(error):
            return False
        if isinstance(error, RateLimited):  # waiting costs no attempt, as for a create
            return waited_s < self._retry.max_wait_s
        most = self._retry.max_attempts
        if isinstance(error, UnexpectedResponse):
            most = min(most, UNEXPECTED_ATTEMPTS)
        return is_outage(error) and failures < most and waited_s < self._retry.max_wait_s

    async def _upload_once(self, content: bytes, content_type: str, name: str) -> str:
        """Upload an image once, and check that the gateway has all of it."""
        gateway = self._gateway
        if not isinstance(gateway, HasUploads):
            raise ConfigurationError(f"{gateway.name} takes no uploads")
        build = partial(gateway.build_upload, content, content_type=content_type, filename=name)
        timeout_s = self._create_s + len(content) / SLOWEST_BYTES_PER_S
        answer = await self._request_upload(await self._threads.run(build), gateway.read_upload, timeout_s)
        if answer.put_url is None:
            if answer.size not in (None, len(content)):
                raise UnexpectedResponse(f"the gateway stored {answer.size} of {len(content)} bytes of an upload")
            return answer.url
        if answer.size is not None and len(content) > answer.size:
            why = f"a reference image has {byte_count(len(content))}, more than the gateway's {byte_count(answer.size)}"
            raise InvalidRequest(why)
        await self._downloads.put_presigned(
            answer.put_url,
            content,
            content_type=answer.content_type or content_type,
            timeout_s=timeout_s,
            allow_http=urlsplit(gateway.base_url).scheme == "http",
        )
        return answer.url

    async def _request_upload(
        self, request: HttpRequest, read: Callable[[HttpResponse], UploadAnswer], timeout_s: float
    ) -> UploadAnswer:
        """Make a request to the gateway. It counts in the account's budget of requests, and waits for no slot."""
        await wait_for_cap_and_pause(self._budget, self._clock)
        sent_at = self._clock()
        self._budget.count_unpaced(sent_at)
        try:
            answer = read(await send_contained(self._transport, request, timeout_s=timeout_s))
        except NanoBananaError as error:
            self._outage.request_failed(error, sent_at)
            raise
        self._outage.gateway_answered()
        return answer

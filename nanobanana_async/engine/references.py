"""Bring local reference images to the gateway before their jobs are sent.

An image is uploaded once for all jobs that need it, or published by the session's publisher; the jobs wait in the phase
PREPARING, which costs no slot. On a gateway that takes images inline nothing is uploaded: the create holds them, and is
built when it leaves. Neither a ledger nor a job keeps the content: it is read again from its file when it is needed.
"""

import asyncio
import base64
from collections import OrderedDict
from collections.abc import Callable
from functools import partial

from attrs import define, evolve, field

from nanobanana_async.engine.byte_budget import ByteBudget
from nanobanana_async.engine.next_step import Enqueue, Finish, Next
from nanobanana_async.engine.phases import Phase
from nanobanana_async.engine.store import JobStore
from nanobanana_async.engine.tracked_job import NO_SOURCES, TrackedJob
from nanobanana_async.engine.uploader import Uploader
from nanobanana_async.engine.workers import WorkerPool, error_of_crash
from nanobanana_async.errors import NanoBananaError
from nanobanana_async.events import log, log_failure
from nanobanana_async.gateways.capabilities import HasUploads
from nanobanana_async.gateways.contract import Gateway
from nanobanana_async.http.threads import ThreadLimiter
from nanobanana_async.images.local import MAX_BYTES, SizeLimit, Sources, facts_of, identify, unchanged_content
from nanobanana_async.jobs import JobState
from nanobanana_async.ledger.base import Upload
from nanobanana_async.models import ImageRequest, Reference, with_images
from nanobanana_async.references import LocalImage, ReferencePublisher, check_url, digest_of, for_people, local_digests

UPLOADS_AT_ONCE = 8
BYTES_AT_ONCE = 128 << 20
"""How many bytes of local images are in memory at the same time; a larger image goes alone."""

URLS_KEPT = 4096
"""How many uploads are remembered in memory; the ledger knows the others."""

SHARED_S = 60.0
"""For how long the jobs of a session share an upload at least, however short its lifetime is set."""

PUBLISHED_S = 3600.0
"""For how long a session uses a URL of its publisher again before it asks for it once more."""


@define(eq=False)
class _Upload:
    """One image that is being brought to the gateway, and the jobs that wait for it."""

    digest: str
    source: LocalImage | None
    jobs: list[TrackedJob] = field(factory=list)


class References:
    """Reads local images, brings them to the gateway, and completes the requests that name them."""

    def __init__(
        self,
        gateway: Gateway,
        store: JobStore,
        uploader: Uploader,
        publisher: ReferencePublisher | None,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._gateway = gateway
        self._store = store
        self._uploader = uploader
        self._publisher = publisher
        self._inline = publisher is None and not isinstance(gateway, HasUploads)
        self._clock = clock
        self._threads = ThreadLimiter(4)
        self._at_once = asyncio.Semaphore(UPLOADS_AT_ONCE)
        self._memory = ByteBudget(BYTES_AT_ONCE)
        self._urls: OrderedDict[str, tuple[str, float]] = OrderedDict()
        """Digest -> the URL of an upload, and until when it is used again."""
        self._ongoing: dict[str, _Upload] = {}

    def start(
        self, workers: WorkerPool, *, apply: Callable[[TrackedJob, Next], None], freed: Callable[[], None]
    ) -> None:
        """Run uploads in these workers; `apply` gets each job whose preparation has ended."""
        self._workers = workers
        self._apply = apply
        self._freed = freed

    async def identify(self, request: ImageRequest) -> tuple[ImageRequest, Sources]:
        """Return the request with its local images in their stored form, and these images. See `local.identify`."""
        if not any(isinstance(image, LocalImage) for image in request.images):
            return request, NO_SOURCES
        return await self._threads.run(identify, request, self._gateway, published=self._publisher is not None)

    def body_to_store(self, request: ImageRequest) -> bytes:
        """Return the body of a new job: empty if it is known only once its images are uploaded."""
        return b"" if local_digests(request.images) and not self._inline else self._gateway.encode(request)

    def prepare(self, job: TrackedJob) -> None:
        """Bring the images of a job to the gateway, then let it go on: at once if all are there already."""
        request = job.record.request
        digests = [] if request is None else local_digests(request.images)
        if self._inline:
            missing = [digest for digest in digests if digest not in job.sources]
            if missing:
                self._apply(job, Finish(_not_at_hand(missing[0]).for_job(job.key, safe_to_repeat=True)))
            else:
                self._complete(job)
            return
        waits = False
        for digest in digests:
            if self._url(digest) is None:
                waits = True
                self._upload(digest, job)
        if not waits:
            self._complete(job)

    def renew(self, job: TrackedJob, request: ImageRequest, sources: Sources) -> None:
        """Let a job that was not sent yet use what an equal, newer request brings: its images, and its URLs.

        The signatures in newer URLs live longer.
        """
        if job.record.state is not JobState.PENDING or job.phase is Phase.IN_FLIGHT or job.record.request is None:
            return
        job.sources = {**job.sources, **sources} if sources else job.sources
        for digest, source in sources.items():
            if (upload := self._ongoing.get(digest)) is not None:
                upload.source = upload.source or source
        if request.images == job.record.request.images:
            return
        body = job.record.body if job.phase is Phase.PREPARING else self._body(request)
        if body is not None:
            job.record = evolve(job.record, request=request, body=body)

    async def load_body(self, job: TrackedJob) -> tuple[bytes, int]:
        """Return the bytes that a create of the job sends, and how many bytes of images are in memory for it.

        Raises an error if an image can't be read; nothing is held then. `unload` must follow otherwise.
        """
        record = job.record
        if not self._inline or record.request is None or not (digests := local_digests(record.request.images)):
            return record.body, 0
        sources = {digest: job.sources.get(digest) for digest in digests}
        for digest, source in sources.items():
            if source is None:
                raise _not_at_hand(digest)
        size = await self._threads.run(_size_of, list(filter(None, sources.values())))
        await self._memory.acquire(size)
        try:
            return await self._threads.run(self._inline_body, record.request, job.sources), size
        except BaseException:
            self._memory.release(size)
            raise

    def unload(self, size: int) -> None:
        """Record that the images of a create are no longer in memory."""
        if size:
            self._memory.release(size)

    def _inline_body(self, request: ImageRequest, sources: Sources) -> bytes:
        def sent(image: Reference) -> str:
            digest = digest_of(image)
            if digest is None:
                return str(image)
            content = unchanged_content(sources[digest], digest)
            kind = facts_of(sources[digest], SizeLimit(len(content))).content_type
            return f"data:{kind};base64,{base64.b64encode(content).decode()}"

        return self._gateway.encode(with_images(request, [sent(image) for image in request.images]))

    def _complete(self, job: TrackedJob) -> None:
        """Give a job the body that is sent, and let it wait for its slot."""
        request = job.record.request
        body = None if request is None else self._body(request)
        if body is not None:
            job.record = evolve(job.record, body=body)
        if not self._inline:
            job.sources = NO_SOURCES
        self._apply(job, Enqueue())

    def _body(self, request: ImageRequest) -> bytes | None:
        """Return the body with the URLs of the uploads; None if one is unknown."""
        if self._inline or not local_digests(request.images):
            return self._gateway.encode(request)
        urls = [str(image) if (digest := digest_of(image)) is None else self._url(digest) for image in request.images]
        known = [url for url in urls if url is not None]
        return self._gateway.encode(with_images(request, known)) if len(known) == len(urls) else None

    def _url(self, digest: str) -> str | None:
        url, until = self._urls.get(digest, (None, 0.0))
        return url if self._clock() < until else None

    def _remember(self, digest: str, url: str, for_s: float) -> None:
        self._urls[digest] = url, self._clock() + max(for_s, SHARED_S)
        self._urls.move_to_end(digest)
        if len(self._urls) > URLS_KEPT:
            self._urls.popitem(last=False)

    def _upload(self, digest: str, job: TrackedJob) -> None:
        """Let a job wait for an upload, which is started if it is not under way."""
        upload = self._ongoing.get(digest)
        if upload is None:
            upload = self._ongoing[digest] = _Upload(digest, job.sources.get(digest))
            self._workers.start_task("upload", partial(self._run, upload))
        upload.source = upload.source or job.sources.get(digest)
        upload.jobs.append(job)

    async def _run(self, upload: _Upload) -> None:
        failure: NanoBananaError | None = None
        try:
            async with self._at_once:
                await self._bring(upload)
        except NanoBananaError as error:
            failure = error
        except BaseException as bug:
            if not self._workers.concerns_only_the_step(bug):
                raise
            log_failure("engine.crashed", bug, task="upload")
            failure = error_of_crash(bug)
        del self._ongoing[upload.digest]
        for job in upload.jobs:
            if job.phase is not Phase.PREPARING:
                continue
            if failure is None:
                self.prepare(job)
            else:
                self._apply(job, Finish(failure.for_job(job.key, safe_to_repeat=True)))
        self._freed()

    async def _bring(self, upload: _Upload) -> None:
        """Find the URL of an image, or upload or publish the image."""
        lifetime_s = self._gateway.upload_lifetime_s if isinstance(self._gateway, HasUploads) else PUBLISHED_S
        if self._publisher is None:
            known = await self._store.ledger.find_upload(self._gateway.account, upload.digest)
            if known is not None and (left_s := known.left_s(self._store.utcnow(), lifetime_s)) > 0:
                self._remember(upload.digest, known.url, left_s)
                return
        if upload.source is None:
            raise _not_at_hand(upload.digest)
        facts = await self._threads.run(facts_of, upload.source, SizeLimit(MAX_BYTES))
        await self._memory.acquire(facts.size)
        try:
            content = await self._threads.run(unchanged_content, upload.source, upload.digest)
            if self._publisher is not None:
                url, lifetime_s = await self._publish(self._publisher, content, upload.digest), PUBLISHED_S
            else:
                name = f"{upload.digest[:16]}{facts.extension}"  # a file's own name may say something about its user
                record = upload.jobs[0].record
                url = await self._uploader.upload(content, facts.content_type, name, record)
        finally:
            self._memory.release(facts.size)
        if self._publisher is None:
            now = self._store.utcnow()
            stored = Upload(digest=upload.digest, url=url, size=facts.size, uploaded_at=now)
            await self._store.ledger.remember_upload(self._gateway.account, stored)
        stated = {"event": "reference.stored", "digest": upload.digest, "size": facts.size}
        log.info("reference.stored digest=%s size=%d", upload.digest, facts.size, extra=stated)
        self._remember(upload.digest, url, lifetime_s)

    async def _publish(self, publisher: ReferencePublisher, content: bytes, digest: str) -> str:
        try:
            url = await publisher.publish(content, digest)
            check_url("the URL of the publisher (references=)", url)
        except NanoBananaError:
            raise
        except Exception as error:
            why = f"the publisher of reference images (references=) failed: {type(error).__name__}: {error}"
            raise NanoBananaError(why) from None
        return url


def is_local(request: ImageRequest | None) -> bool:
    """Return whether a request names local images."""
    return request is not None and bool(local_digests(request.images))


def _size_of(images: list[LocalImage]) -> int:
    return sum(facts_of(image, SizeLimit(MAX_BYTES)).size for image in images)


def _not_at_hand(digest: str) -> NanoBananaError:
    image = for_people(f"sha256:{digest}")
    return NanoBananaError(
        f"the reference image {image} is not at hand: only the digest of a local image is kept. Request the job again"
        " with the image; it still waits to be sent"
    )

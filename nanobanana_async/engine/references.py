"""Bring local reference images to the gateway before their jobs are sent.

An image is uploaded once for all jobs that need it, or published by the session's publisher (`uploads.py`); the jobs
wait in the phase PREPARING, which costs no slot. On a gateway that takes images inline nothing is uploaded: the create
holds them, and is built when it leaves. No ledger keeps the content: it is read again from its file when it is needed.
"""

import base64
from collections.abc import Callable

from attrs import evolve

from nanobanana_async.engine.byte_budget import ByteBudget
from nanobanana_async.engine.next_step import Enqueue, Finish, Next
from nanobanana_async.engine.phases import Phase
from nanobanana_async.engine.rare_facts import NO_SOURCES
from nanobanana_async.engine.store import JobStore
from nanobanana_async.engine.tracked_job import TrackedJob
from nanobanana_async.engine.uploader import Uploader
from nanobanana_async.engine.uploads import Uploads, image_not_at_hand_error
from nanobanana_async.engine.workers import WorkerPool
from nanobanana_async.errors import InvalidRequest, NanoBananaError
from nanobanana_async.gateways.capabilities import HasUploads
from nanobanana_async.gateways.contract import Gateway
from nanobanana_async.http.threads import ThreadLimiter
from nanobanana_async.images.local import (
    MAX_BYTES,
    LocalImagesByDigest,
    SizeLimit,
    digest_local_images,
    local_image_facts,
    unchanged_content,
)
from nanobanana_async.images.local_facts import HEAD, format_of
from nanobanana_async.jobs import JobState
from nanobanana_async.models import ImageRequest, Reference, with_images
from nanobanana_async.references import LocalImage, ReferencePublisher, digest_of, local_digests

MOST_BYTES_IN_MEMORY = 128 << 20
"""How many bytes of local images are in memory at the same time; a larger image goes alone."""


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
        self._has_publisher = publisher is not None
        self._sends_inline = publisher is None and not isinstance(gateway, HasUploads)
        self._clock = clock
        self._threads = ThreadLimiter(8)  # most wait for a disk or an object store
        self._memory = ByteBudget(MOST_BYTES_IN_MEMORY)
        self._uploads = Uploads(gateway, store, uploader, publisher, self._threads, self._memory, clock=clock)
        self.after_failure: Callable[[TrackedJob, NanoBananaError], NanoBananaError | None] = lambda job, error: error
        """Called if an image can't be brought to the gateway; returns the job's error, or None if the job goes on."""
        self.uploader = uploader

    def start(
        self, workers: WorkerPool, *, apply: Callable[[TrackedJob, Next], None], freed: Callable[[], None]
    ) -> None:
        """Run uploads in these workers; `apply` gets each job whose preparation has ended."""
        self._apply = apply
        self._uploads.start(workers, uploaded=self.prepare, failed=self._fail, freed=freed)

    def _fail(self, job: TrackedJob, error: NanoBananaError) -> None:
        if (unmoved := self.after_failure(job, error)) is not None:
            self._apply(job, Finish(unmoved))

    async def digest_images(self, request: ImageRequest) -> tuple[ImageRequest, LocalImagesByDigest]:
        """Return the request with its local images in their stored form, and these images by their digests."""
        if not any(isinstance(image, LocalImage) for image in request.images):
            return request, NO_SOURCES
        return await self._threads.run_or_abandon(
            digest_local_images, request, self._gateway, published=self._has_publisher
        )

    def body_to_store(self, request: ImageRequest) -> bytes:
        """Return the body of a new job: empty if it is known only once its images are uploaded."""
        return b"" if local_digests(request.images) and not self._sends_inline else self._gateway.encode(request)

    async def are_at_hand(self, request: ImageRequest | None) -> bool:
        """Return whether a job can be sent that no caller has requested here: its local images were uploaded before."""
        digests = [] if request is None else local_digests(request.images)
        if self._sends_inline:
            return not digests
        return all([await self._uploads.find_known(digest) is not None for digest in digests])

    def prepare(self, job: TrackedJob) -> None:
        """Bring the images of a job to the gateway, then let it go on: at once if all are there already."""
        request = job.record.request
        digests = [] if request is None else local_digests(request.images)
        if self._sends_inline:
            missing = [digest for digest in digests if digest not in job.rare.sources]
            if missing:
                self._apply(job, Finish(image_not_at_hand_error(missing[0]).for_job(job.key, safe_to_repeat=True)))
            else:
                self._enqueue_with_body(job)
            return
        waits = False
        for digest in digests:
            if not self._is_upload_usable(job, digest):
                shared = self._uploads.find_usable(digest)
                if shared is None:
                    waits = True
                    self._uploads.wait_for(digest, job)
                else:
                    job.rare = evolve(job.rare, uploads={**job.rare.uploads, digest: shared})
        if not waits:
            self._enqueue_with_body(job)

    def must_prepare_again(self, job: TrackedJob) -> bool:
        """Return whether a job, which was not sent yet, must be prepared again: a URL in its body may have expired."""
        request = job.record.request
        if self._sends_inline or request is None:
            return False
        return not all(self._is_upload_usable(job, digest) for digest in local_digests(request.images))

    def may_have_lost_uploads(self, job: TrackedJob, refusal: NanoBananaError) -> bool:
        """Return whether a refused create named uploads that were not made for it: the gateway may have dropped them.

        The refusal has bought nothing, so it is sent once more; only once for each job, with uploads that are new.
        """
        return (
            isinstance(refusal, InvalidRequest)
            and not job.rare.uploads_renewed
            and any(upload.is_reused for upload in job.rare.uploads.values())
        )

    async def restart_with_new_uploads(self, job: TrackedJob) -> None:
        """Let a refused job, which bought nothing, be sent with new uploads for those that were not made for it.

        It is the job's next generation, with a key of its own: a gateway may hold an idempotency key for one body only,
        also after a refusal. A 409 to the new body would leave the job in doubt.
        """
        uploads = job.rare.uploads
        remembered = {digest: upload for digest, upload in uploads.items() if upload.is_reused}
        kept = {digest: upload for digest, upload in uploads.items() if digest not in remembered}
        job.rare = evolve(job.rare, uploads=kept, uploads_renewed=True)
        for digest, upload in remembered.items():
            await self._uploads.forget(digest, upload)
        await self._store.start_generation(job, job.ledger_record, body=b"", request=job.record.request)

    def take_newer_request(self, job: TrackedJob, request: ImageRequest, sources: LocalImagesByDigest) -> None:
        """Let a job that was not sent yet use what an equal, newer request brings: its images, and its URLs.

        The signatures in newer URLs live longer.
        """
        if job.record.state is not JobState.PENDING or job.phase is Phase.IN_FLIGHT or job.record.request is None:
            return
        if sources:
            job.rare = evolve(job.rare, sources={**job.rare.sources, **sources})
        if request.images == job.record.request.images:
            return
        body = job.record.body if job.phase is Phase.PREPARING else self._build_body(job, request)
        job.record = evolve(job.record, request=request, body=body)

    async def load_body(self, job: TrackedJob) -> tuple[bytes, int]:
        """Return the bytes that a create of the job sends, and how many bytes of images are in memory for it.

        Raises an error if an image can't be read; nothing is held then. `release_bytes` must follow otherwise.
        """
        await self._begin_generation_if_body_changed(job)
        record = job.record
        if not self._sends_inline or record.request is None or not (digests := local_digests(record.request.images)):
            return record.body, 0
        sources = {digest: job.rare.sources.get(digest) for digest in digests}
        for digest, source in sources.items():
            if source is None:
                raise image_not_at_hand_error(digest)
        size = await self._threads.run_or_abandon(_total_size, list(filter(None, sources.values())))
        await self._memory.acquire(size)
        try:
            return await self._threads.run_or_abandon(self._build_inline_body, record.request, job.rare.sources), size
        except BaseException:
            self._memory.release(size)
            raise

    async def _begin_generation_if_body_changed(self, job: TrackedJob) -> None:
        """Let a job that was sent, and surely not bought, begin its next generation if it has another body now.

        As after a 429: an upload has expired meanwhile, or a caller brought a newer signature. See
        `restart_with_new_uploads` for why.
        """
        record, sent = job.record, job.ledger_record
        was_sent = record.state is JobState.PENDING and record.first_sent_at is not None
        if was_sent and self._gateway.supports_idempotency_keys and sent.body not in (b"", record.body):
            await self._store.start_generation(job, sent, body=record.body, request=record.request)

    def release_bytes(self, size: int) -> None:
        """Record that the images of a create are no longer in memory."""
        if size:
            self._memory.release(size)

    def _build_inline_body(self, request: ImageRequest, sources: LocalImagesByDigest) -> bytes:
        def sent(image: Reference) -> str:
            digest = digest_of(image)
            if digest is None:
                return str(image)
            content = unchanged_content(sources[digest], digest)
            kind = format_of(sources[digest], content[:HEAD], len(content)).content_type
            return f"data:{kind};base64,{base64.b64encode(content).decode()}"

        return self._gateway.encode(with_images(request, [sent(image) for image in request.images]))

    def _enqueue_with_body(self, job: TrackedJob) -> None:
        """Give a job the body that is sent, and let it wait for its slot."""
        request = job.record.request
        if request is not None:
            job.record = evolve(job.record, body=self._build_body(job, request))
        self._apply(job, Enqueue())

    def _build_body(self, job: TrackedJob, request: ImageRequest) -> bytes:
        """Return the body with the URLs of the uploads; the stored one if an upload is missing."""
        if self._sends_inline:
            return self._gateway.encode(request)
        digests = [digest_of(image) for image in request.images]
        if not all(digest is None or digest in job.rare.uploads for digest in digests):
            return job.record.body  # the job is prepared again before it leaves
        urls = [
            str(image) if digest is None else job.rare.uploads[digest].url
            for image, digest in zip(request.images, digests, strict=True)
        ]
        return self._gateway.encode(with_images(request, urls) if any(digests) else request)

    def _is_upload_usable(self, job: TrackedJob, digest: str) -> bool:
        upload = job.rare.uploads.get(digest)
        return upload is not None and self._clock() < upload.usable_until


def has_local_images(request: ImageRequest | None) -> bool:
    """Return whether a request names local images."""
    return request is not None and bool(local_digests(request.images))


def _total_size(images: list[LocalImage]) -> int:
    return sum(local_image_facts(image, SizeLimit(MAX_BYTES)).size for image in images)

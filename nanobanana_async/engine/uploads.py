"""Upload or publish local reference images: once for all jobs that wait for the same content."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial

from attrs import define, evolve, field

from nanobanana_async.engine.byte_budget import ByteBudget
from nanobanana_async.engine.phases import Phase
from nanobanana_async.engine.store import JobStore
from nanobanana_async.engine.tracked_job import TrackedJob
from nanobanana_async.engine.uploaded_image import UploadedImage
from nanobanana_async.engine.uploader import Uploader
from nanobanana_async.engine.workers import WorkerPool, error_of_crash
from nanobanana_async.errors import DownloadError, InvalidRequest, NanoBananaError
from nanobanana_async.events import log, log_failure
from nanobanana_async.gateways.capabilities import HasUploads
from nanobanana_async.gateways.contract import Gateway
from nanobanana_async.http.threads import ThreadLimiter
from nanobanana_async.images.local import MAX_BYTES, SizeLimit, local_image_facts, unchanged_content
from nanobanana_async.images.local_facts import LocalFacts
from nanobanana_async.ledger.base import Upload
from nanobanana_async.references import LocalImage, ReferencePublisher, check_url, describe_reference

UPLOADS_AT_ONCE = 8

URLS_KEPT = 4096
"""How many uploads are remembered in memory; the ledger knows the others."""

SHORTEST_USE_S = 1.0
"""For how long an upload is used at least, however short its lifetime is set: or its jobs would never be sent."""

PUBLISHED_LIFETIME_S = 3600.0
"""For how long a session uses a URL of its publisher again before it asks for it once more."""


@define(eq=False)
class _Upload:
    """One image that is being brought to the gateway, and the jobs that wait for it."""

    digest: str
    jobs: dict[str, TrackedJob] = field(factory=dict)
    """By key: a job with several images asks for each again whenever one has come."""
    source_errors: dict[LocalImage | None, InvalidRequest | DownloadError] = field(factory=dict)
    """The sources that no longer have the image, or whose store fails, and why."""

    account_jobs: Mapping[str, TrackedJob] = field(kw_only=True)
    """The jobs of the account."""

    def waiting_jobs(self) -> list[TrackedJob]:
        """Return the jobs that still wait here: others were withdrawn, or another account buys them."""
        jobs = self.jobs.values()
        return [job for job in jobs if job.phase is Phase.PREPARING and self.account_jobs.get(job.key) is job]

    def next_source(self) -> LocalImage | None:
        """Return a source that was not tried: equal images may lie in several files, and one of them may be gone."""
        sources = (job.rare.sources.get(self.digest) for job in self.waiting_jobs())
        return next((source for source in sources if source is not None and source not in self.source_errors), None)


class Uploads:
    """Brings images to the gateway, and remembers their URLs."""

    def __init__(
        self,
        gateway: Gateway,
        store: JobStore,
        uploader: Uploader,
        publisher: ReferencePublisher | None,
        threads: ThreadLimiter,
        memory: ByteBudget,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._gateway = gateway
        self._store = store
        self._uploader = uploader
        self._publisher = publisher
        self._threads = threads
        self._memory = memory
        self._clock = clock
        self._upload_permits = asyncio.Semaphore(UPLOADS_AT_ONCE)
        self._urls: OrderedDict[str, UploadedImage] = OrderedDict()
        self._ongoing: dict[str, _Upload] = {}

    def start(
        self,
        workers: WorkerPool,
        *,
        uploaded: Callable[[TrackedJob], None],
        failed: Callable[[TrackedJob, NanoBananaError], None],
        freed: Callable[[], None],
    ) -> None:
        """Run uploads in these workers; one of the first two callables gets each job whose upload has ended."""
        self._workers = workers
        self._uploaded = uploaded
        self._failed = failed
        self._freed = freed

    def find_usable(self, digest: str) -> UploadedImage | None:
        """Return an upload of this session that can be used again."""
        upload = self._urls.get(digest)
        return upload if upload is not None and self._clock() < upload.usable_until else None

    async def find_known(self, digest: str) -> UploadedImage | None:
        """Return an upload that can be used again, of this session or, by the ledger, of an earlier one."""
        usable = self.find_usable(digest)
        if usable is not None or self._publisher is not None:
            return usable
        lifetime_s = self._gateway.upload_lifetime_s if isinstance(self._gateway, HasUploads) else 0.0
        known = await self._store.ledger.find_upload(self._gateway.account, digest)
        if known is None or (left_s := known.left_s(self._store.utcnow(), lifetime_s)) <= 0:
            return None
        return self._remember_url(digest, known.url, left_s)

    def wait_for(self, digest: str, job: TrackedJob) -> None:
        """Let a job wait for an upload, which is started if it is not under way."""
        upload = self._ongoing.get(digest)
        if upload is None:
            upload = self._ongoing[digest] = _Upload(digest, account_jobs=self._store.credits.tracked)
            self._workers.start_task("upload", partial(self._run_upload, upload))
        upload.jobs[job.key] = job

    async def forget(self, digest: str, dead: UploadedImage) -> None:
        """Forget an upload that the gateway may have dropped, here and in the ledger, unless there is a newer one."""
        shared = self._urls.get(digest)
        if shared is not None and shared.url == dead.url:
            del self._urls[digest]
        if self._publisher is None:
            account, ledger = self._gateway.account, self._store.ledger
            known = await ledger.find_upload(account, digest)
            if known is not None and known.url == dead.url:
                await ledger.remember_upload(account, known.as_expired())

    async def _run_upload(self, upload: _Upload) -> None:
        failure: NanoBananaError | None = None
        made: UploadedImage | None = None
        try:
            async with self._upload_permits:
                if upload.waiting_jobs():
                    made = await self._find_or_upload(upload)
        except NanoBananaError as error:
            failure = error
        except BaseException as bug:
            if not self._workers.try_contain(bug):
                raise
            log_failure("engine.crashed", bug, task="upload")
            failure = error_of_crash(bug)
        del self._ongoing[upload.digest]
        for job in upload.waiting_jobs():
            if failure is not None:
                own = upload.source_errors.get(job.rare.sources.get(upload.digest), failure)
                self._failed(job, own.for_job(job.key, safe_to_repeat=True))
                continue
            if made is not None:
                job.rare = evolve(job.rare, uploads={**job.rare.uploads, upload.digest: made})
            self._uploaded(job)
        self._freed()

    async def _find_or_upload(self, upload: _Upload) -> UploadedImage | None:
        """Find the URL of an image, or upload or publish the image. None if no job waits for it any more."""
        if (known := await self.find_known(upload.digest)) is not None:
            return known
        lifetime_s = self._gateway.upload_lifetime_s if isinstance(self._gateway, HasUploads) else PUBLISHED_LIFETIME_S
        content, facts = await self._read_image(upload)
        try:
            if not (waiting := upload.waiting_jobs()):
                return None
            if self._publisher is not None:
                url, lifetime_s = await self._publish(self._publisher, content, upload.digest), PUBLISHED_LIFETIME_S
            else:
                name = f"{upload.digest[:16]}{facts.extension}"  # a file's own name may say something about its user
                url = await self._uploader.upload(content, facts.content_type, name, waiting[0].record)
        finally:
            self._memory.release(facts.size)
        if self._publisher is None:
            now = self._store.utcnow()
            stored = Upload(digest=upload.digest, url=url, size=facts.size, uploaded_at=now)
            await self._store.ledger.remember_upload(self._gateway.account, stored)
        stated = {"event": "reference.stored", "digest": upload.digest, "size": facts.size}
        log.info("reference.stored digest=%s size=%d", upload.digest, facts.size, extra=stated)
        return evolve(self._remember_url(upload.digest, url, lifetime_s), is_reused=False)

    async def _read_image(self, upload: _Upload) -> tuple[bytes, LocalFacts]:
        """Read an image from the first source that still has it. Its size must be released from the memory after."""
        while (source := upload.next_source()) is not None:
            try:
                facts = await self._threads.run_or_abandon(local_image_facts, source, SizeLimit(MAX_BYTES))
                await self._memory.acquire(facts.size)
                try:
                    return await self._threads.run_or_abandon(unchanged_content, source, upload.digest), facts
                except BaseException:
                    self._memory.release(facts.size)
                    raise
            except (InvalidRequest, DownloadError) as error:
                upload.source_errors[source] = error
        raise image_not_at_hand_error(upload.digest)

    def _remember_url(self, digest: str, url: str, for_s: float) -> UploadedImage:
        shared = self._urls[digest] = UploadedImage(url, self._clock() + max(for_s, SHORTEST_USE_S))
        self._urls.move_to_end(digest)
        if len(self._urls) > URLS_KEPT:
            self._urls.popitem(last=False)
        return shared

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


def image_not_at_hand_error(digest: str) -> NanoBananaError:
    """Return the error of a job whose image is known by its digest only."""
    image = describe_reference(f"sha256:{digest}")
    return NanoBananaError(
        f"the reference image {image} is not at hand: only the digest of a local image is kept. Request the job again"
        " with the image; it still waits to be sent"
    )

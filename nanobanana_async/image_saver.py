"""Fetch and save the images of jobs; ask the gateway for a new link once when a link has expired."""

import asyncio
from contextlib import nullcontext
from pathlib import Path

from attrs import frozen

from nanobanana_async.engine.engine import Engine
from nanobanana_async.errors import DownloadError, NanoBananaError, SaveError
from nanobanana_async.images.destination import Saved
from nanobanana_async.images.downloader import ImageDownloader
from nanobanana_async.images.saved import PurchasedImage
from nanobanana_async.images.sidecar import sidecar_facts
from nanobanana_async.images.target import Target
from nanobanana_async.models import GeneratedImage, GenerationResult

FRESH_LINK_S = 10.0
"""How long after the end of a job an answer without its image is repeated. Clients met 404s for some seconds."""


@frozen
class ImageSaver:
    """Fetches and saves the images of a session's jobs."""

    _engine: Engine
    _downloader: ImageDownloader

    async def fetch(self, image: GeneratedImage, *, verified: bool) -> bytes:
        """Return the bytes of an image."""
        try:
            return await self._downloader.fetch(image.url, fresh_s=self._fresh_s(image), verified=verified)
        except DownloadError as error:
            return await self._downloader.fetch(await self._refresh_link(image, error), verified=verified)

    async def check(self, target: Target) -> None:
        """Raise `SaveError` if images can't be saved at a target."""
        await self._downloader.check_target(target)

    async def save(
        self, result: GenerationResult, target: Target, name: str, *, row_key: str | None = None, sidecar: bool = False
    ) -> tuple[Path | str, ...]:
        """Save all images of a result under a name, with a number if there are several; return paths or URLs.

        If one fails, the others are still saved; then its error is raised.
        """
        wanted = 1 if result.request is None else result.request.num_images
        several = max(wanted, len(result.images) + len(result.missing)) > 1
        bought = [PurchasedImage.of(result, image, row_key) for image in result.images]
        described = result if sidecar else None
        async with (
            self._downloader.reserved_stem(target, name, bought) if several else nullcontext(name) as stem,
            asyncio.TaskGroup() as group,
        ):
            names = [f"{stem}-{image.index + 1}" if several else name for image in result.images]
            saves = [
                group.create_task(self._save_or_error(image, target, each, purchased, described))
                for image, each, purchased in zip(result.images, names, bought, strict=True)
            ]
        saved = [save.result() for save in saves]
        errors = [error for error in saved if isinstance(error, NanoBananaError)]
        if errors:  # a `SaveError` first: it affects the other rows of a batch too
            errors.sort(key=lambda error: (not isinstance(error, SaveError), getattr(error, "one_image", True)))
            raise errors[0].for_job(result.key, safe_to_repeat=False)
        return tuple(place for place in saved if not isinstance(place, NanoBananaError))

    async def _save_or_error(
        self,
        image: GeneratedImage,
        target: Target,
        name: str,
        purchased: PurchasedImage,
        described: GenerationResult | None,
    ) -> Path | str | NanoBananaError:
        try:
            saved = await self._save(image, target, name, purchased)
            if described is not None:
                file = saved.place.name if isinstance(saved.place, Path) else saved.place.rpartition("/")[2]
                await self._downloader.add_sidecar(target, file, sidecar_facts(described, purchased, saved, file))
            return saved.place
        except NanoBananaError as error:
            return error

    async def _save(self, image: GeneratedImage, target: Target, name: str, purchased: PurchasedImage) -> Saved:
        if (known := await self._downloader.find_saved(target, purchased)) is not None:
            return known
        try:
            return await self._downloader.save(image.url, target, name, purchased, fresh_s=self._fresh_s(image))
        except DownloadError as error:
            return await self._downloader.save(await self._refresh_link(image, error), target, name, purchased)

    async def _refresh_link(self, image: GeneratedImage, error: DownloadError) -> str:
        """Return a new link from the gateway; raise the given error, with the reason, if there is none."""
        if not image.task_id or not (error.link_expired or error.status == 403):
            raise error
        try:
            links = await self._engine.fetch_image_links(image.task_id)
        except NanoBananaError as refusal:
            raise _with_reason(error, f"the gateway gave no new link: {refusal.message}") from None
        link = links.get(image.index)
        if link is None or link == image.url:
            raise _with_reason(error, "the gateway has no new link")
        return link

    def _fresh_s(self, image: GeneratedImage) -> float:
        """Return for how long the host may not have the image yet."""
        return 0.0 if image.ended_at is None else max(0.0, FRESH_LINK_S - self._engine.store.age_s(image.ended_at))


def _with_reason(error: DownloadError, reason: str) -> DownloadError:
    return DownloadError(f"{error.message}; {reason}", link_expired=error.link_expired, status=error.status)

"""Pictures kept: fetched while their links live, and asked for once more when a link has expired."""

import asyncio
from pathlib import Path

from attrs import frozen

from nanobanana_async.engine.engine import Engine
from nanobanana_async.errors import DownloadError, NanoBananaError, SaveError
from nanobanana_async.images.downloader import ImageDownloader
from nanobanana_async.models import GeneratedImage, GenerationResult


@frozen
class ImageSaver:
    """Fetches what a session's jobs brought back."""

    _engine: Engine
    _downloads: ImageDownloader

    async def fetch(self, image: GeneratedImage) -> bytes:
        """Return the bytes of a picture, verified."""
        try:
            return await self._downloads.fetch(image.url)
        except DownloadError as error:
            return await self._downloads.fetch(await self._refresh_link(image, error))

    async def check(self, folder: Path) -> None:
        """Raise `SaveError` if images can't be saved in a folder."""
        await self._downloads.check(folder)

    async def save(self, result: GenerationResult, folder: Path) -> tuple[Path, ...]:
        """Save all pictures of a result, named by its key and their number; return where they are."""
        async with asyncio.TaskGroup() as group:  # one that fails leaves the others whole
            saves = [group.create_task(self._save_or_error(image, folder, result.key)) for image in result.images]
        saved = [save.result() for save in saves]
        errors = [error for error in saved if isinstance(error, NanoBananaError)]
        if errors:  # the folder's fault first: it concerns the other rows too
            error = next((error for error in errors if isinstance(error, SaveError)), errors[0])
            raise error.for_job(result.key, safe_to_repeat=False)
        return tuple(path for path in saved if isinstance(path, Path))

    async def _save_or_error(self, image: GeneratedImage, folder: Path, key: str) -> Path | NanoBananaError:
        try:
            return await self._save(image, folder, f"{key}-{image.index + 1:02d}")
        except NanoBananaError as error:
            return error

    async def _save(self, image: GeneratedImage, folder: Path, name: str) -> Path:
        try:
            saved = await self._downloads.save(image.url, folder, name)
        except DownloadError as error:
            saved = await self._downloads.save(await self._refresh_link(image, error), folder, name)
        return saved.path

    async def _refresh_link(self, image: GeneratedImage, error: DownloadError) -> str:
        """Ask the gateway once more; raise the error if it has no other link."""
        if not (error.link_expired and image.task_id):
            raise error
        try:
            links = await self._engine.fresh_image_links(image.task_id)
        except NanoBananaError:
            raise error from None
        if image.index not in links:
            raise error
        return links[image.index]

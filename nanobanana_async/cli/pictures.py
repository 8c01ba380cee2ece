"""Fetching pictures for the command line, plainly.

`session.save` is to come and will replace this: verified, resumable, private addresses refused. Until then: a
connection of its own that has no API key to give away, a cap on the size, and a file appears whole or not at all.
"""

import base64
import binascii
import os
from pathlib import Path
from urllib.parse import unquote_to_bytes

import aiohttp
import anyio
from attrs import frozen

from nanobanana_async.errors import DownloadError
from nanobanana_async.models import GenerationResult, shorten

MAX_BYTES = 64 * 1024 * 1024
_ENDINGS = {"image/png": "png", "image/jpeg": "jpg", "image/jpg": "jpg", "image/webp": "webp", "image/gif": "gif"}


@frozen
class Picture:
    """A picture's bytes, and what they call themselves."""

    content: bytes
    ending: str


async def save(result: GenerationResult, folder: Path) -> list[Path]:
    """Fetch all pictures of a result into a folder, named after its task; return their paths."""
    timeout = aiohttp.ClientTimeout(total=60)
    paths: list[Path] = []
    async with aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()) as http:
        for image in result.images:
            picture = await _fetch(http, image.url)
            name = "".join(c if c.isalnum() or c in "-_" else "_" for c in result.task_id)[:80]
            path = folder / f"{name}-{image.index + 1:02d}.{picture.ending}"
            await anyio.to_thread.run_sync(_write, path, picture.content)
            paths.append(path)
    return paths


async def _fetch(http: aiohttp.ClientSession, url: str) -> Picture:
    if url.startswith("data:"):
        return _inline(url)
    try:
        async with http.get(url, max_redirects=3) as answer:
            if answer.status != 200:
                raise DownloadError(f"{shorten(url)} answered {answer.status}")
            content = bytearray()
            async for chunk in answer.content.iter_chunked(1 << 16):
                content += chunk
                if len(content) > MAX_BYTES:
                    raise DownloadError(f"{shorten(url)} is larger than {MAX_BYTES} bytes")
            return Picture(bytes(content), _ending(answer.content_type, url))
    except (aiohttp.ClientError, OSError, ValueError) as error:  # aiohttp's InvalidURL is a ValueError
        raise DownloadError(f"{shorten(url)} could not be fetched: {str(error) or type(error).__name__}") from None


def _inline(uri: str) -> Picture:
    head, _, data = uri.removeprefix("data:").partition(",")
    media, *options = head.split(";")
    try:
        raw = unquote_to_bytes(data)
        content = base64.b64decode(raw, validate=True) if "base64" in options else raw
    except binascii.Error as error:
        raise DownloadError(f"{shorten(uri)} is no picture: {error}") from None
    return Picture(content, _ending(media, uri))


def _ending(media: str, url: str) -> str:
    ending = _ENDINGS.get(media.strip().lower())
    if ending is None:
        raise DownloadError(f"{shorten(url)} is no picture but {media or 'of no type'}")
    return ending


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f"{path.suffix}.part")
    part.write_bytes(content)
    os.replace(part, path)

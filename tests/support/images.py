"""Shared by the tests of images: test images, HTTP answers, a static resolver, and an opened downloader."""

import contextlib
import functools
import io
import socket
import struct
import zlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from PIL import Image

from nanobanana_async.errors import DownloadError
from nanobanana_async.http.tls_and_proxies import Proxies
from nanobanana_async.images.downloader import ImageDownloader
from tests.support.peers import Connection, Script

FORMATS = ("png", "jpeg", "webp", "gif", "avif")
ENDINGS = {"png": ".png", "jpeg": ".jpg", "webp": ".webp", "gif": ".gif", "avif": ".avif"}


@functools.cache
def make_image(kind: str = "png", size: tuple[int, int] = (24, 16), *, seed: int = 1, **options: Any) -> bytes:
    """Return a small test image that is not of one colour."""
    width, height = size
    noise = bytes((x * x + y * 7 * seed + x * y) % 251 for y in range(height) for x in range(width * 3))
    out = io.BytesIO()
    Image.frombytes("RGB", size, noise).save(out, kind.upper(), **options)
    return out.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    """Return a chunk of a PNG file."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_claiming(width: int, height: int) -> bytes:
    """Return a PNG file with a valid structure and no pixel data."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def reply(content: bytes, *headers: str, status: str = "200 OK", length: int | None = -1) -> bytes:
    """Return an HTTP answer; a `length` of None omits Content-Length, so the body ends with the connection."""
    lines = [f"HTTP/1.1 {status}", *headers]
    if length is not None:
        lines.append(f"Content-Length: {len(content) if length < 0 else length}")
    return "\r\n".join([*lines, "", ""]).encode() + content


def redirect(location: str, status: int = 302) -> bytes:
    return reply(b"", f"Location: {location}", status=f"{status} Elsewhere")


def saying(*replies: bytes) -> Script:
    """Return a script that sends these answers in turn, one per connection; the last one repeats."""
    left = list(replies)

    async def script(connection: Connection) -> None:
        await connection.read_request()
        await connection.write(left.pop(0) if len(left) > 1 else left[0])
        connection.close()

    return script


class StaticResolver(AbstractResolver):
    """Resolves names from a table; several addresses of one name are returned in turn, the last one repeats."""

    def __init__(self, **names: str | list[str]) -> None:
        self._names = {
            name.replace("_", "."): list([found] if isinstance(found, str) else found) for name, found in names.items()
        }
        self.lookups = 0

    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[ResolveResult]:
        self.lookups += 1
        if host not in self._names:
            raise OSError(None, "no such name")
        left = self._names[host]
        address = left.pop(0) if len(left) > 1 else left[0]
        inet = socket.AF_INET6 if ":" in address else socket.AF_INET
        return [ResolveResult(hostname=host, host=address, port=port, family=inet, proto=0, flags=0)]

    async def close(self) -> None: ...


@contextlib.asynccontextmanager
async def opened(
    *, allow_loopback: bool = True, pause_s: float = 0.001, proxy: str | None = None, **settings: Any
) -> AsyncIterator[ImageDownloader]:
    """Open a downloader that allows loopback and retries fast; close it at the end."""
    downloader = ImageDownloader(
        allow_loopback=allow_loopback, pause_s=pause_s, **{"proxies": Proxies(proxy), **settings}
    )
    await downloader.open()
    try:
        yield downloader
    finally:
        await downloader.aclose()


async def failure(downloader: ImageDownloader, url: str) -> DownloadError:
    """Return the error of a fetch that can't succeed; check that no exception is chained to it."""
    with pytest.raises(DownloadError) as caught:
        await downloader.fetch(url)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    return caught.value

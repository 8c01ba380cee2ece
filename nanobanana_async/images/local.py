"""Read local reference images: their content, its digest and format. Everything here blocks; run it in a thread."""

import functools
import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from attrs import evolve, frozen

from nanobanana_async.errors import ConfigurationError, InvalidRequest, NanoBananaError
from nanobanana_async.escaping import escape_exactly
from nanobanana_async.formatting import byte_count
from nanobanana_async.gateways.capabilities import HasUploads, TakesInlineImages
from nanobanana_async.gateways.contract import Gateway
from nanobanana_async.images.inline import FetchError, decode_inline
from nanobanana_async.images.local_facts import HEAD, LocalFacts, changing_image_error, format_of, to_facts
from nanobanana_async.images.store_images import content_of_object, facts_of_object, version_of
from nanobanana_async.models import ImageRequest
from nanobanana_async.references import LocalImage, StoreObject, stored_form

MAX_BYTES = 256 << 20
"""A larger file is no reference image: it is not read."""

_CHUNK = 1 << 20
# Opening a pipe or a terminal must not wait. Windows has neither flag, and must not translate line ends.
_OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)

LocalImagesByDigest = Mapping[str, LocalImage]
"""The local images of a request by their digests."""

KnownFacts = Mapping[LocalImage, LocalFacts | NanoBananaError]
"""Images that were read before, with their facts, or why they can't be used."""


@frozen
class SizeLimit:
    """The most bytes that a local image may have, and what to do with a larger one."""

    max_bytes: int
    advice: str = ""

    def check(self, image: LocalImage, size: int) -> None:
        """Raise `InvalidRequest` for an image that is too large."""
        if size > self.max_bytes:
            why = f"has {byte_count(size)}, more than the limit of {byte_count(self.max_bytes)}{self.advice}"
            raise InvalidRequest(f"reference image {image} {why}")


def size_limit(gateway: Gateway, *, published: bool) -> SizeLimit:
    """Return the limit of a gateway's way to take local images; `published` if the session has `references=`.

    Raises `ConfigurationError` if there is no way.
    """
    if published:
        return SizeLimit(MAX_BYTES)
    if isinstance(gateway, HasUploads):
        return SizeLimit(gateway.max_upload_bytes, f" for uploads to {gateway.name}: make it smaller")
    if isinstance(gateway, TakesInlineImages):
        advice = f" for images inside requests to {gateway.name}: publish them, with Session(references=...)"
        return SizeLimit(gateway.max_inline_bytes, advice)
    raise ConfigurationError(
        f"{gateway.name} takes no local images: pass their URLs, or publish them with Session(references=...)"
    )


def digest_local_images(
    request: ImageRequest, gateway: Gateway, *, published: bool = False, known: KnownFacts | None = None
) -> tuple[ImageRequest, LocalImagesByDigest]:
    """Return the request with its local images in their stored form, and these images.

    `known` has images that the caller has read. Raises `InvalidRequest` for an image that can't
    be read, is no image or is too large, `DownloadError` if its store fails, and `ConfigurationError` if the gateway
    takes no local images or a store can't be opened.
    """
    local = [image for image in request.images if isinstance(image, LocalImage)]
    if not local:
        return request, {}
    limit = size_limit(gateway, published=published)
    digests: dict[LocalImage, str] = {}
    for image in local:
        facts = (known or {}).get(image) or local_image_facts(image, limit)
        if isinstance(facts, NanoBananaError):
            raise facts
        digests[image] = facts.digest
    images = tuple(stored_form(digests[one]) if isinstance(one, LocalImage) else one for one in request.images)
    return evolve(request, images=images), {digest: image for image, digest in digests.items()}


def local_image_facts(image: LocalImage, limit: SizeLimit) -> LocalFacts:
    """Return the facts of an image, read once as long as its file has the same time and size, its object its version.

    Raises `InvalidRequest` if there is no such file or object, if it is no image, or if it is too large, and
    `DownloadError` if its store fails.
    """
    if isinstance(image.source, StoreObject):
        found = version_of(image.source)
        limit.check(image, found.size)
        return facts_of_object(image.source, found)
    if isinstance(image.source, Path):
        status = _status(image.source)
        limit.check(image, status.st_size)
        version = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
        return _facts_of_file(image.source, version, status.st_size)
    content = content_of(image)
    limit.check(image, len(content))
    return to_facts(image, content[:HEAD], hashlib.sha256(content).hexdigest(), len(content))


def content_of(image: LocalImage, digest: str | None = None) -> bytes:
    """Return the content of an image, which should have this digest; raise an error as `local_image_facts` does."""
    match image.source:
        case StoreObject():
            return content_of_object(image.source, MAX_BYTES, digest)
        case Path():
            return b"".join(_chunks(image.source, SizeLimit(MAX_BYTES)))
        case bytes():
            return image.source
        case uri:
            try:
                return b"".join(decode_inline(uri, MAX_BYTES))
            except FetchError as error:
                raise InvalidRequest(f"{image}: {error.reason}") from None


def unchanged_content(image: LocalImage, digest: str) -> bytes:
    """Return the content of an image; raise `InvalidRequest` if it is no longer the one with this digest."""
    content = content_of(image, digest)
    if hashlib.sha256(content).hexdigest() != digest:
        _facts_of_file.cache_clear()  # its times may not show the change: some file systems count whole seconds
        raise InvalidRequest(f"reference image {image} was changed after the job was made: request it again")
    return content


@functools.lru_cache(maxsize=4096)
def _facts_of_file(path: Path, _version: tuple[int, ...], size: int) -> LocalFacts:
    image, read, head = LocalImage(path), 0, b""
    digest = hashlib.sha256()
    for chunk in _chunks(path, SizeLimit(size)):
        head = head or chunk[:HEAD]
        read += len(chunk)
        digest.update(chunk)
    if read != size:
        raise changing_image_error(image)
    return to_facts(image, head, digest.hexdigest(), size)


def _chunks(path: Path, limit: SizeLimit) -> Iterator[bytes]:
    """Yield the content of an image file; raise `InvalidRequest` if it is no image or longer than the limit.

    The path may name something else by now than when it was checked: nothing is waited for, and no more is read than
    the limit and one byte, of a file that begins like an image.
    """
    image, left = LocalImage(path), limit.max_bytes
    try:
        descriptor = os.open(path, _OPEN_FLAGS)
        try:
            _check_regular(path, os.fstat(descriptor))
            chunk = os.read(descriptor, min(_CHUNK, left + 1))
            format_of(image, chunk[:HEAD], len(chunk))
            while chunk:
                left -= len(chunk)
                if left < 0:
                    raise changing_image_error(image)
                yield chunk
                chunk = os.read(descriptor, min(_CHUNK, left + 1))
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _unreadable_error(path, error) from None


def _status(path: Path) -> os.stat_result:
    try:
        status = path.stat()
    except OSError as error:
        raise _unreadable_error(path, error) from None
    except ValueError:  # a NUL in the name
        raise InvalidRequest(f"reference image {str(path)!r}: that is no path") from None
    _check_regular(path, status)
    return status


def _check_regular(path: Path, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise InvalidRequest(f"reference image {escape_exactly(str(path))} is a folder: name the image in it")
    if not stat.S_ISREG(status.st_mode):
        raise InvalidRequest(f"reference image {escape_exactly(str(path))} is no regular file")


def _unreadable_error(path: Path, error: OSError) -> InvalidRequest:
    if isinstance(error, FileNotFoundError):
        return InvalidRequest(f"reference image {escape_exactly(str(path))} does not exist")
    return InvalidRequest(f"reference image {escape_exactly(str(path))} can't be read: {error.strerror or error}")

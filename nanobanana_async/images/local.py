"""Read local reference images: their content, its digest and format. Everything here blocks; run it in a thread."""

import functools
import hashlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from attrs import evolve, frozen

from nanobanana_async.errors import ConfigurationError, InvalidRequest
from nanobanana_async.formatting import byte_count
from nanobanana_async.gateways.capabilities import HasUploads, TakesInlineImages
from nanobanana_async.gateways.contract import Gateway
from nanobanana_async.images.formats import FORMATS, detect
from nanobanana_async.images.inline import FetchError, decode_inline
from nanobanana_async.models import ImageRequest
from nanobanana_async.references import LocalImage, stored_form

MAX_BYTES = 256 << 20
"""A larger file is no reference image: it is not read."""

_HEAD = 16

Sources = Mapping[str, LocalImage]
"""The local images of a request by their digests."""


@frozen
class SizeLimit:
    """The most bytes that a local image may have, and what to do with a larger one."""

    most: int
    advice: str = ""

    def check(self, image: LocalImage, size: int) -> None:
        """Raise `InvalidRequest` for an image that is too large."""
        if size > self.most:
            why = f"has {byte_count(size)}, more than the limit of {byte_count(self.most)}{self.advice}"
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


def identify(request: ImageRequest, gateway: Gateway, *, published: bool = False) -> tuple[ImageRequest, Sources]:
    """Return the request with its local images in their stored form, and these images.

    Raises `InvalidRequest` for one that can't be read, is no image or is too large, and `ConfigurationError` if the
    gateway takes no local images.
    """
    local = [image for image in request.images if isinstance(image, LocalImage)]
    if not local:
        return request, {}
    limit = size_limit(gateway, published=published)
    digests = {image: facts_of(image, limit).digest for image in local}
    images = tuple(stored_form(digests[one]) if isinstance(one, LocalImage) else one for one in request.images)
    return evolve(request, images=images), {digest: image for image, digest in digests.items()}


@frozen
class LocalFacts:
    """What is known of the content of a local image."""

    digest: str
    size: int
    content_type: str
    extension: str


def facts_of(image: LocalImage, limit: SizeLimit) -> LocalFacts:
    """Return the facts of an image, read once as long as its file has the same time and size.

    Raises `InvalidRequest` if there is no such file, if it is no image, or if it is too large.
    """
    if isinstance(image.source, Path):
        status = _status(image.source)
        limit.check(image, status.st_size)
        version = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
        return _facts_of_file(image.source, version, status.st_size)
    content = content_of(image)
    limit.check(image, len(content))
    return _facts(image, content[:_HEAD], hashlib.sha256(content).hexdigest(), len(content))


def content_of(image: LocalImage) -> bytes:
    """Return the content of an image; raise `InvalidRequest` if it can't be read."""
    match image.source:
        case Path():
            _status(image.source)
            try:
                return image.source.read_bytes()
            except OSError as error:
                raise _unreadable(image.source, error) from None
        case bytes():
            return image.source
        case uri:
            try:
                return b"".join(decode_inline(uri, MAX_BYTES))
            except FetchError as error:
                raise InvalidRequest(f"{image}: {error.reason}") from None


def unchanged_content(image: LocalImage, digest: str) -> bytes:
    """Return the content of an image; raise `InvalidRequest` if it is no longer the one with this digest."""
    content = content_of(image)
    if hashlib.sha256(content).hexdigest() != digest:
        _facts_of_file.cache_clear()  # its times may not show the change: some file systems count whole seconds
        raise InvalidRequest(f"reference image {image} was changed after the job was made: request it again")
    return content


@functools.lru_cache(maxsize=4096)
def _facts_of_file(path: Path, _version: tuple[int, ...], size: int) -> LocalFacts:
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from None
    return _facts(LocalImage(path), head, digest, size)


def _facts(image: LocalImage, head: bytes, digest: str, size: int) -> LocalFacts:
    try:
        image_format = detect(head)
    except FetchError:
        kinds = ", ".join(image_format.name.upper() for image_format in FORMATS)
        why = f"is no image of a known format ({kinds})" if size else "is empty"
        raise InvalidRequest(f"reference image {image} {why}") from None
    return LocalFacts(digest, size, image_format.content_type, image_format.extension)


def _status(path: Path) -> os.stat_result:
    try:
        status = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from None
    except ValueError:  # a NUL in the name
        raise InvalidRequest(f"reference image {str(path)!r}: that is no path") from None
    if stat.S_ISDIR(status.st_mode):
        raise InvalidRequest(f"reference image {path} is a folder: name the image in it")
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for its writer
        raise InvalidRequest(f"reference image {path} is no regular file")
    return status


def _unreadable(path: Path, error: OSError) -> InvalidRequest:
    if isinstance(error, FileNotFoundError):
        return InvalidRequest(f"reference image {path} does not exist")
    return InvalidRequest(f"reference image {path} can't be read: {error.strerror or error}")

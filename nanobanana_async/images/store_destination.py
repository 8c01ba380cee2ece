"""Save images in an object store: each put whole, under a name of its own, and never over another object.

An object can't be appended to, so there are no `SHA256SUMS` and `metadata.jsonl`. An image has its digest and what it
is in its own metadata; and its line of `metadata.jsonl` is a small object under `.nanobanana/`, named after the job,
the task and the image's index. That line is put first: it claims the name, so that two hosts which save the same job
end with one object, and any host finds the image again with two requests. A kill in between leaves a line without its
image: the next save puts the image.
"""

import asyncio
import hashlib
import io
import json
import re
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from attrs import frozen

from nanobanana_async.errors import SaveError
from nanobanana_async.http.threads import ThreadLimiter
from nanobanana_async.images.destination import (
    PartialImage,
    Saved,
    is_sidecar_of,
    sidecar_content,
    sidecar_names,
    sidecar_names_taken_error,
)
from nanobanana_async.images.formats import ImageFormat, verify_image
from nanobanana_async.images.inline import FetchError
from nanobanana_async.images.names import safe_name
from nanobanana_async.images.object_store import DIGEST, IMAGE, ObjectFacts, ObjectUrl, StoreUrl
from nanobanana_async.images.saved import PurchasedImage

LISTS = ".nanobanana"
"""Where the lines of images are, and for a moment the object by which a run checks that it may write."""

_JSON, _TEXT = "application/json", "text/plain"
_MAX_NUMBER = 10_000
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,200}")


class StoreDestination:
    """A prefix of an object store."""

    def __init__(self, target: StoreUrl, threads: ThreadLimiter, decode_slots: asyncio.Semaphore) -> None:
        self._target = target
        self._threads = threads
        self._decode_slots = decode_slots

    async def check_writable(self) -> None:
        """See `Destination.check_writable`; puts an object, tries to put it again, reads and removes it."""
        target, name, content = self._target, f"{LISTS}/check-{secrets.token_hex(8)}", b"may this client write here?\n"
        await target.put(name, content, _TEXT)
        try:
            if await target.put(name, content, _TEXT):
                raise SaveError(f"{target.url} can't be used: the store overwrites objects that exist (If-None-Match)")
            if await target.get(name) != content:
                raise SaveError(f"{target.url} can't be read: let these credentials read there, too")
        finally:
            await target.delete(name)

    async def find(self, purchased: PurchasedImage) -> Saved | None:
        """See `Destination.find`."""
        return await find_object(self._target, purchased)

    @asynccontextmanager
    async def reserved_stem(self, name: str, images: Sequence[PurchasedImage]) -> AsyncIterator[str]:
        """See `Destination.reserved_stem`. Here it is the name: to look for a free one would take many requests."""
        yield name

    def begin(self) -> PartialImage:
        """See `Destination.begin`."""
        return _ObjectInMemory(self, io.BytesIO())

    async def add_sidecar(self, name: str, facts: dict[str, Any]) -> None:
        """See `Destination.add_sidecar`."""
        names = sidecar_names(name)
        for candidate in names:
            content = await self._target.get(candidate)
            if content is None and await self._target.put(candidate, sidecar_content(facts), _JSON):
                return
            content = content or await self._target.get(candidate)
            if content is not None and is_sidecar_of(content, facts):
                return
        raise sidecar_names_taken_error(self._target.url, names)

    async def verify_and_put(self, image: bytes, name: str, purchased: PurchasedImage | None) -> Saved:
        """Verify an image and put it, unless it is there."""
        async with self._decode_slots:
            image_format, digest = await self._threads.run(_verify_and_digest, image)
        stem, extension = safe_name(name), image_format.extension
        claimed = f"{stem}{extension}"
        line: _Line | None = None
        if purchased is not None:
            if await self._target.put(_line_name(purchased), purchased.line(claimed, digest), _JSON):
                line = _Line(claimed, digest)
            elif (line := await _read_line(self._target, purchased)) is not None:
                if (saved := await _intact(self._target, line, purchased)) is not None:
                    return saved  # by another session or host, meanwhile
                claimed = line.name if line.name.endswith(extension) else claimed
        metadata = {DIGEST: digest} if purchased is None else {DIGEST: digest, IMAGE: _identity(purchased)}
        for candidate in (claimed, *(f"{stem}-{number}{extension}" for number in range(2, _MAX_NUMBER))):
            facts = await self._target.object_facts(candidate) if candidate != claimed else None
            if facts is None:
                if await self._target.put(candidate, image, f"image/{image_format.name}", metadata):
                    facts = ObjectFacts(len(image), digest, metadata.get(IMAGE))
                elif (facts := await self._target.object_facts(candidate)) is None:
                    raise SaveError(
                        f"{self._target.url}: {candidate} exists and can't be read: let these credentials read"
                    )
            if facts is not None and _is_same_image(facts, digest, purchased):
                if purchased is not None and line != _Line(candidate, facts.sha256):
                    content = purchased.line(candidate, facts.sha256)
                    await self._target.put(_line_name(purchased), content, _JSON, overwrite=True)
                return _saved(self._target, candidate, facts)
        raise FetchError(f"too many images are named {stem}{extension}: save it under another name")


@frozen
class _ObjectInMemory:
    """Holds an image until it is complete: a put that must overwrite nothing can't be in parts."""

    _destination: StoreDestination
    _content: io.BytesIO

    async def open(self) -> None:
        pass

    async def write(self, content: bytes) -> None:
        self._content.write(content)

    async def finish(self, name: str, purchased: PurchasedImage | None) -> Saved:
        return await self._destination.verify_and_put(self._content.getvalue(), name, purchased)

    async def discard(self) -> None:
        self._content.close()


@frozen
class _Line:
    """What the line of an image says: the name of its object, and the digest."""

    name: str
    sha256: str


async def find_object(target: StoreUrl, purchased: PurchasedImage) -> Saved | None:
    """Return an image that was saved before; takes one request, or two where there is one."""
    line = await _read_line(target, purchased)
    return None if line is None else await _intact(target, line, purchased)


async def _read_line(target: StoreUrl, purchased: PurchasedImage) -> _Line | None:
    content = await target.get(_line_name(purchased))
    with suppress(ValueError, TypeError, KeyError, RecursionError):
        facts = json.loads(content or b"")
        name, digest = facts["file_name"], facts["sha256"]
        if _NAME.fullmatch(name) and isinstance(digest, str):  # else another program wrote it
            return _Line(name, digest)
    return None


async def _intact(target: StoreUrl, line: _Line, purchased: PurchasedImage) -> Saved | None:
    facts = await target.object_facts(line.name)
    fits = facts is not None and _is_same_image(facts, line.sha256, purchased)
    return _saved(target, line.name, facts) if facts is not None and fits else None


def _saved(target: StoreUrl, name: str, facts: ObjectFacts) -> Saved:
    return Saved(ObjectUrl(target.url_of(name), facts.sha256, facts.size), facts.sha256)


def _identity(purchased: PurchasedImage) -> str:
    return hashlib.sha256(purchased.line_prefix).hexdigest()[:32]


def _line_name(purchased: PurchasedImage) -> str:
    return f"{LISTS}/{_identity(purchased)}.json"


def _is_same_image(facts: ObjectFacts, digest: str, purchased: PurchasedImage | None) -> bool:
    """Return whether an object is this image: by its content, or saved as this image by another host.

    A host may get the same image in other bytes: some links encode it for each download.
    """
    return facts.sha256 == digest or (purchased is not None and facts.image == _identity(purchased))


def _verify_and_digest(image: bytes) -> tuple[ImageFormat, str]:
    return verify_image(image), hashlib.sha256(image).hexdigest()

"""Read reference images from object stores. Everything here blocks; run it in a thread.

An object is asked for its version whenever it is named, and read again only when that has changed. Small contents that
were read last stay in memory, so that the creates and uploads of one image read it once.
"""

import functools
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterator

from nanobanana_async.errors import InvalidRequest
from nanobanana_async.images.local_facts import HEAD, LocalFacts, changing_image_error, format_of, to_facts
from nanobanana_async.images.object_store import ObjectUnseen, ObjectVersion, StoreUrl
from nanobanana_async.images.target import store_of
from nanobanana_async.references import LocalImage, StoreObject

MAX_KEPT_BYTES, MAX_KEPT_BYTES_EACH = 32 << 20, 8 << 20
"""How many bytes of objects stay in memory in a process, and the largest of them."""

_FACTS_KEPT = 32768
_locks = [threading.Lock() for _ in range(16)]


class _Contents:
    """The contents that were read last, by their digests."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._size = 0

    def find(self, digest: str) -> bytes | None:
        with self._lock:
            if digest in self._kept:
                self._kept.move_to_end(digest)
            return self._kept.get(digest)

    def add(self, digest: str, content: bytes) -> None:
        with self._lock:
            if digest in self._kept or len(content) > MAX_KEPT_BYTES_EACH:
                return
            self._kept[digest] = content
            self._size += len(content)
            while self._size > MAX_KEPT_BYTES:
                self._size -= len(self._kept.popitem(last=False)[1])


_contents = _Contents()


def version_of(named: StoreObject) -> ObjectVersion:
    """Return the version of an object; raise `InvalidRequest` if it is not there or may not be read."""
    store = store_of(named)
    try:
        return store.version(named.path)
    except ObjectUnseen as unseen:
        why = str(unseen)
    raise InvalidRequest(f"reference image {store.url_of(named.path)} {why}")


def facts_of_object(named: StoreObject, version: ObjectVersion) -> LocalFacts:
    """Return the facts of an object, read once as long as it has this version; its size must have been checked."""
    store = store_of(named)
    with _locks[hash((store, named.path)) % len(_locks)]:  # callers that name one object together read it once
        return _facts(store, named, version)


def content_of_object(named: StoreObject, most: int, digest: str | None = None) -> bytes:
    """Return the content of an object; from memory if the content with this digest was read lately."""
    if digest is not None and (kept := _contents.find(digest)) is not None:
        return kept
    version = version_of(named)
    if version.size > most:
        raise changing_image_error(LocalImage(named))
    content = b"".join(_chunks(store_of(named), named, version))
    if digest is not None and hashlib.sha256(content).hexdigest() == digest:
        _contents.add(digest, content)
    return content


@functools.lru_cache(maxsize=_FACTS_KEPT)
def _facts(store: StoreUrl, named: StoreObject, version: ObjectVersion) -> LocalFacts:
    digest, head, kept = hashlib.sha256(), b"", list[bytes]()
    for chunk in _chunks(store, named, version):
        head = head or chunk[:HEAD]
        digest.update(chunk)
        if version.size <= MAX_KEPT_BYTES_EACH:
            kept.append(chunk)
    facts = to_facts(LocalImage(named), head, digest.hexdigest(), version.size)
    if kept:
        _contents.add(facts.digest, b"".join(kept))
    return facts


def _chunks(store: StoreUrl, named: StoreObject, version: ObjectVersion) -> Iterator[bytes]:
    """Yield the content of an object of this version; raise `InvalidRequest` once it is no image or another version."""
    image, read = LocalImage(named), 0
    try:
        for found, chunk in store.chunks(named.path):
            if found != version:
                raise changing_image_error(image)
            if not read:
                format_of(image, chunk[:HEAD], len(chunk))
            read += len(chunk)
            yield chunk
    except ObjectUnseen as unseen:
        raise InvalidRequest(f"reference image {store.url_of(named.path)} {unseen}") from None
    if not read:
        format_of(image, b"", 0)

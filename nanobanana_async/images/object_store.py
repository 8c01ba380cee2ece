"""An object store below a prefix, and what can be done with its objects. Only here `obstore` is called.

Its messages are never passed on: they quote what the store answered, and some stores answer with the credentials of the
request.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Protocol

from attrs import field, frozen

from nanobanana_async.errors import DownloadError, SaveError

_process: int | None = None
"""The process that first used a store. The threads of obstore end with a fork: in a child no call would return."""


class ObjectStore(Protocol):
    """A store of obstore, such as `S3Store`: the part of it that is used here."""

    def put_async(self, *args: Any, **kwargs: Any) -> Any: ...
    def get_async(self, *args: Any, **kwargs: Any) -> Any: ...
    def delete_async(self, *args: Any, **kwargs: Any) -> Any: ...
    def get(self, *args: Any, **kwargs: Any) -> Any: ...
    def list(self, *args: Any, **kwargs: Any) -> Any: ...


DIGEST, IMAGE = "sha256", "nanobanana"
"""The metadata of an object: its content's digest, and which image of which job it is. Azure takes no dashes here."""

_MAX_HASHED = 64 << 20
_CHUNK = 1 << 20
_STATUS = re.compile(r"status code: ([1-5]\d\d)\b")
_CODE = re.compile(r"<Code>([A-Z][a-z]+(?:[A-Z][a-z]+)*)</Code>")  # words: an access key has digits or no small letters
_ADVICE = {
    "BadScheme": "set AWS_ALLOW_HTTP=true if a store without TLS is meant",
    "NoSuchBucket": "create the bucket, or correct its name",
    "PermanentRedirect": "set AWS_REGION to the region of the bucket",
    "PermissionDenied": "set credentials in the environment that may read, write and delete there",
    "Unauthenticated": "set the store's credentials in the environment",
}
_NO_ANSWER_REASON = "it gave no answer, or none within the time: check the network, and the address if one is set"
_REASONS = {
    "PermissionDenied": "no permission",
    "Unauthenticated": "the credentials are missing or wrong",
    "NotSupported": "the store does not support this",
    "NotImplemented": "the store does not support this",
}


class ObjectUrl(str):
    """The URL of a saved object, with its digest and its size where they are known."""

    sha256: str
    size: int

    def __new__(cls, url: str, sha256: str, size: int) -> "ObjectUrl":
        """Make the text and keep both facts."""
        made = super().__new__(cls, url)
        made.sha256, made.size = sha256, size
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return ObjectUrl, (str(self), self.sha256, self.size)


@frozen
class ObjectFacts:
    """What a store says about an object."""

    size: int
    sha256: str
    image: str | None
    """Which image of which job it is; None for an object that was not saved as one."""


@frozen
class ObjectVersion:
    """By what a change of an object is noticed."""

    size: int
    facts: tuple[str, ...]


class ObjectUnseen(Exception):
    """There is no such object, or these credentials may not read it. Its text says which, as far as it is known."""


@frozen
class StoreUrl:
    """The URL of a prefix in an object store, and what can be done with the objects there, by names below the prefix.

    Where the store fails, its methods raise `SaveError`: the store's own client has tried again before.
    """

    url: str
    """Its URL, without a slash at the end."""
    _store: ObjectStore = field(repr=False, eq=id)
    _prefix: str = field(default="", repr=False)

    def __str__(self) -> str:
        return self.url

    def url_of(self, name: str) -> str:
        """Return the URL of an object."""
        return f"{self.url}/{name}"

    def name_of(self, url: str) -> str | None:
        """Return the name of an object by its URL; None if it is not below this prefix."""
        root = self.url_of("")
        return url.removeprefix(root) if url.startswith(root) else None

    async def put(
        self, name: str, content: bytes, kind: str, metadata: dict[str, str] | None = None, *, overwrite: bool = False
    ) -> bool:
        """Put an object whole; return False, and change nothing, if there is one of this name and not `overwrite`."""
        _check_process()
        from obstore.exceptions import AlreadyExistsError
        from obstore.store import LocalStore

        attributes = None if isinstance(self._store, LocalStore) else {"Content-Type": kind, **(metadata or {})}
        mode: Any = "overwrite" if overwrite else "create"
        failure = "it has no bucket or container of this name"
        try:
            await self._store.put_async(
                self._path(name), content, attributes=attributes, mode=mode, use_multipart=False
            )
            return True
        except AlreadyExistsError:
            return False
        except FileNotFoundError:
            pass
        except Exception as error:
            failure = _reason(error)
        raise self._failure("written", failure)

    async def get(self, name: str) -> bytes | None:
        """Return the content of an object; None if there is none, or none that these credentials may see."""
        found = await self._get(name)
        return None if found is None else await self._read_content(found)

    async def object_facts(self, name: str) -> ObjectFacts | None:
        """Return what the store says about an object; None if there is none.

        Without a digest in its metadata its content is read.
        """
        found = await self._get(name, head=True)
        if found is None:
            return None
        size, attributes = int(found.meta["size"]), found.attributes
        digest = attributes.get(DIGEST)
        if digest is None and size <= _MAX_HASHED:
            content = await self.get(name)
            digest = "" if content is None else hashlib.sha256(content).hexdigest()
        return ObjectFacts(size, digest or "", attributes.get(IMAGE))

    async def has_content(self, name: str, sha256: str) -> bool:
        """Return whether there is an object of this name with this content."""
        found = await self.object_facts(name)
        return found is not None and found.sha256 == sha256

    async def delete(self, name: str) -> None:
        """Delete an object if these credentials may."""
        with suppress(Exception):
            await self._store.delete_async(self._path(name))

    def version(self, name: str) -> ObjectVersion:
        """Return the version of an object. Blocks. Raises `ObjectUnseen`, or `DownloadError` if the store fails."""
        return _version(self._open(name, head=True))

    def chunks(self, name: str) -> Iterator[tuple[ObjectVersion, bytes]]:
        """Yield the content of an object in parts, each with its version. Blocks, and raises as `version` does."""
        opened = self._open(name)
        version = _version(opened)
        try:
            for chunk in opened.stream(min_chunk_size=_CHUNK):
                yield version, bytes(chunk)
            return
        except Exception as error:
            failure = _reason(error)
        raise self._unread(name, failure)

    def _open(self, name: str, *, head: bool = False) -> Any:
        _check_process()
        from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

        unseen, failure = "", ""
        try:
            return self._store.get(self._path(name), options={"head": head})
        except FileNotFoundError:
            unseen = "is a folder: name the image in it" if self._is_folder(name) else "does not exist"
        except (PermissionDeniedError, UnauthenticatedError) as error:
            unseen = f"does not exist, or these credentials may not read it: {_reason(error, reads=True)}"
        except Exception as error:
            failure = _reason(error, reads=True)
        if unseen:
            raise ObjectUnseen(unseen)
        raise self._unread(name, failure)

    def _is_folder(self, name: str) -> bool:
        with suppress(Exception):  # these credentials may be unable to list
            return any(self._store.list(f"{self._path(name)}/", chunk_size=1))
        return False

    def _unread(self, name: str, reason: str) -> DownloadError:
        return DownloadError(f"reference image {self.url_of(name)} can't be read: {reason}")

    async def _get(self, name: str, *, head: bool = False) -> Any:
        _check_process()
        from obstore.exceptions import PermissionDeniedError

        try:
            return await self._store.get_async(self._path(name), options={"head": head})
        except (FileNotFoundError, PermissionDeniedError):  # without the right to list, S3 answers 403 for no object
            return None
        except Exception as error:
            failure = _reason(error)
        raise self._failure("read", failure)

    async def _read_content(self, found: Any) -> bytes:
        try:
            return bytes(await found.bytes_async())
        except Exception as error:
            failure = _reason(error)
        raise self._failure("read", failure)

    def _failure(self, what: str, reason: str) -> SaveError:
        failure = SaveError(f"{self.url} can't be {what}: {reason}")
        failure.one_image = True
        return failure

    def _path(self, name: str) -> str:
        return f"{self._prefix}/{name}" if self._prefix else name


def _check_process() -> None:
    global _process
    if _process is None:
        _process = os.getpid()
    elif _process != os.getpid():
        raise SaveError(
            "this process was forked from one that had used an object store, and can't use one: start it with the"
            " method spawn, or before the parent saves anything"
        )


def _version(opened: Any) -> ObjectVersion:
    meta = opened.meta
    return ObjectVersion(int(meta["size"]), tuple(str(meta[name]) for name in ("e_tag", "version", "last_modified")))


def _reason(error: Exception, *, reads: bool = False) -> str:
    """Return why a store failed, in words of our own and by codes that can hold no secret."""
    kind, text = type(error).__name__.removesuffix("Error"), str(error)
    status, code = _STATUS.search(text), _CODE.search(text)
    kind = "PermissionDenied" if status and status[1] in ("401", "403") else kind
    facts = ([f"HTTP {status[1]}"] if status else []) + ([code[1]] if code else [])
    why = _REASONS.get(kind, "it answered with an error" if status else _NO_ANSWER_REASON)
    why = f"{why} ({', '.join(facts)})" if facts else why
    advice = next((advice for name, advice in _ADVICE.items() if name == kind or name in text), "")
    advice = advice.replace("read, write and delete", "read") if reads else advice
    return f"{why}: {advice}" if advice else why

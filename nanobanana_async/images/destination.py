"""Save images at a destination: `FolderDestination` here, `StoreDestination` in `store_destination.py`."""

import asyncio
import json
import os
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar

import anyio
from attrs import frozen

from nanobanana_async.errors import SaveError
from nanobanana_async.http.threads import ThreadLimiter
from nanobanana_async.images.files import (
    PartialFile,
    ensure_writable_folder,
    rename_exclusive,
    sync_folder,
    to_fetch_error,
    why_unwritable,
)
from nanobanana_async.images.object_store import ObjectUrl
from nanobanana_async.images.saved import PurchasedImage, find_saved
from nanobanana_async.images.stems import find_stem, free_stem

P = ParamSpec("P")
T = TypeVar("T")

_SIDECAR_IDENTITY = ("job_key", "task_id", "image", "sha256")


@frozen
class Saved:
    """A saved image: complete and verified."""

    place: Path | ObjectUrl
    sha256: str


class PartialImage(Protocol):
    """An image that is being received; it is saved by `finish`, or nothing is left of it."""

    async def open(self) -> None:
        """Begin; called once."""

    async def write(self, content: bytes) -> None:
        """Append bytes."""

    async def finish(self, name: str, purchased: PurchasedImage | None) -> Saved:
        """Verify the image and save it under a safe form of the name; list where it comes from."""
        ...

    async def discard(self) -> None:
        """Remove what is left; without effect after `finish`."""


class Destination(Protocol):
    """Where images are saved. Its methods raise `SaveError` where nothing can be written, or `FetchError`."""

    async def check_writable(self) -> None:
        """Raise `SaveError` if no image can be saved here; leave nothing behind."""

    async def find(self, purchased: PurchasedImage) -> Saved | None:
        """Return an image that was saved here before and is intact; None if there is none."""
        ...

    def reserved_stem(self, name: str, images: Sequence[PurchasedImage]) -> AbstractAsyncContextManager[str]:
        """Return, for the block, the stem that all these images of one job share: the name, or a similar free one."""
        ...

    def begin(self) -> PartialImage:
        """Return a new image without content."""
        ...

    async def add_sidecar(self, name: str, facts: dict[str, Any]) -> None:
        """Write facts about the image of this name beside it as JSON, unless they are there; overwrite nothing."""


class FolderDestination:
    """A folder of this machine, with the lists `SHA256SUMS` and `metadata.jsonl`. All work is done in threads."""

    def __init__(self, folder: Path, threads: ThreadLimiter, decode_slots: asyncio.Semaphore) -> None:
        self._folder = folder
        self._threads = threads
        self.decode_slots = decode_slots
        self._stale_parts_removed = False
        self._choosing = asyncio.Lock()
        self._stems: dict[tuple[str, str], tuple[str, int]] = {}
        """By key and task id of the jobs that are being saved: the stem, and how many callers save it."""

    async def check_writable(self) -> None:
        """See `Destination.check_writable`; creates the folder."""
        try:
            await self._threads.run(ensure_writable_folder, self._folder)
        except OSError as error:
            raise SaveError(why_unwritable(self._folder, error)) from None

    async def find(self, purchased: PurchasedImage) -> Saved | None:
        """See `Destination.find`."""
        found = await self._threads.run(find_saved, self._folder, purchased)
        return None if found is None else Saved(*found)

    @asynccontextmanager
    async def reserved_stem(self, name: str, images: Sequence[PurchasedImage]) -> AsyncIterator[str]:
        """See `Destination.reserved_stem`. Another process may take it meanwhile: images get numbers then."""
        job = (images[0].key, images[0].task_id) if images else ("", "")
        async with self._choosing:
            stem, users = self._stems.get(job, ("", 0))
            self._stems[job] = stem or await self._choose_stem(name, images), users + 1
        try:
            yield self._stems[job][0]
        finally:
            stem, users = self._stems.pop(job)
            if users > 1:
                self._stems[job] = stem, users - 1

    async def _choose_stem(self, name: str, images: Sequence[PurchasedImage]) -> str:
        taken = {stem.lower() for stem, _ in self._stems.values()}
        try:
            before = await self._threads.run(find_stem, self._folder, images)
            if before is None:
                return await self._threads.run(free_stem, self._folder, name, images, taken)
            return before
        except OSError:  # saving reports it
            return name

    def begin(self) -> PartialImage:
        """See `Destination.begin`."""
        return _FileInFolder(self, PartialFile(self._folder))

    async def add_sidecar(self, name: str, facts: dict[str, Any]) -> None:
        """See `Destination.add_sidecar`."""
        await self.run(_write_sidecar, self._folder, name, facts)

    async def remove_stale_parts_once(self, part: PartialFile) -> None:
        """Remove hidden files of killed processes, once for this destination."""
        if not self._stale_parts_removed:
            self._stale_parts_removed = True
            await self.run(part.remove_stale_parts)

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run file work in a thread; raise an OSError as `FetchError`."""
        try:
            return await self._threads.run(work, *args, **kwargs)
        except OSError as error:
            raise to_fetch_error(self._folder, error) from None

    async def discard(self, part: PartialFile) -> None:
        """Remove a hidden file, even if the caller is cancelled."""
        with anyio.CancelScope(shield=True):
            await self._threads.run(part.discard)


@frozen
class _FileInFolder:
    _folder: FolderDestination
    _part: PartialFile

    async def open(self) -> None:
        await self._folder.run(self._part.open)
        await self._folder.remove_stale_parts_once(self._part)

    async def write(self, content: bytes) -> None:
        await self._folder.run(self._part.write, content)

    async def finish(self, name: str, purchased: PurchasedImage | None) -> Saved:
        async with self._folder.decode_slots:
            saved = await self._folder.run(self._part.finish, name, purchased)
        return Saved(saved.path, saved.sha256)

    async def discard(self) -> None:
        await self._folder.discard(self._part)


def sidecar_names(image: str) -> tuple[str, str]:
    """Return the names that a sidecar may have: the second where another image has the first, as of a.png and a.jpg."""
    return f"{image.rpartition('.')[0]}.json", f"{image}.json"


def sidecar_content(facts: dict[str, Any]) -> bytes:
    """Return a sidecar's content."""
    return json.dumps(facts, ensure_ascii=False, indent=2).encode("utf-8", "backslashreplace") + b"\n"


def is_sidecar_of(content: bytes, facts: dict[str, Any]) -> bool:
    """Return whether a file is the sidecar of the image that these facts are about."""
    with suppress(ValueError, RecursionError):
        found = json.loads(content)
        return isinstance(found, dict) and all(found.get(name) == facts.get(name) for name in _SIDECAR_IDENTITY)
    return False


def sidecar_names_taken_error(where: str, names: tuple[str, str]) -> SaveError:
    """Return the error for a sidecar whose names are taken by other files."""
    error = SaveError(f"{where} has other files named {' and '.join(names)}: move one away, then save again")
    error.one_image = True
    return error


def _write_sidecar(folder: Path, image: str, facts: dict[str, Any]) -> None:
    names = sidecar_names(image)
    part = folder / f".nanobanana-{secrets.token_hex(8)}.part"
    try:
        for name in names:
            path = folder / name
            with suppress(FileNotFoundError):
                if not path.is_symlink() and path.is_file() and is_sidecar_of(path.read_bytes(), facts):
                    return
            if not part.exists():
                with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:
                    file.write(sidecar_content(facts))
                    file.flush()
                    os.fsync(file.fileno())
            with suppress(FileExistsError):
                rename_exclusive(part, path)
                sync_folder(folder)
                return
    finally:
        part.unlink(missing_ok=True)
    raise sidecar_names_taken_error(str(folder), names)

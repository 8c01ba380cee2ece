"""Where images are saved, as the tests see it: a folder, a store in memory, a local store, or a bucket."""

import asyncio
import base64
import hashlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import obstore
from obstore.store import LocalStore, MemoryStore

from nanobanana_async.images.destination import Saved
from nanobanana_async.images.downloader import ImageDownloader
from nanobanana_async.images.saved import PurchasedImage
from nanobanana_async.images.target import Target, as_target
from tests.support.images import make_image, opened

IMAGES = [make_image("png", (60, 40), seed=seed) for seed in range(1, 5)]
LISTS = ("SHA256SUMS", "metadata.jsonl", ".nanobanana/")


def link(content: bytes) -> str:
    return "data:;base64," + base64.b64encode(content).decode()


def bought(key: str, index: int = 0) -> PurchasedImage:
    """Return the first image of the job with this key."""
    return PurchasedImage(key=key, task_id=f"task-{key}", index=index, prompt="a fox")


class Shelf(ABC):
    """A place for images."""

    target: Target

    @abstractmethod
    async def everything(self) -> dict[str, bytes]:
        """Return the content of every file or object."""

    @abstractmethod
    async def put(self, name: str, content: bytes) -> None:
        """Put a file or object, as another program does."""

    @abstractmethod
    async def remove(self, name: str) -> None:
        """Remove a file or object."""

    async def images(self) -> dict[str, bytes]:
        """Return what is there, without the lists."""
        found = await self.everything()
        return {name: content for name, content in found.items() if not name.startswith(LISTS)}

    async def save(self, content: bytes, name: str, image: PurchasedImage | None = None) -> Saved:
        """Save an image in a session of its own."""
        async with opened() as downloader:
            return await downloader.save(link(content), self.target, name, image)

    def place(self, name: str) -> Any:
        """Return what a saved image of this name is called."""
        return self.target / name if isinstance(self.target, Path) else self.target.url_of(name)

    @asynccontextmanager
    async def sessions(self, count: int) -> AsyncIterator[list[ImageDownloader]]:
        async with opened() as one, opened() as two, opened() as three:
            yield [one, two, three][:count]


class FolderShelf(Shelf):
    """A folder of this machine."""

    def __init__(self, folder: Path) -> None:
        self.target = folder
        folder.mkdir()

    async def everything(self) -> dict[str, bytes]:
        assert isinstance(self.target, Path)
        return {path.name: path.read_bytes() for path in self.target.iterdir()}

    async def put(self, name: str, content: bytes) -> None:
        assert isinstance(self.target, Path)
        (self.target / name).write_bytes(content)

    async def remove(self, name: str) -> None:
        assert isinstance(self.target, Path)
        (self.target / name).unlink()


class StoreShelf(Shelf):
    """A prefix of an object store."""

    def __init__(self, store: MemoryStore | LocalStore, prefix: str = "spring/images") -> None:
        self.store = store
        self.prefix = prefix
        self.target = as_target("target", (store, prefix))

    async def everything(self) -> dict[str, bytes]:
        paths = [each["path"] for page in obstore.list(self.store, self.prefix) for each in page]
        found = {path: obstore.get(self.store, path).bytes().to_bytes() for path in paths}
        return {path.removeprefix(f"{self.prefix}/"): content for path, content in found.items()}

    async def put(self, name: str, content: bytes) -> None:
        await asyncio.sleep(0)
        obstore.put(self.store, f"{self.prefix}/{name}", content)

    async def remove(self, name: str) -> None:
        await asyncio.sleep(0)
        obstore.delete(self.store, f"{self.prefix}/{name}")


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

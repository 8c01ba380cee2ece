"""Break a download at every byte of its answer: `python -m tests.faults downloads`.

If the connection breaks, at any byte: the image is in the folder whole, listed with its digest, or it
is not there at all, and no other file is.
"""

import asyncio
import hashlib
import itertools
import logging
import random
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from nanobanana_async.errors import DownloadError
from nanobanana_async.images.downloader import ImageDownloader
from nanobanana_async.testing import ConnectionFault, FaultProxy
from nanobanana_async.testing.fault_proxy import FaultKind
from tests.support.disk import memory_folder
from tests.support.images import make_image, opened, reply
from tests.support.peers import Connection, Peer

SMALL = make_image("png", (4, 3))
LARGE = make_image("png", (400, 300))
IDLE_S = 0.05


def chunked(content: bytes, size: int = 37) -> bytes:
    """Return a chunked answer."""
    pieces = (content[start : start + size] for start in range(0, len(content), size))
    body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body + b"0\r\n\r\n"


ANSWERS = {
    "length stated": reply(SMALL, "Content-Type: image/png"),
    "chunked": chunked(SMALL),
    "until closed": reply(SMALL, "Content-Type: image/png", length=None),
    "large, length stated": reply(LARGE),
    "large, chunked": chunked(LARGE, 20_000),
}


def serving(answer: bytes) -> Any:
    """Return a script that answers every request of a connection so, and closes it."""

    async def script(connection: Connection) -> None:
        await connection.read_request()
        await connection.write(answer)
        connection.close()

    return script


def faults(answer: bytes, every: int, kinds: tuple[FaultKind, ...]) -> Iterator[ConnectionFault]:
    """Return each kind of fault at every n-th byte of an answer; at a few hundred bytes of a large one."""
    size = len(answer)
    offsets = range(0, size, every) if size < 5000 else sorted(random.Random(size).sample(range(size), 300 // every))
    for kind, at in itertools.product(kinds, offsets):
        yield ConnectionFault(kind, at=at, wait_s=0.001, piece_bytes=max(1, size // 8))


async def break_downloads(framing: str, every: int, kinds: tuple[FaultKind, ...]) -> tuple[Counter[str], list[str]]:
    """Break downloads of one answer; return how they ended, and what went wrong."""
    answer, ends, breaches = ANSWERS[framing], Counter[str](), list[str]()
    image = LARGE if framing.startswith("large") else SMALL
    async with (
        Peer(serving(answer)) as peer,
        opened(attempts=1, idle_s=IDLE_S) as hasty,
        opened(attempts=1) as patient,
    ):
        with FaultProxy(peer.url) as proxy:
            for fault in faults(answer, every, kinds):
                downloader = hasty if fault.kind in ("stall", "garbage") else patient
                with tempfile.TemporaryDirectory(prefix="nanobanana-", dir=memory_folder()) as name:
                    folder = Path(name)
                    proxy.queue(fault)
                    how, found = await _break_one(downloader, proxy.url, folder, image)
                    await patient.save(peer.url, folder, "fox")
                    if await asyncio.to_thread((folder / "fox.png").read_bytes) != image:
                        found.append("the image is not whole at the second try")
                    ends[f"{fault.kind}: {how}"] += 1
                    breaches += [f"{framing}, {fault.kind} at {fault.at}: {breach}" for breach in found]
    return ends, breaches


async def _break_one(downloader: ImageDownloader, url: str, folder: Path, image: bytes) -> tuple[str, list[str]]:
    breaches: list[str] = []
    try:
        await downloader.save(url, folder, "fox")
        how = "whole"
    except DownloadError:
        how = "absent"
    files = await asyncio.to_thread(lambda: {file.name: file.read_bytes() for file in folder.iterdir()})
    listed = f"{hashlib.sha256(image).hexdigest()}  fox.png\n".encode()
    if how == "whole" and (files.get("fox.png"), files.get("SHA256SUMS")) != (image, listed):
        breaches.append("the image is not whole or not listed")
    if set(files) - ({"fox.png", "SHA256SUMS", "metadata.jsonl"} if how == "whole" else set()):
        breaches.append(f"{how}, and the folder holds {sorted(files)}")
    return how, breaches


def main(count: int | None) -> dict[str, Any]:
    """Break every answer at every byte, or at every n-th."""
    logging.getLogger("nanobanana_async").setLevel(logging.CRITICAL)
    total, breaches = Counter[str](), list[str]()
    for framing in ANSWERS:
        ends, found = asyncio.run(break_downloads(framing, count or 1, get_args(FaultKind)))
        total.update(ends)
        breaches += found
    return {"downloads": total.total(), **dict(sorted(total.items())), "breaches": breaches}

"""Generate one image with a local reference, and die at a step: `python -m tests.durability.upload_worker STEP ...`.

The steps are those between the call and the stored task id; `none` lives to the end.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from nanobanana_async import ApiMall, DefApi, Session
from nanobanana_async.emulator import API_KEY
from nanobanana_async.engine.references import References
from nanobanana_async.engine.store import JobStore
from nanobanana_async.engine.submitter import Submitter
from nanobanana_async.engine.uploader import Uploader
from nanobanana_async.http.body import RequestBody
from nanobanana_async.images.downloader import ImageDownloader
from nanobanana_async.ledger.sqlite import SqliteLedger
from tests.support.fakes import REAL_TIME

# Each step: a method, and whether it ends before the process does.
STEPS: dict[str, tuple[type, str, bool]] = {
    "identified": (References, "digest_images", True),
    "claimed": (SqliteLedger, "claim", True),
    "upload asked for": (Uploader, "_request_upload", False),
    "upload prepared": (Uploader, "_request_upload", True),
    "bytes stored": (ImageDownloader, "put_presigned", True),
    "upload remembered": (SqliteLedger, "remember_upload", True),
    "images loaded": (References, "load_body", True),
    "intent written": (JobStore, "advance_and_reserve", True),
    "sent": (Submitter, "_post", True),
}
HALF_SENT = "bytes half sent"


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(step: str) -> None:
    """Let this process end at a step."""
    if step == HALF_SENT:
        _die_half_way()
        return
    owner, name, after = STEPS[step]
    method: Callable[..., Awaitable[Any]] = getattr(owner, name)

    async def fatal(*args: Any, **kwargs: Any) -> Any:
        if after:
            await method(*args, **kwargs)
        die()

    setattr(owner, name, fatal)


def _die_half_way() -> None:
    write = RequestBody.write

    async def half(self: RequestBody, writer: Any) -> None:
        if self._value.startswith(b"\x89PNG"):
            await writer.write(self._value[: len(self._value) // 2])
            await asyncio.sleep(0.05)
            die()
        await write(self, writer)

    RequestBody.write = half  # type: ignore[method-assign]


async def main(step: str, gateway: str, url: str, ledger: str, image: str) -> None:
    if step != "none":
        die_at(step)
    kind = ApiMall if gateway == "apimall" else DefApi
    selected = kind(api_key=API_KEY, base_url=url, expected_job_s=0.01)
    async with Session(selected, ledger=ledger, polling=REAL_TIME) as session:
        await session.generate("as a watercolour", images=[Path(image)], idempotency_key="order-1")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

"""A small studio: prompts become pictures on a page that fills live, and nothing is ever bought twice.

    uvicorn app:app --workers 2 --timeout-graceful-shutdown 5

All workers share one ledger, a file. Whoever takes an order writes it down before it is bought; when a worker dies,
another one goes on with what it left.
"""

import json
import logging
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from board import card_of
from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from studio import Studio

from nanobanana_async import IdempotencyConflict, ImageRequest, InvalidRequest, NanoBananaError
from nanobanana_async.webhooks import CallbackReceiver

log = logging.getLogger("studio")

PAGE = Path(__file__).parent / "page"
FOLDER = Path(os.environ.get("STUDIO_FOLDER", "studio-data"))
PICTURES = FOLDER / "pictures"
PUBLIC_URL = os.environ.get("STUDIO_PUBLIC_URL")  # where the gateway reaches us; without it there are no callbacks

KEY = re.compile(r"[a-z0-9-]{16,64}")  # it names a folder, too
CHOICES = {"aspect_ratio": ("4:3", "1:1", "3:4", "16:9"), "resolution": ("1K", "2K", "4K")}
FIELDS = {"prompt", *CHOICES}
LONGEST_BODY = 16 * 1024
LONGEST_WAIT_S = 25.0

# Nothing on the page comes from elsewhere, and no prompt can become a script.
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Cache-Control": "no-cache",
}


studio = Studio(FOLDER / "jobs.sqlite", PICTURES)


async def order(request: Request) -> Response:
    """Take an order and answer 202 once it is written down. The same key again is the same order: paid once."""
    key = request.headers.get("idempotency-key", "")
    if not KEY.fullmatch(key):
        return problem(400, "send an Idempotency-Key header of your own: 16 to 64 of a-z, 0-9 and -")
    # No other site can make a browser send this type to us without asking first.
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return problem(415, "send JSON, as application/json")
    wish = await read(request)
    if not isinstance(wish, dict) or set(wish) - FIELDS:
        return problem(400, "send a JSON object with prompt, and with aspect_ratio and resolution if you like")
    job = await studio.session.submit(ImageRequest(**{"prompt": "", **wish}), idempotency_key=key)
    studio.keep(job)
    return await told(key, 202)


async def choices(request: Request) -> Response:
    """Tell what may be chosen beside the prompt: not every gateway takes everything."""

    def takes(field: str, value: Any) -> bool:
        with suppress(InvalidRequest):
            studio.session.gateway.check(ImageRequest("a fox", **{field: value}))
            return True
        return False

    return JSONResponse({field: values for field, values in CHOICES.items() if takes(field, values[0])})


async def read(request: Request) -> Any:
    """Return the body as JSON; None if it is none, or too long."""
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > LONGEST_BODY:
            return None
    with suppress(ValueError, RecursionError):
        return json.loads(body)
    return None


async def status(request: Request) -> Response:
    """Tell where a job stands; with ?wait_s=10, wait so long for its pictures, whichever worker follows it."""
    key = request.path_params["key"]
    try:
        wait_s = min(float(request.query_params.get("wait_s", 0)), LONGEST_WAIT_S)
    except ValueError:
        return problem(400, "wait_s is a number of seconds")
    if wait_s > 0 and KEY.fullmatch(key) and (job := await studio.session.job(key)):
        with suppress(NanoBananaError):  # what became of it stands in the ledger
            await studio.session.save(await job.result(timeout=wait_s), PICTURES / key)
    return await told(key, 200)


async def listing(request: Request) -> Response:
    """List the newest jobs of all workers."""
    return JSONResponse({"jobs": await studio.board.read()})


async def told(key: str, code: int) -> Response:
    """Answer with what the ledger knows of a job."""
    record = await studio.ledger.find(key) if KEY.fullmatch(key) else None
    if record is None:
        return problem(404, "there is no such job")
    card = card_of(record, PICTURES)
    return JSONResponse(card, code, headers={"Location": card["status_url"], "Cache-Control": "no-store"})


async def events(request: Request) -> Response:
    """Send the cards of all jobs, then each card that changes."""

    async def messages() -> AsyncIterator[dict[str, Any]]:
        async for cards in studio.board.changes():
            yield {"event": "jobs", "data": json.dumps(cards), "retry": 500}

    return EventSourceResponse(messages())


async def page(request: Request) -> Response:
    """Serve the page."""
    return FileResponse(PAGE / "index.html", headers=PAGE_HEADERS)


def problem(code: int, detail: str, *, retry: bool = False) -> Response:
    """Say no, in words that the page shows."""
    return JSONResponse({"detail": detail}, code, headers={"Retry-After": "1"} if retry else None)


async def refused(request: Request, error: Exception) -> Response:
    """Turn what the library raises before anything is bought into an answer."""
    match error:
        case IdempotencyConflict():
            return problem(409, "this key already stands for another order")
        case InvalidRequest():
            return problem(400, error.message)
        case _:  # the session closes, or the ledger can't be written: nothing was bought, and the key makes it safe
            log.warning("not taken: %s", error)
            return problem(503, "can't take orders at this moment; send the same order again", retry=True)


routes: list[BaseRoute] = [
    Route("/", page),
    Route("/api/jobs", order, methods=["POST"]),
    Route("/api/jobs", listing, methods=["GET"]),
    Route("/api/jobs/{key}", status),
    Route("/api/choices", choices),
    Route("/api/events", events),
    Mount("/pictures", StaticFiles(directory=PICTURES, check_dir=False)),
    Mount("/page", StaticFiles(directory=PAGE)),
]
if PUBLIC_URL is not None:
    routes.append(Mount("/hooks", CallbackReceiver(studio.session, public_url=f"{PUBLIC_URL}/hooks")))


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """Open the studio with the worker, and close it with the worker."""
    async with studio.opened():
        yield


app = Starlette(routes=routes, lifespan=lifespan, exception_handlers={NanoBananaError: refused})

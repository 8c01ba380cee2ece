"""A small web app: prompts become images on a page that updates live, and nothing is bought twice.

    uvicorn app:app --workers 2 --timeout-graceful-shutdown 5

All workers share one ledger: a file, or with NANOBANANA_LEDGER=postgresql://... a database, and then on any number of
machines. A worker stores each order before it is bought; when a worker dies, another one continues its jobs.
"""

import json
import logging
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from studio import Studio

from nanobanana_async import (
    IdempotencyConflict,
    ImageRequest,
    InvalidRequest,
    NanoBananaError,
    PostgresLedger,
    SqliteLedger,
)
from nanobanana_async.webhooks import CallbackReceiver

log = logging.getLogger("studio")

PAGE = Path(__file__).parent / "page"
FOLDER = Path(os.environ.get("STUDIO_FOLDER", "studio-data"))
IMAGES = FOLDER / "images"
PUBLIC_URL = os.environ.get("STUDIO_PUBLIC_URL")  # where the gateway reaches the app; without it, no callbacks

KEY = re.compile(r"[a-z0-9-]{16,64}")  # a key is also the name of a folder
CHOICES = {"aspect_ratio": ("4:3", "1:1", "3:4", "16:9"), "resolution": ("1K", "2K", "4K")}
FIELDS = {"prompt", *CHOICES}
MAX_BODY_BYTES = 16 * 1024
MAX_WAIT_S = 25.0

# The page loads nothing from other sites, and no prompt can become a script.
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Cache-Control": "no-cache",
}


LEDGER = os.environ.get("NANOBANANA_LEDGER", "")
ledger = PostgresLedger(LEDGER) if LEDGER.startswith("postgres") else SqliteLedger(FOLDER / "jobs.sqlite")
studio = Studio(ledger, IMAGES)


async def order(request: Request) -> Response:
    """Answer 202 once the order is stored. The same key again is the same order, which is paid once."""
    key = request.headers.get("idempotency-key", "")
    if not KEY.fullmatch(key):
        return problem(400, "send an Idempotency-Key header of your own: 16 to 64 of a-z, 0-9 and -")
    # Browsers send this type from other sites only after a CORS preflight, which this app does not answer.
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return problem(415, "send JSON, as application/json")
    fields = await read_json(request)
    if not isinstance(fields, dict) or set(fields) - FIELDS:
        return problem(400, "send a JSON object with prompt, and with aspect_ratio and resolution if you like")
    job = await studio.session.submit(ImageRequest(**{"prompt": "", **fields}), idempotency_key=key)
    studio.keep(job)
    return await job_response(key, 202)


async def choices(request: Request) -> Response:
    """Return the values of the other fields, as far as the gateway accepts these fields."""

    def accepts(field: str, value: Any) -> bool:
        with suppress(InvalidRequest):
            studio.session.gateway.check(ImageRequest("a fox", **{field: value}))
            return True
        return False

    return JSONResponse({field: values for field, values in CHOICES.items() if accepts(field, values[0])})


async def read_json(request: Request) -> Any:
    """Return the decoded JSON body; None if it is not JSON, or too long."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            return None
    with suppress(ValueError, RecursionError):
        return json.loads(body)
    return None


async def status(request: Request) -> Response:
    """Return the state of a job; `?wait_s=10` waits up to 10 s for its images, also for a job of another worker."""
    key = request.path_params["key"]
    try:
        wait_s = min(float(request.query_params.get("wait_s", 0)), MAX_WAIT_S)
    except ValueError:
        return problem(400, "wait_s is a number of seconds")
    if wait_s > 0 and KEY.fullmatch(key) and (job := await studio.session.job(key)):
        with suppress(NanoBananaError):  # the ledger has the outcome
            await studio.session.save(await job.result(timeout=wait_s), IMAGES / key)
    return await job_response(key, 200)


async def listing(request: Request) -> Response:
    """List the newest jobs of all workers."""
    return JSONResponse({"jobs": await studio.board.read()})


async def job_response(key: str, code: int) -> Response:
    """Return the job as the ledger has it, or 404."""
    record = await studio.ledger.find(key) if KEY.fullmatch(key) else None
    if record is None:
        return problem(404, "there is no such job")
    card = await studio.board.card(record)
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
    """Return an error whose detail the page shows."""
    return JSONResponse({"detail": detail}, code, headers={"Retry-After": "1"} if retry else None)


async def refused(request: Request, error: Exception) -> Response:
    """Return the response for an error that the library raises before anything is bought."""
    match error:
        case IdempotencyConflict():
            return problem(409, "this key already stands for another order")
        case InvalidRequest():
            return problem(400, error.message)
        case _:  # the session closes, or the ledger can't be written: nothing was bought, so a repeat is safe
            log.warning("order not accepted: %s", error)
            return problem(503, "orders can't be accepted at this moment; send the same order again", retry=True)


routes: list[BaseRoute] = [
    Route("/", page),
    Route("/api/jobs", order, methods=["POST"]),
    Route("/api/jobs", listing, methods=["GET"]),
    Route("/api/jobs/{key}", status),
    Route("/api/choices", choices),
    Route("/api/events", events),
    Mount("/images", StaticFiles(directory=IMAGES, check_dir=False)),
    Mount("/page", StaticFiles(directory=PAGE)),
]
if PUBLIC_URL is not None:
    routes.append(Mount("/hooks", CallbackReceiver(studio.session, public_url=f"{PUBLIC_URL}/hooks")))


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """Open the studio when the worker starts, and close it when the worker stops."""
    async with studio.opened():
        yield


app = Starlette(routes=routes, lifespan=lifespan, exception_handlers={NanoBananaError: refused})

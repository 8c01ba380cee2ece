"""An endpoint that waits for its image in a response that is cancelled when the client hangs up."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypedDict

from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from nanobanana_async import Session


class State(TypedDict):
    """What each request finds in `request.state`."""

    session: Session


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[State]:
    """Open the session, and go on with what was left."""
    async with Session(ledger="jobs.sqlite") as session:
        await session.resume(buy=True)
        yield {"session": session}


async def image(request: Request) -> Response:
    """Buy an image and return its URL."""
    session: Session = request.state.session
    prompt = (await request.json())["prompt"]

    async def events() -> AsyncIterator[str]:
        result = await session.generate(prompt, idempotency_key=request.headers["idempotency-key"])
        yield result.url

    return EventSourceResponse(events())


app = Starlette(routes=[Route("/images", image, methods=["POST"])], lifespan=lifespan)

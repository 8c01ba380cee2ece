"""The calls that are cancelled: how each is made ready, made, and made again."""

import asyncio
import contextlib
import json
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Iterator, MutableMapping
from pathlib import Path
from typing import Any

from attrs import frozen

from nanobanana_async import JobUncertain, Session

ROWS = 3


class Stage(ABC):
    """Makes sessions that share one gateway and one ledger."""

    @property
    def images(self) -> Path | None:
        """Where images are saved, if there are any."""
        return None

    @abstractmethod
    def make(self) -> Session:
        """Return a session, not yet open."""

    @abstractmethod
    async def rest(self, session: Session) -> None:
        """Wait until everything that goes on in a session has ended."""

    @abstractmethod
    def breaches(self, wanted: int) -> Iterator[str]:
        """Say what is wrong at the end: so many jobs must have been bought, each once."""


async def _nothing(session: Session) -> None:
    del session


@frozen(kw_only=True)
class Call:
    """One call, and how many jobs it buys."""

    jobs: int
    run: Callable[[Stage, Any], Coroutine[Any, Any, object]]
    again: Callable[[Stage, Session], Awaitable[object]]
    """Buys the same jobs without being cancelled."""
    before: Callable[[Session], Awaitable[object]] = _nothing
    """What is done in the same session first."""
    earlier: Callable[[Session], Awaitable[object]] | None = None
    """What is done in an earlier session, which is closed then."""
    images: int = 0
    """How many images it saves, over sockets."""
    closes: bool = False
    opens_itself: bool = False
    needs_sockets: bool = False


async def generate(stage: Stage, session: Session) -> None:
    del stage
    await session.generate("a fox", idempotency_key="order-1")


async def submit(stage: Stage, session: Session) -> None:
    del stage
    await (await session.submit("a fox", idempotency_key="order-1")).wait_for_task_id()


async def generate_in_its_own_session(stage: Stage, _: object) -> None:
    async with stage.make() as session:
        await session.generate("a fox", idempotency_key="order-1")


async def batch(stage: Stage, session: Session) -> None:
    prompts = [f"fox {number}" for number in range(ROWS)]
    async with session.generate_many(prompts, batch="spring", save_to=stage.images) as outcomes:
        async for outcome in outcomes:
            if not isinstance(outcome.error, JobUncertain):
                outcome.unwrap()


async def save(stage: Stage, session: Session) -> None:
    result = await session.generate("a fox", idempotency_key="order-1")
    assert stage.images is not None
    await session.save(result, stage.images)


async def _buy_one(session: Session) -> None:
    await session.generate("a fox", idempotency_key="order-1")


async def _submit_some(session: Session) -> None:
    for number in range(ROWS):
        await session.submit(f"fox {number}", idempotency_key=f"order-{number}")


async def _leave_some(session: Session) -> None:
    """Leave jobs that run, and one that was not sent."""
    jobs = [await session.submit(f"fox {number}", idempotency_key=f"order-{number}") for number in range(ROWS)]
    with contextlib.suppress(JobUncertain):
        await jobs[0].wait_for_task_id()


async def buy_some(stage: Stage, session: Session) -> None:
    del stage
    for number in range(ROWS):
        await _unless_uncertain(session.generate(f"fox {number}", idempotency_key=f"order-{number}"))


async def resume(stage: Stage, session: Session) -> None:
    del stage
    for job in await session.resume(buy=True):
        await _unless_uncertain(job.result())


async def close(stage: Stage, session: Session) -> None:
    del stage
    await session.aclose()


async def _unless_uncertain(call: Coroutine[Any, Any, object]) -> None:
    with contextlib.suppress(JobUncertain):
        await call


async def serve(stage: Stage, session: Session) -> None:
    """Send one request to the served application, as its server does, and read the answer."""
    del stage
    from nanobanana_async.serve import make_app

    body = json.dumps({"prompt": "a fox", "response_format": "url"}).encode()
    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json"), (b"idempotency-key", b"order-1")]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/v1/images/generations",
        "raw_path": b"/v1/images/generations",
        "query_string": b"",
        "root_path": "",
        "headers": [*headers, (b"content-length", str(len(body)).encode())],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    messages: list[dict[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await asyncio.Event().wait()  # the client stays
        raise AssertionError

    async def send(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    await make_app(session)(scope, receive, send)
    assert statuses[0] not in (401, 403, 404, 422), f"answered {statuses[0]}"


def _again(
    call: Callable[[Stage, Session], Coroutine[Any, Any, object]],
) -> Callable[[Stage, Session], Awaitable[None]]:
    return lambda stage, session: _unless_uncertain(call(stage, session))


def _same(call: Callable[[Stage, Session], Coroutine[Any, Any, object]], **facts: Any) -> Call:
    """Return a call that is made again as it was made."""
    return Call(run=call, again=_again(call), **facts)


CALLS: dict[str, Call] = {
    "generate": _same(generate, jobs=1),
    "submit": _same(submit, jobs=1),
    "generate_many": _same(batch, jobs=ROWS, images=ROWS),
    "save": _same(save, jobs=1, images=1, before=_buy_one, needs_sockets=True),
    "resume": Call(jobs=ROWS, earlier=_leave_some, run=resume, again=buy_some),
    "aclose": Call(jobs=ROWS, before=_submit_some, run=close, again=buy_some, closes=True),
    "open to close": Call(jobs=1, run=generate_in_its_own_session, again=_again(generate), opens_itself=True),
    "serve": _same(serve, jobs=1),
}

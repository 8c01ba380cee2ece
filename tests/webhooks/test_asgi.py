"""The receiver as an ASGI application, driven by hand."""

import asyncio

import pytest

from nanobanana_async import JobState, Session
from nanobanana_async.asgi import Message
from nanobanana_async.testing import FakeTransport
from nanobanana_async.webhooks import BODY_S, MAX_BODY, CallbackReceiver
from tests.support.callbacks import (
    DISCONNECT,
    KEY,
    PUBLIC,
    Answer,
    CallbackGateway,
    Piece,
    Wait,
    ask,
    callback_body,
    calling,
    http_scope,
)
from tests.support.fakes import defapi, now, virtually
from tests.support.loopback import until

JOB_S = 20.0


async def name_and_token(session: Session, key: str = KEY) -> tuple[str, str]:
    name, token = (await session._callback_router.make_url(key)).split("/")[-2:]
    return name, token


@pytest.mark.parametrize(
    ("path", "root_path"),
    [
        ("/hooks/callbacks/{}", "/hooks"),  # as Starlette mounts: the path is whole
        ("/callbacks/{}", "/hooks"),  # as older ones do
        ("/callbacks/{}", ""),
        ("/callbacks/{}/", ""),
    ],
)
@virtually
async def test_app_can_be_mounted_anywhere(path: str, root_path: str) -> None:
    async with calling(CallbackGateway().answer) as (session, receiver, _):
        whole = path.format("/".join(await name_and_token(session)))
        assert (await ask(receiver, whole, root_path=root_path)).status == 200


@virtually
async def test_other_urls_get_the_same_404() -> None:
    async with calling(CallbackGateway().answer) as (session, receiver, _):
        name, token = await name_and_token(session)
        other, _ = await name_and_token(session, "order-2")
        right = f"/callbacks/{name}/{token}"
        answers: list[Answer] = [
            await ask(receiver, right, method=method) for method in ("GET", "HEAD", "PUT", "OPTIONS")
        ]
        paths = (
            f"/callbacks/{name}/{token[:-1]}",
            f"/callbacks/{name}/{token[:-1]}{'A' if token[-1] != 'A' else 'B'}",
            f"/callbacks/{name}/{token.swapcase()}",
            f"/callbacks/{other}/{token}",
            f"/callbacks/{name}A/{token}",
            f"/callbacks/{name}=/{token}",
            f"/callbacks/{name}/{token}=",
            f"/callbacks/{name}/{token}/x",
            f"/callbacks/{name}/{token}\n",
            f"/callbacks/{name}/",
            f"/callbacks//{token}",
            f"/callbacks/{'A' * 341}/{token}",
            f"/callbacks/{'A' * 60000}/{token}",
            "/callbacks/" * 5000,
            "/callbacks/é/é",
            "/",
            "",
        )
        answers += [await ask(receiver, path, [callback_body("t1")]) for path in paths]
        assert set(answers) == {Answer(404, ((b"content-length", b"0"),), b"")}
        assert (await ask(receiver, right)).status == 200


@virtually
async def test_wrong_token_is_answered_before_the_body() -> None:
    async with calling(CallbackGateway().answer) as (_, receiver, _):
        assert (await ask(receiver, "/callbacks/b3JkZXItMQ/nonsense", [Wait(100.0)])).status == 404
        assert now() < 1.0


BODIES: dict[str, tuple[list[Piece], float]] = {
    "whole": ([callback_body("t1")], 0.0),
    "byte by byte": ([bytes([byte]) for byte in callback_body("t1")], 0.0),
    "with empty pieces between": ([b"", callback_body("t1")[:9], b"", callback_body("t1")[9:], b""], 0.0),
    "slowly": ([callback_body("t1")[:9], Wait(2.0), callback_body("t1")[9:]], 2.0),
    "too slowly": ([callback_body("t1")[:9], Wait(60.0), callback_body("t1")[9:]], BODY_S),
    "dripping": ([piece for _ in range(40) for piece in (b" ", Wait(1.0))], BODY_S),
    "not at all": ([b""], 0.0),
    "cut off": ([callback_body("t1")[:9], DISCONNECT], 0.0),
    "hung up at once": ([DISCONNECT], 0.0),
    "as long as is read": ([callback_body("t1").ljust(MAX_BODY)], 0.0),
    "too long": ([callback_body("t1").ljust(MAX_BODY + 1)], 0.0),
    "without end": ([b"x" * 1000] * 10_000, 0.0),
}


@pytest.mark.parametrize("how", BODIES)
@virtually
async def test_body_in_any_pieces_causes_one_poll(how: str) -> None:
    pieces, takes_s = BODIES[how]
    gateway = CallbackGateway(job_s=JOB_S)
    async with calling(gateway.answer) as (session, receiver, _):
        job = await session.submit("a fox")
        await job.wait_for_task_id()
        await asyncio.sleep(JOB_S)
        begun = now()
        assert (await ask(receiver, gateway.url().removeprefix("https://app.example"), pieces)).status == 200
        assert now() - begun == pytest.approx(takes_s, abs=0.01)
        await asyncio.sleep(0.1)
        assert job.state is JobState.SUCCEEDED
    assert gateway.polled == ["t1"]


@virtually
async def test_disconnected_client_gets_no_answer() -> None:
    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(_: Message) -> None:
        raise OSError("the connection is gone")

    async with calling(CallbackGateway().answer) as (session, receiver, _):
        path = f"/callbacks/{'/'.join(await name_and_token(session))}"
        await receiver(http_scope(path), receive, send)


async def lifespan(app: CallbackReceiver) -> list[str]:
    """Start and stop an application; return what it says."""
    sent: list[str] = []
    inbox = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]

    async def receive() -> Message:
        return dict(inbox.pop(0))

    async def send(message: Message) -> None:
        sent.append(message["type"])

    await app({"type": "lifespan"}, receive, send)
    return sent


@virtually
async def test_receiver_can_be_the_whole_application() -> None:
    async with calling(CallbackGateway().answer) as (_, receiver, _):
        assert await lifespan(receiver) == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


@virtually
async def test_websocket_and_unknown_scopes_are_refused() -> None:
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append(message)

    async with calling(CallbackGateway().answer) as (_, receiver, _):
        await receiver({"type": "websocket", "path": "/callbacks/x/y"}, receive, send)
        assert [message["type"] for message in sent] == ["websocket.close"]
        with pytest.raises(ValueError, match="webtransport"):
            await receiver({"type": "webtransport"}, receive, send)


@pytest.mark.slow
async def test_unopened_session_answers_503(tmp_path: object) -> None:
    session = defapi(FakeTransport(CallbackGateway().answer), ledger=f"{tmp_path}/jobs.sqlite")
    receiver = CallbackReceiver(session, public_url=PUBLIC)
    path = "/callbacks/b3JkZXItMQ/token"
    assert (await ask(receiver, path)).status == 503  # the session has no secret yet, so no token can be checked
    async with session:
        path = f"/callbacks/{'/'.join(await name_and_token(session))}"
        assert (await ask(receiver, path)).status == 200
    assert (await ask(receiver, path)).status == 503
    assert (await ask(receiver, path + "x")).status == 404


@virtually
async def test_closing_session_answers_503() -> None:
    gateway = CallbackGateway()
    transport = FakeTransport(gateway.answer, latency_s=4.0)
    session = defapi(transport)
    receiver = CallbackReceiver(session, public_url=PUBLIC)
    await session.open()
    await session.submit("a fox", idempotency_key=KEY)
    await until(lambda: bool(transport.creates))
    path = f"/callbacks/{'/'.join(await name_and_token(session))}"
    closing = asyncio.Task(session.aclose())
    await asyncio.sleep(1.0)
    assert (await ask(receiver, path, [callback_body("t1")])).status == 503
    await closing
    assert gateway.polled == []

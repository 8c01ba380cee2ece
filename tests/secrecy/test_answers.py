"""A key echoed in any field of an answer, or in one of 200 refusals and failures, is shown nowhere."""

import base64
import json
import logging
from collections.abc import Iterator
from itertools import cycle
from typing import Any

import pytest
from attrs import evolve, frozen

from nanobanana_async import ApiMall, DefApi, Gateway, GenerationResult, JobState, Session, Timeouts
from nanobanana_async.errors import JobUncertain, NanoBananaError, TransportError, UnexpectedResponse
from nanobanana_async.events import Event
from nanobanana_async.gateways import HttpRequest, HttpResponse
from nanobanana_async.policy.retry import RetryPolicy
from nanobanana_async.testing import FakeTransport, run_virtual
from tests.secrecy.canary import ECHOES, KEY, Listener, seen, sightings
from tests.support.telemetry import TelemetryCollector

pytestmark = pytest.mark.slow

GATEWAYS: dict[str, ApiMall | DefApi] = {
    "apimall": ApiMall(api_key=KEY, expected_job_s=0.1),
    "defapi": DefApi(api_key=KEY, expected_job_s=0.1),
}
LINK = "https://cdn.example/1.png"


def created(name: str, task: str) -> dict[str, Any]:
    data = {"task_id": task, "credits_used": 8, "consumed": "0.5", "remaining_credits": 90, "model": "m"}
    data["request_id"] = "r"
    return {"success": True, "code": 0, "message": "ok", "request_id": "r", "data": data}


def ended(name: str, task: str) -> dict[str, Any]:
    data: dict[str, Any] = {"task_id": task, "status": "completed" if name == "apimall" else "success", "model": "m"}
    data |= {
        "output": {"resultUrls": [LINK, LINK]},
        "primary_url": LINK,
        "image_url": LINK,
        "result": [{"image": LINK}],
    }
    data |= {"credits_used": 8, "credits_refunded": 0, "consumed": "0.5", "request_id": "r", "other": "o"}
    data |= {"created_at": "2026-01-01T00:00:00Z", "completed_at": "2026-01-01T00:00:09Z", "progress": 100}
    return {"success": True, "code": 0, "message": "ok", "request_id": "r", "data": data}


def failed(name: str, task: str) -> dict[str, Any]:
    data = {"task_id": task, "status": "failed", "error_message": "e", "failMsg": "f", "request_id": "r", "model": "m"}
    data["status_reason"] = {"message": "s"}  # type: ignore[assignment]
    return {"success": True, "code": 0, "message": "ok", "failMsg": "f", "request_id": "r", "data": data}


def fields_of(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of each field with a plain value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if inner is None:
        yield path
        return
    for name, each in inner:
        yield from fields_of(each, (*path, name))


def put(value: Any, path: tuple[Any, ...], what: str) -> Any:
    """Return the value with a text at one path, appended to a URL if there is one."""
    if not path:
        return f"{value}?x={what}" if value == LINK else what
    if isinstance(value, list):
        return [put(each, path[1:], what) if index == path[0] else each for index, each in enumerate(value)]
    return {name: put(each, path[1:], what) if name == path[0] else each for name, each in value.items()}


@frozen
class Scene:
    """The answers to one job: bodies, statuses and headers of its create and its polls."""

    gateway: str
    title: str
    create: bytes | Exception | None = None
    poll: bytes | Exception | None = None
    create_status: int = 200
    poll_status: int = 200
    header: tuple[str, str] | None = None


def with_(scene: Scene, answers: dict[str, Any]) -> Scene:
    return evolve(scene, **answers)


def of_fields() -> Iterator[Scene]:
    """Yield a scene for each field of each answer, with alternating forms of the echo, and one for the field's name."""
    echoes = cycle(ECHOES.items())
    for name in GATEWAYS:
        for kind, body in (("create", created), ("poll", ended), ("poll", failed)):
            answer = body(name, "task-0")
            paths = [*fields_of(answer), ("data", "new"), ("new",)]
            for path in paths:
                form, echo = next(echoes)
                parent: Any = answer
                whole = answer if path[-1] != "new" else {**answer, "new": "", "data": {**parent["data"], "new": ""}}
                said = json.dumps(put(whole, path, echo(KEY))).replace("task-0", "TASK").encode()
                yield with_(Scene(name, f"{kind} {body.__name__} {path} {form}"), {kind: said})
            named = json.dumps({**answer, KEY: 1, "data": {**answer["data"], KEY: 2}}).replace("task-0", "TASK")
            yield with_(Scene(name, f"{kind} {body.__name__} names"), {kind: named.encode()})
    uri = f"data:image/png;base64,{base64.b64encode(KEY.encode()).decode()}"
    inline = json.dumps(put(ended("defapi", "TASK"), ("data", "result", 0, "image"), uri)).encode()
    yield Scene("defapi", "inline image", poll=inline)


STATUSES = (302, 400, 401, 402, 403, 404, 409, 413, 418, 422, 429, 451, 500, 502, 503, 504, 200, 202)


def of_failures() -> Iterator[Scene]:
    """Yield refusals and failures: each status with an envelope, a page, a truncated answer, and echoes in headers."""
    headers = cycle(
        ("x-request-id", "retry-after", "location", "content-type", "x-ratelimit-reset", "www-authenticate")
    )
    echoes = cycle(ECHOES.values())
    for name in GATEWAYS:
        for status in STATUSES:
            for where in ("create", "poll"):
                word = next(echoes)(KEY)
                error = {"code": word, "message": f"not with {word}", "detail": word}
                envelope = {"success": False, "error": error, "code": word, "message": word, "request_id": word}
                page = f"<html><body>{word} {next(echoes)(KEY)}</body></html>"
                for body in (json.dumps(envelope), page, json.dumps(envelope)[:-9]):
                    scene = Scene(name, f"{status} {where} {body[:30]}", header=(next(headers), word))
                    yield with_(scene, {where: body.encode(), f"{where}_status": status})
        for where in ("create", "poll"):
            sparse = json.dumps({"success": False, "error": {"code": "c", "message": "m"}, "code": 5, "message": "m"})
            for status, echo in zip((400, 401, 402, 403, 404, 409, 429, 451, 500, 503), ECHOES.values(), strict=False):
                scene = Scene(name, f"{status} {where} header", header=("x-request-id", echo(KEY)))
                yield with_(scene, {where: sparse.encode(), f"{where}_status": status})
            yield with_(
                Scene(name, f"lost {where}"), {where: TransportError("the answer was lost", possibly_sent=True)}
            )
            yield with_(Scene(name, f"not sent {where}"), {where: TransportError("no connection", possibly_sent=False)})
            yield with_(Scene(name, f"binary {where}"), {where: b"\xff\xfe" + KEY.encode() + b"\x00\xff"})
            yield with_(Scene(name, f"text {where}"), {where: f'"{KEY}"'.encode()})


class Script:
    """Answers with the current scene."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.scene = Scene(name, "none")
        self.tasks = 0

    def __call__(self, request: HttpRequest) -> HttpResponse | Exception:
        scene = self.scene
        if request.method == "POST":
            self.tasks += 1
            said, status, usual = scene.create, scene.create_status, created
        else:
            said, status, usual = scene.poll, scene.poll_status, ended
        task = f"task-{self.tasks}"
        said = json.dumps(usual(self.name, task)).encode() if said is None else said
        if isinstance(said, Exception):
            return said
        headers = {} if scene.header is None else dict([scene.header])
        return HttpResponse(status=status, headers=headers, body=said.replace(b"TASK", task.encode()))


async def ending(session: Session, key: str) -> GenerationResult | NanoBananaError:
    """Return the result or error of a job; this frame, which is in the traceback, has no scene."""
    try:
        return await session.generate("a fox", idempotency_key=key, timeout=5.0)
    except NanoBananaError as error:
        return error


class Stage:
    """Plays each scene in a new session; the events show what the ledger stores."""

    def __init__(self, name: str) -> None:
        self.gateway: Gateway = GATEWAYS[name]
        self.script = Script(name)
        self.collector = TelemetryCollector()
        self.events: list[Event] = []
        self.kinds: set[str] = set()
        self.leaks: list[str] = []

    async def play(self, number: int, scene: Scene) -> None:
        self.script.scene = scene
        session = Session(
            self.gateway,
            http=FakeTransport(self.script, latency_s=0.01),
            observers=[self.events.append, self.collector.telemetry],
            retry=RetryPolicy(max_attempts=1, max_wait_s=0.5),
            timeouts=Timeouts(job_s=1.0, close_s=0.1),
        )
        async with session:
            shown: list[object] = [await ending(session, f"job-{number}")]
            self.kinds.add(type(shown[0]).__name__)
            job = await session.job(f"job-{number}")
            shown += [job, session, session.stats(), session.gateway, *self.events]
            shown += [error for event in self.events if (error := getattr(event, "error", None)) is not None]
            if isinstance(shown[0], GenerationResult):
                shown += [shown[0].raw, shown[0].images]
        self.leaks += [f"{scene.title}: {leak[:300]}" for thing in shown for leak in sightings(thing)]
        self.events.clear()


def played(name: str, scenes: list[Scene], caplog: pytest.LogCaptureFixture) -> Stage:
    listener, stage = Listener(), Stage(name)
    caplog.set_level(logging.DEBUG)
    logging.getLogger().addHandler(listener)
    try:

        async def main() -> None:
            for number, scene in enumerate(scenes):
                await stage.play(number, scene)

        run_virtual(main())
    finally:
        logging.getLogger().removeHandler(listener)
    spans = [span.to_json() for span in stage.collector.all_spans]
    metrics = [repr(metric) for metric in stage.collector.metrics().values()]
    assert spans
    assert metrics
    assert listener.said
    stage.leaks += [said[:300] for said in (*spans, *metrics, *listener.said) if seen(said)]
    return stage


@pytest.mark.parametrize("name", GATEWAYS)
def test_a_key_in_any_field_of_an_answer_is_not_shown(name: str, caplog: pytest.LogCaptureFixture) -> None:
    scenes = [scene for scene in of_fields() if scene.gateway == name]
    assert len(scenes) > 40
    stage = played(name, scenes, caplog)
    assert stage.leaks == []
    assert {"GenerationResult", "JobFailed"} <= stage.kinds


@pytest.mark.parametrize("name", GATEWAYS)
def test_a_key_in_any_refusal_or_failure_is_not_shown(name: str, caplog: pytest.LogCaptureFixture) -> None:
    every = list(of_failures())
    assert len(every) > 200
    scenes = [scene for scene in every if scene.gateway == name]
    stage = played(name, scenes, caplog)
    assert stage.leaks == []
    assert {"JobUncertain", "UnexpectedResponse", "GatewayUnavailable", "AuthenticationError"} <= stage.kinds


@pytest.mark.parametrize("name", GATEWAYS)
@pytest.mark.parametrize("refuses", [False, True])
def test_a_task_id_with_the_key_makes_the_job_uncertain(name: str, refuses: bool) -> None:
    said = created(name, f"task-{KEY}")
    if refuses:
        said |= {"success": False, "code": 5, "message": "no", "error": {"code": "bad_request", "message": "no"}}
    script = Script(name)
    script.scene = Scene(name, "id", create=json.dumps(said).encode())

    async def main() -> tuple[object, JobState, int]:
        line = FakeTransport(script)
        retry = RetryPolicy(max_attempts=1, max_wait_s=0.5)
        async with Session(GATEWAYS[name], http=line, retry=retry) as session:
            error = await ending(session, "order-1")
            job = await session.job("order-1")
            assert job is not None
            return error, job.state, len(line.creates)

    error, state, creates = run_virtual(main())
    assert isinstance(error, JobUncertain)
    assert state is JobState.UNCERTAIN
    assert creates == 1
    assert "***" in str(error) or "task" in str(error)


def test_a_key_in_a_poll_does_not_lose_a_finished_job() -> None:
    said = put(ended("apimall", "TASK"), ("data", "model"), KEY)
    script = Script("apimall")
    script.scene = Scene("apimall", "model", poll=json.dumps(said).encode())

    async def main() -> GenerationResult:
        async with Session(GATEWAYS["apimall"], http=FakeTransport(script)) as session:
            return await session.generate("a fox")

    result = run_virtual(main())
    assert result.model == "***"
    assert [image.url for image in result.images] == [LINK, LINK]


def called_back(path: tuple[Any, ...], form: str) -> object:
    try:
        return DefApi(api_key=KEY).read_callback(echoing(path, form))
    except UnexpectedResponse as error:
        return error


def echoing(path: tuple[Any, ...], form: str) -> bytes:
    return json.dumps(put(ended("defapi", "task-1"), path, ECHOES[form](KEY))).encode()


@pytest.mark.parametrize("form", ECHOES)
def test_a_callback_shows_no_key(form: str) -> None:
    for path in fields_of(ended("defapi", "task-1")):
        assert sightings(called_back(path, form)) == [], path

"""What clients of our own servers send: OpenAI's images API, callbacks, reference images, the tools for models."""

import functools
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hypothesis import strategies as st
from mcp_types import CallToolRequestParams
from pydantic import ValidationError

from nanobanana_async import ImageRequest, NanoBananaError, Session
from nanobanana_async.asgi import path_of
from nanobanana_async.errors import ConfigurationError, InvalidRequest
from nanobanana_async.mcp_server.references import to_reference
from nanobanana_async.mcp_server.server import TOOLS, ImageServer
from nanobanana_async.serve import Token, make_app
from nanobanana_async.serve.answers import ApiError
from nanobanana_async.serve.fields import IGNORED, MAPPED, WITHOUT_EFFECT, wanted_of
from nanobanana_async.serve.orders import Attempt
from nanobanana_async.webhooks import CallbackReceiver, ReferenceHost
from tests.fuzz.gateway_targets import APIMALL, DEFAPI
from tests.fuzz.scratch import in_loop, scratch
from tests.fuzz.target import LEAVES, VALUES, Target, joined, json_of, json_shapes, objects_with, parts_of, texts_of

Message = MutableMapping[str, Any]
TOKEN = "a-token-of-the-fuzzer-1"


async def _status(app: Any, method: str, path: str, headers: Mapping[str, str], body: bytes) -> int:
    """Send a request in pieces, as servers do; return the status of the answer."""
    pieces = [body[start : start + 1000] for start in range(0, len(body), 1000)] or [b""]
    sent: list[Message] = []

    async def receive() -> Message:
        if pieces:
            return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    raw = [(name.encode("latin-1", "replace"), value.encode("latin-1", "replace")) for name, value in headers.items()]
    scope = {"type": "http", "http_version": "1.1", "method": method, "path": path, "raw_path": b"", "root_path": ""}
    scope |= {
        "query_string": b"",
        "headers": raw,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "scheme": "http",
    }
    await app(scope, receive, send)
    return int(sent[0]["status"])


@functools.cache
def _apps() -> list[Any]:
    """Return applications whose session is not open: a request that is right gets 500, all others their error.

    A fault of the application would be raised.
    """
    session = Session(APIMALL)
    return [make_app(session, tokens=[Token("ann", TOKEN)], max_form_bytes=4096), make_app(session)]


def _serve(data: bytes) -> None:
    parts = parts_of(data)
    method, _, path = parts.first.partition(" ")
    statuses = set()
    for app, authorization in zip(_apps(), (f"Bearer {TOKEN}", parts.headers.get("authorization", "")), strict=True):
        headers = {"host": "127.0.0.1", **parts.headers, "authorization": authorization}
        statuses.add(in_loop(_status(app, method or "POST", path or "/v1/images/generations", headers, parts.body)))
    assert statuses <= {200, 307, 400, 401, 403, 404, 405, 413, 499, 500, 503}, statuses


def _fields(data: bytes) -> None:
    """The fields of a request, and its headers."""
    fields = json_of(data)
    wanted = wanted_of(fields if isinstance(fields, dict) else {"prompt": fields}, [b"\x89PNG"], {"m": "n"})
    assert isinstance(wanted.request, ImageRequest)
    assert APIMALL.price_class(wanted.request)
    attempt = Attempt.of(
        {name: texts_of(data)[:40] for name in ("x-stainless-retry-count", "x-stainless-read-timeout")}
    )
    assert 0.0 <= attempt.remembered_s < 1e11


@functools.cache
def _receiver() -> Any:
    async def make() -> CallbackReceiver:
        return CallbackReceiver(Session(DEFAPI), public_url="https://app.example/hooks", secret="s" * 32)

    return in_loop(make())


def _callback(data: bytes) -> None:
    parts = parts_of(data)
    path = parts.first or texts_of(parts.body)[:200]
    assert in_loop(_status(_receiver(), "POST", path, parts.headers, parts.body)) in (404, 503)

    async def check() -> None:
        callbacks = _receiver()._callbacks
        for url in (path, f"https://app.example/hooks{path}"):
            assert await callbacks.account_of_url(url) in (None, "a")
            assert callbacks.is_below_public_url(url) in (True, False)

    in_loop(check())


def _account_path() -> bytes:
    url: str = in_loop(_receiver()._callbacks.make_account_url("a"))
    return url.removeprefix("https://app.example").encode()


@functools.cache
def _host() -> ReferenceHost:
    return ReferenceHost(public_url="https://app.example/refs", folder=scratch())


def _reference(data: bytes) -> None:
    parts = parts_of(data)
    method, _, path = parts.first.partition(" ")
    assert in_loop(_status(_host(), method or "GET", path or texts_of(data)[:200], parts.headers, b"")) in (
        200,
        404,
        405,
    )


def _public_url(data: bytes) -> None:
    path = path_of(texts_of(data))
    assert not path.endswith("/")


class _Stopped(NanoBananaError):
    """The end of a call whose arguments were right."""


class _Service:
    """Stands for the service that buys: all that is right ends here."""

    ledger = SimpleNamespace(location="jobs.sqlite")
    options = SimpleNamespace(batch="mcp", folder=Path(), max_credits=1)

    def job_key(self, request_id: str) -> str:
        return f"mcp-{request_id}"

    async def buy(self, *_: Any) -> Any:
        raise _Stopped("bought")

    collect = recent = buy


def _tool(data: bytes) -> None:
    parts = parts_of(data)
    arguments = json_of(parts.body)
    name = parts.first or "generate_image"
    server = ImageServer(_Service(), [scratch()])  # type: ignore[arg-type]
    try:
        params = CallToolRequestParams(name=name, arguments=arguments)
    except ValidationError:
        return  # the SDK refuses such a message before it reaches a tool
    answer = in_loop(server._call_tool(None, params))  # type: ignore[arg-type]
    assert answer.is_error
    assert answer.model_dump_json()


def _tool_reference(data: bytes) -> None:
    found = to_reference(texts_of(data), [scratch()])
    assert isinstance(found, (str, bytes))


def _form(*fields: tuple[str, str], boundary: str = "b") -> bytes:
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in fields
    ]
    image = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n'
        "Content-Type: image/png\r\n\r\nPNG\r\n"
    )
    body = "".join([*parts, image, f"--{boundary}--\r\n"]).encode()
    return joined("POST /v1/images/edits", {"content-type": f"multipart/form-data; boundary={boundary}"}, body)


_JSON = {"content-type": "application/json"}
_GENERATION = joined("POST /v1/images/generations", _JSON, b'{"prompt": "a fox", "n": 1, "size": "1024x1024"}')
_FIELDS = [*MAPPED, *IGNORED, *WITHOUT_EFFECT]
_BODIES = json_shapes(objects_with(_FIELDS) | VALUES)
_HEADER_NAMES = [
    "content-type",
    "content-length",
    "content-disposition",
    "idempotency-key",
    "prefer",
    "host",
    "origin",
    "x-stainless-retry-count",
]
_HEADER_VALUES = st.text(st.characters(max_codepoint=255), max_size=20) | st.sampled_from(
    [
        "application/json",
        "multipart/form-data",
        "multipart/form-data; boundary=b",
        "multipart/form-data; boundary=",
        "99999999999999999999",
        "-1",
        "[::1",
        "[",
        "127.0.0.1:99999",
        'multipart/form-data; boundary="b"; charset=utf-7',
        "multipart/form-data; charset*=utf-8''x; boundary=b",
    ]
)
_MAPS = st.dictionaries(st.sampled_from(_HEADER_NAMES), _HEADER_VALUES, max_size=3)
_REQUESTS = st.builds(
    joined,
    st.sampled_from(
        [
            "POST /v1/images/generations",
            "POST /v1/images/edits",
            "GET /v1/jobs/x",
            "GET /v1/models",
            "GET /metrics",
            "GET /healthz",
        ]
    ),
    st.builds(lambda headers: {**_JSON, **headers}, _MAPS),
    _BODIES,
)
_FORMS = st.lists(st.tuples(st.sampled_from([*_FIELDS, "image[]", "image"]), st.text(max_size=10)), max_size=4).map(
    lambda fields: _form(*fields)
)
_ARGUMENTS = ["request_id", "wait_s", "prompt", "aspect_ratio", "resolution", "num_images", "images", "limit"]
_CALLS = st.builds(
    joined,
    st.sampled_from([*TOOLS, "x"]),
    st.just({}),
    json_shapes(
        st.fixed_dictionaries({"request_id": LEAVES | st.just("a")}, optional=dict.fromkeys(_ARGUMENTS[1:], VALUES))
        | VALUES
    ),
)

TARGETS = (
    Target(
        name="serve",
        run=_serve,
        seeds=(_GENERATION, _form(("prompt", "a fox"), ("n", "1"))),
        words=(
            b"content-type: ",
            b"boundary=",
            b"\r\n\r\n",
            b"--b",
            b"--b--",
            b"Content-Disposition: form-data; name=",
            b"filename=",
            b"filename*=utf-8''",
        ),
        shapes=_REQUESTS | _FORMS,
        cost=10,
    ),
    Target(
        name="serve-fields",
        run=_fields,
        errors=(ApiError, InvalidRequest),
        seeds=(b'{"prompt": "a fox", "n": "2", "size": "16:9", "extra": "{}"}',),
        words=tuple(f'"{name}"'.encode() for name in _FIELDS),
        shapes=_BODIES,
    ),
    Target(
        name="callbacks",
        run=_callback,
        seeds=(b"/callbacks/b3JkZXItMQ/AAAA\n\n{}", _account_path() + b"\n\n{}"),
        words=(b"/callbacks/", b"/account/", b"https://[::1]:99999/", b"%2F"),
        cost=5,
    ),
    Target(
        name="reference-host",
        run=_reference,
        seeds=(b"GET /references/x.png\n\n", b"HEAD /refs/references/" + b"0" * 64 + b".png\n\n"),
        words=(b"/references/", b"..", b".png", b"range: bytes=0-"),
        cost=5,
    ),
    Target(
        name="public-url",
        run=_public_url,
        errors=(ConfigurationError,),
        seeds=(b"https://app.example:8443/hooks/", b"http://[::1]/"),
    ),
    Target(
        name="mcp",
        run=_tool,
        seeds=(
            b'generate_image\n\n{"request_id": "a", "prompt": "a fox"}',
            b'edit_image\n\n{"request_id": "a", "prompt": "a", "images": ["/tmp/a.png", "https://a"]}',
            b'list_images\n\n{"limit": 3}',
        ),
        words=tuple(f'"{name}"'.encode() for name in _ARGUMENTS),
        shapes=_CALLS,
        cost=10,
    ),
    Target(
        name="mcp-references",
        run=_tool_reference,
        errors=(InvalidRequest,),
        seeds=(b"/tmp/a.png", b"https://a.example/1.png", b"file:///etc/passwd", str(scratch()).encode() + b"/../x"),
        words=(b"/", b"..", b"\0", b"://"),
        cost=2,
    ),
)

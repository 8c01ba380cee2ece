"""Passwords of ledgers and proxies, tokens of `serve` and secrets of webhooks are shown by no failure.

A failure that holds the secret in a frame of the test itself would always be found, so the secrets are globals here.
"""

import asyncio
import functools
import json
import logging
import pickle
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="starlette is not installed: pip install 'nanobanana-async[serve]'")
pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'nanobanana-async[postgres]'")

from nanobanana_async import ApiMall, DefApi, GeneratedImage, NanoBananaError, Session, SqliteLedger, Timeouts
from nanobanana_async.commands import same_command
from nanobanana_async.engine.account_webhook import Webhooks
from nanobanana_async.engine.callback_router import CallbackRouter
from nanobanana_async.errors import ConfigurationError
from nanobanana_async.gateways import HttpRequest, HttpResponse, Secret
from nanobanana_async.http.tls_and_proxies import Proxies
from nanobanana_async.ledger.location import as_location, ledger_at
from nanobanana_async.ledger.memory import MemoryLedger
from nanobanana_async.ledger.postgres.ledger import PostgresLedger
from nanobanana_async.ledger.postgres.url import PostgresUrl
from nanobanana_async.loop_guard import LoopGuard
from nanobanana_async.policy.retry import RetryPolicy
from nanobanana_async.serve import Token, make_app, parse_tokens
from nanobanana_async.testing import FakeTransport
from nanobanana_async.webhooks import CallbackReceiver
from tests.secrecy.canary import ECHOES, KEY, Listener, outcome_of, pockets, seen_in, sightings
from tests.support.callbacks import CallbackGateway, ask
from tests.support.fakes import REAL_TIME
from tests.support.peers import Connection, Peer, Script, answering, silent, unused_port
from tests.support.rows import each_row

DSN = "dsn-canary~7Q2zXw9V"
TOKEN = "tok-canary_7Q2zXw9V.bn+/=42"
SIGNING = "signing-canary&7Q2zXw9V/bn"
PROXY_PASSWORD = "pw-canary+7Q2zXw9V"
URL = f"postgresql://fox:{DSN}@db.invalid/spring"
PROXY = f"http://fox:{PROXY_PASSWORD}@127.0.0.1"
HOOKS = "https://app.example/hooks"
MALL, DEF = ApiMall(api_key=KEY), DefApi(api_key=KEY)
WRONG_LINES = (
    "ann",
    "ann:{}:x",
    "ann:{}:-1",
    "a b:{}",
    "ann:{} x",
    "ann:{}é",
    "ann:{}:1:2",
    "ann:{}\nann:{}x",
    "ann:{}\nben:{}",
)


def _parsed(line: str) -> list[Token]:
    return parse_tokens(line.replace("{}", TOKEN))


# What is refused before anything is opened.
REFUSED: dict[str, Callable[[], Any]] = {
    "second at sign": lambda: PostgresLedger(f"postgresql://fox:{DSN}@x@db/spring"),
    "no escape": lambda: PostgresLedger(f"postgresql://fox:{DSN}%zz@db/spring"),
    "driver": lambda: PostgresLedger(f"postgresql+psycopg://fox:{DSN}@db/spring"),
    "jdbc": lambda: ledger_at(f"jdbc:postgresql://fox:{DSN}@db/spring"),
    "shell": lambda: ledger_at(f"psql postgresql://fox:{DSN}@db/spring"),
    "keywords": lambda: as_location("--ledger", f"host=db password={DSN}"),
    "path": lambda: as_location("--ledger", Path(f"postgresql://fox:{DSN}@db")),
    "null": lambda: PostgresUrl.parse(f"{URL}\0"),
    "shared schema": lambda: PostgresUrl.parse(f"{URL}?schema=public"),
    "own schema": lambda: PostgresLedger(URL, schema="pg_own"),
    "no schema": lambda: PostgresLedger(URL, schema=""),
    "patience": lambda: PostgresLedger(URL, patience_s=-1),
    "session": lambda: Session(MALL, ledger=f"postgresql://fox:{DSN}@x@db/spring"),
    "session's schema": lambda: Session(MALL, ledger=f"{URL}?schema=public"),
    "beside a ledger": lambda: Session(MALL, ledger=URL, max_credits=-1),
    "ledger object": lambda: Session(MALL, ledger=PostgresUrl.parse(URL), proxy="x"),
    "pickled url": lambda: pickle.dumps(PostgresUrl.parse(URL)),
    "pickled ledger": lambda: pickle.dumps(PostgresLedger(URL)),
    "short token": lambda: Token("ann", TOKEN[:15]),
    "token with a space": lambda: Token("ann", f"{TOKEN} "),
    "token with letters": lambda: Token("ann", f"{TOKEN}é"),
    "long token": lambda: Token("ann", TOKEN * 40),
    "token's name": lambda: Token("a b", TOKEN),
    "token's budget": lambda: Token("ann", TOKEN, budget="x"),  # type: ignore[arg-type]
    "token's group": lambda: Token("ann", TOKEN, group=" "),
    "token's priority": lambda: Token("ann", TOKEN, priority=1000),
    "text as token": lambda: make_app(Session(MALL), tokens=[TOKEN]),  # type: ignore[list-item]
    "text among tokens": lambda: make_app(Session(MALL), tokens=[Token("ann", TOKEN), TOKEN]),  # type: ignore[list-item]
    "same tokens": lambda: make_app(Session(MALL), tokens=[Token("ann", TOKEN), Token("ben", TOKEN)]),
    **{f"line {line!r}": functools.partial(_parsed, line) for line in WRONG_LINES},
    "short secret": lambda: CallbackReceiver(Session(MALL), public_url=HOOKS, secret=SIGNING[:15]),
    "short bytes": lambda: CallbackReceiver(Session(MALL), public_url=HOOKS, secret=SIGNING[:15].encode()),
    "secret of no text": lambda: CallbackReceiver(Session(MALL), public_url=HOOKS, secret=[SIGNING]),  # type: ignore[arg-type]
    "receiver's url": lambda: CallbackReceiver(Session(MALL), public_url="ftp://x", secret=SIGNING),
    "receiver's bytes": lambda: CallbackReceiver(Session(MALL), public_url="ftp://x", secret=SIGNING.encode()),
    "receiver's session": lambda: CallbackReceiver(None, public_url=HOOKS, secret=SIGNING),  # type: ignore[arg-type]
    "webhook by http": lambda: MALL.build_webhook_registration("http://app.example", secret=SIGNING),
    "proxy's scheme": lambda: Session(MALL, proxy=f"socks5://fox:{PROXY_PASSWORD}@proxy.example:1"),
    "proxy without port": lambda: Session(MALL, proxy=f"ftp://fox:{PROXY_PASSWORD}@proxy.example"),
    "proxy's port": lambda: Session(MALL, proxy=f"{PROXY}:99999"),
    "proxy and http": lambda: Session(MALL, proxy=f"{PROXY}:1", http=object()),  # type: ignore[arg-type]
    "proxies": lambda: Proxies(f"socks5://fox:{PROXY_PASSWORD}@proxy.example:1"),
    "pickled proxy": lambda: pickle.dumps(Secret(PROXY)),
}
CANARIES = (DSN, TOKEN[:15], SIGNING[:15], PROXY_PASSWORD, KEY)


def refused(name: str) -> BaseException:
    error = outcome_of(REFUSED[name])
    assert isinstance(error, (ConfigurationError, TypeError)), error
    return error


@each_row("name", REFUSED)
def test_refused_settings_show_no_password_token_or_secret(name: str) -> None:
    assert sightings(refused(name), *CANARIES) == []


def test_objects_with_secrets_show_none() -> None:
    for thing in (
        PostgresUrl.parse(f"{URL}?sslpassword={DSN}&schema=s"),
        PostgresLedger(URL),
        Session(MALL, ledger=URL, proxy=f"{PROXY}:1"),
        Token("ann", TOKEN),
        make_app(Session(MALL), tokens=[Token("ann", TOKEN)]),
        CallbackReceiver(Session(MALL), public_url=HOOKS, secret=SIGNING),
    ):
        assert seen_in(pockets(thing), *CANARIES) == []
        inside = [repr(each) for each in vars(thing).values()] if hasattr(thing, "__dict__") else []
        assert seen_in(inside, *CANARIES) == []


def test_control_each_canary_is_found_in_any_form() -> None:
    def careless(secret: str) -> None:
        raise ValueError("no")

    for word in (DSN, TOKEN, SIGNING, PROXY_PASSWORD, KEY):
        assert sightings(outcome_of(functools.partial(careless, word)), word)
        for form, echo in ECHOES.items():
            assert seen_in([f"before {echo(word)} after"], word), (form, word)


def test_advice_to_repeat_a_command_hides_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["batch", "a.txt", "--ledger", URL, "--base-url", f"https://me:{DSN}@gateway.example"]
    arguments += [f"--ledger={URL}?sslpassword={DSN}", "--ledger", f"postgresql:///spring?password={DSN}"]
    monkeypatch.setattr("sys.argv", ["/usr/bin/nanobanana", *arguments])
    command = same_command("--retry-failed")
    assert command.endswith("--retry-failed")
    assert "fox:***@db.invalid/spring" in command
    assert seen_in([command], DSN) == []


def test_no_option_of_the_command_takes_a_key_password_or_token() -> None:
    """What is typed is in the shell's history, and any user of the machine sees the arguments of a process."""
    pytest.importorskip("cyclopts", reason="cyclopts is not installed: pip install 'nanobanana-async[cli]'")
    from nanobanana_async.cli.app import app
    from nanobanana_async.cli.settings.file import OPTIONS

    options = {
        name for command in _commands(app) for each in command.assemble_argument_collection() for name in each.names
    }
    assert {"--ledger", "--tokens", "--gateway"} <= options
    words = ("key", "password", "secret", "token")
    named = {name for name in options for word in words if word in name.strip("-").split("-")}
    assert named <= {"--key", "--keys"}, named  # those of jobs and rows
    assert "--tokens" not in named  # a file
    assert not [name for name in OPTIONS if name in words]


def _commands(app: Any) -> Iterator[Any]:
    for name in app:
        if not name.startswith("-"):
            inner = app[name]
            if inner.default_command is not None:
                yield inner
            yield from _commands(inner)


async def failed(work: Callable[[], Awaitable[Any]]) -> object:
    """Return the error of a coroutine; this frame has no other locals."""
    try:
        return await work()
    except NanoBananaError as error:
        return error


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """What all loggers say, at every level."""
    listener = Listener()
    caplog.set_level(logging.DEBUG)
    logging.getLogger().addHandler(listener)
    yield listener.said
    logging.getLogger().removeHandler(listener)


GREETING = b"R\0\0\0\x08\0\0\0\x03"  # the server asks for the password in clear text


def at_once(said: bytes) -> Script:
    """Return a script that speaks first, and reads nothing."""

    async def script(connection: Connection) -> None:
        await connection.write(said)
        await asyncio.sleep(0.05)
        connection.close()

    return script


PEERS: dict[str, Script] = {
    "closed": at_once(b""),
    "http": at_once(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    "garbage": at_once(b"\xff" * 50),
    "asks, then closes": at_once(GREETING),
    "refuses": at_once(b"E\0\0\0\x1cSFATAL\0C28P01\0Mwrong\0\0"),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "form", ["", "?sslmode=require", "?connect_timeout=2&sslmode=disable", f"?sslpassword={DSN}&sslmode=disable"]
)
async def test_a_server_that_fails_exposes_no_password(form: str, logged: list[str]) -> None:
    async def opened(url: str) -> object:
        ledger = PostgresLedger(url, patience_s=0.1)
        del url
        try:
            await ledger.open()
        except NanoBananaError as error:
            return error
        await ledger.aclose()
        return None

    ports = {"no server": unused_port()}
    for name, port in ports.items():
        error = await opened(f"postgresql://fox:{DSN}@127.0.0.1:{port}/spring{form}")
        assert isinstance(error, NanoBananaError), name
        assert sightings(error, *CANARIES) == []
    for name, script in PEERS.items():
        async with Peer(script) as peer:
            error = await opened(f"postgresql://fox:{DSN}@{peer.url.removeprefix('http://').strip('/')}/spring{form}")
        assert isinstance(error, NanoBananaError), name
        assert sightings(error, *CANARIES) == [], name
    assert seen_in(logged, *CANARIES) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", [*PEERS, "silent", "407", "502", "no proxy"])
async def test_a_proxy_that_fails_exposes_no_password(name: str, logged: list[str]) -> None:
    scripts = {"407": answering(b"HTTP/1.1 407 No\r\n\r\n"), "502": answering(b"HTTP/1.1 502 No\r\n\r\n"), **PEERS}
    async with Peer(scripts.get(name, silent)) as peer:
        port = unused_port() if name == "no proxy" else peer.url.rpartition(":")[2].strip("/")
        session = Session(
            MALL,
            proxy=Secret(f"{PROXY}:{port}"),
            timeouts=Timeouts(connect_s=0.3, create_s=0.3, query_s=0.3, close_s=0.2),
            retry=RetryPolicy(max_attempts=1, first_backoff_s=0.01, max_backoff_s=0.05, max_wait_s=0.3),
        )
        session._components.downloads._attempts = 1
        async with session:
            errors = [await failed(lambda: session.generate("a fox", timeout=1.0))]
            if name != "silent":
                image = GeneratedImage(url="https://images.example/1.png")
                errors.append(await failed(lambda: session.download(image)))
            errors.append(await failed(session.balance))
    for error in errors:
        assert isinstance(error, NanoBananaError)
        assert sightings(error, *CANARIES) == []
    assert seen_in(logged, *CANARIES) == []


REFUSALS = (200, 400, 401, 403, 409, 422, 429, 500, 502)


async def test_a_refused_registration_that_echoes_the_secret_does_not_expose_it() -> None:
    callbacks = CallbackRouter(MemoryLedger(), LoopGuard("the session"))
    callbacks.enable(HOOKS, Secret(SIGNING))
    derived = await callbacks.account_secret(MALL.account)
    kinds = 0
    for status in REFUSALS:
        for form, echo in ECHOES.items():
            said = echo(derived)
            body = {"success": False, "error": {"code": said[:60], "message": f"no: {said}"}, "request_id": said}
            answer = HttpResponse(status=status, headers={"X-Request-Id": said}, body=json.dumps(body).encode())

            async def send(request: HttpRequest, answer: HttpResponse = answer) -> HttpResponse:
                assert request.method == "POST"
                return answer

            error = await failed(Webhooks(MALL, MALL.account, callbacks, send).register)
            assert isinstance(error, NanoBananaError), (status, form)
            # The derived secret is in this test's own frame and in the answer that it made.
            assert seen_in([str(error), repr(vars(error)), repr(error.args)], derived, SIGNING) == [], (status, form)
            kinds += 1
    assert kinds > 100


BAD_REQUESTS: Sequence[tuple[str, dict[str, str], bytes]] = (
    ("/v1/images/generations", {}, b"{}"),
    ("/v1/images/generations", {"content-type": "application/json"}, b"{"),
    ("/v1/images/generations", {"content-type": "application/json"}, b'{"prompt": "a", "n": 9}'),
    ("/v1/images/generations", {"content-type": "application/json"}, b'{"prompt": "a fox"}'),
    ("/v1/images/edits", {"content-type": "multipart/form-data"}, b"x"),
    ("/v1/images/edits", {"content-type": "multipart/form-data; boundary=b"}, b"--b--"),
    ("/v1/jobs/x", {}, b""),
    ("/nothing", {}, b""),
)


@each_row("number", range(len(BAD_REQUESTS)))
async def test_requests_that_fail_expose_no_token(number: int) -> None:
    app = make_app(Session(MALL), tokens=[Token("ann", TOKEN)])
    path, headers, body = BAD_REQUESTS[number]
    for authorization in (f"Bearer {TOKEN}", f"bearer  {TOKEN}", f"Basic {TOKEN}", f"Bearer {TOKEN}x", TOKEN, ""):
        given = {"host": "127.0.0.1", **headers, "authorization": authorization}
        answer = await ask(app, path, [body], headers=given)
        assert answer.status >= 400
        assert seen_in([repr(answer)], TOKEN, KEY) == []


def contents_of(folder: Path) -> list[str]:
    return [path.read_bytes().decode("latin-1") for path in folder.rglob("*") if path.is_file()]


async def test_ledger_of_a_session_with_secrets_has_none_of_them(tmp_path: Path, logged: list[str]) -> None:
    transport = FakeTransport(CallbackGateway(job_s=0.01).answer, latency_s=0.001)
    gateway, ledger = DefApi(api_key=KEY, expected_job_s=0.01), SqliteLedger(tmp_path / "jobs.sqlite")
    session = Session(gateway, http=transport, polling=REAL_TIME, ledger=ledger)
    CallbackReceiver(session, public_url=HOOKS, secret=SIGNING)
    async with session:
        await session.generate("a fox", idempotency_key="order-1", timeout=20.0)
        files = contents_of(tmp_path)
    files += contents_of(tmp_path)
    assert [text for text in files if "callbacks/" in text]  # the URL with a token derived from the secret
    assert seen_in([*files, *logged], SIGNING, KEY) == []

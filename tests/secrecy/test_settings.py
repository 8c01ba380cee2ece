"""Tracebacks of refused settings contain no key, environment or proxy password."""

import asyncio
import copy
import pickle
from collections.abc import Callable
from typing import Any

import aiohttp
import attrs
import pytest

from nanobanana_async import ApiMall, ConfigurationError, DefApi, GeneratedImage, NanoBananaError, Session, Timeouts
from nanobanana_async.config import gateway_from_env
from nanobanana_async.gateways import Secret
from nanobanana_async.http.transport import AiohttpTransport
from nanobanana_async.policy.retry import RetryPolicy
from tests.secrecy.canary import KEY, PASSWORD, outcome_of, pockets, sightings
from tests.support.peers import Peer, answering, silent, unused_port
from tests.support.rows import each_row

# Globals, so that no frame of a test holds them.
OTHER = "a-password-of-the-environment-9K2"
ENVIRON = {"APIMALL_API_KEY": KEY, "DEFAPI_API_KEY": KEY, "DATABASE_PASSWORD": OTHER}
PROXY = f"http://me:{PASSWORD}@127.0.0.1"
CREDENTIALS = f"https://me:{PASSWORD}@gateway.example"


def mall(**more: Any) -> ApiMall:
    return ApiMall(api_key=KEY, **more)


REFUSED: dict[str, Callable[[], Any]] = {
    "host": lambda: ApiMall(api_key=KEY, base_url="http://evil.example"),
    "scheme": lambda: DefApi(api_key=KEY, base_url="ftp://x"),
    "credentials": lambda: ApiMall(api_key=KEY, base_url=CREDENTIALS),
    "no url": lambda: ApiMall(api_key=KEY, base_url="https://[::1"),
    "model": lambda: DefApi(api_key=KEY, model=""),
    "duration": lambda: ApiMall(api_key=KEY, expected_job_s=-1),
    "lifetime": lambda: ApiMall(api_key=KEY, key_lifetime_s=-1),
    "switch": lambda: DefApi(api_key=KEY, slots_per_image=1),  # type: ignore[arg-type]
    "line break in the key": lambda: ApiMall(api_key=f"{KEY}\nx"),
    "letters in the key": lambda: DefApi(api_key=f"{KEY}ä"),
    "unknown setting": lambda: ApiMall(api_key=KEY, nonsense=1),  # type: ignore[call-arg]
    "evolve": lambda: attrs.evolve(mall(), model=""),
    "from_env credentials": lambda: ApiMall.from_env({**ENVIRON, "NANOBANANA_BASE_URL": CREDENTIALS}),
    "from_env duration": lambda: DefApi.from_env({**ENVIRON, "NANOBANANA_EXPECTED_JOB_S": "x"}),
    "from_env negative": lambda: DefApi.from_env({**ENVIRON, "NANOBANANA_EXPECTED_JOB_S": "-1"}),
    "from_env key": lambda: ApiMall.from_env({**ENVIRON, "APIMALL_API_KEY": f"{KEY} {KEY}"}),
    "from_env no key": lambda: ApiMall.from_env({"DATABASE_PASSWORD": OTHER}),
    "from_env given": lambda: ApiMall.from_env({}, api_key=KEY, base_url="ftp://x"),
    "from_env given credentials": lambda: ApiMall.from_env(ENVIRON, base_url=CREDENTIALS),
    "from_env model": lambda: ApiMall.from_env(ENVIRON, model=""),
    "from_env unknown": lambda: ApiMall.from_env(ENVIRON, nonsense=1),
    "both keys": lambda: gateway_from_env(ENVIRON),
    "no keys": lambda: gateway_from_env({"DATABASE_PASSWORD": OTHER}),
    "unknown gateway": lambda: gateway_from_env({**ENVIRON, "NANOBANANA_GATEWAY": "x"}),
    "named without key": lambda: gateway_from_env({"DEFAPI_API_KEY": KEY, "NANOBANANA_GATEWAY": "apimall"}),
    "environment's url": lambda: gateway_from_env(
        {**ENVIRON, "NANOBANANA_GATEWAY": "defapi", "NANOBANANA_BASE_URL": CREDENTIALS}
    ),
    "proxy's scheme": lambda: Session(mall(), proxy=f"socks5://me:{PASSWORD}@proxy.example"),
    "proxy's host": lambda: Session(mall(), proxy=f"http://[me:{PASSWORD}@"),
    "beside a proxy": lambda: Session(mall(), proxy=f"{PROXY}:1", max_credits=-1),
    "pickled": lambda: pickle.dumps(mall()),
    "pickled parts": lambda: pickle.dumps(attrs.asdict(mall())),
    "key of no text": lambda: DefApi(api_key=5),  # type: ignore[arg-type]
}


@each_row("name", REFUSED)
def test_refused_settings_show_no_secret(name: str) -> None:
    error = outcome_of(REFUSED[name])
    assert isinstance(error, (ConfigurationError, TypeError))
    assert sightings(error, KEY, PASSWORD, OTHER) == []


@pytest.mark.parametrize("kind", [ApiMall, DefApi])
def test_the_real_environment_is_in_no_traceback(kind: type[ApiMall], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("APIMALL_API_KEY", "DEFAPI_API_KEY", "NANOBANANA_GATEWAY", "NANOBANANA_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SOMEBODYS_PASSWORD", OTHER)
    assert sightings(outcome_of(kind.from_env), OTHER) == []
    assert sightings(outcome_of(Session), OTHER) == []
    monkeypatch.setenv(kind.key_variable, KEY)
    monkeypatch.setenv("NANOBANANA_BASE_URL", "ftp://x")
    assert sightings(outcome_of(Session), KEY, OTHER) == []


class Bare(ApiMall):
    """A third-party gateway with a plain text key."""

    @property
    def api_key(self) -> Any:
        return KEY


def test_a_gateway_with_a_plain_text_key_is_refused() -> None:
    error = outcome_of(lambda: Session(Bare(api_key=KEY)))
    assert isinstance(error, ConfigurationError)
    assert "nanobanana_async.gateways.Secret" in str(error)
    assert sightings(error) == []


def test_a_key_left_in_a_frame_would_be_found() -> None:
    def careless(key: str) -> None:
        raise ValueError("no")

    assert sightings(outcome_of(lambda: careless(KEY)))


def test_a_gateway_can_be_copied_and_masks_its_key() -> None:
    gateway = ApiMall(api_key=f" {KEY}\n", expected_job_s=5)
    for twin in (copy.copy(gateway), copy.deepcopy(gateway), attrs.evolve(gateway), ApiMall(**settings_of(gateway))):
        assert twin == gateway
        assert hash(twin) == hash(gateway)
        assert twin.api_key.reveal() == KEY
    assert gateway != ApiMall(api_key="another-key", expected_job_s=5)
    assert attrs.evolve(gateway, api_key="another-key").api_key == Secret("another-key")
    assert not [said for said in pockets(gateway) if KEY in said]
    assert KEY not in repr(copy.deepcopy(attrs.asdict(gateway)))


def settings_of(gateway: ApiMall) -> dict[str, Any]:
    return {each.alias: getattr(gateway, each.name) for each in attrs.fields(type(gateway))}


def test_pickling_a_gateway_is_refused_with_advice() -> None:
    with pytest.raises(TypeError, match="create the gateway or the session in the"):
        pickle.dumps(mall())


def over(peer_url: str, **more: Any) -> Session:
    return Session(
        ApiMall(api_key=KEY, base_url=peer_url),
        timeouts=Timeouts(connect_s=0.5, create_s=0.5, query_s=0.5, close_s=0.2),
        retry=RetryPolicy(max_attempts=1, max_wait_s=0.5),
        **more,
    )


async def ending(session: Session) -> object:
    async with session:
        try:
            return await session.generate("a fox", timeout=3.0)
        except NanoBananaError as error:
            return error


def echo_of(status: bytes, *headers: bytes, form: bytes = b"%s") -> Any:
    body = form % f'{{"error": "Bearer {KEY}"}}'.encode()
    head = b"\r\n".join([b"HTTP/1.1 " + status, b"Content-Length: %d" % len(body), *headers])
    return answering(head + b"\r\n\r\n" + body)


ECHOING = {
    "refusal": echo_of(b"401 No"),
    "headers": echo_of(b"500 No", f"X-Request-Id: {KEY}".encode(), f"Server: {KEY}".encode()),
    "redirect": echo_of(b"302 Found", f"Location: https://{KEY.replace('/', '-')}.example/{KEY}".encode()),
    "reason": echo_of(f"403 {KEY}".encode()),
    "garbage": answering(f"Bearer {KEY}\r\n\r\n".encode()),
    "status": answering(f"HTTP/1.1 {KEY}\r\n\r\n".encode()),
    "header": answering(f"HTTP/1.1 200 OK\r\n{KEY}\x00\r\n\r\n".encode()),
    "cut": answering(f"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{KEY}".encode()),
    "chunks": answering(f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{KEY}\r\n".encode()),
    "encoding": echo_of(b"200 OK", b"Content-Encoding: gzip"),
    "silence": silent,
}


async def ending_at(script: Any) -> object:
    async with Peer(script) as peer:
        return await ending(over(peer.url))


@pytest.mark.slow
async def test_a_peer_that_echoes_the_key_does_not_expose_it(caplog: pytest.LogCaptureFixture) -> None:
    async with asyncio.TaskGroup() as group:  # each waits for seconds until it gives up
        tasks = {name: group.create_task(ending_at(script)) for name, script in ECHOING.items()}
    errors = {name: task.result() for name, task in tasks.items()}
    assert [name for name, error in errors.items() if not isinstance(error, NanoBananaError)] == []
    assert {name: found for name, error in errors.items() if (found := sightings(error))} == {}
    assert sightings(caplog.text) == []


@pytest.mark.parametrize("answer", [b"407 No", b"502 No"])
async def test_a_refusing_proxy_does_not_expose_its_password(answer: bytes) -> None:
    async with Peer(echo_of(answer)) as peer:
        proxy = f"{PROXY}:{peer.url.rpartition(':')[2].strip('/')}"
        session = over("https://gateway.example", proxy=proxy)
        del proxy
        assert sightings(await ending(session)) == []
        assert PASSWORD not in repr([repr(vars(part)) for part in parts_of(session)])


async def test_a_failed_download_through_a_proxy_shows_no_password() -> None:
    image = GeneratedImage(url="https://images.example/1.png")
    session = over("https://gateway.example", proxy=f"{PROXY}:{unused_port()}")
    session._components.downloads._attempts = 1
    async with session:
        error = await download(session, image)
    assert isinstance(error, NanoBananaError)
    assert sightings(error) == []


async def download(session: Session, image: GeneratedImage) -> object:
    try:
        return await session.download(image)
    except NanoBananaError as error:
        return error


async def expire(limit: asyncio.Timeout, peer: Peer) -> None:
    """Let a timeout expire once the peer has a connection."""
    await peer.all_accepted(1)
    limit.reschedule(asyncio.get_running_loop().time())


async def test_a_cancelled_download_shows_no_password() -> None:
    image = GeneratedImage(url="http://images.example/1.png")
    async with Peer(silent) as peer:
        session = over("https://gateway.example", proxy=Secret(peer.url.replace("//", f"//me:{PASSWORD}@")))
        async with session:
            limit = asyncio.timeout(None)
            ending = asyncio.get_running_loop().create_task(expire(limit, peer))
            with pytest.raises(TimeoutError) as caught:
                async with limit:
                    await session.download(image)
            await ending
    assert isinstance(caught.value.__cause__, asyncio.CancelledError)
    # This frame is the first of the traceback; what stands behind it is the library's.
    assert sightings(caught.value.__cause__) == []


class Ended(BaseException):
    """An exception that ends a program, such as Ctrl-C."""


class Ending(aiohttp.TCPConnector):
    async def connect(self, *_: Any, **__: Any) -> Any:
        raise Ended


async def test_a_program_that_ends_during_a_request_shows_no_key() -> None:
    async with aiohttp.ClientSession(connector=Ending()) as lent:
        api = AiohttpTransport(mall(), timeouts=Timeouts(), http=lent)
        await api.open()
        with pytest.raises(Ended) as caught:
            await api.send(mall().build_query("task-1"), timeout_s=1.0)
        await api.aclose()
    assert sightings(caught.value) == []


def parts_of(session: Session) -> list[Any]:
    parts = session._components
    return [session, parts.transport, parts.downloads, parts.downloads._fetcher]

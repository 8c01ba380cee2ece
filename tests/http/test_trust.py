"""TLS and proxy settings over real sockets: they apply to the gateway and to images alike."""

import asyncio
import hashlib
import json
import ssl
import traceback
from pathlib import Path

import aiohttp
import pytest
from yarl import URL

import nanobanana_async
from nanobanana_async import ApiMall, GeneratedImage, RetryPolicy, Session
from nanobanana_async.errors import ConfigurationError, DownloadError, TransportError
from nanobanana_async.gateways.contract import HttpRequest
from nanobanana_async.gateways.secret import Secret
from nanobanana_async.http.tls_and_proxies import Proxies
from tests.support.images import StaticResolver, failure, make_image, reply
from tests.support.images import opened as opened_downloader
from tests.support.peers import (
    CERTIFICATE,
    KEY,
    PATIENCE_S,
    Connection,
    Peer,
    Script,
    answering,
    copy_stream,
    create,
    fine,
    opened,
    query,
    trusting,
    unused_port,
)

ONCE = RetryPolicy(max_attempts=1)


async def gateway(connection: Connection) -> None:
    """Act as API Mall and its image store: each job succeeds at once."""
    while True:
        head = (await connection.read_request()).decode()
        host = head.split("Host: ")[1].split("\r\n")[0]
        if "/1.png" in head:
            await connection.write(reply(make_image()))
        else:
            data = {"task_id": "t1", "status": "completed", "primary_url": f"https://{host}/1.png", "credits_used": 8}
            await connection.write(reply(json.dumps({"success": True, "data": data}).encode()))


async def tunnelling(connection: Connection) -> None:
    """Act as a proxy that opens tunnels."""
    head = (await connection.read_request()).decode()
    host, _, port = head.split()[1].partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    await connection.write(b"HTTP/1.1 200 Connection established\r\n\r\n")

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(copy_stream(connection._reader, writer))
            group.create_task(copy_stream(reader, connection.writer))
    finally:
        writer.transport.abort()


def mall(peer: Peer) -> ApiMall:
    return ApiMall(api_key=KEY, base_url=peer.url.rstrip("/"), expected_job_s=0.1)


async def bought_and_fetched(session: Session) -> bytes:
    result = await session.generate("a lighthouse")
    return await session.download(result.images[0])


@pytest.mark.slow
async def test_own_authority_is_trusted_for_gateway_and_images() -> None:
    async with Peer(gateway, tls=True) as peer, Session(mall(peer), tls=trusting()) as session:
        assert await bought_and_fetched(session) == make_image()


async def test_unknown_authority_is_refused_for_gateway_and_images() -> None:
    async with Peer(gateway, tls=True) as peer, Session(mall(peer), retry=ONCE) as session:
        with pytest.raises(TransportError, match="is not trusted"):
            await session.generate("a lighthouse")
        with pytest.raises(DownloadError, match="is not trusted"):
            await session.download(GeneratedImage(url=f"{peer.url}1.png"))
        assert peer.requests == []


@pytest.mark.slow
async def test_proxy_tunnels_gateway_and_images_and_sees_no_key() -> None:
    async with Peer(gateway, tls=True) as peer, Peer(tunnelling) as proxy:
        url = proxy.url.replace("//", "//me:hidden@")
        async with Session(mall(peer), tls=trusting(), proxy=url) as session:
            assert await bought_and_fetched(session) == make_image()
            assert "hidden" not in repr(session)
    assert len(proxy.requests) == 2  # a connection for the gateway, one for images
    for head in proxy.requests:
        assert head.startswith(f"CONNECT {peer.url.split('/')[2]} HTTP/1.1\r\n".encode())
        assert b"Proxy-Authorization: Basic bWU6aGlkZGVu\r\n" in head
        assert KEY.encode() not in head
    assert all(b"Proxy-Authorization" not in head for head in peer.requests)


@pytest.mark.slow
async def test_tls_of_a_borrowed_session_applies_to_images() -> None:
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusting())) as lent,
        Peer(gateway, tls=True) as peer,
        Session(mall(peer), http=lent) as session,
    ):
        assert await bought_and_fetched(session) == make_image()


@pytest.mark.slow
async def test_pinned_certificate_does_not_apply_to_images() -> None:
    der = ssl.PEM_cert_to_DER_cert(CERTIFICATE.read_text().split("-----END PRIVATE KEY-----")[-1].strip())
    pinned = aiohttp.TCPConnector(ssl=aiohttp.Fingerprint(hashlib.sha256(der).digest()))
    async with (
        aiohttp.ClientSession(connector=pinned) as lent,
        Peer(gateway, tls=True) as peer,
        Session(mall(peer), http=lent) as session,
    ):
        result = await session.generate("a lighthouse")
        with pytest.raises(DownloadError, match="is not trusted"):
            await session.download(result.images[0])


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({"tls": ssl.create_default_context()}, "TCPConnector"),
        ({"proxy": "http://127.0.0.1:1"}, "lend no aiohttp session"),
        ({"trust_env": True}, "lend no aiohttp session"),
    ],
)
async def test_borrowed_session_excludes_other_settings(settings: dict[str, object], advice: str) -> None:
    async with aiohttp.ClientSession() as lent:
        with pytest.raises(ConfigurationError, match=advice):
            Session(ApiMall(api_key=KEY), http=lent, **settings)  # type: ignore[arg-type]


async def test_borrowed_session_with_a_proxy_is_refused() -> None:
    async with aiohttp.ClientSession(proxy="http://me:hidden@127.0.0.1:1") as lent:
        with pytest.raises(ConfigurationError, match="has a proxy") as caught:
            async with Session(ApiMall(api_key=KEY), http=lent):
                pass
    assert "hidden" not in str(caught.value)


def _blind() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@pytest.mark.parametrize("tls", [False, "authority.pem", ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), _blind()])
def test_unverifying_tls_is_refused_at_construction(tls: object) -> None:
    with pytest.raises(ConfigurationError, match="tls"):
        Session(ApiMall(api_key=KEY), tls=tls)  # type: ignore[arg-type]


@pytest.mark.parametrize("tls", [None, True])
def test_default_tls_uses_the_systems_authorities(tls: bool | None) -> None:
    Session(ApiMall(api_key=KEY), tls=tls)


@pytest.mark.slow
@pytest.mark.parametrize("script", [answering(), answering(then="reset"), answering(b"garbage\r\n\r\n"), tunnelling])
async def test_proxy_that_disconnects_is_certainly_not_sent(script: Script) -> None:
    async with Peer(script) as proxy, opened(proxy=proxy.url, connect_s=1.0) as api:
        with pytest.raises(TransportError) as caught:
            await api.send(create(f"https://127.0.0.1:{unused_port()}/"), timeout_s=PATIENCE_S, fresh_connection=True)
    assert caught.value.possibly_sent is False


async def test_errors_and_frames_do_not_show_a_proxy_password() -> None:
    proxy = f"http://me:hidden@127.0.0.1:{unused_port()}"
    package = Path(nanobanana_async.__file__).parent
    async with opened(proxy=proxy) as api:
        for url in ("https://gateway.invalid/", "http://127.0.0.1:1/"):
            with pytest.raises(TransportError) as caught:
                await api.send(query(url), timeout_s=PATIENCE_S)
            trace = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
            frames = [frame for frame in trace.stack if Path(frame.filename).is_relative_to(package)]
            shown = [value for frame in frames for value in (frame.locals or {}).values()]
            assert shown
            assert not [value for value in shown if "hidden" in value]
    async with opened(proxy="http://me:hidden@proxy.invalid:1") as api:
        with pytest.raises(ConfigurationError, match="without TLS") as refused:
            await api.send(HttpRequest(method="GET", url="http://127.0.0.1:1/"), timeout_s=PATIENCE_S)
    assert "hidden" not in str(refused.value)


# The environment


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


async def test_proxies_of_the_environment_apply_to_gateway_and_images(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Peer(answering(reply(b"", status="403 No"))) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        gateway = ApiMall(api_key=KEY, base_url="https://gateway.invalid")
        async with Session(gateway, trust_env=True, retry=ONCE) as session:
            with pytest.raises(TransportError, match="the proxy refused"):
                await session.generate("a lighthouse")
            with pytest.raises(DownloadError, match="the proxy refused"):
                await session.download(GeneratedImage(url="https://images.example/1.png"))
        hosts = {head.split()[1] for head in proxy.requests}
        assert hosts == {b"gateway.invalid:443", b"images.example:443"}
        assert not [head for head in proxy.requests if KEY.encode() in head]


@pytest.mark.parametrize("trust_env", [False, True])
async def test_netrc_never_replaces_the_key(trust_env: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password hidden\ndefault login me password hidden\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    proxies = Proxies(trust_env=trust_env)
    async with Peer(fine) as peer, opened() as api:
        api._proxies = proxies
        await api.send(create(peer.url), timeout_s=PATIENCE_S)
    received = peer.requests[0].decode()
    assert received.count("Authorization") == 1
    assert f"Authorization: Bearer {KEY}" in received


def test_environment_is_read_once_with_its_no_proxy_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://me:hidden@secure.example:3128")
    monkeypatch.setenv("http_proxy", "plain.example:8080")  # without a scheme, as many write it
    monkeypatch.setenv("NO_PROXY", "inside.example, 10.0.0.0/8, .dotted.example,ported.example:8443,[fd00::1],")
    proxies = Proxies(trust_env=True)
    monkeypatch.delenv("HTTPS_PROXY")
    assert proxies.proxy_for(URL("https://a.example/")) == Secret("http://me:hidden@secure.example:3128")
    assert proxies.proxy_for(URL("http://a.example/")) == Secret("http://plain.example:8080")
    for host in ("inside.example", "a.INSIDE.example", "10.1.2.3", "127.0.0.1", "[fd00::1]", "ported.example:8443"):
        assert proxies.proxy_for(URL(f"https://{host}/")) is None
    for host in ("outside.example", "notinside.example", "11.1.2.3", "ported.example", "[fd00::2]"):
        assert proxies.proxy_for(URL(f"https://{host}/")) is not None
    assert proxies.proxy_for(URL("https://a.dotted.example/")) is None
    assert "hidden" not in repr(proxies)
    assert not Proxies()
    assert not Proxies(trust_env=False)
    assert Proxies("http://p.example:1", trust_env=True).proxy_for(URL("https://inside.example/")) == Secret(
        "http://p.example:1"
    )


@pytest.mark.parametrize("text", ["socks5://127.0.0.1:1", "http://", "http://me:hidden@[bad"])
def test_invalid_proxy_variable_is_named_and_not_shown(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", text)
    with pytest.raises(ConfigurationError, match="HTTPS_PROXY must be a URL") as caught:
        Session(ApiMall(api_key=KEY), trust_env=True)
    assert "hidden" not in str(caught.value)


async def test_no_proxy_hosts_must_have_public_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{unused_port()}")
    monkeypatch.setenv("NO_PROXY", "images.example")
    resolver = StaticResolver(images_example="10.0.0.1")
    async with opened_downloader(
        allow_loopback=False, proxies=Proxies(trust_env=True), resolver=resolver
    ) as downloader:
        error = await failure(downloader, "http://images.example/a.png")
        assert "is not at a public address" in error.message
        assert "the proxy can't be reached" in (await failure(downloader, "http://other.example/a.png")).message

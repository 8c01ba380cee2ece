"""The transport with the user's aiohttp session, TLS context or proxy."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from nanobanana_async import ApiMall, Session
from nanobanana_async.errors import ConfigurationError, TransportError
from nanobanana_async.http.transport import AiohttpTransport
from tests.support.images import StaticResolver
from tests.support.peers import (
    FINE,
    KEY,
    PATIENCE_S,
    Connection,
    Peer,
    answering,
    create,
    fine,
    opened,
    query,
    trusting,
    unused_port,
)

REFUSAL = b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n"


# A borrowed session


async def test_borrowed_session_shares_connections_and_stays_open() -> None:
    async with Peer(fine) as peer, aiohttp.ClientSession() as lent:
        async with lent.get(peer.url) as response:
            await response.read()
        async with opened(http=lent) as api:
            await api.send(create(peer.url), timeout_s=PATIENCE_S)
            assert peer.accepted == 1
        assert not lent.closed
        async with lent.get(peer.url) as response:
            assert response.status == 200
        assert peer.accepted == 1


async def test_fresh_connections_are_made_by_the_borrowed_connector_and_not_pooled() -> None:
    resolver = StaticResolver(localhost="127.0.0.1")
    async with (
        Peer(fine) as peer,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(resolver=resolver, use_dns_cache=False)) as lent,
        opened(http=lent) as api,
    ):
        url = peer.url.replace("127.0.0.1", "localhost")
        await api.send(query(url), timeout_s=PATIENCE_S)
        for _ in range(2):
            await api.send(create(url), timeout_s=PATIENCE_S, fresh_connection=True)
        await peer.all_ended(2)
        assert (peer.accepted, resolver.lookups) == (3, 3)
        await api.send(query(url), timeout_s=PATIENCE_S)  # over the pooled connection of the first query
        assert peer.accepted == 3


async def test_fresh_connection_of_a_closed_borrowed_session_is_named() -> None:
    async with aiohttp.ClientSession() as lent, opened(http=lent) as api:
        await lent.close()
        with pytest.raises(ConfigurationError, match="close it after"):
            await api.send(create("http://127.0.0.1:1/"), timeout_s=PATIENCE_S, fresh_connection=True)


async def test_settings_of_a_borrowed_session_that_concern_others_are_not_used() -> None:
    jar = aiohttp.CookieJar(unsafe=True)
    jar.update_cookies({"id": "7"})
    async with Peer(fine) as target:
        refusal = b"HTTP/1.1 503 No\r\nSet-Cookie: later=1\r\nContent-Length: 0\r\n\r\n"
        async with (
            Peer(answering(refusal)) as peer,
            aiohttp.ClientSession(
                base_url=target.url,
                cookie_jar=jar,
                raise_for_status=True,
                timeout=aiohttp.ClientTimeout(total=0.001),
                auto_decompress=False,
            ) as lent,
            opened(http=lent) as api,
        ):
            answer = await api.send(create(peer.url), timeout_s=PATIENCE_S)
        assert target.accepted == 0
    assert answer.status == 503
    assert len(peer.requests) == 1
    received = peer.requests[0].decode().lower()
    assert "cookie" not in received
    assert [cookie.key for cookie in jar] == ["id"]
    assert received.count("authorization") == 1
    assert "idempotency-key: nb-1" in received


async def retrying(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    await handler(request)
    return await handler(request)


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"proxy": "http://me:hidden@proxy.example:3128"}, "a proxy.*Session\\(proxy="),
        ({"trust_env": True}, "trust_env=True.*Session\\(trust_env=True"),
        ({"headers": {"X-Other-Key": "hidden"}}, "headers of its own.*download_headers"),
        ({"middlewares": (retrying,)}, "middlewares"),
    ],
)
async def test_settings_that_would_not_be_obeyed_are_refused(settings: dict[str, Any], what: str) -> None:
    async with aiohttp.ClientSession(**settings) as lent:
        with pytest.raises(ConfigurationError, match=what) as caught:
            Session(ApiMall(api_key=KEY), http=lent)
        assert "hidden" not in str(caught.value)
        assert "aiohttp.ClientSession(connector=yours.connector, connector_owner=False)" in str(caught.value)
        async with (
            aiohttp.ClientSession(connector=lent.connector, connector_owner=False) as bare,
            opened(http=bare) as api,
            Peer(fine) as peer,
        ):
            await api.send(create(peer.url), timeout_s=PATIENCE_S)


async def test_auth_of_a_borrowed_session_is_refused() -> None:
    with pytest.warns(DeprecationWarning, match="auth"):
        lent = aiohttp.ClientSession(auth=aiohttp.BasicAuth("me", "theirs"))
    async with lent:
        with pytest.raises(ConfigurationError, match="auth=, which would not be used: the API key takes its place"):
            Session(ApiMall(api_key=KEY), http=lent)


async def test_traces_of_a_borrowed_session_do_not_see_the_key() -> None:
    seen: list[object] = []

    async def record(session: object, context: object, params: aiohttp.TraceRequestStartParams) -> None:
        seen.append(params.headers)

    trace = aiohttp.TraceConfig()
    trace.on_request_start.append(record)
    async with aiohttp.ClientSession(trace_configs=[trace]) as lent, opened(http=lent) as api, Peer(fine) as peer:
        await api.send(create(peer.url), timeout_s=PATIENCE_S)
        assert len(peer.requests) == 1
    assert seen == []


async def test_closed_borrowed_session_is_refused() -> None:
    lent = aiohttp.ClientSession()
    await lent.close()
    with pytest.raises(ConfigurationError, match="is closed"):
        async with opened(http=lent):
            pass


async def test_borrowed_session_with_a_closed_connector_is_refused() -> None:
    async with aiohttp.ClientSession() as lent:
        assert lent.connector is not None
        await lent.connector.close()
        with pytest.raises(ConfigurationError, match="is closed"):
            async with opened(http=lent):
                pass


async def test_borrowed_session_closed_too_early_is_named() -> None:
    async with aiohttp.ClientSession() as lent, opened(http=lent) as api, Peer(fine) as peer:
        await api.send(query(peer.url), timeout_s=PATIENCE_S)
        await lent.close()
        with pytest.raises(ConfigurationError, match="close it after"):
            await api.send(query(peer.url), timeout_s=PATIENCE_S)


def test_borrowed_session_of_another_loop_is_refused() -> None:
    async def make() -> aiohttp.ClientSession:
        return aiohttp.ClientSession()

    async def lend() -> None:
        with pytest.raises(ConfigurationError, match="another event loop"):
            async with opened(http=lent):
                pass

    with asyncio.Runner() as runner:
        lent = runner.run(make())
        with asyncio.Runner() as other:
            other.run(lend())
        runner.run(lent.close())


def unverifying() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    return context


def blind() -> ssl.SSLContext:
    context = unverifying()
    context.verify_mode = ssl.CERT_NONE
    return context


@pytest.mark.parametrize("tls", [False, unverifying(), blind()])
async def test_unverifying_borrowed_session_is_refused(tls: ssl.SSLContext | bool) -> None:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls)) as lent:
        with pytest.raises(ConfigurationError, match="does not verify"):
            async with opened(http=lent):
                pass


async def test_borrowed_unix_connector_is_accepted() -> None:
    connector = aiohttp.UnixConnector("/nowhere/at.all")
    async with aiohttp.ClientSession(connector=connector) as lent, opened(http=lent) as api:
        with pytest.raises(TransportError) as caught:
            await api.send(create("http://localhost/"), timeout_s=PATIENCE_S)
    assert caught.value.possibly_sent is False


# TLS


@contextlib.asynccontextmanager
async def trusted(tls: ssl.SSLContext | aiohttp.Fingerprint) -> AsyncIterator[AiohttpTransport]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls)) as lent, opened(http=lent) as api:
        yield api


async def test_tls_context_of_a_borrowed_session_is_used_everywhere() -> None:
    async with trusted(trusting()) as api, Peer(fine, tls=True) as peer:
        await api.send(query(peer.url), timeout_s=PATIENCE_S)
        await api.send(create(peer.url), timeout_s=PATIENCE_S, fresh_connection=True)
        assert (peer.accepted, len(peer.requests)) == (2, 2)


async def test_unpinned_certificate_is_certainly_not_sent() -> None:
    async with trusted(aiohttp.Fingerprint(b"\0" * 32)) as api, Peer(fine, tls=True) as peer:
        for fresh in (False, True):
            with pytest.raises(TransportError, match="not the expected one") as caught:
                await api.send(create(peer.url), timeout_s=PATIENCE_S, fresh_connection=fresh)
            assert caught.value.possibly_sent is False
        assert peer.requests == []


async def test_create_lost_over_tls_is_possibly_sent() -> None:
    async def losing(connection: Connection) -> None:
        await connection.read_request()
        connection.close()

    async with trusted(trusting()) as api, Peer(losing, tls=True) as peer:
        for fresh in (False, True):
            with pytest.raises(TransportError) as caught:
                await api.send(create(peer.url), timeout_s=PATIENCE_S, fresh_connection=fresh)
            assert caught.value.possibly_sent is True


async def test_close_does_not_wait_for_tls_close_notify() -> None:
    async def rude(connection: Connection) -> None:
        await connection.read_request()
        await connection.write(FINE)
        connection.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.sleep(9)

    async with trusted(trusting()) as api, Peer(rude, tls=True) as peer:
        await api.send(create(peer.url), timeout_s=PATIENCE_S, fresh_connection=True)
        async with asyncio.timeout(1):
            await api.aclose()


# Proxies


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY"])
async def test_proxy_of_the_environment_is_not_used(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Peer(fine) as proxy, Peer(fine) as peer, opened() as api:
        monkeypatch.setenv(variable, proxy.url)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        for fresh in (False, True):
            await api.send(create(peer.url), timeout_s=PATIENCE_S, fresh_connection=fresh)
        assert (len(peer.requests), proxy.accepted) == (2, 0)


async def test_configured_proxy_is_used() -> None:
    async with Peer(fine) as proxy, opened(proxy=proxy.url) as api:
        for fresh in (False, True):
            await api.send(create("http://127.0.0.1:1/x"), timeout_s=PATIENCE_S, fresh_connection=fresh)
    assert len(proxy.requests) == 2
    assert proxy.requests[0].startswith(b"POST http://127.0.0.1:1/x HTTP/1.1\r\n")


@pytest.mark.parametrize("url", ["https://gateway.invalid/", "http://127.0.0.1:1/"])
async def test_unreachable_proxy_is_certainly_not_sent(url: str) -> None:
    async with opened(proxy=f"http://127.0.0.1:{unused_port()}") as api:
        with pytest.raises(TransportError, match="the proxy can't be reached") as caught:
            await api.send(create(url), timeout_s=PATIENCE_S)
    assert caught.value.possibly_sent is False


async def _hang_up(connection: Connection) -> None:
    await connection.read_request()
    connection.close()


@pytest.mark.parametrize("fresh", [False, True])
async def test_proxy_that_refuses_a_tunnel_gets_no_key_or_prompt(fresh: bool) -> None:
    for script in (answering(REFUSAL), _hang_up):
        async with Peer(script) as proxy, opened(proxy=proxy.url) as api:
            with pytest.raises(TransportError) as caught:
                await api.send(create("https://gateway.invalid/"), timeout_s=PATIENCE_S, fresh_connection=fresh)
        assert caught.value.possibly_sent is False
        assert KEY not in str(caught.value)
        assert proxy.requests[0].startswith(b"CONNECT gateway.invalid:443 ")
        assert KEY.encode() not in proxy.requests[0]


async def test_key_is_not_sent_in_clear_text_to_a_remote_proxy() -> None:
    async with opened(proxy="http://proxy.invalid:3128") as api:
        with pytest.raises(ConfigurationError, match="without TLS"):
            await api.send(create("http://127.0.0.1:1/"), timeout_s=PATIENCE_S)


@pytest.mark.parametrize(
    "proxy", ["", "proxy.invalid:3128", "socks5://127.0.0.1:1", "http://", "http://me:hidden@[bad", 7]
)
async def test_invalid_proxy_is_refused_without_showing_it(proxy: str) -> None:
    with pytest.raises(ConfigurationError, match="proxy must be a URL") as caught:
        async with opened(proxy=proxy):
            pass
    assert "hidden" not in str(caught.value)

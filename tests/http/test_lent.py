"""A lent aiohttp session's connector makes every connection: creates, polls and images, on both gateways."""

import asyncio
import json
import socket
from typing import Any

import aiohttp
import pytest
from aiohttp_socks import ProxyConnector

from nanobanana_async import ApiMall, DefApi, Gateway, GeneratedImage, RetryPolicy, Session
from nanobanana_async.errors import DownloadError, TransportError
from nanobanana_async.http.lent import overrides_connecting
from tests.support.images import StaticResolver, make_image, reply
from tests.support.peers import KEY, Connection, Peer, copy_stream, trusting, unused_port

ONCE = RetryPolicy(max_attempts=1)
GATEWAYS = pytest.mark.parametrize("kind", [ApiMall, DefApi])


async def gateway(connection: Connection) -> None:
    """Act as both gateways and their image store: each job succeeds at once."""
    while True:
        head = (await connection.read_request()).decode()
        link = f"https://{head.split('Host: ')[1].splitlines()[0]}/1.png"
        if "/1.png" in head:
            await connection.write(reply(make_image()))
            continue
        data: dict[str, Any] = {"task_id": "t1", "status": "completed", "primary_url": link, "credits_used": 8}
        if "/api/task/" in head:
            data = {"task_id": "t1", "status": "success", "result": [{"image": link}], "consumed": "0.5"}
        await connection.write(reply(json.dumps({"success": True, "code": 0, "message": "ok", "data": data}).encode()))


class Socks:
    """A SOCKS5 proxy that leads every name to 127.0.0.1."""

    def __init__(self) -> None:
        self.names: list[str] = []

    async def serve(self, connection: Connection) -> None:
        reader, writer = connection._reader, connection.writer
        await reader.readexactly((await reader.readexactly(2))[1])
        writer.write(b"\5\0")
        kind = (await reader.readexactly(4))[3]
        if kind == 3:
            name = (await reader.readexactly((await reader.readexactly(1))[0])).decode()
        else:
            name = socket.inet_ntoa(await reader.readexactly(4))
        self.names.append(name)
        port = int.from_bytes(await reader.readexactly(2))
        there, back = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"\5\0\0\1\0\0\0\0\0\0")

        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(copy_stream(reader, back))
                group.create_task(copy_stream(there, writer))
        finally:
            back.transport.abort()


def localhost(kind: type[ApiMall | DefApi], peer: Peer) -> Gateway:
    return kind(api_key=KEY, base_url=peer.url.replace("127.0.0.1", "localhost"), expected_job_s=0.1)


async def bought_and_fetched(session: Session) -> bytes:
    return await session.download((await session.generate("a lighthouse")).images[0])


@pytest.mark.slow
@GATEWAYS
async def test_lent_socks_connector_carries_everything(kind: type[ApiMall | DefApi]) -> None:
    socks = Socks()
    async with Peer(gateway, tls=True) as peer, Peer(socks.serve) as proxy:
        connector = ProxyConnector.from_url(proxy.url.replace("http:", "socks5:"), rdns=True, ssl=trusting())
        async with aiohttp.ClientSession(connector=connector) as lent:
            async with Session(localhost(kind, peer), http=lent) as session:
                assert await bought_and_fetched(session) == make_image()
            assert not lent.closed
        assert peer.accepted == len(socks.names) >= 2
        assert set(socks.names) == {"localhost"}


async def test_refusal_of_a_socks_proxy_is_certainly_not_sent() -> None:
    connector = ProxyConnector.from_url(f"socks5://me:hidden@127.0.0.1:{unused_port()}", rdns=True)
    async with (
        aiohttp.ClientSession(connector=connector) as lent,
        Session(DefApi(api_key=KEY), http=lent, retry=ONCE) as session,
    ):
        with pytest.raises(TransportError, match=r"can't reach api\.defapi\.org: the lent connector") as caught:
            await session.generate("a lighthouse")
    assert caught.value.safe_to_repeat
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("host", ["10.0.0.5", "minio", "169.254.169.254"])
async def test_private_link_is_refused_behind_a_lent_socks_connector(host: str) -> None:
    socks = Socks()
    async with Peer(socks.serve) as proxy:
        connector = ProxyConnector.from_url(proxy.url.replace("http:", "socks5:"), rdns=True)
        async with (
            aiohttp.ClientSession(connector=connector) as lent,
            Session(ApiMall(api_key=KEY), http=lent, allow_networks=["10.9.0.0/16"]) as session,
        ):
            with pytest.raises(DownloadError, match="is not at a public address"):
                await session.download(GeneratedImage(url=f"https://{host}/1.png"))
    assert socks.names == []


@pytest.mark.slow
@GATEWAYS
async def test_lent_resolver_and_authority_hold_for_everything(kind: type[ApiMall | DefApi]) -> None:
    resolver = StaticResolver(localhost="127.0.0.1")
    async with Peer(gateway, tls=True) as peer:
        connector = aiohttp.TCPConnector(ssl=trusting(), resolver=resolver, use_dns_cache=False, force_close=True)
        async with (
            aiohttp.ClientSession(connector=connector) as lent,
            Session(localhost(kind, peer), http=lent) as session,
        ):
            assert await bought_and_fetched(session) == make_image()
        assert peer.accepted == resolver.lookups >= 2


async def test_lent_resolver_does_not_lead_images_to_private_addresses() -> None:
    resolver = StaticResolver(images_example="10.0.0.5")
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(resolver=resolver)) as lent,
        Session(ApiMall(api_key=KEY), http=lent) as session,
    ):
        with pytest.raises(DownloadError, match=r"not at a public address, but at 10\.0\.0\.5") as caught:
            await session.download(GeneratedImage(url="https://images.example/1.png"))
    assert "NANOBANANA_ALLOW_NETWORKS=10.0.0.5/32" in str(caught.value)


async def test_lent_socket_factory_makes_the_sockets_of_images() -> None:
    made: list[socket.socket] = []

    def make(address: aiohttp.AddrInfoType) -> socket.socket:
        made.append(socket.socket(*address[:3]))
        return made[-1]

    async with Peer(gateway, tls=True) as peer:
        connector = aiohttp.TCPConnector(ssl=trusting(), socket_factory=make)
        async with (
            aiohttp.ClientSession(connector=connector) as lent,
            Session(localhost(ApiMall, peer), http=lent) as session,
        ):
            await session.download(GeneratedImage(url=f"{peer.url}1.png"))
    assert len(made) == 1


async def test_subclass_that_does_not_connect_itself_is_a_plain_connector() -> None:
    class Counting(aiohttp.TCPConnector):
        counted = 0

    unix = aiohttp.UnixConnector("/nowhere/at.all")
    socks = ProxyConnector.from_url("socks5://127.0.0.1:1")
    plain = Counting()
    assert [overrides_connecting(each) for each in (plain, unix, None, socks)] == [False, False, False, True]
    for connector in (unix, socks, plain):
        await connector.close()

"""Images from networks that the user names: private buckets, and VPN tools that make up addresses."""

import logging
import socket
from typing import Any

import pytest

from nanobanana_async import ApiMall, ConfigurationError, Session
from nanobanana_async.http.tls_and_proxies import Proxies
from nanobanana_async.images.addresses import to_networks
from tests.support.images import StaticResolver, failure, make_image, opened, redirect, reply, saying
from tests.support.peers import KEY, Peer

IMAGE = make_image()
HERE = to_networks(["127.0.0.1/32"])


@pytest.mark.parametrize("host", ["minio", "bucket.internal", "127.0.0.1"])
async def test_image_is_fetched_from_an_allowed_address(host: str) -> None:
    resolver = StaticResolver(minio="127.0.0.1", bucket_internal="127.0.0.1")
    async with (
        opened(allow_loopback=False, networks=HERE, resolver=resolver) as downloader,
        Peer(saying(reply(IMAGE))) as peer,
    ):
        assert await downloader.fetch(peer.url.replace("127.0.0.1", host)) == IMAGE


@pytest.mark.parametrize("target", ["http://127.0.0.2/", "http://169.254.169.254/", "http://metadata/"])
async def test_redirect_out_of_the_allowed_networks_is_refused(target: str) -> None:
    resolver = StaticResolver(metadata="169.254.169.254")
    async with (
        opened(allow_loopback=False, networks=HERE, resolver=resolver) as downloader,
        Peer(saying(redirect(target))) as peer,
    ):
        error = await failure(downloader, peer.url)
    assert "is not at a public address" in error.message


async def test_private_name_is_refused_behind_a_proxy_also_with_networks() -> None:
    async with (
        Peer(saying(reply(IMAGE))) as proxy,
        opened(allow_loopback=False, networks=HERE, proxies=Proxies(proxy.url)) as downloader,
    ):
        error = await failure(downloader, "http://minio/a.png")
        assert proxy.accepted == 0
    assert "minio is not at a public address" in error.message


@pytest.mark.parametrize(("address", "advised"), [("198.18.0.21", "198.18.0.0/15"), ("10.0.0.5", "10.0.0.5/32")])
async def test_refused_address_and_how_to_allow_it_are_named(address: str, advised: str) -> None:
    resolver = StaticResolver(images_example=address)
    async with opened(allow_loopback=False, resolver=resolver) as downloader:
        error = await failure(downloader, "http://images.example/a.png")
    assert f"but at {address}: " in error.message
    assert f"allow_networks=['{advised}'] or NANOBANANA_ALLOW_NETWORKS={advised}" in error.message


async def test_metadata_address_comes_without_advice() -> None:
    resolver = StaticResolver(images_example="169.254.169.254")
    async with opened(allow_loopback=False, resolver=resolver) as downloader:
        error = await failure(downloader, "http://images.example/a.png")
    assert "ALLOW_NETWORKS" not in error.message


def test_invalid_network_is_refused_by_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="allow_networks must be"):
        Session(ApiMall(api_key=KEY), allow_networks="10.0.0.5/32")
    monkeypatch.setenv("NANOBANANA_ALLOW_NETWORKS", "everything")
    with pytest.raises(ConfigurationError, match="NANOBANANA_ALLOW_NETWORKS must be"):
        Session(ApiMall(api_key=KEY))
    Session(ApiMall(api_key=KEY), allow_networks=[])


@pytest.mark.parametrize(
    ("address", "allowed", "warned"),
    [("198.18.0.21", None, True), ("198.18.0.21", "198.18.0.0/15", False), ("10.0.0.5", None, False)],
)
async def test_made_up_address_of_the_gateway_is_warned_of_once(
    address: str, allowed: str | None, warned: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def lookup(*_: Any, **__: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 443))]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    if allowed is not None:
        monkeypatch.setenv("NANOBANANA_ALLOW_NETWORKS", allowed)
    caplog.set_level(logging.WARNING, "nanobanana_async")
    session = Session(ApiMall(api_key=KEY))
    resolver = session._components.transport._resolver  # type: ignore[attr-defined]
    for _ in range(2):
        await resolver.resolve("gateway.apimall.ai", 443)
    assert len(caplog.records) == warned
    assert ("allow_networks=['198.18.0.0/15'] or NANOBANANA_ALLOW_NETWORKS" in caplog.text) is warned

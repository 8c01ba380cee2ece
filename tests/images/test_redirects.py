"""Redirects: few, never from https to http, and never into a private network."""

import asyncio

import pytest
from aiohttp.abc import ResolveResult

from tests.support.images import StaticResolver, failure, make_image, opened, redirect, reply, saying
from tests.support.peers import Connection, Peer, trusting

IMAGE = make_image()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirect_to_another_host_carries_nothing_along(status: int) -> None:
    async with (
        opened(resolver=StaticResolver(other_example="127.0.0.1")) as downloader,
        Peer(saying(reply(IMAGE))) as there,
    ):
        target = there.url.replace("127.0.0.1", "other.example") + "b.png?k=1"
        script = saying(redirect(target, status)[:-2] + b"Set-Cookie: id=1\r\n\r\n")
        async with Peer(script) as here:
            assert await downloader.fetch(here.url + "a.png?secret=1") == IMAGE
    head = there.requests[0]
    assert head.startswith(b"GET /b.png?k=1 HTTP/1.1\r\nHost: other.example:")
    assert b"secret" not in head
    assert b"cookie" not in head.lower()
    assert b"referer" not in head.lower()


async def test_given_headers_go_to_the_host_of_the_link_only() -> None:
    given = {"X-Token": "hidden", "Referer": "https://a.example/", "User-Agent": "mine"}
    resolver = StaticResolver(other_example="127.0.0.1")
    async with opened(resolver=resolver, headers=given) as downloader, Peer(saying(reply(IMAGE))) as there:
        target = there.url.replace("127.0.0.1", "other.example")
        async with Peer(saying(redirect("/b"), redirect(target))) as here:
            assert await downloader.fetch(here.url) == IMAGE
    for head in here.requests:
        assert b"X-Token: hidden\r\n" in head
        assert b"Referer: https://a.example/\r\n" in head
    assert b"User-Agent: mine\r\n" in there.requests[0]
    assert b"X-Token" not in there.requests[0]
    assert b"Referer" not in there.requests[0]


async def test_relative_redirect_is_followed() -> None:
    async with opened() as downloader, Peer(saying(redirect("../b%2fc.png?x=%7e"), reply(IMAGE))) as peer:
        assert await downloader.fetch(peer.url + "folder/a.png") == IMAGE
        assert peer.requests[1].startswith(b"GET /b%2fc.png?x=%7e HTTP")


async def test_at_most_five_redirects_are_followed() -> None:
    hops = [redirect(f"/{number}") for number in range(5)]
    async with opened() as downloader:
        async with Peer(saying(*hops, reply(IMAGE))) as peer:
            assert await downloader.fetch(peer.url) == IMAGE
            assert peer.accepted == 6
        async with Peer(saying(redirect("/again"))) as peer:
            assert "too many redirects (limit 5)" in (await failure(downloader, peer.url)).message
            assert peer.accepted == 6


async def test_redirect_from_https_to_http_is_refused() -> None:
    async with opened(tls=trusting()) as downloader, Peer(saying(reply(IMAGE))) as plain:
        async with Peer(saying(redirect(plain.url)), tls=True) as peer:
            assert "redirects from https to http" in (await failure(downloader, peer.url)).message
        async with Peer(saying(redirect("/b", 307), reply(IMAGE)), tls=True) as peer:
            assert await downloader.fetch(peer.url) == IMAGE
        assert plain.accepted == 0


async def test_redirect_to_https_and_back_is_refused() -> None:
    async with opened(tls=trusting()) as downloader, Peer(saying(reply(IMAGE))) as end:
        async with Peer(saying(redirect(end.url)), tls=True) as middle, Peer(saying(redirect(middle.url))) as start:
            assert "redirects from https to http" in (await failure(downloader, start.url)).message
        assert end.accepted == 0


async def test_untrusted_certificate_is_not_retried() -> None:
    async with opened() as downloader, Peer(saying(reply(IMAGE)), tls=True) as peer:
        error = await failure(downloader, peer.url)
    assert "can't reach 127.0.0.1: its TLS certificate is not trusted" in error.message
    assert "attempts" not in error.message


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("", "sent a redirect without Location"),
        ("data:image/png;base64,AAAA", "neither http, https nor data"),
        ("file:///etc/passwd", "neither http, https nor data"),
        ("ftp://images.example/a.png", "neither http, https nor data"),
        ("http://[broken", "redirects to an invalid URL"),
        ("http://good\\@evil/", "redirects to an invalid URL"),
        ("http://me:hidden@127.0.0.1/", "holds a user name or password"),
        ("http://10.0.0.1/", "10.0.0.1 is not at a public address"),
        ("http://169.254.169.254/latest/meta-data/", "169.254.169.254 is not at a public address"),
        ("http://metadata.google.internal/", "metadata.google.internal is not at a public address"),
        ("http://[fd00:ec2::254]/", "fd00:ec2::254 is not at a public address"),
        ("//192.168.0.1/a.png", "192.168.0.1 is not at a public address"),
    ],
)
async def test_forbidden_redirect_target_is_refused(location: str, words: str) -> None:
    async with opened() as downloader, Peer(saying(redirect(location))) as peer:
        error = await failure(downloader, peer.url)
        assert peer.accepted == 1
    assert words in error.message
    assert "hidden" not in error.message


SPELLINGS = ["127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0x7f.0.0.1", "localhost", "localhost."]
SPELLINGS += [
    "a.localhost",
    "127.0.0.1.",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[64:ff9b::7f00:1]",
    "[2002:7f00:1::]",
]
SPELLINGS += ["[::127.0.0.1]", "0.0.0.0", "0", "[::]"]
SPELLINGS += ["\uff11\uff12\uff17.0.0.1", "127\u30020\u30020\u30021", "\u2460\u2461\u2466.0.0.1"]  # in other scripts


@pytest.mark.parametrize("host", SPELLINGS)
async def test_loopback_is_refused_in_every_spelling(host: str) -> None:
    async with opened(allow_loopback=False) as downloader, Peer(saying(reply(IMAGE))) as peer:
        error = await failure(downloader, peer.url.replace("127.0.0.1", host))
        assert peer.accepted == 0
    assert "is not at a public address" in error.message
    assert "attempts" not in error.message


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "::ffff:127.0.0.1", "0.0.0.0", "64:ff9b::7f00:1", "localhost"])
async def test_name_that_resolves_to_loopback_is_refused(address: str) -> None:
    async with (
        opened(allow_loopback=False, resolver=StaticResolver(images_example=address)) as downloader,
        Peer(saying(reply(IMAGE))) as peer,
    ):
        error = await failure(downloader, peer.url.replace("127.0.0.1", "images.example"))
        assert peer.accepted == 0
    assert "images.example is not at a public address" in error.message


@pytest.mark.parametrize(
    "address", ["10.0.0.1", "192.168.1.1", "169.254.169.254", "fe80::1%1", "fd00::1", "100.64.0.1"]
)
async def test_loopback_permission_allows_no_private_address(address: str) -> None:
    async with opened(resolver=StaticResolver(images_example=address)) as downloader:
        error = await failure(downloader, "http://images.example/a.png")
    assert "is not at a public address" in error.message


class Both(StaticResolver):
    """Returns the addresses of two fixed names for every name."""

    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[ResolveResult]:
        return [*await super().resolve("a.example", port), *await super().resolve("b.example", port)]


async def test_name_with_only_private_addresses_is_refused() -> None:
    async with opened(resolver=Both(a_example="10.0.0.1", b_example="fd00::1")) as downloader:
        error = await failure(downloader, "http://images.example/a.png")
    assert "is not at a public address" in error.message


@pytest.mark.parametrize("addresses", [("10.0.0.1", "127.0.0.1"), ("127.0.0.1", "fd00::1"), ("fe80::1", "127.0.0.1")])
async def test_only_allowed_addresses_of_a_name_are_tried(addresses: tuple[str, str]) -> None:
    resolver = Both(a_example=addresses[0], b_example=addresses[1])
    async with opened(resolver=resolver) as downloader, Peer(saying(reply(IMAGE))) as peer:
        assert await downloader.fetch(peer.url.replace("127.0.0.1", "images.example")) == IMAGE


async def test_name_rebound_between_redirects_is_refused() -> None:
    resolver = StaticResolver(images_example=["127.0.0.1", "10.0.0.1"])
    async with opened(resolver=resolver) as downloader, Peer(saying(reply(IMAGE))) as other:
        target = other.url.replace("127.0.0.1", "images.example")
        async with Peer(saying(redirect(target))) as peer:
            error = await failure(downloader, peer.url.replace("127.0.0.1", "images.example"))
        assert other.accepted == 0
    assert resolver.lookups == 2
    assert "images.example is not at a public address" in error.message


async def test_name_rebound_between_images_is_refused() -> None:
    resolver = StaticResolver(images_example=["127.0.0.1", "169.254.169.254"])
    async with opened(resolver=resolver) as downloader:
        async with Peer(saying(reply(IMAGE))) as peer:
            assert await downloader.fetch(peer.url.replace("127.0.0.1", "images.example")) == IMAGE
        error = await failure(
            downloader, "http://images.example/b.png"
        )  # another port, for which aiohttp has no cached address
    assert "images.example is not at a public address" in error.message


async def test_unknown_name_is_retried_then_reported() -> None:
    resolver = StaticResolver()
    async with opened(resolver=resolver, attempts=2) as downloader:
        error = await failure(downloader, "https://images.example/a.png")
    assert "can't reach images.example: its name can't be resolved" in error.message
    assert resolver.lookups == 2


# Proxies


async def proxying(connection: Connection) -> None:
    await connection.read_request()
    await connection.write(reply(IMAGE))
    connection.close()


async def test_url_is_checked_behind_a_proxy() -> None:
    async with Peer(proxying) as peer, opened(allow_loopback=False, proxy=peer.url) as downloader:
        assert await downloader.fetch("http://images.example/a.png") == IMAGE
        assert peer.requests[0].startswith(b"GET http://images.example/a.png HTTP/1.1\r\n")
        for host in [*SPELLINGS, "10.0.0.1", "[fd00::1]", "169.254.169.254", "metadata", "metadata.google.internal"]:
            error = await failure(downloader, f"http://{host}/a.png")
            assert "is not at a public address" in error.message
        assert peer.accepted == 1


async def test_every_redirect_is_checked_behind_a_proxy() -> None:
    script = saying(redirect("http://169.254.169.254/latest"))
    async with Peer(script) as peer, opened(allow_loopback=False, proxy=peer.url) as downloader:
        assert "is not at a public address" in (await failure(downloader, "http://images.example/a.png")).message
        assert peer.accepted == 1


async def test_refusing_proxy_is_reported_without_its_password() -> None:
    async with Peer(saying(reply(b"", status="407 Who are you"))) as peer:
        proxy = peer.url.replace("//", "//me:hidden@")
        async with opened(attempts=1, proxy=proxy) as downloader:
            error = await failure(downloader, "https://images.example/a.png")
    assert "the proxy refused" in error.message
    assert "hidden" not in str(error)


async def test_proxies_of_the_environment_are_ignored_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Peer(proxying) as proxy, Peer(saying(reply(IMAGE))) as peer:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        async with opened() as downloader:
            assert await downloader.fetch(peer.url) == IMAGE
            await asyncio.sleep(0)
        assert (proxy.accepted, peer.accepted) == (0, 1)

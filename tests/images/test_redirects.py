"""Where a link leads: through few redirects, never to http from https, never into a private network."""

import asyncio

import pytest
from aiohttp.abc import ResolveResult

from tests.images.scenes import Told, failure, opened, picture, redirect, reply, saying
from tests.http.peers import Line, Peer, trusting

WHOLE = picture()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_to_another_host_is_followed_with_empty_hands(status: int) -> None:
    async with opened(resolver=Told(other_example="127.0.0.1")) as downloads, Peer(saying(reply(WHOLE))) as there:
        elsewhere = there.url.replace("127.0.0.1", "other.example") + "b.png?k=1"
        script = saying(redirect(elsewhere, status)[:-2] + b"Set-Cookie: id=1\r\n\r\n")
        async with Peer(script) as here:
            assert await downloads.fetch(here.url + "a.png?secret=1") == WHOLE
    head = there.heard[0]
    assert head.startswith(b"GET /b.png?k=1 HTTP/1.1\r\nHost: other.example:")
    assert b"secret" not in head
    assert b"cookie" not in head.lower()
    assert b"referer" not in head.lower()


async def test_a_relative_redirect_is_followed() -> None:
    async with opened() as downloads, Peer(saying(redirect("../b%2fc.png?x=%7e"), reply(WHOLE))) as peer:
        assert await downloads.fetch(peer.url + "folder/a.png") == WHOLE
        assert peer.heard[1].startswith(b"GET /b%2fc.png?x=%7e HTTP")


async def test_five_redirects_are_followed_and_no_sixth() -> None:
    hops = [redirect(f"/{number}") for number in range(5)]
    async with opened() as downloads:
        async with Peer(saying(*hops, reply(WHOLE))) as peer:
            assert await downloads.fetch(peer.url) == WHOLE
            assert peer.accepted == 6
        async with Peer(saying(redirect("/again"))) as peer:
            assert "more than 5 redirects" in (await failure(downloads, peer.url)).message
            assert peer.accepted == 6


async def test_a_redirect_from_https_to_http_is_refused() -> None:
    async with opened(tls=trusting()) as downloads, Peer(saying(reply(WHOLE))) as plain:
        async with Peer(saying(redirect(plain.url)), tls=True) as peer:
            assert "redirects from https to http" in (await failure(downloads, peer.url)).message
        async with Peer(saying(redirect("/b", 307), reply(WHOLE)), tls=True) as peer:
            assert await downloads.fetch(peer.url) == WHOLE
        assert plain.accepted == 0


async def test_a_redirect_to_https_and_back_is_refused_too() -> None:
    async with opened(tls=trusting()) as downloads, Peer(saying(reply(WHOLE))) as end:
        async with Peer(saying(redirect(end.url)), tls=True) as middle, Peer(saying(redirect(middle.url))) as start:
            assert "redirects from https to http" in (await failure(downloads, start.url)).message
        assert end.accepted == 0


async def test_a_certificate_nobody_knows_is_refused_once() -> None:
    async with opened() as downloads, Peer(saying(reply(WHOLE)), tls=True) as peer:
        error = await failure(downloads, peer.url)
    assert "certificate of 127.0.0.1 is not trusted" in error.message
    assert "tried" not in error.message


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("", "redirects to nowhere"),
        ("data:image/png;base64,AAAA", "neither http, https nor data"),
        ("file:///etc/passwd", "neither http, https nor data"),
        ("ftp://pictures.example/a.png", "neither http, https nor data"),
        ("http://[broken", "redirects to what is no URL"),
        ("http://good\\@evil/", "redirects to what is no URL"),
        ("http://me:hidden@127.0.0.1/", "holds a user name or a password"),
        ("http://10.0.0.1/", "10.0.0.1 is not at a public address"),
        ("http://169.254.169.254/latest/meta-data/", "169.254.169.254 is not at a public address"),
        ("http://metadata.google.internal/", "metadata.google.internal is not at a public address"),
        ("http://[fd00:ec2::254]/", "fd00:ec2::254 is not at a public address"),
        ("//192.168.0.1/a.png", "192.168.0.1 is not at a public address"),
    ],
)
async def test_a_redirect_to_a_bad_place_is_refused_at_once(location: str, words: str) -> None:
    async with opened() as downloads, Peer(saying(redirect(location))) as peer:
        error = await failure(downloads, peer.url)
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
async def test_this_machine_is_not_asked_in_any_spelling(host: str) -> None:
    async with opened(allow_loopback=False) as downloads, Peer(saying(reply(WHOLE))) as peer:
        error = await failure(downloads, peer.url.replace("127.0.0.1", host))
        assert peer.accepted == 0
    assert "is not at a public address" in error.message
    assert "tried" not in error.message


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "::ffff:127.0.0.1", "0.0.0.0", "64:ff9b::7f00:1", "localhost"])
async def test_a_name_that_resolves_to_this_machine_is_stopped_at_the_socket(address: str) -> None:
    async with (
        opened(allow_loopback=False, resolver=Told(pictures_example=address)) as downloads,
        Peer(saying(reply(WHOLE))) as peer,
    ):
        error = await failure(downloads, peer.url.replace("127.0.0.1", "pictures.example"))
        assert peer.accepted == 0
    assert "pictures.example is not at a public address" in error.message


@pytest.mark.parametrize(
    "address", ["10.0.0.1", "192.168.1.1", "169.254.169.254", "fe80::1%1", "fd00::1", "100.64.0.1"]
)
async def test_only_this_machine_is_let_through_beside_a_gateway_on_it(address: str) -> None:
    async with opened(resolver=Told(pictures_example=address)) as downloads:
        error = await failure(downloads, "http://pictures.example/a.png")
    assert "is not at a public address" in error.message


class Both(Told):
    """Gives the addresses of two names for every name."""

    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[ResolveResult]:
        return [*await super().resolve("a.example", port), *await super().resolve("b.example", port)]


async def test_a_name_of_which_every_address_is_private_is_stopped() -> None:
    async with opened(resolver=Both(a_example="10.0.0.1", b_example="fd00::1")) as downloads:
        error = await failure(downloads, "http://pictures.example/a.png")
    assert "is not at a public address" in error.message


@pytest.mark.parametrize("addresses", [("10.0.0.1", "127.0.0.1"), ("127.0.0.1", "fd00::1"), ("fe80::1", "127.0.0.1")])
async def test_of_several_addresses_only_those_that_are_allowed_are_tried(addresses: tuple[str, str]) -> None:
    told = Both(a_example=addresses[0], b_example=addresses[1])
    async with opened(resolver=told) as downloads, Peer(saying(reply(WHOLE))) as peer:
        assert await downloads.fetch(peer.url.replace("127.0.0.1", "pictures.example")) == WHOLE


async def test_a_name_that_is_bound_anew_between_two_hops_is_stopped() -> None:
    told = Told(pictures_example=["127.0.0.1", "10.0.0.1"])
    async with opened(resolver=told) as downloads, Peer(saying(reply(WHOLE))) as other:
        elsewhere = other.url.replace("127.0.0.1", "pictures.example")
        async with Peer(saying(redirect(elsewhere))) as peer:
            error = await failure(downloads, peer.url.replace("127.0.0.1", "pictures.example"))
        assert other.accepted == 0
    assert told.asked == 2
    assert "pictures.example is not at a public address" in error.message


async def test_a_name_that_is_bound_anew_between_two_pictures_is_stopped() -> None:
    told = Told(pictures_example=["127.0.0.1", "169.254.169.254"])
    async with opened(resolver=told) as downloads:
        async with Peer(saying(reply(WHOLE))) as peer:
            assert await downloads.fetch(peer.url.replace("127.0.0.1", "pictures.example")) == WHOLE
        error = await failure(downloads, "http://pictures.example/b.png")  # another port: no answer is kept for it
    assert "pictures.example is not at a public address" in error.message


async def test_a_name_nobody_knows_is_tried_again_then_told() -> None:
    told = Told()
    async with opened(resolver=told, attempts=2) as downloads:
        error = await failure(downloads, "https://pictures.example/a.png")
    assert "the name pictures.example can't be resolved" in error.message
    assert told.asked == 2


# Proxies


async def proxying(line: Line) -> None:
    await line.hear()
    await line.say(reply(WHOLE))
    line.hang_up()


async def test_behind_a_proxy_the_url_is_looked_at_and_the_proxy_may_be_anywhere() -> None:
    async with Peer(proxying) as peer, opened(allow_loopback=False, proxy=peer.url) as downloads:
        assert await downloads.fetch("http://pictures.example/a.png") == WHOLE
        assert peer.heard[0].startswith(b"GET http://pictures.example/a.png HTTP/1.1\r\n")
        for host in [*SPELLINGS, "10.0.0.1", "[fd00::1]", "169.254.169.254", "metadata", "metadata.google.internal"]:
            error = await failure(downloads, f"http://{host}/a.png")
            assert "is not at a public address" in error.message
        assert peer.accepted == 1


async def test_behind_a_proxy_every_hop_is_looked_at() -> None:
    script = saying(redirect("http://169.254.169.254/latest"))
    async with Peer(script) as peer, opened(allow_loopback=False, proxy=peer.url) as downloads:
        assert "is not at a public address" in (await failure(downloads, "http://pictures.example/a.png")).message
        assert peer.accepted == 1


async def test_a_proxy_that_refuses_is_told_without_its_password() -> None:
    async with Peer(saying(reply(b"", status="407 Who are you"))) as peer:
        proxy = peer.url.replace("//", "//me:hidden@")
        async with opened(attempts=1, proxy=proxy) as downloads:
            error = await failure(downloads, "https://pictures.example/a.png")
    assert "the proxy refused" in error.message
    assert "hidden" not in str(error)


async def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Peer(proxying) as proxy, Peer(saying(reply(WHOLE))) as peer:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        async with opened() as downloads:
            assert await downloads.fetch(peer.url) == WHOLE
            await asyncio.sleep(0)
        assert (proxy.accepted, peer.accepted) == (0, 1)

"""Settings that can never work, over real sockets: the command names the cause on stderr and ends."""

from pathlib import Path

import pytest

from tests.support.command import Said, environment, nanobanana
from tests.support.held import BUYING_S
from tests.support.peers import Connection, Peer, Script, answering, fine, unused_port

pytestmark = pytest.mark.slow

PAGE = b"<!doctype html><html>Welcome</html>"
HEAD = b"Content-Type: text/html\r\nContent-Length: %d\r\n\r\n" % len(PAGE)
NOT_FOUND = answering(b"HTTP/1.1 404 Not Found\r\n", HEAD, PAGE)
WELCOME = answering(b"HTTP/1.1 200 OK\r\n", HEAD, PAGE)
ASKING = answering(b"HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n")
FORBIDDING = answering(b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n")


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanobanana_async.engine.outage.HOPELESS_AFTER_S", 0.2)  # after how long: tests/engine


async def generate(url: str, **variables: str) -> Said:
    """Generate an image at an address; the first line on stderr says that it is tried again."""
    environ = environment(APIMALL_API_KEY="ak-hidden", NANOBANANA_BASE_URL=url) | variables
    said = await nanobanana("generate", "a fox", "--timeout", "30", environ=environ)
    first, last = said.err.splitlines()
    assert said.code == 1
    assert first.endswith("; trying again")
    assert "hidden" not in said.err
    return Said(said.code, said.out, last)


async def test_unknown_name_is_named() -> None:
    said = await generate("https://gateway.invalid")
    assert "can't reach gateway.invalid: its name can't be resolved: " in said.complaint
    assert said.complaint.endswith(" (check --base-url and the network); nothing was bought")


async def test_untrusted_certificate_is_named() -> None:
    async with Peer(fine, tls=True) as peer:
        said = await generate(peer.url)
        assert peer.requests == []
    assert "its TLS certificate is not trusted: self-signed certificate" in said.complaint
    assert "SSL_CERT_FILE" in said.complaint


async def test_server_without_tls_is_named() -> None:
    async def plain(connection: Connection) -> None:
        await connection.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        await connection.ended()

    async with Peer(plain) as peer:
        said = await generate(peer.url.replace("http:", "https:"))
        place = peer.url.split("/")[2]
    assert f"can't reach {place}: it does not speak TLS" in said.complaint


@pytest.mark.parametrize(
    ("script", "why"),
    [(ASKING, "refused with 407: it asks for a user name and a password"), (FORBIDDING, "refused with 403")],
)
async def test_refusing_proxy_is_named_without_its_password(script: Script, why: str) -> None:
    async with Peer(script) as proxy:
        said = await generate("https://gateway.invalid", HTTPS_PROXY=proxy.url.replace("//", "//me:hidden@")[:-1])
    assert f"can't reach gateway.invalid: the proxy {why}" in said.complaint
    assert "HTTPS_PROXY" in said.complaint


async def test_unknown_name_of_the_proxy_is_named() -> None:
    said = await generate("https://gateway.invalid", HTTPS_PROXY="http://me:hidden@proxy.invalid:3128")
    assert "the name of the proxy can't be resolved" in said.complaint


@pytest.mark.parametrize(("script", "why"), [(NOT_FOUND, "[404]: <!doctype"), (WELCOME, "an HTML page")])
async def test_another_site_is_named(script: Script, why: str) -> None:
    async with Peer(script) as peer:
        said = await generate(peer.url)
    assert why in said.complaint
    assert "check --base-url" in said.complaint


async def test_batch_on_a_wrong_setting_stops_with_its_cause(tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text("a fox\nan owl\n")
    environ = environment(APIMALL_API_KEY="k", NANOBANANA_BASE_URL="https://gateway.invalid")
    said = await nanobanana("batch", "rows.txt", "-o", "out", environ=environ, folder=tmp_path)
    assert said.code == 3
    assert "the buying stopped: can't reach gateway.invalid: its name can't be resolved" in said.err
    assert "2 rows left" in said.err


async def test_fetch_on_a_wrong_setting_names_it() -> None:
    environ = environment(APIMALL_API_KEY="k", NANOBANANA_BASE_URL="https://gateway.invalid")
    said = await nanobanana("jobs", "fetch", "img_1", environ=environ)
    assert said.code == 1
    assert "its name can't be resolved" in said.err.splitlines()[-1]


async def test_refused_connection_is_named_at_once_and_at_the_end() -> None:
    place = f"127.0.0.1:{unused_port()}"
    environ = environment(APIMALL_API_KEY="k", NANOBANANA_BASE_URL=f"http://{place}")
    said = await nanobanana("generate", "a fox", "--timeout", BUYING_S, environ=environ)
    first, last = said.err.splitlines()
    check = "check the address (--base-url, NANOBANANA_BASE_URL)"
    assert first == f"nanobanana: can't reach {place}: Connection refused; {check}; trying again"
    assert f"(can't reach {place}: Connection refused); nothing was bought" in last

"""A certificate of another host, or of no authority, is refused before a byte is sent, in any environment."""

from collections.abc import Mapping

import pytest

from nanobanana_async.errors import TransportError
from tests.support import images
from tests.support.images import StaticResolver, failure
from tests.support.peers import (
    PATIENCE_S,
    Peer,
    create,
    fine,
    opened,
    trusting,
)

OVERRIDES: Mapping[str, str] = {
    "PYTHONHTTPSVERIFY": "0",
    "REQUESTS_CA_BUNDLE": "",
    "CURL_CA_BUNDLE": "",
    "NODE_TLS_REJECT_UNAUTHORIZED": "0",
    "AIOHTTP_NO_SSL_VERIFY": "1",
}


async def test_certificate_of_another_host_is_refused_before_a_byte_is_sent() -> None:
    resolver = StaticResolver(other_example="127.0.0.1")
    async with Peer(fine, tls=True) as peer:
        url = peer.url.replace("127.0.0.1", "other.example")
        async with opened(tls=trusting(), resolver=resolver) as api:
            with pytest.raises(TransportError, match="certificate") as caught:
                await api.send(create(url), timeout_s=PATIENCE_S)
        async with images.opened(tls=trusting(), resolver=resolver) as downloader:
            assert "certificate" in (await failure(downloader, url)).message
        assert peer.requests == []
    assert caught.value.possibly_sent is False


async def test_no_variable_of_the_environment_turns_verification_off(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in OVERRIDES.items():
        monkeypatch.setenv(name, value)
    async with Peer(fine, tls=True) as peer:
        async with opened() as api:
            with pytest.raises(TransportError, match="certificate") as caught:
                await api.send(create(peer.url), timeout_s=PATIENCE_S)
        async with images.opened() as downloader:
            assert "certificate" in (await failure(downloader, peer.url)).message
        assert peer.requests == []
    assert caught.value.possibly_sent is False

"""A gateway at http://emulator:PORT, as in a network of containers: reached with the user's consent only."""

import socket
from pathlib import Path
from typing import Any

import pytest

from nanobanana_async import ApiMall, ConfigurationError, DownloadError, Session
from nanobanana_async.emulator import API_KEY, Emulator, Fixed
from nanobanana_async.emulator.emulator import how_to
from nanobanana_async.gateways.contract import HttpRequest
from nanobanana_async.models import GeneratedImage


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resolve the names of two containers to this machine."""
    resolve = socket.getaddrinfo

    def resolved(host: Any, *rest: Any, **options: Any) -> Any:
        return resolve("127.0.0.1" if host in ("emulator", "other") else host, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolved)


@pytest.mark.slow
@pytest.mark.usefixtures("names")
async def test_images_of_an_allowed_host_are_saved_and_of_others_not(tmp_path: Path) -> None:
    async with Emulator(duration=Fixed(0.05), image_scale=0.1) as emulator:
        port = emulator.url.rpartition(":")[2]
        gateway = ApiMall(api_key=API_KEY, base_url=f"http://emulator:{port}", allow_http=True)
        async with Session(gateway) as session:
            result = await session.generate("a fox")
            (saved,) = await session.save(result, tmp_path)
            for host in ("other", "emulator:1", "127.0.0.1:1"):
                link = result.images[0].url.replace(f"emulator:{port}", host)
                with pytest.raises(DownloadError, match="public"):
                    await session.download(GeneratedImage(url=link))
    assert result.images[0].url.startswith(f"http://emulator:{port}/")
    assert saved.stat().st_size > 0


async def test_the_key_goes_to_the_allowed_origin_only() -> None:
    gateway = ApiMall(api_key=API_KEY, base_url="http://emulator:8080", allow_http=True)
    async with Session(gateway) as session:
        transport = session._components.transport
        for url in ("http://emulator:8081/x", "http://emulator.example:8080/x"):
            with pytest.raises(ConfigurationError, match="must use https"):
                await transport.send(HttpRequest(method="GET", url=url), timeout_s=1)


def test_the_emulator_says_who_can_reach_it() -> None:
    assert "every machine" not in how_to("http://127.0.0.1:80", "127.0.0.1")
    text = how_to("http://127.0.0.1:8080", "0.0.0.0")
    assert "It listens on 0.0.0.0: every machine and container" in text
    assert "NANOBANANA_ALLOW_HTTP=1" in text

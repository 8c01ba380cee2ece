"""The host of local reference images: as an ASGI application, as aiohttp routes, and as the publisher of a session."""

import asyncio
import os
from pathlib import Path

import pytest
from aiohttp import ClientSession, web

from nanobanana_async import ConfigurationError, NanoBananaError
from nanobanana_async.errors import SaveError
from nanobanana_async.webhooks import ReferenceHost
from tests.support.callbacks import ask, bound, served
from tests.support.images import make_image
from tests.support.loopback import emulated, quick
from tests.support.references import large_png, sha256, written

PUBLIC = "https://app.example/hooks"


def host(tmp_path: Path, public_url: str = PUBLIC, keep_s: float = 60.0) -> ReferenceHost:
    return ReferenceHost(public_url=public_url, folder=tmp_path / "references", keep_s=keep_s)


@pytest.mark.parametrize(
    ("kind", "content_type"), [("png", "image/png"), ("jpeg", "image/jpeg"), ("webp", "image/webp")]
)
async def test_published_image_is_served_with_its_type(tmp_path: Path, kind: str, content_type: str) -> None:
    content = make_image(kind)
    url = await host(tmp_path).publish(content, sha256(content))
    assert url.startswith(f"{PUBLIC}/references/{sha256(content)}.")
    another_worker = host(tmp_path)
    for path in (url.removeprefix("https://app.example"), url.removeprefix(PUBLIC)):
        answer = await ask(another_worker, path, method="GET")
        assert (answer.status, answer.body) == (200, content)
        headers = dict(answer.headers)
        assert headers[b"content-type"] == f"image/{kind}".encode()
        assert headers[b"content-length"] == str(len(content)).encode()
    head = await ask(another_worker, path, method="HEAD")
    assert (head.status, head.body) == (200, b"")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/references/{}.png"),
        ("GET", "/references/{}.jpg"),
        ("GET", "/references/{}.txt"),
        ("GET", "/references/{}"),
        ("GET", "/references/../{}.png"),
        ("GET", "/references/{}.png/"),
        ("GET", "/callbacks/{}.png"),
        ("GET", "/references/" + "0" * 64 + ".png"),
    ],
)
async def test_any_other_path_or_method_is_not_found(tmp_path: Path, method: str, path: str) -> None:
    content = make_image()
    server = host(tmp_path)
    await server.publish(content, sha256(content))
    assert (await ask(server, path.format(sha256(content)), method=method)).status == 404


async def test_image_not_needed_for_long_is_removed(tmp_path: Path) -> None:
    old, new = make_image(seed=1), make_image(seed=2)
    await host(tmp_path).publish(old, sha256(old))
    (foreign := tmp_path / "references" / "notes.txt").write_text("mine")
    for file in (tmp_path / "references").iterdir():
        os.utime(file, (1, 1))
    await host(tmp_path).publish(new, sha256(new))
    assert {file.name for file in (tmp_path / "references").iterdir()} == {f"{sha256(new)}.png", foreign.name}


async def test_hosts_remove_old_images_of_one_folder_together(tmp_path: Path) -> None:
    (folder := tmp_path / "references").mkdir()
    for number in range(300):
        os.utime(written(folder / f"{sha256(b'%d' % number)}.png", b""), (1, 1))
    images = [make_image(seed=seed) for seed in range(4)]
    async with asyncio.TaskGroup() as group:
        for image in images:
            group.create_task(host(tmp_path).publish(image, sha256(image)))
    assert len(list(folder.iterdir())) == 4


async def test_image_that_is_published_again_is_kept(tmp_path: Path) -> None:
    content = make_image()
    url = await host(tmp_path).publish(content, sha256(content))
    (file,) = (tmp_path / "references").iterdir()
    os.utime(file, (1, 1))
    assert await host(tmp_path).publish(content, sha256(content)) == url
    assert file.read_bytes() == content


async def test_job_gets_the_url_under_which_aiohttp_serves_the_image(tmp_path: Path) -> None:
    content = large_png(2 << 20)
    listener, address = bound()
    app = web.Application()
    server = host(tmp_path, f"{address}/hooks/")
    app.add_routes(server.aiohttp_routes())
    async with served(app, listener), emulated() as emulator:
        async with quick(emulator, "defapi", references=server) as session:
            await session.generate("a fox", images=[content])
        url = f"{address}/hooks/references/{sha256(content)}.png"
        async with ClientSession() as http, http.get(url) as answer:
            assert (answer.status, answer.content_type) == (200, "image/png")
            assert await answer.read() == content
        async with ClientSession() as http, http.get(f"{url}x") as answer:
            assert answer.status == 404


async def test_folder_that_cannot_be_written_buys_nothing(tmp_path: Path) -> None:
    (tmp_path / "references").write_text("a file")
    async with emulated() as emulator, quick(emulator, "defapi", references=host(tmp_path)) as session:
        with pytest.raises(NanoBananaError) as caught:
            await session.generate("a fox", images=[make_image()])
        assert isinstance(caught.value, SaveError)
        assert emulator.stats().creates_received == 0


def test_wrong_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="public_url"):
        host(tmp_path, "app.example")
    with pytest.raises(ConfigurationError, match="keep_s"):
        host(tmp_path, keep_s=0)

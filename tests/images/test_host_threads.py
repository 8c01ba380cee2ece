"""A host application whose threads all wait for this library, which does its work in threads of its own."""

import asyncio
import concurrent.futures
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest

from nanobanana_async import ApiMall, GeneratedImage, GenerationResult, Session
from nanobanana_async.images import downloader as downloader_module
from tests.support.images import make_image, reply, saying
from tests.support.peers import Peer

POOL = 40  # threads in anyio's shared pool, which plain `def` endpoints may all use at once
PATIENCE_S = 120.0

Call = Callable[[Session, str, Path, int], Coroutine[Any, Any, Any]]


async def _download(session: Session, url: str, _: Path, number: int) -> bytes:
    return await session.download(GeneratedImage(url=f"{url}{number}.png"))


async def _save(session: Session, url: str, folder: Path, number: int) -> list[Path]:
    images = (GeneratedImage(url=f"{url}{number}.png"),)
    return await session.save(GenerationResult(key=f"k{number}", task_id="t", images=images), folder)


async def _download_inline(session: Session, _: str, __: Path, number: int) -> bytes:
    import base64

    inline = f"data:image/png;base64,{base64.b64encode(make_image(seed=number)).decode()}"
    return await session.download(GeneratedImage(url=inline))


@pytest.mark.parametrize("call", [_download, _save, _download_inline])
async def test_forty_blocked_host_threads_are_all_served(call: Call, tmp_path: Path) -> None:
    limiter = anyio.to_thread.current_default_thread_limiter()
    assert limiter.total_tokens == POOL
    done: list[object] = []
    async with Peer(saying(reply(make_image()))) as peer:
        gateway = ApiMall(api_key="k" * 8, base_url=peer.url.rstrip("/"))
        async with Session(gateway) as session:
            started = asyncio.Event()

            def endpoint(number: int) -> None:
                anyio.from_thread.run(all_started)
                done.append(anyio.from_thread.run(call, session, peer.url, tmp_path, number))

            async def all_started() -> None:
                if limiter.borrowed_tokens == POOL:
                    started.set()
                await started.wait()

            with anyio.fail_after(PATIENCE_S):
                async with anyio.create_task_group() as group:
                    for number in range(POOL):
                        group.start_soon(anyio.to_thread.run_sync, endpoint, number)
    assert len(done) == POOL


async def test_names_resolve_while_the_default_executor_is_full() -> None:
    """asyncio resolves names in its default executor, which a host may fill too."""
    loop = asyncio.get_running_loop()
    with concurrent.futures.ThreadPoolExecutor(2) as executor:
        loop.set_default_executor(executor)
        async with Peer(saying(reply(make_image()))) as peer:
            port = peer.url.rsplit(":", 1)[1].rstrip("/")
            async with Session(ApiMall(api_key="k" * 8, base_url=peer.url.rstrip("/"))) as session:

                def endpoint() -> bytes:
                    image = GeneratedImage(url=f"http://localhost:{port}/1.png")
                    return asyncio.run_coroutine_threadsafe(session.download(image), loop).result(PATIENCE_S)

                async with asyncio.timeout(PATIENCE_S):
                    async with asyncio.TaskGroup() as group:
                        calls = [group.create_task(asyncio.to_thread(endpoint)) for _ in range(2)]
    assert [each.result() for each in calls] == [make_image(), make_image()]


def test_no_module_uses_a_thread_pool_of_the_host() -> None:
    """The command line and the servers are exempt: they are the host itself."""
    package = Path(downloader_module.__file__).parent.parent
    pools = ("to_thread.run_sync", "asyncio.to_thread", "run_in_executor")
    files = {file.relative_to(package).as_posix(): file.read_text("utf-8") for file in package.rglob("*.py")}
    borrowers = {name for name, text in files.items() if any(pool in text for pool in pools)}
    # The emulator has an executor of its own.
    hosts = ("cli/", "serve/", "mcp_server/")
    assert {name for name in borrowers if not name.startswith(hosts)} == {"http/threads.py", "emulator/server.py"}
    assert files["http/threads.py"].count("to_thread.run_sync") == files["http/threads.py"].count("limiter=self")

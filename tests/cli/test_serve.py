"""`nanobanana serve`: who may reach it, where its tokens come from, and how it stops."""

import asyncio
import os
import socket
import sys
from importlib.util import find_spec
from pathlib import Path

import aiohttp
import pytest

from nanobanana_async.cli import app as cli
from nanobanana_async.emulator import Emulator
from tests.support.held import HeldJobs
from tests.support.ledger_file import written
from tests.web.servers import Server, free_port, pointed_at, running

pytestmark = [
    pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is missing: pip install -e '.[serve]'")
    for package in ("starlette", "uvicorn", "python_multipart")
]
SECRET = "0123456789-abcdef"


@pytest.fixture
def keyed(isolated: None, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Set an API key, of a gateway that no test here reaches."""
    del isolated
    monkeypatch.setenv("DEFAPI_API_KEY", "a-key-of-defapi")
    monkeypatch.setenv("NANOBANANA_LEDGER", "jobs.sqlite")
    return monkeypatch


def tokens_file(folder: Path, text: str, mode: int = 0o600) -> str:
    """Write a file of tokens and return its path."""
    path = folder / "tokens.txt"
    path.write_text(text)
    path.chmod(mode)
    return str(path)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "studio.example"])
def test_other_address_without_tokens_is_refused(
    host: str, keyed: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["serve", "--host", host]) == 2
    said = capsys.readouterr().err
    assert f"--host {host} lets other machines buy images" in said
    assert "NANOBANANA_SERVE_TOKENS" in said


@pytest.mark.skipif(os.name != "posix", reason="files have no such permissions here")
def test_tokens_that_others_can_read_are_refused(
    tmp_path: Path, keyed: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["serve", "--tokens", tokens_file(tmp_path, f"ann:{SECRET}", 0o644)]) == 2
    said = capsys.readouterr().err
    assert "chmod 600" in said
    assert SECRET not in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tokens", "missing.txt"], "missing.txt can't be read"),
        (["--model", "=nano-banana-pro"], "--model must be MODEL or OTHER=MODEL"),
        (["--model", "gpt-image-1="], "--model must be MODEL or OTHER=MODEL"),
        (["--port", "70000"], "--port must be a number from 0 to 65535"),
        (["--answer-within", "0"], "--answer-within"),
    ],
)
def test_wrong_option_is_refused_before_anything_is_opened(
    arguments: list[str], said: str, keyed: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["serve", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_wrong_tokens_of_the_environment_are_refused_unseen(
    keyed: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keyed.setenv("NANOBANANA_SERVE_TOKENS", f"ann:{SECRET} ben:{SECRET}")
    assert cli.run(["serve", "--host", "0.0.0.0"]) == 2
    said = capsys.readouterr().err
    assert "two tokens have the same name or text" in said
    assert SECRET not in said


def test_port_in_use_is_refused(keyed: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.run(["serve", "--port", str(port)]) == 2
    assert f"can't listen on 127.0.0.1 port {port}: another program listens there: end it" in capsys.readouterr().err


def test_help_needs_no_package_of_the_extra(keyed: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    ours = ("nanobanana_async.serve", "nanobanana_async.cli.serving")
    for module in [name for name in sys.modules if name.startswith(ours)]:
        keyed.delitem(sys.modules, module)
    for package in ("starlette", "starlette.applications", "uvicorn"):
        keyed.setitem(sys.modules, package, None)
    assert cli.run(["serve", "--help"]) == 0
    assert cli.run(["serve"]) == 2
    assert "pip install 'nanobanana-async[serve]'" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("real_processes")
async def test_stop_answers_waiting_requests_and_the_next_server_has_their_jobs(tmp_path: Path) -> None:
    held = HeldJobs()
    async with Emulator(duration=held, image_scale=0.02) as emulator:
        port, ledger = free_port(), tmp_path / "jobs.sqlite"
        environ = {**pointed_at(emulator), "NANOBANANA_SERVE_TOKENS": f"ann:{SECRET}", "NANOBANANA_LEDGER": str(ledger)}
        server = Server(["-m", "nanobanana_async", "serve", "--port", str(port)], port, environ, tmp_path)
        order = {"prompt": "a fox", "response_format": "url"}
        headers = {"Authorization": f"Bearer {SECRET}", "Idempotency-Key": "order-1"}
        async with running(server), aiohttp.ClientSession(server.url, headers=headers) as http:
            async with asyncio.TaskGroup() as group:
                waiting = group.create_task(status_of(http, order))
                while not emulator.stats().creates_accepted:  # noqa: ASYNC110 - the emulator has no event for it
                    await asyncio.sleep(0.01)
                await server.stop()
            assert waiting.result() == (503, "server_stopping")
            held.release(emulator)
            await server.start()
            assert await status_of(http, order) == (200, None)
        assert SECRET not in server.log_text()
        assert "1 token" in server.log_text()
        assert len(await written(ledger)) == 1
        assert (emulator.stats().creates_accepted, emulator.stats().double_charges) == (1, 0)


async def status_of(http: aiohttp.ClientSession, order: dict[str, str]) -> tuple[int, str | None]:
    """Return the status of the answer to an order, and the code of its error."""
    async with http.post("/v1/images/generations", json=order) as answer:
        body = await answer.json()
        return answer.status, body["error"]["code"] if "error" in body else None

"""The command line prints and writes no key and no control characters."""

import asyncio
import base64
import json
import threading
import time
import unicodedata
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from nanobanana_async.cli import app as cli
from nanobanana_async.cli.result_lines import link_of
from nanobanana_async.emulator import Emulator, Fixed
from nanobanana_async.escaping import one_line
from nanobanana_async.models import GeneratedImage
from tests.secrecy.canary import KEY, seen
from tests.support.command import environment, in_a_process

ODD = "\x1b]0;owned\x07\x9b2J\r\x7f\u202e\u2028\x85end"
PNG = base64.b64encode(
    bytes.fromhex(
        "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c489"
        "0000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082"
    )
).decode()
INLINE = f"data:image/png;base64,{PNG}"


class Answering(BaseHTTPRequestHandler):
    """Answers each create and each poll with the answer that the test sets."""

    create: tuple[int, Any] = (200, {})
    poll: tuple[int, Any] = (200, {})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(*type(self).create)

    def do_GET(self) -> None:
        self._answer(*type(self).poll)

    def _answer(self, status: int, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Request-Id", KEY)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name
        pass


@pytest.fixture
def gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Answering]]:
    class Own(Answering):
        pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Own)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NANOBANANA_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("NANOBANANA_GATEWAY", "defapi")
    monkeypatch.setenv("NANOBANANA_LEDGER", str(tmp_path / "own.sqlite"))
    monkeypatch.setenv("NANOBANANA_EXPECTED_JOB_S", "0.05")
    monkeypatch.setenv("DEFAPI_API_KEY", KEY)
    Own.create = (200, {"code": 0, "data": {"task_id": "task-1"}})
    yield Own
    server.shutdown()
    thread.join()
    server.server_close()


def success(image: str, **more: Any) -> tuple[int, Any]:
    return 200, {"code": 0, "data": {"task_id": "task-1", "status": "success", "result": [{"image": image}], **more}}


def failure(message: str) -> tuple[int, Any]:
    return 200, {"code": 0, "data": {"task_id": "task-1", "status": "failed", "status_reason": {"message": message}}}


def obeyed(text: str) -> list[str]:
    """Return the control characters of a text, except newlines and tabs."""
    return [c for c in text if c not in "\n\t" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp", "Co")]


class CliOutput:
    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    async def __call__(self, *tokens: str, code: int) -> str:
        ended = await asyncio.to_thread(cli.run, tokens)
        said = self._capsys.readouterr()
        assert ended == code, said.err
        assert obeyed(said.out) == []
        assert obeyed(said.err) == []
        assert not seen(said.out + said.err)
        return said.out


@pytest.fixture
def cli_output(capsys: pytest.CaptureFixture[str]) -> CliOutput:
    return CliOutput(capsys)


@pytest.mark.slow
async def test_an_inline_image_with_escape_sequences_is_refused(
    gateway: type[Answering], cli_output: CliOutput
) -> None:
    gateway.poll = success(f"{INLINE}{ODD}\nhttps://evil.example/second-line")
    assert await cli_output("generate", "a fox", "--timeout", "1", code=1) == ""


@pytest.mark.slow
async def test_an_inline_image_is_one_line_in_a_pipe(gateway: type[Answering], cli_output: CliOutput) -> None:
    gateway.poll = success("\r\n".join([INLINE[:60], INLINE[60:]]))
    assert await cli_output("generate", "a fox", code=0) == f"{INLINE}\n"


@pytest.mark.slow
async def test_gateway_messages_are_printed_without_control_characters(
    gateway: type[Answering], cli_output: CliOutput
) -> None:
    for message in (ODD, KEY):
        gateway.poll = failure(message)
        await cli_output("generate", f"a fox {ODD}", f"two foxes {ODD}", code=1)
        gateway.create = (402, {"code": 402, "message": message, "request_id": message})
        await cli_output("generate", f"a fox {ODD}", code=1)
        gateway.create = (200, {"code": 0, "data": {"task_id": "task-1"}})
    for tokens in (["generate", "x", "--gateway", ODD], [ODD], ["jobs", "--ledger", ODD], ["jobs", "show", ODD]):
        await cli_output(*tokens, code=2)
    await cli_output("batch", f"{ODD}.txt", "-o", "out", code=2)


@pytest.mark.slow
async def test_batch_files_and_listings_have_no_key_or_control_characters(
    gateway: type[Answering], cli_output: CliOutput, tmp_path: Path
) -> None:
    row = {"prompt": f"a fox {ODD}", "key": "own", "metadata": {ODD: ODD}}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row), encoding="utf-8")
    folder = "out\x1b[2J\u202e"
    gateway.create = (200, {"code": 0, "data": {"task_id": "task-1", "model": KEY, "request_id": KEY}})
    gateway.poll = failure(f"no {KEY} {ODD}")
    await cli_output("batch", "rows.jsonl", "-o", folder, code=1)
    gateway.poll = success(INLINE, task_id="task-2", model=f"m {KEY}", request_id=KEY, consumed=KEY)
    gateway.create = (200, {"code": 0, "data": {"task_id": "task-2", "model": KEY, "request_id": KEY}})
    said = await cli_output("batch", "rows.jsonl", "-o", folder, "--retry-failed", code=0)
    assert len(said.splitlines()) == 1
    ledger = f"{folder}/jobs.sqlite"
    await cli_output("jobs", "--ledger", ledger, code=0)
    assert (
        json.loads(await cli_output("jobs", "--json", "--ledger", ledger, code=0))["request"]["prompt"] == row["prompt"]
    )
    await cli_output("jobs", "show", json.loads(results_of(tmp_path / folder))["job_key"], "--ledger", ledger, code=0)
    assert obeyed(results_of(tmp_path / folder)) == []
    assert json.loads(results_of(tmp_path / folder))["metadata"] == {ODD: ODD}
    every = [path for path in (tmp_path / folder).rglob("*") if path.is_file()]
    assert {"results.jsonl", "index.html", "SHA256SUMS", "jobs.sqlite"} <= {path.name for path in every}
    assert [path.name for path in every if seen(path.read_bytes().decode("latin-1"))] == []


def results_of(folder: Path) -> str:
    return (folder / "results.jsonl").read_text(encoding="utf-8")


async def test_refused_environment_variables_show_no_key(
    gateway: type[Answering], cli_output: CliOutput, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (
        ("NANOBANANA_BASE_URL", f"https://me:{KEY.replace('/', '')}@gateway.example"),
        ("NANOBANANA_EXPECTED_JOB_S", KEY),
        ("DEFAPI_API_KEY", f"{KEY} {KEY}"),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            await cli_output("generate", "a fox", code=2)


@pytest.mark.slow
async def test_unencodable_characters_do_not_end_the_command(tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text("a fox", encoding="utf-8")
    async with Emulator(duration=Fixed(0.05)) as emulator:
        environ = environment(emulator, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
        said = await in_a_process("batch", "rows.txt", "-o", "füchse", environ=environ, folder=tmp_path)
    assert said.code == 0, said.err
    assert "f\\xfcchse/images/" in said.out


def test_a_large_inline_image_is_printed_quickly() -> None:
    image = GeneratedImage(url=f"data:image/png;base64,{'A' * 20_000_000}")
    began = time.process_time()
    assert len(repr(image)) < 300
    assert len(link_of(image, terminal=True)) < 200
    assert link_of(image, terminal=False) == image.url
    assert one_line(image.url) == image.url
    assert time.process_time() - began < 1.0

"""The released client of MCP over stdio against the command in a process, with the emulator behind it."""

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nanobanana_async.emulator import Emulator, Fixed
from tests.support.command import environment
from tests.support.held import HeldJobs
from tests.support.lazy import lazy
from tests.support.loopback import emulated, until

if TYPE_CHECKING:
    import mcp
    import mcp.client.stdio
    import mcp.shared.exceptions
    import mcp_types
else:
    mcp, mcp_types = lazy("mcp"), lazy("mcp_types")

pytestmark = pytest.mark.slow

PROMPT = {"prompt": "a harbour at dawn", "resolution": "1K"}


class Server:
    """Starts `nanobanana mcp` as a client does, any number of times with one ledger and one folder."""

    def __init__(self, emulator: Emulator, folder: Path, *options: str, max_credits: int = 10_000) -> None:
        self.folder = folder / "images"
        self.log = folder / "stderr.txt"
        arguments = ["-m", "nanobanana_async", "mcp", "-o", str(self.folder), "--max-credits", str(max_credits)]
        environ = environment(emulator, NANOBANANA_LEDGER=str(folder / "jobs.sqlite"), NANOBANANA_ALLOW_HTTP="1")
        self.parameters = mcp.StdioServerParameters(command=sys.executable, args=[*arguments, *options], env=environ)

    @contextlib.asynccontextmanager
    async def started(self) -> "AsyncIterator[mcp.Client]":
        """Start the command and connect to it; at the end it has printed no trouble."""
        with self.log.open("w") as log:
            async with mcp.Client(mcp.client.stdio.stdio_client(self.parameters, errlog=log)) as client:
                yield client
        assert self.log.read_text() == ""


def text_of(answer: "mcp_types.CallToolResult") -> str:
    return "\n".join(each.text for each in answer.content if isinstance(each, mcp_types.TextContent))


def files_of(answer: "mcp_types.CallToolResult") -> list[Path]:
    """Return the files that an answer names; fails for an error."""
    assert not answer.is_error, text_of(answer)
    return [Path(line) for line in text_of(answer).splitlines() if line.startswith("/")]


async def test_calls_that_ended_early_are_joined_by_later_ones(tmp_path: Path) -> None:
    percents: list[float] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        assert total == 100
        assert message
        percents.append(progress)

    call: dict[str, Any] = {"request_id": "harbour", **PROMPT}
    held = HeldJobs()
    async with emulated(duration=held) as emulator:
        server = Server(emulator, tmp_path)
        async with server.started() as client:
            with pytest.raises(mcp.shared.exceptions.MCPError):  # the client gives up, and cancels the call
                await client.call_tool("generate_image", call, read_timeout_seconds=0.3)
            early = await client.call_tool("generate_image", call | {"wait_s": 1.2}, progress_callback=on_progress)
            assert not early.is_error
            assert "call generate_image again with this request_id" in text_of(early)
            held.release(emulator)
            both = await together(client, [call, call])
        assert emulator.stats().creates_accepted == 1
    assert [files_of(answer) for answer in both] == [[server.folder / "harbour.png"]] * 2
    assert (server.folder / "harbour.png").is_file()
    assert "harbour: done, 8 credits; 8 of 10,000 credits of the budget" in text_of(both[0])
    (preview,) = [each for each in both[0].content if isinstance(each, mcp_types.ImageContent)]
    assert preview.mime_type == "image/webp"
    assert percents
    assert percents == sorted(set(percents))


@pytest.mark.usefixtures("real_processes")
async def test_server_that_starts_again_continues_the_job(tmp_path: Path) -> None:
    held = HeldJobs()
    async with emulated(duration=held) as emulator:
        server = Server(emulator, tmp_path)
        call: dict[str, Any] = {"request_id": "harbour", **PROMPT}
        async with server.started() as client:
            assert not files_of(await client.call_tool("generate_image", call | {"wait_s": 0.7}))
            await until(lambda: emulator.stats().creates_accepted == 1, timeout_s=40)
        held.release(emulator)
        async with server.started() as client:
            assert files_of(await client.call_tool("get_image", {"request_id": "harbour"}))
            assert files_of(await client.call_tool("generate_image", call)) == [server.folder / "harbour.png"]
            listed = text_of(await client.call_tool("list_images", {}))
        assert emulator.stats().creates_accepted == 1
    assert listed.startswith("harbour: succeeded, 8 credits, ")
    assert f"'a harbour at dawn': {server.folder / 'harbour.png'}" in listed


async def test_what_may_not_be_bought_is_refused_with_advice(tmp_path: Path) -> None:
    outside, allowed = tmp_path / "private.png", tmp_path / "allowed"
    outside.write_bytes(b"\x89PNG\r\n\x1a\n")
    allowed.mkdir()
    (allowed / "link.png").symlink_to(outside)
    async with emulated() as emulator:
        server = Server(emulator, tmp_path, "--allow-folder", str(allowed), max_credits=10)
        async with server.started() as client:
            for path in (outside, allowed / "link.png", allowed / ".." / "private.png"):
                edit = {"request_id": "edit", "prompt": "as a watercolour", "images": [str(path)]}
                answer = await client.call_tool("edit_image", edit)
                assert answer.is_error
                assert "outside of the 2 allowed folders" in text_of(answer)
            blocked = await client.call_tool("generate_image", {"request_id": "no", "prompt": "[blocked] a riot"})
            assert blocked.is_error
            assert "the prompt was refused" in text_of(blocked)
            assert emulator.stats().creates_accepted == 0

            assert files_of(await client.call_tool("generate_image", {"request_id": "one", **PROMPT}))
            beyond = await client.call_tool("generate_image", {"request_id": "two", **PROMPT})
            other = await client.call_tool("generate_image", {"request_id": "one", "prompt": "another"})
        assert emulator.stats().creates_accepted == 1
    assert beyond.is_error
    assert text_of(beyond).startswith("the budget is reached: --max-credits is 10, 8 are spent, and a job for 8")
    assert "nothing was bought" in text_of(beyond)
    assert other.is_error
    assert "request_id one belongs to another request" in text_of(other)


async def test_signal_ends_the_command_while_stdin_is_open(tmp_path: Path) -> None:
    async with emulated(duration=Fixed(60.0)) as emulator:
        server = Server(emulator, tmp_path)
        parameters = server.parameters
        process = await asyncio.create_subprocess_exec(
            parameters.command,
            *parameters.args,
            env=parameters.env,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
        process.stdin.write(json.dumps({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello}).encode())
        process.stdin.write(b"\n")
        assert json.loads(await process.stdout.readline())["result"]["serverInfo"]["name"] == "nanobanana"
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(10):
            assert await process.wait() == 130
        assert await process.stdout.read() == b""
        process.stdin.close()


async def together(client: "mcp.Client", calls: Sequence[dict[str, Any]]) -> "list[mcp_types.CallToolResult]":
    """Make calls of generate_image at once and return their answers."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(client.call_tool("generate_image", call)) for call in calls]
    return [task.result() for task in tasks]

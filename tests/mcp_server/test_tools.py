"""What the tools answer, with the client in this process."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nanobanana_async import Budget, ConfigurationError
from nanobanana_async.emulator import Emulator, Fixed, Script
from nanobanana_async.emulator.faults import error, reset
from nanobanana_async.ledger.location import ledger_at
from nanobanana_async.mcp_server.references import to_allowed_folders
from nanobanana_async.mcp_server.service import Service, ServiceOptions
from tests.support.held import HeldJobs
from tests.support.images import make_image
from tests.support.lazy import lazy
from tests.support.loopback import GatewayName, emulated, quick, received

if TYPE_CHECKING:
    import mcp
    import mcp_types
else:
    mcp, mcp_types = lazy("mcp"), lazy("mcp_types")


@contextlib.asynccontextmanager
async def connected(
    emulator: Emulator,
    folder: Path,
    name: GatewayName = "apimall",
    *,
    max_credits: int | None = 1000,
    budget: Budget | None = None,
) -> "AsyncIterator[mcp.Client]":
    """Open a server with a ledger and a folder, and connect a client to it."""
    from nanobanana_async.mcp_server.server import ImageServer  # it imports mcp too

    cap = None if max_credits is None else Decimal(max_credits)
    options = ServiceOptions(folder=folder / "images", batch="mcp", max_credits=cap, budget=budget, group="models")
    options.folder.mkdir(exist_ok=True)
    ledger = ledger_at(folder / "jobs.sqlite")
    async with Service.opened(quick(emulator, name, ledger=ledger), ledger, options) as service:
        server = ImageServer(service, to_allowed_folders([options.folder]))
        async with mcp.Client(server.server) as client:
            yield client


def text_of(answer: "mcp_types.CallToolResult") -> str:
    return "\n".join(each.text for each in answer.content if isinstance(each, mcp_types.TextContent))


async def good(client: "mcp.Client", tool: str, **arguments: Any) -> str:
    """Call a tool and return its text; fails for an error."""
    answer = await client.call_tool(tool, arguments)
    assert not answer.is_error, text_of(answer)
    return text_of(answer)


async def bad(client: "mcp.Client", tool: str, **arguments: Any) -> str:
    """Call a tool and return the text of its error."""
    answer = await client.call_tool(tool, arguments)
    assert answer.is_error, text_of(answer)
    return text_of(answer)


async def test_tools_state_what_they_take(tmp_path: Path) -> None:
    async with emulated() as emulator, connected(emulator, tmp_path) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert list(tools) == ["generate_image", "edit_image", "get_image", "list_images"]
    required = {name: set(tool.input_schema.get("required", ())) for name, tool in tools.items()}
    assert required == {
        "generate_image": {"request_id", "prompt"},
        "edit_image": {"request_id", "prompt", "images"},
        "get_image": {"request_id"},
        "list_images": set(),
    }
    assert tools["generate_image"].input_schema["properties"]["wait_s"]["default"] == 45
    reads_only = {name: each.annotations and each.annotations.read_only_hint for name, each in tools.items()}
    assert reads_only == {"generate_image": False, "edit_image": False, "get_image": True, "list_images": True}


async def test_wrong_arguments_buy_nothing(tmp_path: Path) -> None:
    async with emulated() as emulator, connected(emulator, tmp_path) as client:
        assert "request_id" in await bad(client, "generate_image", request_id="a b", prompt="a fox")
        assert "prompt" in await bad(client, "generate_image", request_id="a")
        assert "num_images" in await bad(client, "generate_image", request_id="a", prompt="a fox", num_images=7)
        assert "size" in await bad(client, "generate_image", request_id="a", prompt="a fox", size="big")
        assert "aspect_ratio" in await bad(client, "generate_image", request_id="a", prompt="a fox", aspect_ratio="9:0")
        assert "there is no tool" in await bad(client, "buy")
        assert "nothing was bought under request_id a" in await bad(client, "get_image", request_id="a")
        assert emulator.stats().creates_received == 0


async def test_earlier_image_is_edited_once(tmp_path: Path) -> None:
    async with emulated() as emulator:
        async with connected(emulator, tmp_path) as client:
            image = (await good(client, "generate_image", request_id="fox", prompt="a fox")).splitlines()[1]
            await good(client, "edit_image", request_id="oil", prompt="in oil", images=[image])
        async with connected(emulator, tmp_path) as client:
            again = await good(client, "edit_image", request_id="oil", prompt="in oil", images=[image])
            (tmp_path / "images" / "fox.png").write_bytes(make_image(size=(9, 9)))
            other = await bad(client, "edit_image", request_id="oil", prompt="in oil", images=[image])
        assert emulator.stats().creates_accepted == 2
    assert str(tmp_path / "images" / "oil.png") in again
    assert "request_id oil belongs to another request" in other


@pytest.mark.parametrize("name", ["apimall", "defapi"])
async def test_job_of_a_server_that_ended_is_collected_with_no_purchase(tmp_path: Path, name: GatewayName) -> None:
    held = HeldJobs()
    async with emulated(duration=held, data_uris=True) as emulator:
        async with connected(emulator, tmp_path, name) as client:
            begun = await good(client, "generate_image", request_id="fox", prompt="a fox", wait_s=0.2)
            assert "call generate_image again" in begun
            await received(emulator)
        async with connected(emulator, tmp_path, name) as client:
            assert "fox: running" in await good(client, "list_images")
            waited = await good(client, "get_image", request_id="fox", wait_s=0)
            assert "call get_image again" in waited
            held.release(emulator)
            collected = await good(client, "get_image", request_id="fox")
            listed = await good(client, "list_images")
        assert emulator.stats().creates_accepted == 1
    assert collected.splitlines()[1] == str(tmp_path / "images" / "fox.png")
    assert collected.splitlines()[1] in listed


@pytest.mark.slow
async def test_servers_with_one_ledger_share_jobs_and_budget(tmp_path: Path) -> None:
    async with (
        emulated(duration=Fixed(0.2)) as emulator,
        connected(emulator, tmp_path, max_credits=20) as one,
        connected(emulator, tmp_path, max_credits=20) as two,
    ):
        async with asyncio.TaskGroup() as group:
            calls = [
                group.create_task(good(each, "generate_image", request_id="fox", prompt="a fox", resolution="1K"))
                for each in (one, two)
            ]
        assert [call.result().splitlines()[1] for call in calls] == [str(tmp_path / "images" / "fox.png")] * 2
        await good(one, "generate_image", request_id="owl", prompt="an owl", resolution="1K")
        beyond = await bad(two, "generate_image", request_id="hen", prompt="a hen", resolution="1K")
        listed = await good(two, "list_images", limit=2)
        assert emulator.stats().creates_accepted == 2
    assert beyond.startswith("the budget is reached: --max-credits is 20, 16 are spent")
    assert [line.partition(":")[0] for line in listed.splitlines()[:2]] == ["hen", "owl"]
    assert listed.splitlines()[2] == "16 of 20 credits of the budget are spent or reserved"


async def test_budget_of_a_day_holds_beside_the_cap_or_alone(tmp_path: Path) -> None:
    daily = Budget(name="models", max_credits=20, per="day")
    async with emulated() as emulator:
        for cap, said in ((None, ""), (1000, "16 of 1,000 credits of the budget and ")):
            async with connected(emulator, tmp_path, max_credits=cap, budget=daily) as client:
                for animal in ("fox", "owl"):
                    bought = await good(client, "generate_image", request_id=animal, prompt=animal, resolution="1K")
                left = f"{said}16 of 20 credits of this day of budget models are spent or reserved"
                assert bought.splitlines()[0].endswith(left)
                beyond = await bad(client, "generate_image", request_id="hen", prompt="a hen", resolution="1K")
                assert left in await good(client, "list_images")
        assert emulator.stats().creates_accepted == 2
        with pytest.raises(ConfigurationError, match="budget models counts each day"):
            async with connected(emulator, tmp_path, budget=Budget(name="models", max_credits=20)):
                pass
    assert beyond.startswith("the budget is reached: budget models: its cap is 20, 16 are spent")
    assert "only the user can raise it, with --budget of `nanobanana mcp`" in beyond


async def test_job_that_may_have_been_bought_is_not_bought_again(tmp_path: Path) -> None:
    script = Script({"defapi.create": [reset(processed=True)]})
    async with emulated(script=script) as emulator, connected(emulator, tmp_path, "defapi") as client:
        first = await bad(client, "generate_image", request_id="fox", prompt="a fox")
        again = await bad(client, "generate_image", request_id="fox", prompt="a fox")
        assert emulator.stats().creates_accepted == 1
    for text in (first, again):
        assert "do not buy it under another request_id, but ask the user to check the gateway's own list" in text
        assert f"--ledger {tmp_path / 'jobs.sqlite'}" in text


async def test_failed_job_is_not_bought_again_under_its_id(tmp_path: Path) -> None:
    async with emulated(failure_probability=1.0) as emulator, connected(emulator, tmp_path) as client:
        for _ in range(2):
            text = await bad(client, "generate_image", request_id="fox", prompt="a fox")
            assert "this request_id buys nothing more" in text
        assert emulator.stats().creates_accepted == 1


async def test_refusal_of_the_account_is_explained(tmp_path: Path) -> None:
    script = Script({"apimall.create": [error(401)]})
    async with emulated(script=script) as emulator, connected(emulator, tmp_path) as client:
        text = await bad(client, "generate_image", request_id="fox", prompt="a fox")
        assert "check the API key" in text
        assert "call again with the same request_id" in text
        assert "fox.png" in await good(client, "generate_image", request_id="fox", prompt="a fox")

"""The emulator in the hand: starting, settings, fixtures, the command, independence."""

import ast
import asyncio
import typing
from pathlib import Path

import aiohttp
import attrs
import pytest

import nanobanana_async
from nanobanana_async.emulator import API_KEY, Emulator, EmulatorOptions, EmulatorSettings, serve

FOLDER = Path(nanobanana_async.__file__).parent / "emulator"


def test_the_options_are_exactly_the_fields_of_the_settings() -> None:
    fields = {field.name for field in attrs.fields(EmulatorSettings)}
    assert set(typing.get_type_hints(EmulatorOptions)) == fields


@pytest.mark.parametrize(
    "settings",
    [
        {"speed": 0},
        {"failure_probability": 2.0},
        {"retry_after": "often"},
        {"idempotency": "maybe"},
        {"picture_scale": 1.5},
        {"expired_link_status": 404},
    ],
)
def test_settings_are_checked_at_birth(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        EmulatorSettings(**settings)  # type: ignore[arg-type]


def test_no_file_imports_more_of_the_package_than_its_own_folder_and_the_root() -> None:
    strangers: dict[str, str] = {}
    for file in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            module = (node.module or "") if isinstance(node, ast.ImportFrom) else ""
            if module.startswith("nanobanana_async") and not module.startswith("nanobanana_async.emulator"):
                strangers[file.name] = module
    assert strangers == {"handle.py": "nanobanana_async"}


async def test_the_gateways_settings_lead_here() -> None:
    async with Emulator() as emulator:
        mall, other = emulator.apimall(), emulator.defapi()
        assert mall.base_url.rstrip("/") == other.base_url.rstrip("/") == emulator.url
    assert emulator.url.startswith("http://127.0.0.1:")


async def test_an_emulator_runs_once_and_only_inside_its_block() -> None:
    emulator = Emulator()
    with pytest.raises(RuntimeError, match="not running yet"):
        _ = emulator.url
    async with emulator:
        assert emulator.stats().creates_received == 0
    with pytest.raises(RuntimeError, match="started once"):
        await emulator.__aenter__()


async def test_a_port_can_be_chosen_and_a_taken_one_is_an_error() -> None:
    async with Emulator() as first:
        port = int(first.url.rpartition(":")[2])
        with pytest.raises(OSError, match="address already in use"):
            await Emulator(port=port).__aenter__()
    async with Emulator(port=port) as second:
        assert second.url == first.url


async def test_limits_and_credits_can_be_changed_by_the_handle() -> None:
    async with Emulator(credits=1) as emulator:
        emulator.add_credits(9)
        emulator.set_job_limit(3)
        emulator.set_limit_schedule([(0.0, 4)])
        assert emulator.stats().credits_remaining == 10
        assert list(emulator.jobs()) == []


async def test_waiting_for_connections_to_close_ends_when_they_do() -> None:
    async with Emulator() as emulator:
        async with aiohttp.ClientSession() as http:
            await (await http.get(f"{emulator.url}/api/task/query")).read()
            with pytest.raises(TimeoutError):
                await emulator.no_connections(timeout_s=0.05)
        await emulator.no_connections()
        assert emulator.stats().open_connections == 0


@pytest.mark.emulator(job_limit=3, seed=5)
@pytest.mark.emulator(seed=6)
def test_the_marker_configures_the_fixture_and_the_nearest_wins(nanobanana_emulator: Emulator) -> None:
    assert nanobanana_emulator.world.settings.job_limit == 3
    assert nanobanana_emulator.world.settings.seed == 6


async def test_the_command_says_where_it_listens_and_how_to_get_there(capsys: pytest.CaptureFixture[str]) -> None:
    command = asyncio.get_running_loop().create_task(serve(0, job_limit=1))
    said = ""
    async with asyncio.timeout(5):
        while "defapi:" not in said:
            await asyncio.sleep(0.01)
            said += capsys.readouterr().out
    command.cancel()
    with pytest.raises(asyncio.CancelledError):
        await command
    assert "http://127.0.0.1:" in said
    assert f"APIMALL_API_KEY={API_KEY}" in said
    assert "NANOBANANA_BASE_URL=http://127.0.0.1:" in said

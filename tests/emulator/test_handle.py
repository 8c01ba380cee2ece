"""The `Emulator` class: starting, settings, fixture, `serve`, imports."""

import ast
import asyncio
import typing
from pathlib import Path

import aiohttp
import attrs
import pytest

import nanobanana_async
from nanobanana_async.emulator import API_KEY, Emulator, EmulatorOptions, EmulatorSettings, serve
from tests.support.rows import each_row

FOLDER = Path(nanobanana_async.__file__).parent / "emulator"


def test_options_have_the_names_and_types_of_the_settings() -> None:
    options = typing.get_type_hints(EmulatorOptions)
    fields = {field.name: field for field in attrs.fields(attrs.resolve_types(EmulatorSettings))}
    assert list(options) == list(fields)
    differing = {name for name, field in fields.items() if options[name] != field.type}
    assert differing == {"credits"}  # its converter takes numbers and text too


@each_row(
    "settings",
    [
        {"speed": 0},
        {"failure_probability": 2.0},
        {"retry_after": "often"},
        {"idempotency": "maybe"},
        {"image_scale": 1.5},
        {"expired_link_status": 404},
    ],
)
def test_invalid_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        EmulatorSettings(**settings)  # type: ignore[arg-type]


def test_emulator_imports_only_itself_and_the_package_root() -> None:
    strangers: dict[str, str] = {}
    for file in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            module = (node.module or "") if isinstance(node, ast.ImportFrom) else ""
            if module.startswith("nanobanana_async") and not module.startswith("nanobanana_async.emulator"):
                strangers[file.name] = module
    assert strangers == {"emulator.py": "nanobanana_async"}


async def test_gateway_settings_point_at_the_emulator() -> None:
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
    with pytest.raises(RuntimeError, match="started only once"):
        await emulator.__aenter__()


async def test_port_can_be_chosen_and_a_used_port_raises() -> None:
    async with Emulator() as first:
        port = int(first.url.rpartition(":")[2])
        with pytest.raises(OSError, match="address already in use"):
            await Emulator(port=port).__aenter__()
    async with Emulator(port=port) as second:
        assert second.url == first.url


async def test_limits_and_credits_can_be_changed_while_running() -> None:
    async with Emulator(credits=1) as emulator:
        emulator.add_credits(9)
        emulator.set_job_limit(3)
        emulator.set_limit_schedule([(0.0, 4)])
        assert emulator.stats().credits_remaining == 10
        assert list(emulator.jobs()) == []


async def test_no_connections_returns_when_all_are_closed() -> None:
    async with Emulator() as emulator:
        async with aiohttp.ClientSession() as http:
            await (await http.get(f"{emulator.url}/api/task/query")).read()
            with pytest.raises(TimeoutError):
                await emulator.wait_for_no_connections(timeout_s=0.05)
        await emulator.wait_for_no_connections()
        assert emulator.stats().open_connections == 0


@pytest.mark.emulator(job_limit=3, seed=5)
@pytest.mark.emulator(seed=6)
def test_nearest_marker_configures_the_fixture(nanobanana_emulator: Emulator) -> None:
    assert nanobanana_emulator.simulator.settings.job_limit == 3
    assert nanobanana_emulator.simulator.settings.seed == 6


async def test_serve_prints_its_url_and_client_settings(capsys: pytest.CaptureFixture[str]) -> None:
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

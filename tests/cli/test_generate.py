"""`nanobanana generate` against the emulator, over real sockets."""

import asyncio
import signal
from pathlib import Path

import pytest
from PIL import Image

from nanobanana_async.emulator import API_KEY, Emulator, Fixed, Script
from nanobanana_async.emulator.faults import error
from tests.cli.command import ended, environment, nanobanana, started

QUICK = Fixed(0.1)


async def test_the_urls_are_all_that_stands_on_stdout() -> None:
    async with Emulator(duration=QUICK) as emulator:
        said = await nanobanana("generate", "a fox", "--num-images", "2", environ=environment(emulator))
    assert said.code == 0
    assert [line.startswith(f"{emulator.url}/cdn/") for line in said.out.splitlines()] == [True, True]


async def test_many_prompts_come_back_in_their_order(tmp_path: Path) -> None:
    prompts = [f"picture {number}" for number in range(6)]
    async with Emulator(duration=QUICK, job_limit=2, image_scale=0.1) as emulator:
        said = await nanobanana("generate", *prompts, "-o", "out", environ=environment(emulator), folder=tmp_path)
        bought = {job.key: job.prompt for job in emulator.jobs()}
    assert said.code == 0
    files = [tmp_path / line for line in said.out.splitlines()]
    assert [bought[file.stem.rpartition("-")[0]] for file in files] == prompts
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"SHA256SUMS", *(file.name for file in files)}
    for file in files:
        with Image.open(file) as picture:
            assert picture.width > 0


async def test_wishes_reach_the_gateway(tmp_path: Path) -> None:
    options = ("--aspect-ratio", "16:9", "--resolution", "2K", "--output-format", "jpeg", "-o", "out")
    async with Emulator(duration=QUICK, image_scale=0.1) as emulator:
        said = await nanobanana("generate", "a fox", *options, environ=environment(emulator), folder=tmp_path)
    assert said.code == 0
    with Image.open(tmp_path / said.out.strip()) as picture:
        assert picture.format == "JPEG"
        assert picture.width / picture.height == pytest.approx(16 / 9, rel=0.05)


async def test_inline_pictures_of_defapi_are_saved_too(tmp_path: Path) -> None:
    async with Emulator(duration=QUICK, data_uris=True, image_scale=0.1) as emulator:
        environ = environment(emulator, DEFAPI_API_KEY=API_KEY)
        said = await nanobanana(
            "generate", "a fox", "--gateway", "defapi", "-o", "out", environ=environ, folder=tmp_path
        )
    assert said.code == 0
    with Image.open(tmp_path / said.out.strip()) as picture:
        assert picture.width > 0


async def test_the_built_in_emulator_needs_no_key(tmp_path: Path) -> None:
    said = await nanobanana("generate", "a fox", "--gateway", "emulator", "-o", "out", folder=tmp_path)
    assert said.code == 0
    assert (tmp_path / said.out.strip()).is_file()


async def test_a_refused_key_is_one_line_without_the_key() -> None:
    async with Emulator() as emulator:
        environ = environment(emulator, APIMALL_API_KEY="sk-very-secret")
        said = await nanobanana("generate", "a fox", environ=environ)
    assert said.code == 1
    assert "401" in said.complaint
    assert "sk-very-secret" not in said.err


async def test_one_blocked_prompt_does_not_harm_the_others() -> None:
    script = Script({"apimall.create": [error(451)]})
    async with Emulator(duration=QUICK, script=script) as emulator:
        said = await nanobanana("generate", "one", "two", "--max-jobs", "1", environ=environment(emulator))
    assert said.code == 1
    assert len(said.out.splitlines()) == 1
    assert "nanobanana: one: " in said.err
    assert "Traceback" not in said.err


async def test_a_picture_that_can_not_be_fetched_leaves_its_url(tmp_path: Path) -> None:
    script = Script({"cdn": [error(404)] * 2})  # its first link has expired, and so has the one it is given then
    async with Emulator(duration=QUICK, script=script) as emulator:
        said = await nanobanana("generate", "a fox", "-o", "out", environ=environment(emulator), folder=tmp_path)
    assert said.code == 1
    assert said.out.startswith(f"{emulator.url}/cdn/")
    assert "404" in said.err


async def test_a_timeout_names_the_task_that_goes_on() -> None:
    async with Emulator(duration=Fixed(30)) as emulator:
        said = await nanobanana("generate", "a fox", "--timeout", "1", environ=environment(emulator))
        (job,) = emulator.jobs()
    assert said.code == 1
    assert job.task_id in said.err
    assert "Traceback" not in said.err


async def test_ctrl_c_names_what_is_paid_for_and_ends_with_130() -> None:
    async with Emulator(duration=Fixed(30)) as emulator:
        async with started("generate", "a fox", environ=environment(emulator)) as process:
            async with asyncio.timeout(20):
                while emulator.stats().polls == 0:  # noqa: ASYNC110 - the emulator has no event for it
                    await asyncio.sleep(0.05)
            process.send_signal(signal.SIGINT)
            said = await ended(process)
        (job,) = emulator.jobs()
    assert said.code == 130
    assert job.task_id in said.complaint
    assert emulator.stats().open_connections == 0

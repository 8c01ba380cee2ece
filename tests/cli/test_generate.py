"""`nanobanana generate` against the emulator, over real sockets."""

import asyncio
import signal
from pathlib import Path

import pytest
from PIL import Image

from nanobanana_async.emulator import API_KEY, Emulator, Fixed, Script
from nanobanana_async.emulator.faults import error
from tests.support.command import ended, environment, in_a_process, nanobanana, started

pytestmark = pytest.mark.slow

QUICK = Fixed(0.1)


async def test_stdout_holds_only_the_urls() -> None:
    async with Emulator(duration=QUICK) as emulator:
        said = await in_a_process("generate", "a fox", "--num-images", "2", environ=environment(emulator))
    assert said.code == 0
    assert [line.startswith(f"{emulator.url}/cdn/") for line in said.out.splitlines()] == [True, True]


async def test_results_keep_the_order_of_the_prompts(tmp_path: Path) -> None:
    prompts = [f"image {number}" for number in range(6)]
    async with Emulator(duration=QUICK, job_limit=2, image_scale=0.1) as emulator:
        said = await nanobanana("generate", *prompts, "-o", "out", environ=environment(emulator), folder=tmp_path)
        bought = {job.key: job.prompt for job in emulator.jobs()}
    assert said.code == 0
    files = [tmp_path / line for line in said.out.splitlines()]
    assert [bought[file.stem.rpartition("-")[0]] for file in files] == prompts
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"SHA256SUMS", *(file.name for file in files)}
    for file in files:
        with Image.open(file) as image:
            assert image.width > 0


async def test_options_reach_the_gateway(tmp_path: Path) -> None:
    options = ("--aspect-ratio", "16:9", "--resolution", "2K", "--output-format", "jpeg", "-o", "out")
    async with Emulator(duration=QUICK, image_scale=0.1) as emulator:
        said = await nanobanana("generate", "a fox", *options, environ=environment(emulator), folder=tmp_path)
    assert said.code == 0
    with Image.open(tmp_path / said.out.strip()) as image:
        assert image.format == "JPEG"
        assert image.width / image.height == pytest.approx(16 / 9, rel=0.05)


async def test_inline_images_of_defapi_are_saved(tmp_path: Path) -> None:
    async with Emulator(duration=QUICK, data_uris=True, image_scale=0.1) as emulator:
        environ = environment(emulator, DEFAPI_API_KEY=API_KEY)
        said = await nanobanana(
            "generate", "a fox", "--gateway", "defapi", "-o", "out", environ=environ, folder=tmp_path
        )
    assert said.code == 0
    with Image.open(tmp_path / said.out.strip()) as image:
        assert image.width > 0


async def test_the_built_in_emulator_needs_no_key(tmp_path: Path) -> None:
    said = await nanobanana("generate", "a fox", "--gateway", "emulator", "-o", "out", folder=tmp_path)
    assert said.code == 0
    assert (tmp_path / said.out.strip()).is_file()


async def test_a_refused_key_is_not_printed() -> None:
    async with Emulator() as emulator:
        environ = environment(emulator, APIMALL_API_KEY="sk-very-secret")
        said = await in_a_process("generate", "a fox", environ=environ)
    assert said.code == 1
    assert "401" in said.complaint
    assert "sk-very-secret" not in said.err


async def test_a_blocked_prompt_does_not_affect_the_others() -> None:
    script = Script({"apimall.create": [error(451)]})
    async with Emulator(duration=QUICK, script=script) as emulator:
        said = await nanobanana("generate", "one", "two", "--max-jobs", "1", environ=environment(emulator))
    assert said.code == 1
    assert len(said.out.splitlines()) == 1
    assert "nanobanana: one: " in said.err
    assert "Traceback" not in said.err


async def test_an_image_that_cannot_be_downloaded_leaves_its_url(tmp_path: Path) -> None:
    script = Script({"cdn": [error(404)] * 8})  # four attempts with the link, four with its replacement
    async with Emulator(duration=QUICK, script=script) as emulator:
        said = await nanobanana("generate", "a fox", "-o", "out", environ=environment(emulator), folder=tmp_path)
    assert said.code == 1
    assert said.out.startswith(f"{emulator.url}/cdn/")
    assert "404" in said.err


async def test_a_timeout_names_the_running_task() -> None:
    async with Emulator(duration=Fixed(30)) as emulator:
        said = await nanobanana("generate", "a fox", "--timeout", "1", environ=environment(emulator))
        (job,) = emulator.jobs()
    assert said.code == 1
    assert job.task_id in said.err
    assert "Traceback" not in said.err


async def test_ctrl_c_names_the_paid_tasks_and_exits_with_130() -> None:
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

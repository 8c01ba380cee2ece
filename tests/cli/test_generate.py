"""`nanobanana generate` against the emulator, over real sockets."""

import os
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from nanobanana_async.emulator import API_KEY, Emulator, Fixed, Script
from nanobanana_async.emulator.faults import error, reset
from tests.support.command import environment, in_a_process, nanobanana
from tests.support.held import BUYING_S, HeldJobs

pytestmark = pytest.mark.slow

QUICK = Fixed(0.1)


async def test_stdout_holds_only_the_urls() -> None:
    async with Emulator(duration=QUICK) as emulator:
        said = await in_a_process("generate", "a fox", "--num-images", "2", environ=environment(emulator))
    assert said.code == 0
    assert [line.startswith(f"{emulator.url}/cdn/") for line in said.out.splitlines()] == [True, True]


async def test_each_prompt_has_its_files_and_ordered_keeps_the_order(tmp_path: Path) -> None:
    prompts = [f"image {number}" for number in range(6)]
    async with Emulator(duration=QUICK, job_limit=2, image_scale=0.1) as emulator:
        environ = environment(emulator)
        said = await nanobanana("generate", *prompts, "-o", "out", "--ordered", environ=environ, folder=tmp_path)
    assert said.code == 0
    files = [tmp_path / line for line in said.out.splitlines()]
    assert [file.stem for file in files] == [prompt.replace(" ", "-") for prompt in prompts]
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "SHA256SUMS",
        "metadata.jsonl",
        *(file.name for file in files),
    }
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
    assert said.err.endswith("a rehearsal: images and credits are emulated, nothing was paid\n")


async def test_the_built_in_emulator_without_a_folder_says_that_its_urls_end() -> None:
    said = await nanobanana("generate", "a fox", "--gateway", "emulator")
    assert (said.code, said.out) == (2, "")
    assert "needs -o DIR, which saves the images: their URLs end with the command" in said.complaint


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
    script = Script({"cdn": [error(410)] * 2})  # the link and its replacement have expired
    async with Emulator(duration=QUICK, script=script) as emulator:
        said = await nanobanana("generate", "a fox", "-o", "out", environ=environment(emulator), folder=tmp_path)
    assert said.code == 1
    assert said.out.startswith(f"{emulator.url}/cdn/")
    assert "410" in said.err
    assert "`nanobanana jobs fetch " in said.err


async def test_an_uncertain_job_names_its_key_and_the_advice_once(tmp_path: Path) -> None:
    script = Script({"defapi.create": [reset(processed=True)]})
    async with Emulator(duration=QUICK, script=script) as emulator:
        environ = environment(emulator, DEFAPI_API_KEY=API_KEY, NANOBANANA_LEDGER="my jobs.sqlite")
        said = await nanobanana("generate", "a fox", "--gateway", "defapi", environ=environ, folder=tmp_path)
        listed = await nanobanana("jobs", environ=environ, folder=tmp_path)
        key = listed.out.split("\t")[0]
        assert said.code == 1
        complaint = said.err.splitlines()[-1]
        assert complaint.count("the gateway's own list of tasks") == 1
        (command,) = re.findall("`nanobanana ([^`]*)`", complaint)
        options = f"--ledger 'my jobs.sqlite' --gateway defapi --base-url {emulator.url}"
        assert command == f"jobs resolve {key} --as DECISION {options}"
        assert "KEY" not in complaint
        unfinished = await nanobanana(*shlex.split(command), environ=environ, folder=tmp_path)
        assert (unfinished.code, "one of not-bought, buy-again, task-id" in unfinished.complaint) == (2, True)
        decided = shlex.split(command.replace("DECISION", "buy-again --yes"))
        resolved = await nanobanana(*decided, environ=environ, folder=tmp_path)
        assert (resolved.code, emulator.stats().creates_accepted) == (0, 2)


async def test_a_timeout_names_the_command_that_fetches_the_images(tmp_path: Path) -> None:
    held = HeldJobs()
    async with Emulator(duration=held, image_scale=0.1) as emulator:
        environ = environment(emulator)
        options = ("--timeout", BUYING_S, "-o", "my images", "--base-url", emulator.url, "--ledger", "own.sqlite")
        said = await nanobanana("generate", "a fox", *options, environ=environ, folder=tmp_path)
        (job,) = emulator.jobs()
        command = (
            f"nanobanana jobs fetch {job.key} --ledger own.sqlite --gateway apimall --base-url {emulator.url}"
            " -o 'my images'"
        )
        assert (said.code, said.out) == (1, "")
        assert said.complaint == (
            f"nanobanana: the waiting ended after {BUYING_S} s; 1 job paid for and not delivered: the same command, or"
            f" `{command}`, delivers it"
        )
        held.release(emulator)
        fetched = await nanobanana(*shlex.split(command)[1:], environ=environ, folder=tmp_path)
        assert (fetched.code, fetched.err) == (0, "")
        assert (tmp_path / fetched.out.strip()).parent.name == "my images"
        with Image.open(tmp_path / fetched.out.strip()) as image:
            assert image.width > 0
        assert emulator.stats().creates_accepted == 1


@pytest.mark.parametrize(("folder", "why"), [("file", "something else has this name: move that away or name another")])
async def test_a_folder_that_cannot_be_written_buys_nothing(tmp_path: Path, folder: str, why: str) -> None:
    (tmp_path / "file").write_text("mine")
    async with Emulator(duration=QUICK) as emulator:
        said = await nanobanana("generate", "a fox", "-o", folder, environ=environment(emulator), folder=tmp_path)
        assert not emulator.stats().requests
    assert (said.code, said.out) == (2, "")
    assert f"{folder} can't be written: {why}" in said.complaint
    assert (tmp_path / "file").read_text() == "mine"


async def test_an_unwritable_parent_is_reported_in_words(tmp_path: Path) -> None:
    async with Emulator(duration=QUICK) as emulator:
        said = await nanobanana("generate", "x", "-o", "/proc/foo", environ=environment(emulator), folder=tmp_path)
        assert emulator.stats().creates_accepted == 0
    assert said.code == 2
    assert said.complaint == (
        "nanobanana: /proc/foo can't be written: No such file or directory: name another folder with -o"
    )


async def test_an_unreachable_gateway_is_reported() -> None:
    async with Emulator() as emulator:
        environ = environment(emulator)
    said = await nanobanana("generate", "a fox", "--timeout", BUYING_S, environ=environ)
    assert said.code == 1
    waiting, end = said.err.splitlines()
    assert f"can't reach {emulator.url.removeprefix('http://')}: " in waiting
    assert waiting.endswith("check the address (--base-url, NANOBANANA_BASE_URL); trying again")
    assert f"can't reach {emulator.url.removeprefix('http://')}: " in end
    assert end.endswith("; nothing was bought")


@pytest.mark.parametrize(("answer", "code", "bought"), [("\n", 1, 0), ("n\n", 1, 0), ("y\n", 0, 2)])
async def test_prompts_of_single_words_are_asked_about_on_a_terminal(answer: str, code: int, bought: int) -> None:
    async with Emulator(duration=QUICK) as emulator:
        said = await nanobanana("generate", "a", "fox", environ=environment(emulator), typed=answer)
        assert (said.code, emulator.stats().creates_accepted) == (code, bought)
    question = "2 prompts, 2 images: 'a', 'fox'. Quote a prompt of several words. Continue? [y/N] "
    assert said.err.startswith(question)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("-o", "fox.png"), "fox.png can't be written: something else has this name: move that away"),
        (("-o", "fox.png/deeper"), "fox.png/deeper can't be written: a part of the path is a file"),
        (("--image", "fox.txt"), "fox.txt"),
        (("--aspect-ratio", "7"), "aspect"),
        (("--ledger", "fox.txt"), "fox.txt"),
    ],
)
async def test_what_is_refused_anyway_is_refused_without_a_question(
    tmp_path: Path, options: tuple[str, ...], why: str
) -> None:
    for name in ("fox.png", "fox.txt"):
        (tmp_path / name).write_text("no image, and no ledger\n", encoding="utf-8")
    environ = environment() | {"APIMALL_API_KEY": "sk-1"}
    said = await nanobanana("generate", "a", "fox", *options, environ=environ, folder=tmp_path, typed="n\n")
    assert (said.code, said.out) == (2, "")
    assert why in said.complaint
    assert "Continue?" not in said.err


async def test_a_declined_question_creates_no_folder(tmp_path: Path) -> None:
    environ = environment() | {"APIMALL_API_KEY": "sk-1"}
    said = await nanobanana("generate", "a", "fox", "-o", "out/new", environ=environ, folder=tmp_path, typed="n\n")
    assert (said.code, "Continue?" in said.err) == (1, True)
    assert os.listdir(tmp_path) == []


async def test_prompts_of_single_words_are_noted_on_a_pipe() -> None:
    async with Emulator(duration=QUICK) as emulator:
        said = await nanobanana("generate", "a", "fox", "--num-images", "3", environ=environment(emulator))
        assert emulator.stats().creates_accepted == 2
    assert (said.code, len(said.out.splitlines())) == (0, 6)
    assert said.err.startswith("2 prompts, 6 images: 'a', 'fox'. Quote a prompt of several words.\n")


@pytest.mark.parametrize("prompts", [["fox"], ["a fox", "owl"]])
async def test_quoted_prompts_are_not_asked_about(prompts: list[str]) -> None:
    async with Emulator(duration=QUICK) as emulator:
        said = await nanobanana("generate", *prompts, environ=environment(emulator), typed="")
        assert (said.code, emulator.stats().creates_accepted) == (0, len(prompts))
    assert "Quote" not in said.err


async def test_prompts_of_a_rehearsal_are_not_asked_about(tmp_path: Path) -> None:
    options = ("--gateway", "emulator", "-o", "out")
    said = await nanobanana("generate", "a", "fox", *options, folder=tmp_path, typed="")
    assert (said.code, len(said.out.splitlines())) == (0, 2)


@pytest.mark.parametrize(
    ("typed", "options", "code", "bought"),
    [("n\n", (), 1, 0), ("y\n", (), 0, 1), (None, (), 2, 0), (None, ("--yes",), 0, 1)],
)
async def test_prompt_that_names_a_file_is_bought_only_with_consent(
    tmp_path: Path, typed: str | None, options: tuple[str, ...], code: int, bought: int
) -> None:
    (tmp_path / "prompts.txt").write_text("a fox\nan owl\n", encoding="utf-8")
    async with Emulator(duration=QUICK) as emulator:
        environ = environment(emulator)
        said = await nanobanana("generate", "prompts.txt", *options, environ=environ, folder=tmp_path, typed=typed)
        assert (said.code, emulator.stats().creates_accepted) == (code, bought)
    assert "'prompts.txt' is the name of a file" in said.err
    assert "batch prompts.txt -o FOLDER` buys the prompts in it" in said.err


async def test_prompt_that_names_a_folder_like_a_file_is_bought_only_with_consent(tmp_path: Path) -> None:
    for name in ("photo.png", "fox"):
        (tmp_path / name).mkdir()
    async with Emulator(duration=QUICK) as emulator:
        environ = environment(emulator)
        said = await nanobanana("generate", "photo.png", environ=environ, folder=tmp_path)
        assert (said.code, emulator.stats().creates_accepted) == (2, 0)
        assert "'photo.png' is the name of a folder, which `generate` does not read" in said.err
        assert (await nanobanana("generate", "fox", environ=environ, folder=tmp_path)).code == 0


async def test_rehearsal_of_a_prompt_that_names_a_file_says_so(tmp_path: Path) -> None:
    (tmp_path / "fox.png").write_bytes(b"")
    options = ("--gateway", "emulator", "-o", "out")
    said = await nanobanana("generate", "fox.png", *options, folder=tmp_path)
    assert (said.code, "--image names a reference image" in said.err) == (0, True)

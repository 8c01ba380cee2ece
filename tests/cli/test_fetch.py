"""`nanobanana jobs fetch` against the emulator: by key, and by task id with and without a ledger."""

from pathlib import Path

import pytest

from nanobanana_async import Session, SqliteLedger
from nanobanana_async.emulator import API_KEY, Emulator, Fixed, Script
from nanobanana_async.emulator.faults import error
from tests.support.command import environment, nanobanana
from tests.support.ledger_contract import job

pytestmark = pytest.mark.slow

QUICK = Fixed(0.1)


async def bought(emulator: Emulator, *prompts: str) -> list[str]:
    """Buy jobs in a session that forgets them, and return their task ids."""
    async with Session(emulator.apimall()) as session:
        return [(await session.generate(prompt)).task_id for prompt in prompts]


async def test_images_of_tasks_are_printed_in_order() -> None:
    async with Emulator(duration=QUICK) as emulator:
        one, other = await bought(emulator, "a fox", "an owl")
        said = await nanobanana("jobs", "fetch", other, one, other, environ=environment(emulator))
        assert emulator.stats().creates_accepted == 2
    assert said.code == 0
    assert [line.startswith(f"{emulator.url}/cdn/") for line in said.out.splitlines()] == [True, True]
    assert [task_id in line for task_id, line in zip((other, one), said.out.splitlines(), strict=True)] == [True, True]


async def test_images_are_saved_again_without_a_second_copy(tmp_path: Path) -> None:
    async with Emulator(duration=QUICK, data_uris=True, image_scale=0.1) as emulator:
        async with Session(emulator.defapi()) as session:
            task_id = (await session.generate("a fox")).task_id
        environ = environment(emulator, DEFAPI_API_KEY=API_KEY)
        command = ("jobs", "fetch", task_id, "--gateway", "defapi", "-o", "out")
        first, second = [await nanobanana(*command, environ=environ, folder=tmp_path) for _ in range(2)]
    assert (first.code, first.out) == (second.code, second.out)
    assert first.code == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "SHA256SUMS",
        "metadata.jsonl",
        Path(first.out.strip()).name,
    }


async def test_refused_key_is_one_line() -> None:
    script = Script({"apimall.query": [error(401)] * 3})
    async with Emulator(duration=QUICK, script=script) as emulator:
        said = await nanobanana("jobs", "fetch", "img_x", environ=environment(emulator))
    assert (said.code, said.out) == (1, "")
    assert "401" in said.complaint


async def test_timeout_names_the_command_again() -> None:
    async with Emulator(duration=Fixed(30)) as emulator:
        async with Session(emulator.apimall()) as session:
            task_id = await (await session.submit("a fox")).wait_for_task_id()
        said = await nanobanana("jobs", "fetch", task_id, "--timeout", "0.5", environ=environment(emulator))
    assert said.code == 1
    assert f"`nanobanana jobs fetch {task_id} --gateway apimall" in said.complaint


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("",), "task_id must be printable text"),
        ((), "TASK_ID"),
        (("img_1", "--timeout", "0"), "--timeout"),
        (("img_1", "-o", ""), "must be the path of a folder"),
        (("img_1", "-o", "file"), "something else has this name"),
    ],
)
async def test_wrong_usage_sends_nothing(tmp_path: Path, arguments: tuple[str, ...], word: str) -> None:
    (tmp_path / "file").touch()
    async with Emulator() as emulator:
        said = await nanobanana("jobs", "fetch", *arguments, environ=environment(emulator), folder=tmp_path)
        assert not emulator.stats().requests
    assert said.code == 2
    assert word in said.complaint


async def test_jobs_of_a_ledger_are_fetched_by_key_or_task_id(tmp_path: Path) -> None:
    ledger = tmp_path / "jobs.sqlite"
    async with Emulator(duration=QUICK, image_scale=0.1) as emulator:
        async with Session(emulator.apimall(), ledger=ledger) as session:
            one = await session.generate("a fox", idempotency_key="order-1")
            other = await session.generate("an owl", idempotency_key="order-2")
        environ = environment(emulator, NANOBANANA_LEDGER=str(ledger))
        said = await nanobanana("jobs", "fetch", one.key, other.task_id, "-o", "out", environ=environ, folder=tmp_path)
        assert emulator.stats().creates_accepted == 2
    assert said.code == 0
    assert {Path(line).name for line in said.out.splitlines()} == {"order-1.png", "order-2.png"}


async def test_a_job_that_was_never_sent_is_not_bought(tmp_path: Path) -> None:
    ledger = SqliteLedger(tmp_path / "jobs.sqlite")
    async with Emulator(duration=QUICK) as emulator:
        await ledger.open()
        await ledger.claim(job("unsent", account=emulator.apimall().account))
        await ledger.aclose()
        environ = environment(emulator, NANOBANANA_LEDGER=str(ledger.path))
        said = await nanobanana("jobs", "fetch", "unsent", environ=environ)
        assert not emulator.stats().requests
    assert (said.code, said.out) == (1, "")
    assert "job unsent was never bought" in said.complaint


async def test_without_a_ledger_file_none_is_created(tmp_path: Path) -> None:
    async with Emulator(duration=QUICK) as emulator:
        (task_id,) = await bought(emulator, "a fox")
        environ = environment(emulator, NANOBANANA_LEDGER=str(tmp_path / "jobs.sqlite"))
        assert (await nanobanana("jobs", "fetch", task_id, environ=environ)).code == 0
    assert not (tmp_path / "jobs.sqlite").exists()

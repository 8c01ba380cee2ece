"""Rehearsals (`--gateway emulator`): their jobs end with the command, and what it says about them is true."""

import asyncio
import signal
from contextlib import suppress
from functools import partial
from pathlib import Path

import aiohttp
import pytest

from nanobanana_async.emulator import API_KEY, Emulator, Fixed
from tests.cli.batch_kills import images_of
from tests.cli.batches import Command
from tests.support.command import ended, environment, started
from tests.support.held import HELD_S
from tests.support.ledger_file import running_jobs
from tests.support.loopback import until
from tests.web.servers import free_port

pytestmark = pytest.mark.slow


@pytest.fixture
def quick(batch: Command) -> Command:
    """The command, with a built-in emulator whose jobs take no time."""
    quick_emulator = partial(Emulator, duration=Fixed(0.05), image_scale=0.05)
    batch.patch.setattr("nanobanana_async.emulator.Emulator", quick_emulator)
    return batch


def program(port: int) -> str:
    """Return a program that is the command; its built-in emulator has this port, and its jobs do not end."""
    return (
        "import functools; import nanobanana_async.emulator as emulator; from nanobanana_async.cli import main;"
        f"settings = {{'port': {port}, 'duration': emulator.Fixed({HELD_S})}};"
        "emulator.Emulator = functools.partial(emulator.Emulator, **settings); main()"
    )


async def sold(port: int) -> None:
    """Wait until the built-in emulator has sold a job."""
    headers = {"Authorization": f"Bearer {API_KEY}"}
    async with asyncio.timeout(40), aiohttp.ClientSession(f"http://127.0.0.1:{port}", headers=headers) as http:
        while True:
            with suppress(aiohttp.ClientError):
                async with http.get("/api/v1/images/history", params={"page": "1", "limit": "20"}) as answer:
                    if (await answer.json())["data"]["items"]:
                        return
            await asyncio.sleep(0.02)


async def test_jobs_of_a_stopped_rehearsal_are_bought_again(quick: Command) -> None:
    file, folder = quick.prompts(3), quick.folder
    arguments = ("batch", file, "-o", "out", "--gateway", "emulator")
    async with started(*arguments, environ=environment(), folder=folder, program=program(0)) as process:
        await until(lambda: running_jobs(quick.out / "jobs.sqlite") == 3, timeout_s=20)
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        first = (await process.stderr.readline()).decode()
        process.send_signal(signal.SIGTERM)
        said = await ended(process)
    assert (said.code, "buying no more" in first) == (130, True)
    assert "running jobs end with the emulator: the same command buys them again" in said.err
    assert "3 rows left, 3 of them with jobs that ended with the emulator, to be bought again" in said.err
    assert "not lost" not in said.err
    planned = await quick(file, "--dry-run", "--gateway", "emulator")
    assert "to buy\t3\n" in planned.out
    again = await quick(file, "--gateway", "emulator")
    assert (again.code, len(images_of(quick.out))) == (0, 3)
    assert "3 jobs of an earlier rehearsal ended with their emulator" in again.err


async def test_rehearsed_image_that_was_not_saved_is_bought_again(quick: Command) -> None:
    file = quick.prompts(3)
    assert (await quick(file, "--gateway", "emulator")).code == 0
    kept = sorted(images_of(quick.out))
    (quick.out / kept[1]).unlink()
    again = await quick(file, "--gateway", "emulator")
    assert (again.code, len(images_of(quick.out))) == (0, 3)
    assert "1 job of an earlier rehearsal ended with its emulator" in again.err
    finished = await quick(file, "--gateway", "emulator")
    assert (finished.code, "earlier rehearsal" in finished.err) == (0, False)


async def test_rehearsal_says_that_nothing_was_paid(quick: Command) -> None:
    said = await quick(quick.prompts(1), "--gateway", "emulator")
    assert "a rehearsal: images and credits are emulated, nothing was paid\n" in said.err
    assert " (rehearsal)</bdi></h1>" in (quick.out / "index.html").read_text(encoding="utf-8")


async def test_stopped_rehearsal_of_generate_says_that_its_jobs_end(tmp_path: Path) -> None:
    arguments = ("generate", "a fox", "-o", "out", "--gateway", "emulator")
    port = free_port()
    async with started(*arguments, environ=environment(), folder=tmp_path, program=program(port)) as process:
        await sold(port)
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        await process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        said = await ended(process)
    assert said.code == 130
    assert "running jobs end with the emulator" in said.err
    assert "not lost" not in said.err

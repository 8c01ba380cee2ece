"""`nanobanana batch` after a change of the API key: no second purchase, one message, and the command that helps."""

import asyncio
import re
import shlex

import pytest

from nanobanana_async import ImageRequest, SqliteLedger
from nanobanana_async.batch.rows import RowReader
from nanobanana_async.cli import app as cli
from nanobanana_async.emulator import API_KEY
from tests.cli.batch_kills import images_of, lines_of
from tests.cli.batches import Command, emulated, requests
from tests.support.command import environment, started
from tests.support.held import HeldJobs
from tests.support.ledger_file import running_jobs
from tests.support.loopback import until
from tests.support.records import record

pytestmark = pytest.mark.slow

NEW_KEY = "a-new-key"
KEYS = frozenset({API_KEY, NEW_KEY})


@pytest.mark.parametrize("gateway", ["apimall", "defapi"])
async def test_a_new_api_key_stops_before_buying_and_names_the_hand_over(batch: Command, gateway: str) -> None:
    file, variable = batch.prompts(30), f"{gateway.upper()}_API_KEY"
    held = HeldJobs()
    async with emulated(batch, gateway, api_keys=KEYS, job_limit=24, duration=held) as emulator:
        environ = environment(emulator, NANOBANANA_GATEWAY=gateway, **{variable: API_KEY})
        command = ("batch", file, "-o", "out", "--max-jobs", "24")  # and no create is under way when it is killed
        async with started(*command, environ=environ, folder=batch.folder) as process:
            await until(lambda: running_jobs(batch.out / "jobs.sqlite") == 24, timeout_s=40)
            process.kill()
        before = requests(emulator)
        batch.patch.setenv(variable, NEW_KEY)

        said = await batch(file, "--dry-run")
        (theirs,) = re.findall(r"of another account\t(\d+)", said.out)  # bought, or sent and throttled
        assert (said.code, 24 <= int(theirs) <= 30) == (0, True)
        assert "running" not in said.out
        assert f"{theirs} rows belong to another account" in said.err

        said = await batch(file)
        assert (said.code, requests(emulator) == before) == (2, True)
        assert f"nothing was bought: {theirs} rows belong to another account" in said.complaint
        assert "resolve" not in said.err
        assert lines_of(batch.out) == []
        (command,) = re.findall("`nanobanana (jobs hand-over [^`]*)`", said.complaint)
        assert command.endswith(" --ledger out/jobs.sqlite")
        assert await asyncio.to_thread(cli.run, [*shlex.split(command), "--yes"]) == 0

        held.release(emulator)
        assert (await batch(file)).code == 0
        assert (emulator.stats().creates_accepted, emulator.stats().double_charges) == (30, 0)
    assert (batch.statuses(), len(images_of(batch.out))) == ({"succeeded": 30}, 30)


async def test_finished_rows_of_another_account_are_kept(batch: Command) -> None:
    async with emulated(batch, api_keys=KEYS) as emulator:
        await batch(batch.write("foxes.txt", "a fox"))
        batch.patch.setenv("APIMALL_API_KEY", NEW_KEY)
        said = await batch(batch.write("foxes.txt", "a fox", "a lynx"))
        assert (said.code, emulator.stats().creates_accepted) == (0, 2)
        (batch.out / batch.lines()["a fox"]["images"][0]).unlink()  # its new download would need the other account
        said = await batch("foxes.txt")
        assert (said.code, "1 row belongs to another account" in said.complaint) == (2, True)
        assert emulator.stats().creates_accepted == 2
    assert batch.statuses() == {"succeeded": 2}


async def test_rows_refused_with_a_mistyped_key_are_bought_with_the_right_one(batch: Command) -> None:
    file = batch.prompts(12)
    async with emulated(batch) as emulator:
        batch.patch.setenv("APIMALL_API_KEY", "a-mistyped-key")
        for _ in range(2):
            said = await batch(file)
            assert (said.code, "check the API key" in said.err) == (3, True)
        batch.patch.setenv("APIMALL_API_KEY", API_KEY)
        assert "to buy\t12" in (await batch(file, "--dry-run")).out
        assert (await batch(file, "--max-credits", "96")).code == 0
        assert emulator.stats().creates_accepted == 12
        assert emulator.stats().credits_charged == 96
    assert batch.statuses() == {"succeeded": 12}


async def test_an_unsent_row_of_a_living_session_of_another_account_is_unfinished(batch: Command) -> None:
    async with emulated(batch) as emulator:
        await batch(batch.write("foxes.txt", "a fox"))
        key, ledger = RowReader("foxes").read("a lynx").key, SqliteLedger(batch.out / "jobs.sqlite")
        await ledger.open()
        request = ImageRequest("a lynx", model=emulator.apimall().model)
        await ledger.claim(record(key=key, account=emulator.apimall(api_key=NEW_KEY).account, request=request))
        said = await batch(batch.write("foxes.txt", "a fox", "a lynx"))
        await ledger.aclose()
        assert (said.code, batch.lines()["a lynx"]["status"]) == (1, "unfinished")
        assert "belongs to another account" in said.err
        assert (await batch("foxes.txt")).code == 0
        assert emulator.stats().creates_accepted == 2

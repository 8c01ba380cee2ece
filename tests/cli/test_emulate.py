"""`nanobanana emulate`: it listens, prints its URL, and stops on Ctrl-C."""

import asyncio
import re
import signal
from asyncio.subprocess import Process

import pytest

from nanobanana_async.emulator import API_KEY, Emulator
from tests.support.command import ended, environment, in_a_process, nanobanana, started

pytestmark = pytest.mark.slow


async def url_of(process: Process) -> str:
    """Return the URL that the emulator prints first."""
    assert process.stdout is not None
    async with asyncio.timeout(20):
        line = (await process.stdout.readline()).decode()
    found = re.search(r"http://\S+", line)
    assert found is not None, line
    return found[0]


async def test_another_command_uses_the_emulator_until_ctrl_c() -> None:
    options = ("--port", "0", "--job-limit", "2", "--job-seconds", "0.1", "--credits", "8")
    async with started("emulate", *options, environ=environment()) as process:
        environ = environment(NANOBANANA_BASE_URL=await url_of(process), APIMALL_API_KEY=API_KEY)
        bought = await in_a_process("generate", "a fox", environ=environ)
        without_credits = await nanobanana("generate", "a fox", environ=environ)
        process.send_signal(signal.SIGINT)
        said = await ended(process)
    assert (bought.code, without_credits.code, said.code) == (0, 1, 130)
    assert "402" in without_credits.err
    assert said.complaint == "nanobanana: interrupted"


async def test_a_port_in_use_is_one_line_on_stderr() -> None:
    async with Emulator() as emulator:
        port = emulator.url.rpartition(":")[2]
        said = await nanobanana("emulate", "--port", port)
    assert said.code == 1
    assert port in said.complaint

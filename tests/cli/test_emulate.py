"""`nanobanana emulate` listens, says how to get there, and goes when it is told to."""

import asyncio
import re
import signal
from asyncio.subprocess import Process

from nanobanana_async.emulator import API_KEY, Emulator
from tests.cli.command import ended, environment, nanobanana, started


async def where(process: Process) -> str:
    """Return the address that the emulator prints first."""
    assert process.stdout is not None
    async with asyncio.timeout(20):
        line = (await process.stdout.readline()).decode()
    found = re.search(r"http://\S+", line)
    assert found is not None, line
    return found[0]


async def test_a_second_command_generates_through_it_until_ctrl_c() -> None:
    options = ("--port", "0", "--job-limit", "2", "--job-seconds", "0.1", "--credits", "8")
    async with started("emulate", *options, environ=environment()) as process:
        environ = environment(NANOBANANA_BASE_URL=await where(process), APIMALL_API_KEY=API_KEY)
        bought = await nanobanana("generate", "a fox", environ=environ)
        broke = await nanobanana("generate", "a fox", environ=environ)
        process.send_signal(signal.SIGINT)
        said = await ended(process)
    assert (bought.code, broke.code, said.code) == (0, 1, 130)
    assert "402" in broke.complaint
    assert said.complaint == "nanobanana: interrupted"


async def test_a_port_that_is_taken_is_one_clear_line() -> None:
    async with Emulator() as emulator:
        port = emulator.url.rpartition(":")[2]
        said = await nanobanana("emulate", "--port", port)
    assert said.code == 1
    assert port in said.complaint

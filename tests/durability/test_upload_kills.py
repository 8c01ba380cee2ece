"""A process killed at every step of an upload: the same call again ends well, and one job is bought."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from tests.durability import upload_worker
from tests.durability.emulator_process import ROOT
from tests.durability.upload_worker import HALF_SENT, STEPS
from tests.support.loopback import GatewayName, charged, emulated
from tests.support.references import large_png, sha256, written

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="there is no SIGKILL")]

CONTENT = large_png(5 << 20)


async def run(step: str, *arguments: str) -> int:
    command = (sys.executable, "-m", "tests.durability.upload_worker", step, *arguments)
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stderr=asyncio.subprocess.PIPE)
    _, err = await process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), err.decode()
    return process.returncode or 0


@pytest.mark.parametrize(
    ("gateway", "step"),
    [
        *(("apimall", step) for step in (*STEPS, HALF_SENT)),
        ("defapi", "images loaded"),  # the steps before this one are those of the other gateway
    ],
)
async def test_call_after_a_kill_ends_well_and_buys_once(gateway: GatewayName, step: str, tmp_path: Path) -> None:
    image = written(tmp_path / "cat.png", CONTENT)
    async with emulated(check_references=True) as emulator:
        arguments = (gateway, emulator.url, str(tmp_path / "jobs.sqlite"), str(image))
        assert await run(step, *arguments) == -signal.SIGKILL
        await upload_worker.main("none", *arguments)  # in this process
        stats = emulator.stats()
        assert charged(stats, 1)
        assert [list(job.reference_digests) for job in emulator.jobs()] == [[sha256(CONTENT)]]
        if gateway == "apimall":
            again = step == "bytes stored"  # stored, and not yet remembered
            assert stats.uploads == {sha256(CONTENT): 2 if again else 1}

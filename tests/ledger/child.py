"""A second process on the same ledger, to be killed by tests: `python -m tests.ledger.child COMMAND FILE [NAME]`."""

import asyncio
import itertools
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from nanobanana_async.jobs import JobState
from nanobanana_async.ledger.sqlite import SqliteLedger
from tests.support.ledger_contract import NOON, job, running

ROOT = Path(os.path.abspath(__file__)).parents[2]
WRITERS = 20
CLAIMS = 25


async def hold(path: str, name: str) -> None:
    """Own a running job until the process is killed."""
    ledger = SqliteLedger(path)
    await ledger.open()
    await ledger.claim(running(name, f"t-{name}"))
    say("held")
    await asyncio.sleep(3600)


async def fork(path: str, name: str) -> None:
    """Own a running job, and fork a child that outlives this process until its input ends."""
    ledger = SqliteLedger(path)
    await ledger.open()
    await ledger.claim(running(name, f"t-{name}"))
    if not os.fork():
        say("forked")
        os.read(0, 1)
        os._exit(0)
    await asyncio.sleep(3600)


async def write(path: str, name: str) -> None:
    """Write without end; print each transition once it is durable."""
    ledger = SqliteLedger(path)
    await ledger.open()

    async def live(writer: int) -> None:
        for number in itertools.count():
            record = job(f"{name}-{writer}-{number}")
            await ledger.claim(record)
            say(f"{record.key} {record.revision}")
            for state in (JobState.SUBMITTING, JobState.RUNNING, JobState.SUCCEEDED):
                before, record = record, record.transition_to(state, ended_at=NOON)
                await ledger.advance(before, record)
                say(f"{record.key} {record.revision}")

    async with asyncio.TaskGroup() as group:
        for writer in range(WRITERS):
            group.create_task(live(writer))


async def share(path: str, name: str) -> None:
    """Claim the same keys as the other processes, all at once; print those that this process owns."""
    ledger = SqliteLedger(path)
    await ledger.open()
    async with asyncio.TaskGroup() as group:
        claims = [group.create_task(ledger.claim(job(f"shared-{number}"))) for number in range(CLAIMS)]
    for number, claim in enumerate(task.result() for task in claims):
        if claim.is_ours:
            say(f"{number} {claim.is_new}")
    say(f"{name} done")
    sys.stdin.read()
    await ledger.aclose()


def say(text: str) -> None:
    os.write(1, f"{text}\n".encode())


@asynccontextmanager
async def at(path: Path, what: str, name: str = "x") -> AsyncIterator[asyncio.subprocess.Process]:
    """Start another process on a ledger; kill it at the end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tests.ledger.child", what, str(path), name),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate(b"")  # ends its input, which a forked child may still read


async def line(process: asyncio.subprocess.Process) -> str:
    """Return the next line that the process prints."""
    assert process.stdout is not None
    return (await process.stdout.readline()).decode().strip()


if __name__ == "__main__":
    asyncio.run({"hold": hold, "fork": fork, "write": write, "share": share}[sys.argv[1]](sys.argv[2], sys.argv[3]))

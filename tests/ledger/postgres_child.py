"""A second host on the same PostgreSQL ledger: `python -m tests.ledger.postgres_child COMMAND URL SCHEMA [NAME]`."""

import asyncio
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

from nanobanana_async import ApiMall, ConcurrencyPolicy, DefApi, ImageRequest, Session
from nanobanana_async.emulator import API_KEY
from nanobanana_async.errors import LedgerError
from nanobanana_async.jobs import JobState
from nanobanana_async.keys import batch_key_prefix
from nanobanana_async.ledger.base import NotOurs
from nanobanana_async.ledger.postgres.driver import Connection
from nanobanana_async.ledger.postgres.ledger import PostgresLedger
from nanobanana_async.ledger.postgres.pipeline import Work
from nanobanana_async.ledger.postgres.statements import _INSERT_JOB, PostgresTable
from nanobanana_async.ledger.postgres.transactions import Transactions
from nanobanana_async.policy.prices import Price
from tests.support.ledger_contract import NOON, job, running
from tests.support.loopback import QUICK_POLLS
from tests.support.mutations import patched
from tests.support.postgres import SHORT

ROOT = Path(os.path.abspath(__file__)).parents[2]
EIGHT = Price("fox", Decimal(8))
CAP = Decimal(800)
ROWS = 160


def ledger_at(url: str, schema: str) -> PostgresLedger:
    return PostgresLedger(url, schema=schema, lease=SHORT, patience_s=10)


async def hold(ledger: PostgresLedger, name: str) -> None:
    """Own a pending and a running job; after a line of input, try to write, and say how that ended."""
    first, second = job(f"{name}-1"), running(f"{name}-2", f"t-{name}")
    await ledger.claim(first)
    await ledger.claim(second)
    say("held")
    for _ in range(2):
        if not await asyncio.to_thread(sys.stdin.readline):
            return
        try:
            await ledger.advance(first, first.transition_to(JobState.SUBMITTING, first_sent_at=NOON))
            say("written")
        except LedgerError as error:
            say(type(error).__name__)


async def leave(ledger: PostgresLedger, name: str) -> None:
    """Own a job that is not sent, of the account and for the gateway of the emulator, until the process is killed."""
    gateway = ApiMall(api_key=API_KEY)
    request = ImageRequest("a fox", model=gateway.model)
    await ledger.claim(job(name, account=gateway.account, request=request, body=gateway.encode(request)))
    say("held")
    await asyncio.sleep(3600)


async def generate(ledger: PostgresLedger, name: str) -> None:
    """Buy rows of the emulator's gateway in a session, one at a time; `name` is the gateway, its URL and how many."""
    kind, url, count = name.split()
    gateway = {"apimall": ApiMall, "defapi": DefApi}[kind](api_key=API_KEY, base_url=url, expected_job_s=0.01)
    ledger = PostgresLedger(str(ledger._url.url), schema=ledger._url.schema, lease=SHORT)  # a session opens its own
    one_at_a_time = ConcurrencyPolicy(max_jobs=1, learn=False)
    session = Session(gateway, ledger=ledger, concurrency=one_at_a_time, polling=QUICK_POLLS)
    async with session, asyncio.TaskGroup() as group:
        for number in range(int(count)):
            group.create_task(session.generate(f"row-{number}", idempotency_key=f"row-{number}"))
        while (await ledger.count_by_state()).total() < int(count):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        say("claimed")


async def stall(ledger: PostgresLedger, name: str) -> None:
    """Own two jobs; after a line of input, stop this process in the middle of a flush, and say how that ended."""
    await ledger.claim(job(f"{name}-1"))
    await ledger.claim(running(f"{name}-2", f"t-{name}"))
    say("held")
    await asyncio.to_thread(sys.stdin.readline)

    owners: list[int | None] = []

    def claim_and_stop(table: PostgresTable) -> Work[None]:
        yield from table.claim(job(f"{name}-3"))
        owners.append(table.owner)
        if len(owners) == 1:  # it runs again under its new number
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)  # a signal to the process may stop it later

    try:
        await ledger._submit(claim_and_stop, writes=True)
        say("written")
    except LedgerError as error:
        say(type(error).__name__)


async def stall_sending(ledger: PostgresLedger, name: str) -> None:
    """Do as `stall`, and stop between two statements: the server has one, and waits for the rest of the flush."""
    await ledger.claim(job(f"{name}-1"))
    await ledger.claim(running(f"{name}-2", f"t-{name}"))
    say("held")
    await asyncio.to_thread(sys.stdin.readline)
    execute, stops = Transactions._execute, iter([True])

    def execute_and_stop(connection: Transactions, db: Connection, request: Any) -> Any:
        executed = execute(connection, db, request)
        if request.sql == _INSERT_JOB and next(stops, False):
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
        return executed

    with patched([(Transactions, "_execute", execute_and_stop)]):
        await ledger.claim(job(f"{name}-3"))
    say("written")


async def buy(ledger: PostgresLedger, name: str) -> None:
    """Buy rows of a batch under a cap that does not suffice for all, as fast as possible; adopt what has no owner."""

    async def purchase(number: int) -> None:
        claim = await ledger.claim(job(f"spring-{number}", batch=batch_key_prefix("spring")))
        record = claim.record
        if not claim.is_ours or record.state is not JobState.PENDING:
            return
        sending = record.transition_to(JobState.SUBMITTING, first_sent_at=NOON)
        if (await ledger.advance_and_reserve(record, sending, EIGHT, CAP)).refusal is not None:
            return
        say(f"bought {record.key}")
        sold = sending.transition_to(JobState.RUNNING, task_id=f"t-{record.key}", credits_used=Decimal(8))
        await ledger.advance(sending, sold)
        await ledger.advance(sold, sold.transition_to(JobState.SUCCEEDED, ended_at=NOON))

    numbers = iter(range(ROWS))

    async def work() -> None:
        for number in numbers:
            await purchase(number)

    async with asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(work())
    say("done")


COMMANDS = {each.__name__: each for each in (hold, buy, stall, stall_sending, leave, generate)}


async def main(command: str, url: str, schema: str, name: str = "x") -> None:
    ledger = ledger_at(url, schema)
    await ledger.open()
    try:
        await COMMANDS[command](ledger, name)
    except* NotOurs:
        say("lost")
    finally:
        await ledger.aclose()


def say(text: str) -> None:
    os.write(1, f"{text}\n".encode())


@asynccontextmanager
async def host(command: str, url: str, schema: str, name: str = "x") -> AsyncIterator[asyncio.subprocess.Process]:
    """Start another host; kill it at the end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tests.ledger.postgres_child", command, url, schema, name),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate(b"")


async def say_to(process: asyncio.subprocess.Process, text: str = "go") -> None:
    """Write a line to the input of another host."""
    assert process.stdin is not None
    process.stdin.write(f"{text}\n".encode())
    await process.stdin.drain()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

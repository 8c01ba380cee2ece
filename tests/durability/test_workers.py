"""Three workers draw the rows of one batch from a ledger on PostgreSQL, and are killed again and again."""

import asyncio
import random
import sys
from asyncio.subprocess import Process
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from nanobanana_async import PostgresLedger, Session
from nanobanana_async.emulator import Emulator, Fixed
from tests.durability.drawing_worker import gateway_at
from tests.support.loopback import until
from tests.support.postgres import Server, new_schema

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

ROWS, WORKERS, KILLS = 60, 3, 4


@asynccontextmanager
async def worker(*words: str) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "tests.durability.drawing_worker", *words)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def lines_in(folder: Path) -> list[str]:
    file = folder / "lines"
    return file.read_text().splitlines() if file.exists() else []


def has_lines(folder: Path, count: int) -> bool:
    return len(lines_in(folder)) >= count


def images_in(folder: Path) -> int:
    return len(list(folder.glob("order-*.*g")))


@pytest.mark.parametrize("name", ["apimall", "defapi"])
async def test_killed_workers_lose_no_row_and_buy_none_twice(name: str, postgres: Server, tmp_path: Path) -> None:
    schema, chance = new_schema(), random.Random(7)
    rows = [{"prompt": f"a fox {number}", "key": f"order-{number}"} for number in range(ROWS)]
    async with Emulator(duration=Fixed(0.5), job_limit=9, image_scale=0.05) as emulator, AsyncExitStack() as stack:
        gateway = gateway_at(emulator.url, name)
        async with Session(gateway, ledger=PostgresLedger(postgres.url, schema=schema)) as session:
            assert (await session.feed(rows, batch="spring")).new == ROWS
        words = (postgres.url, schema, name, emulator.url, str(tmp_path))
        running = [await stack.enter_async_context(worker(*words)) for _ in range(WORKERS)]
        async with asyncio.timeout(200):
            for kill in range(1, KILLS + 1):
                await until(partial(has_lines, tmp_path, kill * ROWS // (KILLS + 2)), timeout_s=100)
                killed = running.pop(chance.randrange(WORKERS))
                killed.kill()
                running.append(await stack.enter_async_context(worker(*words)))
            assert [await process.wait() for process in running] == [0] * WORKERS
        bought = emulator.stats()
        ledger = PostgresLedger(postgres.url, schema=schema, read_only=True)
        await ledger.open()
        states = await ledger.count_by_state()
        await ledger.aclose()
    outcomes = Counter(line.partition(" ")[0] for line in lines_in(tmp_path))
    assert set(outcomes) == {row["key"] for row in rows}
    assert bought.double_charges == 0
    uncertain = sum(count for state, count in states.items() if state.name == "UNCERTAIN")
    assert states.total() == ROWS
    assert uncertain <= (0 if name == "apimall" else 4 * KILLS)  # creates in flight of those that were killed
    assert ROWS - uncertain <= bought.creates_accepted <= ROWS
    saved = {line.partition(" ")[0] for line in lines_in(tmp_path) if line.endswith(" saved")}
    assert len(saved) == images_in(tmp_path) == ROWS - uncertain

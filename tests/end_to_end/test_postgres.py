"""Sessions on two hosts with one ledger in PostgreSQL, against the emulator."""

import asyncio
from contextlib import suppress

import pytest

from nanobanana_async import Batch, BatchStopped, PostgresLedger, Session
from nanobanana_async.emulator import Emulator, Fixed
from tests.ledger.child import line
from tests.ledger.postgres_child import host
from tests.support.loopback import gateway_of
from tests.support.postgres import Server, new_schema

pytestmark = pytest.mark.slow

ROWS = [f"image {number}" for number in range(12)]


async def bought(batch: Batch) -> int:
    """Take a batch to its end, or to the cap; return the number of its images."""
    count = 0
    with suppress(BatchStopped):
        async for outcome in batch:
            count += outcome.ok
    return count


async def test_two_hosts_share_a_key_and_the_cap_of_a_batch(postgres: Server) -> None:
    schema = new_schema()
    ledgers = f"{postgres.url}&schema={schema}", PostgresLedger(postgres.url, schema=schema)
    async with Emulator(duration=Fixed(0.3)) as emulator:
        one, two = (Session(gateway_of(emulator, "apimall"), ledger=ledger) for ledger in ledgers)
        async with one, two, asyncio.TaskGroup() as group:
            results = [group.create_task(session.generate("a fox", idempotency_key="k")) for session in (one, two)]
        assert results[0].result().task_id == results[1].result().task_id
        assert emulator.stats().creates_accepted == 1
        one, two = (Session(gateway_of(emulator, "apimall"), ledger=ledger) for ledger in ledgers)
        async with one, two, asyncio.TaskGroup() as group:
            counts = [
                group.create_task(bought(session.generate_many(ROWS, batch="spring", max_credits=80)))
                for session in (one, two)
            ]
        assert max(count.result() for count in counts) <= 10
        assert emulator.stats().creates_accepted == 11
        await ledgers[1].open()
        assert await ledgers[1].spent_or_reserved("spring") == 80
        await ledgers[1].aclose()


async def test_caller_waits_for_a_living_host_and_continues_for_a_dead_one(postgres: Server) -> None:
    schema = new_schema()
    async with Emulator(duration=Fixed(0.3)) as emulator, host("leave", postgres.url, schema, "order-1") as other:
        assert await line(other) == "held"
        ledger = PostgresLedger(postgres.url, schema=schema)
        async with Session(gateway_of(emulator, "apimall"), ledger=ledger) as session, asyncio.TaskGroup() as group:
            call = group.create_task(session.generate("a fox", idempotency_key="order-1"))
            await session.generate("an owl", idempotency_key="order-2")
            assert not call.done()
            assert [job.prompt for job in emulator.jobs()] == ["an owl"]
            other.kill()
        assert call.result().url
        assert sorted(job.prompt for job in emulator.jobs()) == ["a fox", "an owl"]

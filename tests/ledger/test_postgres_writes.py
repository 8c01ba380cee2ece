"""Writes to PostgreSQL: lost answers to a commit, values that no text column holds, flushes, caps across hosts."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from attrs import evolve

from nanobanana_async.errors import LedgerError
from nanobanana_async.failures import Failure
from nanobanana_async.jobs import JobRecord, JobState
from nanobanana_async.keys import batch_key_prefix
from nanobanana_async.ledger.base import Claim
from nanobanana_async.ledger.postgres.columns import as_text, from_text
from nanobanana_async.ledger.postgres.leases import Lease
from nanobanana_async.ledger.postgres.ledger import PostgresLedger
from nanobanana_async.ledger.postgres.pipeline import Call, Statement, StatementRow, Work, run_calls
from nanobanana_async.testing import ConnectionFault, FaultProxy
from tests.ledger.child import line
from tests.ledger.postgres_child import CAP, EIGHT, ROWS, host
from tests.support.ledger_contract import NOON, job, keys_left, running, sent
from tests.support.postgres import QUOTED_PASSWORD, SHORT, Server, new_schema
from tests.support.rows import each_row

LOST_COMMIT = ConnectionFault("cut", words=b"COMMIT")
"""The server has committed, and its answer does not come."""

STRANGE = ["\0", "a\0b", "half \ud83e", "json:", 'json:"x"', "größer 狐", "\\u0000", ""]


@each_row("text", STRANGE)
def test_every_text_has_a_form_that_postgresql_stores(text: str) -> None:
    stored = as_text(text)
    stored.encode()
    assert "\0" not in stored
    assert from_text(stored) == text


def test_calls_of_one_lane_run_one_after_another_and_others_together() -> None:
    sent_together: list[int] = []

    def send(requests: Any) -> list[list[tuple[Any, ...]]]:
        sent_together.append(len(requests))
        return [[(request.sql,)] for request in requests]

    def call(name: str, *lanes: str) -> Call[list[str]]:
        def work(_: object) -> Work[list[str]]:
            answers = []
            for step in range(2):
                ((row,),) = yield [Statement(f"{name}{step}")]
                answers.append(row[0])
            return answers

        return Call(work, lanes)

    results = run_calls([call("a", "x"), call("b", "x"), call("c", "y"), call("d")], None, send)
    assert [value for value, _ in results] == [["a0", "a1"], ["b0", "b1"], ["c0", "c1"], ["d0", "d1"]]
    assert sent_together == [3, 3, 1, 1]


def test_rows_of_one_statement_are_sent_as_one_sorted_by_key() -> None:
    rows_sent: list[dict[str, list[Any]]] = []

    def send(requests: Any) -> list[list[tuple[Any, ...]]]:
        rows_sent.extend(request.values for request in requests)
        return [[("a", 1), ("c", 3)]]

    def work(key: str) -> Work[list[tuple[Any, ...]]]:
        (rows,) = yield [StatementRow("SELECT", {"key": key, "state": key.upper()})]
        return rows

    calls: list[Call[Any]] = [Call(lambda _, key=key: work(key)) for key in "cab"]  # type: ignore[misc]
    assert run_calls(calls, None, send) == [([("c", 3)], None), ([("a", 1)], None), ([], None)]
    assert rows_sent == [{"key": ["a", "b", "c"], "state": ["A", "B", "C"]}]


@pytest.fixture
async def ledger(postgres: Server) -> AsyncIterator[PostgresLedger]:
    ledger = PostgresLedger(postgres.url, schema=new_schema(), patience_s=10)
    await ledger.open()
    yield ledger
    await ledger.aclose()


@pytest.mark.slow
@pytest.mark.parametrize("text", STRANGE)
async def test_strange_texts_of_gateways_and_users_survive(ledger: PostgresLedger, text: str) -> None:
    first = sent(f"k {text}", account=f"me {text}", body=b"\0\xff")
    await ledger.claim(first)
    failure = Failure(kind="TransportError", message=text)
    facts: dict[str, Any] = {"task_id": f"t {text}", "model": text, "images": (text,), "missing": ((0, text),)}
    after = first.transition_to(JobState.RUNNING, failure=failure, **facts)
    await ledger.advance(first, after)
    assert await ledger.find(first.key) == after
    assert await ledger.find_task(first.account, f"t {text}") == after
    assert list(await ledger.known_tasks(first.account, ["t0", f"t {text}"])) == [f"t {text}"]
    await ledger.remember(first.account, text)
    assert await ledger.recall(first.account) == text


@pytest.mark.slow
async def test_record_that_can_not_be_stored_fails_alone(ledger: PostgresLedger) -> None:
    too_large = evolve(job("bad"), attempts=2**40)
    async with asyncio.TaskGroup() as group:
        good = [group.create_task(ledger.claim(job(f"good-{number}"))) for number in range(3)]
        bad = group.create_task(fails(ledger.claim(too_large)))
    assert all(task.result().is_new for task in good)
    error = bad.result()
    assert (error.key, error.safe_to_repeat) == ("bad", True)
    assert await ledger.find("bad") is None


async def fails(call: Any) -> LedgerError:
    with pytest.raises(LedgerError) as caught:
        await call
    return caught.value


@pytest.mark.slow
async def test_calls_of_one_turn_share_a_transaction(ledger: PostgresLedger, postgres: Server) -> None:
    async with asyncio.TaskGroup() as group:
        for number in range(200):
            group.create_task(ledger.claim(job(f"k{number}")))
    counts = postgres.execute("SELECT count(*), count(DISTINCT xmin::text) FROM jobs", schema=ledger._url.schema)
    assert counts == [(200, 1)]


@pytest.mark.slow
async def test_two_claims_of_one_key_in_one_flush_make_one_job(ledger: PostgresLedger) -> None:
    async with asyncio.TaskGroup() as group:
        claims = [group.create_task(ledger.claim(job(body=b"%d" % number))) for number in range(3)]
    assert [claim.result().is_new for claim in claims] == [True, False, False]
    assert {claim.result().record.body for claim in claims} == {b"0"}


@pytest.fixture
def proxy(postgres: Server) -> Iterator[FaultProxy]:
    with FaultProxy(postgres.port) as proxy:
        yield proxy


@pytest.fixture
async def cut(proxy: FaultProxy) -> AsyncIterator[PostgresLedger]:
    """A ledger behind the proxy. It beats once an hour, so that the next commit is that of the next call."""
    url = f"postgresql://postgres:{QUOTED_PASSWORD}@127.0.0.1:{proxy.port}/postgres?sslmode=disable"
    lease = Lease(beat_s=3600, silence_s=4 * 3600)
    ledger = PostgresLedger(url, schema=new_schema(), patience_s=10, lease=lease)
    await ledger.open()
    yield ledger
    await ledger.aclose()


@pytest.mark.slow
async def test_commit_whose_answer_was_lost_counts_as_done(cut: PostgresLedger, proxy: FaultProxy) -> None:
    first = job()
    proxy.queue(LOST_COMMIT)
    claim = await cut.claim(first)
    assert (claim.is_new, claim.is_ours, claim.record) == (True, True, first)
    after = first.transition_to(JobState.SUBMITTING, first_sent_at=NOON)
    proxy.queue(LOST_COMMIT)
    await cut.advance(first, after)
    assert await cut.find("order-1") == after
    proxy.queue(LOST_COMMIT)
    await cut.release("order-1")
    assert await keys_left(cut) == ["order-1"]
    proxy.queue(LOST_COMMIT)
    adopted = await cut.adopt("order-1")
    assert adopted == Claim(record=after, is_ours=True)
    assert proxy.struck == 4


@pytest.mark.slow
async def test_reservation_whose_answer_was_lost_is_not_made_twice(cut: PostgresLedger, proxy: FaultProxy) -> None:
    first = job(batch=batch_key_prefix("b"))
    await cut.claim(first)
    after = first.transition_to(JobState.SUBMITTING, first_sent_at=NOON)
    proxy.queue(LOST_COMMIT)
    allowance = await cut.advance_and_reserve(first, after, EIGHT, Decimal(8))
    assert (allowance.refusal, allowance.price, allowance.other_charges) == (None, EIGHT, Decimal(0))
    assert proxy.struck == 1
    assert await cut.spent_or_reserved("b") == 8
    running_job = after.transition_to(JobState.RUNNING, task_id="t1", credits_used=Decimal(9))
    proxy.queue(LOST_COMMIT)
    await cut.advance(after, running_job)
    assert await cut.spent_or_reserved("b") == 9


@pytest.mark.slow
async def test_stale_write_is_refused_also_after_a_lost_answer(cut: PostgresLedger, proxy: FaultProxy) -> None:
    first = job()
    await cut.claim(first)
    await cut.advance(first, first.transition_to(JobState.SUBMITTING, first_sent_at=NOON))
    proxy.queue(LOST_COMMIT)
    with pytest.raises(LedgerError, match="was changed by another owner"):
        await cut.advance(first, first.transition_to(JobState.WITHDRAWN))
    assert proxy.struck == 1


@pytest.mark.slow
async def test_flush_whose_request_was_lost_is_repeated(cut: PostgresLedger, proxy: FaultProxy) -> None:
    proxy.queue(ConnectionFault("cut", words=b"INSERT INTO jobs"))
    async with asyncio.TaskGroup() as group:
        claims = [group.create_task(cut.claim(job(f"k{number}"))) for number in range(5)]
    assert all(claim.result().is_new for claim in claims)
    assert proxy.struck == 1


@pytest.mark.slow
async def test_flush_of_which_a_part_was_lost_is_ended_by_its_owner(postgres: Server, proxy: FaultProxy) -> None:
    schema, records = new_schema(), [job(f"k{number}", body=b"x" * 10_000, model="unsent") for number in range(100)]
    url = f"postgresql://postgres:{QUOTED_PASSWORD}@127.0.0.1:{proxy.port}/postgres?sslmode=disable"
    ledger = PostgresLedger(url, schema=schema, patience_s=20, lease=SHORT)
    await ledger.open()
    proxy.queue(
        ConnectionFault("stall", side="request", words=b"unsent")
    )  # the connection stays, so that the server waits for the rest for ever
    async with asyncio.TaskGroup() as group:
        claims = [group.create_task(ledger.claim(record)) for record in records]
    assert all(claim.result().is_new for claim in claims)
    assert proxy.struck == 1
    async with asyncio.timeout(20):
        while not ledger.surely_owns:  # noqa: ASYNC110 - the writer's thread sets no event
            await asyncio.sleep(0.05)
    assert postgres.execute("SELECT count(*), count(buried_by) FROM owners", schema=schema) == [(1, 0)]
    await ledger.aclose()


@pytest.mark.slow
async def test_cap_is_never_passed_by_hosts_that_are_killed(postgres: Server) -> None:
    schema = new_schema()
    bought: set[str] = set()

    async def buy(number: int) -> None:
        kills = 1 if number < 3 else 0
        while True:
            async with host("buy", postgres.url, schema, f"h{number}") as process:
                for count in range(10**6):
                    said = await line(process)
                    if said in ("done", ""):
                        return
                    bought.add(said)
                    if kills and count == 5 + number:
                        kills -= 1
                        break

    async with AsyncExitStack() as stack:
        ledger = PostgresLedger(postgres.url, schema=schema)
        await ledger.open()
        stack.push_async_callback(ledger.aclose)
        async with asyncio.TaskGroup() as group:
            for number in range(4):
                group.create_task(buy(number))
        assert await ledger.spent_or_reserved("spring") == CAP
        charges = "SELECT sum(credits), count(*), count(DISTINCT job) FROM charges"
        assert postgres.execute(charges, schema=schema) == [(CAP, 100, 100)]
        assert len(bought) <= 100 < ROWS
        states = await ledger.count_by_state()
        assert states.total() - states[JobState.PENDING] == 100


@pytest.mark.slow
async def test_server_refuses_a_charge_beyond_its_cap(ledger: PostgresLedger, postgres: Server) -> None:
    first = job(batch=batch_key_prefix("b"))
    await ledger.claim(first)
    sending = first.transition_to(JobState.SUBMITTING, first_sent_at=NOON)
    assert (await ledger.advance_and_reserve(first, sending, EIGHT, Decimal(10))).refusal is None
    with pytest.raises(psycopg.errors.CheckViolation, match="pass its cap"):
        postgres.execute("UPDATE charges SET credits = 11", schema=ledger._url.schema)


@pytest.mark.slow
async def test_task_can_not_become_two_purchases_of_two_hosts(postgres: Server) -> None:
    schema = new_schema()
    async with AsyncExitStack() as stack:
        ledgers = [PostgresLedger(postgres.url, schema=schema) for _ in range(2)]
        for ledger in ledgers:
            await ledger.open()
            stack.push_async_callback(ledger.aclose)
        records = [sent("a"), sent("b")]
        for ledger, record in zip(ledgers, records, strict=True):
            await ledger.claim(record)

        async def accept(ledger: PostgresLedger, record: JobRecord) -> str:
            try:
                await ledger.advance(record, record.transition_to(JobState.RUNNING, task_id="t1"))
            except LedgerError as error:
                return type(error).__name__
            return "stored"

        async with asyncio.TaskGroup() as group:
            ends = [group.create_task(accept(*pair)) for pair in zip(ledgers, records, strict=True)]
        assert sorted(end.result() for end in ends) == ["TaskTaken", "stored"]


@pytest.mark.slow
async def test_free_jobs_are_found_by_their_index(ledger: PostgresLedger, postgres: Server) -> None:
    await ledger.claim(job())
    await ledger.claim(running("z"))
    plan = postgres.execute(
        "INSERT INTO jobs (key, gateway, account, body, created_at, state, revision, generation, attempts,"
        " in_doubt, candidates, images, missing, owner) SELECT 'k' || n, 'apimall', 'mine', '', now(),"
        " CASE WHEN n % 3 = 0 THEN 'pending' ELSE 'succeeded' END, 0, 1, 0, false, '[]', '[]', '[]',"
        " CASE WHEN n % 2 = 0 THEN 1 END FROM generate_series(1, 30000) AS n",
        "ANALYZE jobs",
        "EXPLAIN SELECT id FROM jobs WHERE account = 'mine' AND state = 'pending' AND owner IS NULL AND NOT fed"
        " AND id > 0 ORDER BY id LIMIT 200",
        schema=ledger._url.schema,
    )
    text = "\n".join(row[0] for row in plan)
    assert "jobs_free" in text
    assert "Sort" not in text
    assert len(await keys_left(ledger)) == 5000


@pytest.mark.slow
async def test_rows_to_draw_are_found_by_their_index(ledger: PostgresLedger, postgres: Server) -> None:
    plan = postgres.execute(
        "INSERT INTO jobs (key, gateway, account, body, created_at, state, revision, generation, attempts,"
        " in_doubt, candidates, images, missing, fed) SELECT 'k' || n, 'apimall', 'mine', '', now(), 'pending',"
        " 0, 1, 0, false, '[]', '[]', '[]', true FROM generate_series(1, 30000) AS n",
        "INSERT INTO fed_rows (job, batch, row_index, digest, name, worker)"
        " SELECT id, 'spring', id, '', '', CASE WHEN id % 3 = 0 THEN 1 END FROM jobs",
        "ANALYZE",
        "EXPLAIN SELECT job FROM fed_rows WHERE batch = 'spring' AND worker IS NULL AND delivered IS NULL"
        " AND row_index > 9 ORDER BY row_index, job LIMIT 8 FOR UPDATE SKIP LOCKED",
        schema=ledger._url.schema,
    )
    text = "\n".join(row[0] for row in plan)
    assert "fed_rows_free" in text
    assert "Sort" not in text

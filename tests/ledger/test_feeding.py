"""The contract of drawing rows, for each ledger that can be fed."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import psycopg
import pytest

from nanobanana_async.errors import LedgerError
from nanobanana_async.ledger.feeding import FeedsRows
from nanobanana_async.ledger.postgres.ledger import PostgresLedger
from tests.support.clocks import leap
from tests.support.feeding_contract import SCENES, SPRING, Scene, drawn, fed, opened
from tests.support.postgres import Server, new_schema
from tests.support.shared_ledger import LedgerView, SharedLedger

Opening = Callable[[], FeedsRows]


def shared(_: pytest.FixtureRequest) -> Opening:
    rows = SharedLedger()
    return lambda: LedgerView(rows)


def postgres(request: pytest.FixtureRequest, server: str = "postgres") -> Opening:
    url, schema = request.getfixturevalue(server).url, new_schema()
    return lambda: PostgresLedger(url, schema=schema)


LEDGERS: Mapping[str, Callable[[pytest.FixtureRequest], Opening]] = {
    "shared": shared,
    "postgres": postgres,
    "pgbouncer": lambda request: postgres(request, "pooler"),
}
KINDS = [pytest.param(kind, marks=pytest.mark.slow) if kind[0] == "p" else kind for kind in LEDGERS]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scene", SCENES, ids=[scene.__name__ for scene in SCENES])
async def test_contract(kind: str, scene: Scene, request: pytest.FixtureRequest) -> None:
    opening = LEDGERS[kind](request)
    one, two = opening(), opening()
    await one.open()
    await two.open()
    try:
        await scene(one, two)
    finally:
        await two.aclose()
        await one.aclose()


@pytest.mark.slow
async def test_rows_whose_delivery_failed_are_drawn_again_by_their_owner(postgres: Server) -> None:
    schema = new_schema()
    ledger = PostgresLedger(postgres.url, schema=schema, patience_s=60)
    await ledger.open()
    try:
        await opened(ledger, *map(fed, range(4)))
        assert await drawn(ledger, 3) == [0, 1, 2]
        first, second, _ = (fed(number).record.key for number in range(3))
        await ledger.deliver({first: 0})
        with psycopg.connect(postgres.url) as db:
            db.execute(f"LOCK TABLE {schema}.fed_rows".encode())
            delivery = asyncio.Task(ledger.deliver({second: 0}))
            await asyncio.sleep(0.1)
            leap(60.0)
            with pytest.raises(LedgerError, match="no success within 60 s"):
                await delivery
        assert sorted(await drawn(ledger)) == [1, 2, 3]
        draw = await ledger.draw(SPRING, 8)
        assert (draw.rows, draw.unfinished) == ((), True)
        await ledger.deliver({fed(number).record.key: 0 for number in (1, 2, 3)})
        assert not (await ledger.draw(SPRING, 8)).unfinished
    finally:
        await ledger.aclose()


@pytest.mark.slow
async def test_rows_of_a_draw_without_an_answer_are_drawn_again(
    postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = PostgresLedger(postgres.url, schema=new_schema())
    await ledger.open()
    try:
        await opened(ledger, *map(fed, range(4)))
        assert await drawn(ledger, 1) == [0]
        with monkeypatch.context() as patches:
            submit = ledger._submit

            async def lost(*call: Any, **how: Any) -> None:
                await submit(*call, **how)
                raise LedgerError("the answer to the commit was lost")

            patches.setattr(ledger, "_submit", lost)
            with pytest.raises(LedgerError):
                await ledger.draw(SPRING, 2)
        assert sorted(await drawn(ledger)) == [1, 2, 3]
        assert await drawn(ledger) == []
    finally:
        await ledger.aclose()

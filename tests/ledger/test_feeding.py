"""The contract of drawing rows, for each ledger that can be fed."""

from collections.abc import Callable, Mapping

import pytest

from nanobanana_async.ledger.feeding import FeedsRows
from nanobanana_async.ledger.postgres.ledger import PostgresLedger
from tests.support.feeding_contract import SCENES, Scene
from tests.support.postgres import new_schema
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

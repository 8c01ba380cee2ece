"""The ledger contract for each ledger of the package. Add a ledger to `LEDGERS` to test it too."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from nanobanana_async.ledger.base import Ledger
from nanobanana_async.ledger.memory import MemoryLedger
from nanobanana_async.ledger.postgres.ledger import PostgresLedger
from nanobanana_async.ledger.sqlite import SqliteLedger
from tests.support.ledger_contract import SCENES, Scene
from tests.support.postgres import new_schema

LEDGERS: Mapping[str, Callable[[pytest.FixtureRequest], Ledger]] = {
    "memory": lambda _: MemoryLedger(),
    "sqlite": lambda request: SqliteLedger(folder_of(request) / "jobs.sqlite"),
    "postgres": lambda request: PostgresLedger(request.getfixturevalue("postgres").url, schema=new_schema()),
    "pgbouncer": lambda request: PostgresLedger(request.getfixturevalue("pooler").url, schema=new_schema()),
}
KINDS = [pytest.param(kind, marks=pytest.mark.slow) if kind[0] == "p" else kind for kind in LEDGERS]


def folder_of(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue("tmp_path")
    return folder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scene", SCENES, ids=[scene.__name__ for scene in SCENES])
async def test_contract(kind: str, scene: Scene, request: pytest.FixtureRequest) -> None:
    ledger = LEDGERS[kind](request)
    await ledger.open()
    try:
        await scene(ledger)
    finally:
        await ledger.aclose()

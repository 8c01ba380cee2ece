"""The ledger contract for each ledger of the package. Add a ledger to `LEDGERS` to test it too."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from nanobanana_async.ledger.base import Ledger
from nanobanana_async.ledger.memory import MemoryLedger
from nanobanana_async.ledger.sqlite import SqliteLedger
from tests.support.ledger_contract import SCENES, Scene

LEDGERS: Mapping[str, Callable[[Path], Ledger]] = {
    "memory": lambda _: MemoryLedger(),
    "sqlite": lambda folder: SqliteLedger(folder / "jobs.sqlite"),
}


@pytest.mark.parametrize("kind", LEDGERS)
@pytest.mark.parametrize("scene", SCENES, ids=[scene.__name__ for scene in SCENES])
async def test_contract(kind: str, scene: Scene, tmp_path: Path) -> None:
    ledger = LEDGERS[kind](tmp_path)
    await ledger.open()
    try:
        await scene(ledger)
    finally:
        await ledger.aclose()

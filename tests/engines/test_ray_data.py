"""The recipe for Ray Data: actors are killed while paid jobs run."""

import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests.engines.shop import PYTHON, marks, opened_shop, without_image
from tests.support.postgres import Server

pytestmark = marks("ray", "pyarrow")

ON_LOOPBACK = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # as there, its servers listen on loopback only
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
}


@pytest.fixture
def sockets() -> Iterator[str]:
    """Return a folder for Ray: in that of a test the paths of its sockets would be too long."""
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield folder


async def test_rows_of_killed_actors_are_paid_once(postgres: Server, tmp_path: Path, sockets: str) -> None:
    pyarrow: Any = import_module("pyarrow")
    parquet: Any = import_module("pyarrow.parquet")
    async with opened_shop(tmp_path, postgres, rows=48) as shop:
        shop.environ |= ON_LOOPBACK | {"RAY_TMPDIR": sockets}
        source, target = tmp_path / "prompts.parquet", tmp_path / "results"
        parquet.write_table(pyarrow.table({"key": list(shop.rows), "prompt": list(shop.rows.values())}), source)
        run = await shop.start(PYTHON, "-m", "tests.engines.run_ray", str(source), str(target), str(shop.images))
        await shop.kill_one(4)
        await shop.kill_one(4)
        await shop.wait_for(run)
        found = parquet.read_table(target).to_pylist()
        assert sorted(row["key"] for row in found) == sorted(shop.rows)
        assert [row["error"] for row in found if row["error"]] == []
        assert without_image(row["file"] for row in found) == []
        shop.check(len(shop.starts()))

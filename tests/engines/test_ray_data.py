"""The recipe for Ray Data: actors are killed while paid jobs run."""

from pathlib import Path

import pytest

from tests.engines.shop import PYTHON, need, opened_shop
from tests.support.postgres import Server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


async def test_rows_of_killed_actors_are_paid_once(postgres: Server, tmp_path: Path) -> None:
    need("ray", "pyarrow")
    from pyarrow import parquet, table

    async with opened_shop(tmp_path, postgres, rows=60) as shop:
        shop.environ |= {
            "HOME": str(tmp_path),  # where Ray writes the token of its cluster
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_enable_worker_prestart": "0",
            "RAY_prestart_worker_first_driver": "0",
        }
        source, target = tmp_path / "prompts.parquet", tmp_path / "results"
        parquet.write_table(table({"key": list(shop.rows), "prompt": list(shop.rows.values())}), source)
        run = await shop.start(
            PYTHON, "-m", "tests.engines.run_ray", str(source), str(target), str(shop.images)
        )
        for _ in range(2):
            await shop.kill_one()
        await shop.wait_for(run)
        found = parquet.read_table(target).to_pylist()
        assert sorted(row["key"] for row in found) == sorted(shop.rows)
        assert [row for row in found if row["error"] or not Path(row["file"]).is_file()] == []
        shop.check(len(shop.starts()))

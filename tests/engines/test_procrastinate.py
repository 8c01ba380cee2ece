"""The recipe for Procrastinate: workers are killed while paid jobs run."""

import json
from pathlib import Path

from tests.engines.shop import PYTHON, Shop, marks, opened_shop
from tests.support.postgres import Server

pytestmark = marks("procrastinate")

APPLY_SCHEMA = (PYTHON, "-m", "procrastinate", "--app", "procrastinate_tasks.app", "schema", "--apply")
WORKER = (PYTHON, "-c", "import procrastinate_tasks; procrastinate_tasks.work()")
QUEUE = """
import json, sys
from procrastinate_tasks import app, image_of
with app.open():
    image_of.batch_defer(*json.loads(sys.argv[1]))
"""
RERUN = """
from procrastinate_tasks import app, rerun_stalled
with app.open():
    rerun_stalled.defer(timestamp=0)
"""
OURS = "task_name = 'procrastinate_tasks.image_of'"
STARTS = (
    "SELECT count(*) FROM procrastinate_events JOIN procrastinate_jobs AS jobs ON jobs.id = job_id"
    f" WHERE type = 'started' AND {OURS}"
)
STATES = f"SELECT status::text, count(*) FROM procrastinate_jobs WHERE {OURS} GROUP BY status"
BUSY = f"SELECT DISTINCT worker_id FROM procrastinate_jobs WHERE status = 'doing' AND {OURS}"
SILENCE = "UPDATE procrastinate_workers SET last_heartbeat = now() - interval '31 seconds' WHERE id <= 2 RETURNING id"


async def test_jobs_of_killed_workers_are_paid_once(postgres: Server, tmp_path: Path) -> None:
    async with opened_shop(tmp_path, postgres, rows=60) as shop:
        await shop.wait_for(await shop.start(*APPLY_SCHEMA))
        workers = [await shop.start(*WORKER) for _ in range(2)]
        await shop.until(lambda: len(shop.query("SELECT FROM procrastinate_workers")) == 2)
        rows = [{"key": key, "prompt": prompt, "folder": str(shop.images)} for key, prompt in shop.rows.items()]
        await shop.wait_for(await shop.start(PYTHON, "-c", QUEUE, json.dumps(rows)))
        # A worker takes 50 of the 60.
        await shop.until(lambda: len(shop.query(BUSY)) == 2 and len(shop.running()) > 4)
        for worker in workers:
            worker.kill()
            shop.kills += 1
        await shop.start(*WORKER)
        await rerun_stalled(shop)
        await shop.until(lambda: {state for state, _ in shop.query(STATES)} == {"succeeded"})
        ((starts,),) = shop.query(STARTS)
        shop.check(starts)


async def rerun_stalled(shop: Shop) -> None:
    """Do at once what the recipe does after 30 s without a heartbeat, in the next minute."""
    assert len(shop.query(SILENCE)) == 2
    await shop.wait_for(await shop.start(PYTHON, "-c", RERUN))

"""A host that works on a fed batch until it ends, or until it is killed.

`python -m tests.durability.drawing_worker LEDGER SCHEMA GATEWAY FOLDER`: images go to the folder, and a line for each
outcome to `FOLDER/lines`.
"""

import asyncio
import os
import sys
from pathlib import Path

from nanobanana_async import ApiMall, ConcurrencyPolicy, DefApi, PollPolicy, PostgresLedger, RetryPolicy, Session
from nanobanana_async.config import Timeouts
from nanobanana_async.emulator import API_KEY
from nanobanana_async.gateways.contract import Gateway
from tests.support.postgres import SHORT

QUICK = PollPolicy(target_delay_s=0.05, min_gap_s=0.05, max_gap_s=0.2)


def gateway_at(url: str, name: str) -> Gateway:
    kind = ApiMall if name == "apimall" else DefApi
    return kind(api_key=API_KEY, base_url=url, expected_job_s=0.2)


async def work(ledger: str, schema: str, name: str, url: str, folder: Path) -> None:
    session = Session(
        gateway_at(url, name),
        ledger=PostgresLedger(ledger, schema=schema, lease=SHORT, patience_s=20),
        concurrency=ConcurrencyPolicy(max_jobs=4),
        polling=QUICK,
        retry=RetryPolicy(first_backoff_s=0.05, max_backoff_s=0.5),
        timeouts=Timeouts(create_s=20.0),
        allow_networks=["127.0.0.1/32"],
    )
    lines = os.open(folder / "lines", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    async with session, session.work("spring", save_to=folder) as batch:
        async for outcome in batch:
            how = "saved" if outcome.saved else type(outcome.error).__name__
            os.write(lines, f"{outcome.row_key} {how}\n".encode())


if __name__ == "__main__":
    ledger, schema, name, url, folder = sys.argv[1:]
    asyncio.run(work(ledger, schema, name, url, Path(folder)))

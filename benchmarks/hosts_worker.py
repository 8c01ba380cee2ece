"""In a process of its own: one host, which draws rows of a batch and buys them until none is left."""

import asyncio
import logging
from typing import Any

from benchmarks.children import orders, reply
from nanobanana_async import ApiMall, BatchStopped, DefApi, PostgresLedger, Session
from nanobanana_async.emulator import API_KEY
from nanobanana_async.ledger.postgres.leases import Lease


async def _work(asked: dict[str, Any]) -> None:
    kind = ApiMall if asked["gateway"] == "apimall" else DefApi
    gateway = kind(api_key=API_KEY, base_url=asked["url"], expected_job_s=asked["median_s"])
    beat_s, silence_s = asked["lease"]
    ledger = PostgresLedger(
        asked["ledger"], schema=asked["schema"], lease=Lease(beat_s=beat_s, silence_s=silence_s), patience_s=300
    )
    done, errors = 0, []
    async with Session(gateway, ledger=ledger) as session:
        if asked["feed"]:
            prompts = (f"image {number}" for number in range(asked["feed"]))
            await session.feed(prompts, batch=asked["batch"], max_credits=asked["max_credits"])
        else:
            try:
                async for outcome in session.work(asked["batch"]):
                    done += 1
                    if outcome.error is not None:
                        errors.append(f"{type(outcome.error).__name__}: {outcome.error}")
            except BatchStopped as stopped:
                errors.append(f"{type(stopped.cause).__name__}: {stopped.cause}")
    reply({"done": done, "errors": errors})


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    asyncio.run(_work(orders()))

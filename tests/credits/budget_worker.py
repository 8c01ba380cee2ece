"""A process that buys single jobs under a budget until it is used up, to be killed by tests."""

import asyncio
import json
import sys
from itertools import count
from typing import Any

from nanobanana_async import ApiMall, Budget, CreditLimitReached, PollPolicy, Session
from nanobanana_async.emulator import API_KEY


async def buy(session: Session, name: str, numbers: "count[int]", budget: Budget) -> None:
    """Buy one job after the other; a key that an earlier process of the name used finds its job."""
    while True:
        key = f"{name}-{next(numbers)}"
        try:
            await session.generate(f"a fox for {key}", idempotency_key=key, budget=budget)
        except CreditLimitReached:
            return


async def main(settings: dict[str, Any]) -> None:
    """Adopt what a killed process left, and buy."""
    gateway = ApiMall(api_key=API_KEY, base_url=settings["url"], expected_job_s=0.2)
    polling = PollPolicy(target_delay_s=0.05, min_gap_s=0.02, max_gap_s=0.2)
    budget, numbers = Budget(name="alice", max_credits=settings["max_credits"]), count()
    async with Session(gateway, ledger=settings["ledger"], polling=polling) as session:
        await session.resume()
        print("open", flush=True)
        async with asyncio.TaskGroup() as group:
            for _ in range(8):
                group.create_task(buy(session, settings["name"], numbers, budget))
        for job in await session.resume():
            await job


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))

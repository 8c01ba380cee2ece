"""Two accounts of 5 and 10 slots buy a batch; one of them dies in the middle, first by refusals, then by an outage."""

import heapq
from asyncio import sleep

import pytest

from nanobanana_async import ConcurrencyPolicy, MemoryLedger, Session, TransportError
from nanobanana_async.gateways.contract import HttpRequest
from nanobanana_async.testing import FakeTransport, Reply
from tests.engine.test_accounts_share import PromptAccount
from tests.engine.test_several_accounts import A, B
from tests.support.fakes import now, virtually
from tests.support.replies import refused

JOB_S, ROWS, SLOTS = 20.0, 300, {"a": 5, "b": 10}


class DyingAccount(PromptAccount):
    """An account that can lose the answer to its next create, after which it answers nothing."""

    loses_next = False

    def answer(self, request: HttpRequest) -> Reply:
        before = self.sold
        reply = super().answer(request)
        if self.loses_next and self.sold > before:
            self.loses_next, self.down = False, True
            return TransportError("reset", possibly_sent=True)
        return reply


def ideal_s(account: DyingAccount, slots: int, left: int) -> float:
    """Return how long an account takes at best for `left` more jobs, beside those that it runs."""
    running = [sold_at + JOB_S - now() for sold_at in account.tasks.values() if sold_at + JOB_S > now()]
    free_at = [0.0] * (slots - len(running)) + running
    heapq.heapify(free_at)
    for _ in range(left):
        heapq.heapreplace(free_at, free_at[0] + JOB_S)
    return max(free_at)


@pytest.mark.parametrize("dies", ["a", "b"])
@pytest.mark.parametrize("how", ["402, then outage", "lost answer, then outage"])
@virtually
async def test_batch_ends_in_time_and_buys_once_when_an_account_dies(dies: str, how: str) -> None:
    accounts = {name: DyingAccount(job_s=JOB_S, limit=slots) for name, slots in SLOTS.items()}
    dead, alive = accounts[dies], accounts["b" if dies == "a" else "a"]
    ideal, died_at, others_ended_at = 0.0, 0.0, 0.0
    delivered: set[str] = set()
    transports = [FakeTransport(each.answer) for each in accounts.values()]
    async with Session([A, B], http=transports, ledger=MemoryLedger(), prefer=[dies]) as session:
        async for outcome in session.generate_many([f"fox {n}" for n in range(ROWS)]):
            assert outcome.ok, outcome.error
            assert outcome.request is not None
            delivered.add(outcome.request.prompt)
            if len(delivered) == 150:
                died_at, slots = now(), SLOTS["b" if dies == "a" else "a"]
                ideal = ideal_s(alive, slots, ROWS - dead.sold - alive.sold)
                if how.startswith("402"):
                    dead.refuses = refused(402, "insufficient_credits", "no credits")
                else:
                    dead.loses_next = True
            if len(delivered) == 200 and how.startswith("402"):
                assert not set(dead.prompts) - delivered  # all that it sold has been collected
                dead.refuses, dead.down = None, True
            if len(delivered) == ROWS - len(set(dead.prompts) - delivered) and not others_ended_at:
                others_ended_at, dead.down = now(), False
    sold = [*dead.prompts, *alive.prompts]
    assert len(sold) == len(set(sold)) == len(delivered) == ROWS
    took_s = others_ended_at - died_at
    print(f"{dies} dies by {how}: {took_s:.1f} s, ideal {ideal:.1f} s, ratio {took_s / ideal:.3f}")
    assert took_s <= 1.1 * ideal


@virtually
async def test_job_that_waits_to_be_sent_again_goes_to_the_other_account_when_a_slot_is_free() -> None:
    dead, alive = DyingAccount(job_s=JOB_S, limit=1), DyingAccount(job_s=300.0, limit=1)
    dead.down = True
    transports = [FakeTransport(each.answer) for each in (dead, alive)]
    async with Session([A, B], http=transports, ledger=MemoryLedger(), prefer=["a"]) as session:
        jobs = [await session.submit("fox 1")]
        await sleep(30.0)
        jobs.append(await session.submit("fox 2"))
        for job in jobs:
            await job
    assert (dead.sold, alive.sold) == (0, 2)
    first, second = sorted(alive.tasks.values())
    assert first <= 5.0
    assert second - first <= 1.1 * 300.0


@virtually
async def test_job_goes_to_the_other_account_when_polls_alone_show_that_its_gateway_is_down() -> None:
    dead, alive = DyingAccount(job_s=30.0, limit=4), DyingAccount(job_s=30.0, limit=4)
    transports = [FakeTransport(each.answer) for each in (dead, alive)]
    policy = ConcurrencyPolicy(max_jobs=4)
    async with Session([A, B], http=transports, ledger=MemoryLedger(), concurrency=policy, prefer=["a"]) as session:
        running = [await session.submit(f"fox {number}") for number in range(3)]  # one slot is free
        await sleep(10.0)
        dead.down, before = True, (dead.sold, alive.sold)
        await sleep(40.0)
        late_at = now()
        late = [await session.submit(f"late {number}") for number in range(4)]
        await sleep(10.0)
        dead.down = False
        for job in (*running, *late):
            await job
    assert (dead.sold, alive.sold) == (before[0], before[1] + 4)
    assert max(alive.tasks.values()) <= late_at + 2.0

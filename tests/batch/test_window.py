"""How many rows a batch buys at most before outcomes are taken, and that this bound costs no throughput."""

import asyncio
import random

import pytest

from nanobanana_async import PollPolicy
from nanobanana_async.batch import room
from nanobanana_async.testing import FakeTransport, run_virtual
from tests.batch.fakes import CountingInput, PromptGateway, all_of, slots
from tests.support.fakes import apimall, now, virtually

pytestmark = pytest.mark.slow

AT_FIRST, PER_TAKEN = 128, 3  # as docs/batches.md says
SELDOM = PollPolicy(target_delay_s=2.0, min_gap_s=2.0)


async def bought_by_leaving(taken: int, *, ordered: bool = False, rows: int = 10_000) -> int:
    """Take so many outcomes from an account without a limit, then hold the batch and take no more."""
    gateway = PromptGateway(job_s=2)
    async with apimall(FakeTransport(gateway.answer, latency_s=0.01)) as session:
        batch = session.generate_many(CountingInput(rows), ordered=ordered)
        for _ in range(taken):
            await anext(batch)
        if not taken:
            await batch.__aenter__()
        await asyncio.sleep(1000)
        return len(gateway.sold)


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("taken", [0, 1, 3, 200])
def test_bought_rows_are_bounded_by_taken_outcomes(taken: int, ordered: bool) -> None:
    bought = run_virtual(bought_by_leaving(taken, ordered=ordered))
    assert taken < bought <= AT_FIRST + PER_TAKEN * taken


def test_control_runner_without_the_window_buys_far_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "PULLED_AT_FIRST", 1_000_000)
    bound = AT_FIRST + 3 * PER_TAKEN
    assert run_virtual(bought_by_leaving(3, rows=5 * bound)) > 4 * bound


async def makespan(limit: int, rows: int, *, ordered: bool) -> float:
    chance = random.Random(7)
    prompts = [f"{chance.lognormvariate(3.0, 0.4):.2f} s" for _ in range(rows)]
    begun = now()
    async with apimall(FakeTransport(PromptGateway(limit=limit).answer), polling=SELDOM) as session:
        assert len(await all_of(session.generate_many(prompts, ordered=ordered))) == rows
    return now() - begun


@pytest.mark.parametrize(
    ("limit", "rows", "ordered"), [(5, 100, False), (20, 150, True), (100, 200, False), (100, 300, True)]
)
def test_window_does_not_slow_a_usual_account(
    limit: int, rows: int, ordered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    random.seed(1)
    bounded = run_virtual(makespan(limit, rows, ordered=ordered))
    monkeypatch.setattr(room, "PULLED_AT_FIRST", 1_000_000)
    random.seed(1)
    assert bounded <= 1.02 * run_virtual(makespan(limit, rows, ordered=ordered))


@virtually
async def test_max_jobs_are_held_before_the_first_outcome_is_taken() -> None:
    gateway = PromptGateway(job_s=100)
    async with (
        apimall(FakeTransport(gateway.answer), concurrency=slots(300)) as session,
        session.generate_many(CountingInput()),
    ):
        await asyncio.sleep(50)
        assert len(gateway.sold) == 300

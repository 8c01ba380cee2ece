"""Sessions on one ledger share the account: slots, refusals, pauses, and a ledger that fails."""

import asyncio
from contextlib import AsyncExitStack, suppress
from typing import Any

import pytest

from nanobanana_async import ApiMall, ConcurrencyPolicy, MemoryLedger, Session
from nanobanana_async.emulator import API_KEY, EmulatorSettings, GatewaySimulator, LogNormal
from nanobanana_async.errors import SessionClosed
from nanobanana_async.gateways.contract import HttpRequest
from nanobanana_async.ledger.base import SharesAccount
from nanobanana_async.ledger.sqlite import SqliteLedger
from nanobanana_async.testing import EmulatorTransport, Reply
from tests.support import shared_ledger
from tests.support.fakes import FakeGateway, apimall, now, virtually
from tests.support.mutations import patched
from tests.support.replies import refused
from tests.support.shared_ledger import LOST, FakeProcess, LedgerView, SharedLedger


async def host(stack: AsyncExitStack, shared: SharedLedger, gateway: Any, **settings: Any) -> FakeProcess:
    process = FakeProcess(shared, gateway.answer, session_of=apimall, delay_s=0.004, **settings)
    return await stack.enter_async_context(process)


async def work(process: FakeProcess, jobs: int, name: str = "fox") -> None:
    """Buy jobs at once, and wait for all."""
    await buy(process.session, [f"{name} {number}" for number in range(jobs)])


async def buy(session: Session, prompts: list[str]) -> None:
    with suppress(SessionClosed):
        async with asyncio.TaskGroup() as group:
            for prompt in prompts:
                group.create_task(session.generate(prompt))


@virtually
async def test_hosts_fill_the_slots_in_equal_parts_with_few_refusals() -> None:
    gateway, shared = FakeGateway(job_s=10.0, limit=20), SharedLedger()
    async with AsyncExitStack() as stack:
        hosts = [await host(stack, shared, gateway) for _ in range(4)]
        tasks = [asyncio.Task(work(each, 100, f"fox {number}")) for number, each in enumerate(hosts)]
        await asyncio.sleep(60.0)
        assert sum(each.held for each in hosts) >= 18
        assert all(4 <= each.held <= 6 for each in hosts)
        assert sum(each.session.stats().throttled for each in hosts) <= 12
        assert {each.session.stats().job_limit for each in hosts} <= {19, 20, 21}
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    assert gateway.most_running == 20


@virtually
async def test_a_host_that_comes_late_gets_its_part() -> None:
    gateway, shared = FakeGateway(job_s=10.0, limit=10), SharedLedger()
    async with AsyncExitStack() as stack:
        first = await host(stack, shared, gateway)
        working = asyncio.Task(work(first, 100, "crow"))
        await asyncio.sleep(30.0)
        second = await host(stack, shared, gateway)
        also = asyncio.Task(work(second, 100, "fox"))
        await asyncio.sleep(15.0)
        before = [first.creates, second.creates]
        await asyncio.sleep(60.0)
        bought = [host.creates - count for host, count in zip((first, second), before, strict=True)]
        assert sum(bought) >= 50
        assert abs(bought[0] - bought[1]) <= 6
        assert second.session.stats().throttled <= 4
        for task in (working, also):
            task.cancel()
        await asyncio.wait([working, also])


@virtually
async def test_slots_that_a_host_keeps_its_jobs_from_go_to_the_others() -> None:
    for policy in (ConcurrencyPolicy(max_jobs=1), ConcurrencyPolicy(max_requests_per_minute=10)):
        for limit in (None, 8):
            gateway, shared = FakeGateway(job_s=200.0, limit=limit), SharedLedger()
            async with AsyncExitStack() as stack:
                held_back = await host(stack, shared, gateway, concurrency=policy)
                tasks = [asyncio.Task(work(held_back, 20, "crow"))]
                await asyncio.sleep(1.0)
                other = await host(stack, shared, gateway)
                tasks.append(asyncio.Task(work(other, 30, "fox")))
                await asyncio.sleep(60.0)
                assert held_back.held >= 1
                assert other.held >= (6 if policy.max_jobs else 5)
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)


@virtually
async def test_slots_of_a_host_that_lacks_credits_go_to_the_others() -> None:
    gateway, shared = FakeGateway(job_s=200.0, limit=None), SharedLedger()
    async with AsyncExitStack() as stack:
        poor = await host(stack, shared, gateway, max_credits=20)  # a second job waits for the price of the first
        tasks = [asyncio.Task(work(poor, 5, "crow"))]
        await asyncio.sleep(1.0)
        other = await host(stack, shared, gateway)
        tasks.append(asyncio.Task(work(other, 20, "fox")))
        await asyncio.sleep(20.0)
        assert other.held == 20
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


@virtually
async def test_a_host_that_lost_its_way_to_the_gateway_does_not_stop_the_others() -> None:
    gateway, shared = FakeGateway(job_s=5.0, limit=4), SharedLedger()
    async with AsyncExitStack() as stack:
        unreachable = FakeProcess(shared, lambda _: LOST, session_of=apimall, delay_s=0.004)
        await stack.enter_async_context(unreachable)
        tasks = [asyncio.Task(work(unreachable, 20, "crow"))]
        await asyncio.sleep(20.0)
        others = [await host(stack, shared, gateway) for _ in range(2)]
        tasks += [asyncio.Task(work(other, 20, f"fox {number}")) for number, other in enumerate(others)]
        await asyncio.sleep(120.0)
        assert gateway.sold == 40
        assert unreachable.creates < 60
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


@virtually
async def test_an_outage_costs_few_creates() -> None:
    gateway, shared = FakeGateway(job_s=5.0, limit=8), SharedLedger()
    down = [True]

    def answer(request: HttpRequest) -> Reply:
        return LOST if down else gateway.answer(request)

    async with AsyncExitStack() as stack:
        hosts = [
            await stack.enter_async_context(FakeProcess(shared, answer, session_of=apimall, delay_s=0.004))
            for _ in range(4)
        ]
        tasks = [asyncio.Task(work(each, 20, f"fox {number}")) for number, each in enumerate(hosts)]
        await asyncio.sleep(300.0)
        assert sum(each.creates for each in hosts) < 80
        down.clear()
        await asyncio.sleep(120.0)
        assert gateway.sold == 80
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


@pytest.mark.slow
@pytest.mark.parametrize("jump_s", [3600.0, -3600.0])
@virtually
async def test_hosts_go_on_when_the_clock_of_the_ledger_is_set(jump_s: float) -> None:
    simulator = GatewaySimulator(
        EmulatorSettings(job_limit=8, requests_per_minute=60, duration=LogNormal(median_s=10.0))
    )
    shared, before = SharedLedger(), shared_ledger.CLOCK_AHEAD_S
    async with AsyncExitStack() as stack:
        tasks = []
        for number in range(2):
            gateway = ApiMall(api_key=API_KEY, base_url="http://127.0.0.1")
            transport = EmulatorTransport(simulator, api_key=API_KEY)
            session = await stack.enter_async_context(
                Session(gateway, http=transport, ledger=LedgerView(shared, 0.004))
            )
            tasks.append(asyncio.Task(buy(session, [f"fox {number} {each}" for each in range(80)])))
        await asyncio.sleep(90.0)
        with patched([(shared_ledger, "CLOCK_AHEAD_S", before + jump_s)]):
            bought = simulator.stats(now()).creates_accepted
            await asyncio.sleep(60.0)
            assert simulator.stats(now()).creates_accepted > bought + 15
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


@virtually
async def test_no_slot_is_missing_after_hosts_were_killed() -> None:
    gateway, shared = FakeGateway(job_s=10.0, limit=12), SharedLedger()
    shared.lease_s = 10.0
    async with AsyncExitStack() as stack:
        last = await host(stack, shared, gateway)
        tasks = [asyncio.Task(work(last, 400, "last"))]
        for number in range(3):
            dying = await host(stack, shared, gateway)
            tasks.append(asyncio.Task(work(dying, 50, f"fox {number}")))
            await asyncio.sleep(25.0)
            assert dying.held > 0
            dying.kill()
            await asyncio.sleep(5.0)
            assert last.held < 12  # what is dead counts until its burial
        await asyncio.sleep(15.0)
        await last.session.resume()
        await asyncio.sleep(20.0)
        assert last.held >= 12
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    assert gateway.most_running == 12


@virtually
async def test_jobs_of_a_buried_host_are_adopted_once_an_exchange_has_seen_them() -> None:
    gateway, shared = FakeGateway(job_s=60.0, limit=12), SharedLedger()
    shared.lease_s = 10.0
    async with AsyncExitStack() as stack:
        other = await host(stack, shared, gateway, adopt="follow", adopt_every_s=3600.0)
        tasks = [asyncio.Task(work(other, 4, "crow"))]
        dying = await host(stack, shared, gateway)
        tasks.append(asyncio.Task(work(dying, 5)))
        await asyncio.sleep(10.0)
        dying.kill()
        await asyncio.sleep(9.0)
        assert other.held == 4
        await asyncio.sleep(6.0)  # an exchange of a host whose jobs run comes every four seconds
        assert other.held == 9
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    assert gateway.sold == 9


@virtually
async def test_an_interactive_session_gets_the_next_free_slot() -> None:
    gateway, shared = FakeGateway(job_s=10.0, limit=5), SharedLedger()
    async with AsyncExitStack() as stack:
        batch = await host(stack, shared, gateway)
        working = asyncio.Task(work(batch, 60, "crow"))
        await asyncio.sleep(60.0)
        web = await host(stack, shared, gateway, concurrency=ConcurrencyPolicy(interactive=True))
        began_at = now()
        job = await web.session.submit("a fox")
        await job.wait_for_task_id()
        assert now() - began_at < 8.0
        working.cancel()
        await asyncio.wait([working])


@virtually
async def test_an_urgent_job_gets_the_next_slot_of_any_host() -> None:
    gateway, shared = FakeGateway(job_s=10.0, limit=6), SharedLedger()
    async with AsyncExitStack() as stack:
        hosts = [await host(stack, shared, gateway) for _ in range(2)]
        working = [asyncio.Task(work(each, 60, f"crow {number}")) for number, each in enumerate(hosts)]
        await asyncio.sleep(60.0)
        for _ in range(4):
            began_at = now()
            jobs = [await hosts[1].session.submit("a fox", priority=1) for _ in range(6)]
            for job in jobs:
                await job.wait_for_task_id()
            assert now() - began_at < 16.0  # by the three slots of its own host alone it takes 20 s
            await asyncio.sleep(21.0)
        for each in working:
            each.cancel()
        await asyncio.wait(working)


@virtually
async def test_a_reserve_lets_an_interactive_job_leave_at_once() -> None:
    gateway, shared = FakeGateway(job_s=10.0, limit=5), SharedLedger()
    async with AsyncExitStack() as stack:
        batch = await host(stack, shared, gateway)
        working = asyncio.Task(work(batch, 60, "crow"))
        await asyncio.sleep(60.0)
        policy = ConcurrencyPolicy(interactive=True, reserve=1)
        web = await host(stack, shared, gateway, concurrency=policy)
        await (await web.session.submit("the first fox")).wait_for_task_id()
        await asyncio.sleep(20.0)
        began_at = now()
        await (await web.session.submit("a fox")).wait_for_task_id()
        assert now() - began_at < 0.5
        working.cancel()
        await asyncio.wait([working])


@virtually
async def test_a_pause_that_one_host_met_holds_the_creates_of_all() -> None:
    gateway, shared = FakeGateway(job_s=10.0), SharedLedger()
    paused: list[bool] = [True]

    def answer(request: HttpRequest) -> Reply:
        if request.method == "POST" and paused and paused.pop():
            return refused(503, "UNAVAILABLE", **{"retry-after": "40"})
        return gateway.answer(request)

    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(FakeProcess(shared, answer, session_of=apimall, delay_s=0.004))
        second = await host(stack, shared, gateway)
        buying = asyncio.Task(first.session.generate("a crow"))
        await asyncio.sleep(1.0)
        job = await second.session.submit("a fox")
        await asyncio.sleep(30.0)
        assert gateway.sold == 0
        await buying
        await job
        assert gateway.sold == 2


@virtually
async def test_what_is_granted_lasts_while_exchanges_fail() -> None:
    gateway, shared = FakeGateway(job_s=10.0, limit=4), SharedLedger()
    async with AsyncExitStack() as stack:
        process = await host(stack, shared, gateway)
        working = asyncio.Task(work(process, 100))
        await asyncio.sleep(60.0)
        sold = gateway.sold
        process.ledger.fails["exchange"] = 1000
        await asyncio.sleep(60.0)
        assert gateway.sold - sold >= 20
        process.ledger.fails["exchange"] = 0
        await asyncio.sleep(10.0)
        assert process.held == 4
        working.cancel()
        await asyncio.wait([working])


@virtually
async def test_a_session_that_learns_nothing_takes_no_part() -> None:
    gateway, shared = FakeGateway(job_s=10.0), SharedLedger()
    two = ConcurrencyPolicy(max_jobs=2, learn=False)
    async with AsyncExitStack() as stack:
        process = await host(stack, shared, gateway, concurrency=two)
        await work(process, 4)
        assert process.ledger.calls["exchange"] == 0
        assert gateway.most_running == 2


@virtually
async def test_an_idle_session_does_not_exchange() -> None:
    gateway, shared = FakeGateway(job_s=10.0), SharedLedger()
    async with AsyncExitStack() as stack:
        process = await host(stack, shared, gateway)
        await asyncio.sleep(1.0)
        before = process.ledger.calls["exchange"]
        await asyncio.sleep(3600.0)
        assert process.ledger.calls["exchange"] == before <= 1


@virtually
async def test_hosts_share_one_budget_of_requests() -> None:
    settings = EmulatorSettings(
        job_limit=5, requests_per_minute=60, rate_window="sliding", duration=LogNormal(median_s=45.0)
    )
    simulator, shared = GatewaySimulator(settings), SharedLedger()
    async with AsyncExitStack() as stack:
        sessions = []
        for _ in range(3):
            gateway = ApiMall(api_key=API_KEY, base_url="http://127.0.0.1")
            transport = EmulatorTransport(simulator, api_key=API_KEY)
            session = Session(gateway, http=transport, ledger=LedgerView(shared, 0.004))
            sessions.append(await stack.enter_async_context(session))
        async with asyncio.TaskGroup() as group:
            for number in range(30):
                group.create_task(sessions[number % 3].generate(f"fox {number}"))
        stats = simulator.stats(now())
        assert now() <= 1.4 * 6 * 45.0
        assert sum(stats.refusals_429.values()) <= 0.07 * sum(stats.requests.values())


def test_ledgers_of_one_machine_share_no_account() -> None:
    assert not isinstance(MemoryLedger(), SharesAccount)
    assert not isinstance(SqliteLedger("jobs.sqlite"), SharesAccount)

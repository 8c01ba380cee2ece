"""Named budgets: what calls with a `Budget` may spend, in one session, over restarts and beside other sessions."""

import asyncio
from decimal import Decimal
from typing import Any

import pytest
from attrs import evolve

from nanobanana_async import (
    ApiMall,
    Budget,
    ConcurrencyPolicy,
    CreditLimitReached,
    JobState,
    JobUncertain,
    Ledger,
    MemoryLedger,
    Session,
)
from nanobanana_async.emulator import API_KEY, EmulatorSettings, Fixed, GatewaySimulator
from nanobanana_async.errors import ConfigurationError
from nanobanana_async.jobs import JobRecord
from nanobanana_async.ledger.base import Allowance
from nanobanana_async.models import ImageRequest
from nanobanana_async.policy.prices import Price
from nanobanana_async.testing import EmulatorTransport, VirtualLoop
from tests.credits.fakes import (
    BOTH,
    ChargingGateway,
    GatewayName,
    a_session,
    charging_gateway,
    foxes,
    full,
    outcome,
    run_batch,
)
from tests.support.fakes import virtually
from tests.support.shared_ledger import LedgerView, SharedLedger

ALICE = Budget(name="alice", max_credits=40)
DAILY = Budget(name="alice", max_credits=40, per="day")
PRICE: dict[GatewayName, Decimal] = {"apimall": Decimal(8), "defapi": Decimal("0.5")}
DAY_S = 86_400.0


async def bought(session: Session, count: int, *, word: str = "fox", **options: Any) -> tuple[int, list[Any]]:
    """Generate many at once; return how many results came, and the errors."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(outcome(session, prompt, **options)) for prompt in foxes(count, word=word)]
    errors = [task.result() for task in tasks if isinstance(task.result(), Exception)]
    return count - len(errors), errors


async def left(session: Session, name: str = "alice") -> Decimal:
    return (await session.budgets())[name].left


@pytest.mark.parametrize("make_ledger", [MemoryLedger, lambda: LedgerView(SharedLedger())], ids=["memory", "shared"])
@virtually
async def test_calls_with_one_budget_buy_what_it_has(make_ledger: Any) -> None:
    gateway = ChargingGateway()
    async with a_session("apimall", gateway.transport(), ledger=make_ledger()) as session:
        results, errors = await bought(session, 12, budget=ALICE)
        assert (results, len(errors), gateway.sold) == (5, 7, 5)
        assert all(isinstance(error, CreditLimitReached) for error in errors)
        job = await session.submit("an owl", budget=ALICE)
        with pytest.raises(CreditLimitReached) as caught:
            await job
        assert (caught.value.budget, job.state) == ("alice", JobState.WITHDRAWN)
        assert caught.value.left == 0
        assert str(caught.value) == (
            "budget alice: its cap is 40, 40 are spent, and a job for 8 would pass it; 0 are left; raise it to buy more"
        )
        assert (await bought(session, 3, word="hen"))[0] == 3  # no budget counts these
        states = await session.budgets()
        assert list(states) == ["alice"]
        assert (states["alice"].spent, states["alice"].reserved) == (Decimal(40), Decimal(0))
        assert states["alice"].resets_at is None


@virtually
async def test_group_that_waits_for_its_budget_holds_up_no_other_group() -> None:
    """The second job of alice waits, since the first may be refunded, until that one has ended."""
    gateway, loop = ChargingGateway(), asyncio.get_running_loop()
    budgets = {"alice": Budget(name="alice", max_credits=8), "bob": Budget(name="bob", max_credits=800)}
    async with a_session("apimall", gateway.transport(), budgets=budgets) as session:
        first = await session.submit("a fox", group="alice")
        await asyncio.sleep(1.0)
        second = await session.submit("a hen", group="alice")
        await asyncio.sleep(1.0)
        owl = await session.submit("an owl", group="bob")
        await asyncio.sleep(1.0)
        assert (first.state, second.state, owl.state) == (JobState.RUNNING, JobState.PENDING, JobState.RUNNING)
        await first
        with pytest.raises(CreditLimitReached):
            await second
        await owl
    assert loop.time() < 60


@pytest.mark.parametrize("others", [{"group": "bob"}, {"group": "bob", "priority": -1}, {"budget": None}])
@virtually
async def test_others_are_bought_while_a_group_waits_for_its_budget(others: dict[str, Any]) -> None:
    """Each of them is the last job that waits beside the group that is passed over."""
    gateway, loop = ChargingGateway(), asyncio.get_running_loop()
    async with a_session("apimall", gateway.transport(), budgets={"alice": evolve(ALICE, max_credits=8)}) as session:
        first = await session.submit("a fox", group="alice")
        await asyncio.sleep(1.0)
        second = await session.submit("a hen", group="alice")
        for prompt in foxes(5, word="owl"):
            await session.submit(prompt, **others)
            await asyncio.sleep(1.0)
        assert gateway.most_at_once == 6
        await first
        with pytest.raises(CreditLimitReached):
            await second
    assert loop.time() < 60


@pytest.mark.slow
@virtually
async def test_many_groups_that_wait_for_budgets_hold_up_no_other_group() -> None:
    """The free group has had slots already, so that its turn comes after all groups that wait."""
    gateway, names = ChargingGateway(job_s=1000.0), [f"user {number}" for number in range(100)]
    budgets = {name: Budget(name=name, max_credits=8) for name in names}
    wide = ConcurrencyPolicy(max_jobs=400, learn=False)
    async with a_session("apimall", gateway.transport(), budgets=budgets, concurrency=wide) as session:
        for word in ("a fox", "a hen"):
            for name in names:
                await session.submit(f"{word} for {name}", group=name)
            await asyncio.sleep(3.0)
        assert gateway.sold == 100
        for prompt in foxes(8, word="owl"):
            await session.submit(prompt, group="free")
            await asyncio.sleep(0.4)
        assert gateway.sold == 108


@virtually
async def test_budgets_are_counted_apart() -> None:
    gateway, bob = ChargingGateway(), Budget(name="bob", max_credits=16)
    async with a_session("apimall", gateway.transport()) as session, asyncio.TaskGroup() as group:
        of_alice = group.create_task(bought(session, 12, budget=ALICE))
        of_bob = group.create_task(bought(session, 12, word="owl", budget=bob))
    assert (of_alice.result()[0], of_bob.result()[0], gateway.sold) == (5, 2, 7)
    assert {error.budget for error in of_bob.result()[1]} == {"bob"}


@pytest.mark.parametrize("name", BOTH)
@virtually
async def test_batches_and_calls_share_a_budget(name: GatewayName) -> None:
    gateway, budget = charging_gateway(name), Budget(name="alice", max_credits=PRICE[name] * 10)
    async with a_session(name, gateway.transport(), ledger=LedgerView(SharedLedger())) as session:
        assert (await bought(session, 4, budget=budget))[0] == 4
        run = await run_batch(session, foxes(30, word="hen"), batch="spring", budget=budget)
        assert (run.results, gateway.sold, run.why.budget) == (6, 10, "alice")
        run = await run_batch(session, foxes(3, word="owl"), budget=budget)
        assert (run.results, gateway.sold) == (0, 10)


@virtually
async def test_budget_and_other_caps_hold_together() -> None:
    gateway, shared = ChargingGateway(), SharedLedger()
    async with a_session("apimall", gateway.transport(), ledger=LedgerView(shared), max_credits=72) as session:
        run = await run_batch(session, foxes(9), batch="spring", max_credits=24, budget=ALICE)
        assert (run.results, run.why.budget) == (3, None)
        run = await run_batch(session, foxes(9), batch="autumn", max_credits=24, budget=ALICE)
        assert (run.results, run.why.budget, run.why.left) == (2, "alice", Decimal(0))
        run = await run_batch(session, foxes(9), batch="winter")
        assert (run.results, run.why.budget, gateway.sold) == (4, None, 9)  # the cap of the session


@pytest.mark.parametrize("name", BOTH)
@virtually
async def test_sessions_at_once_share_a_budget(name: GatewayName) -> None:
    gateway, shared = charging_gateway(name), SharedLedger()
    budget = Budget(name="alice", max_credits=PRICE[name] * 10)
    async with (
        a_session(name, gateway.transport(), ledger=LedgerView(shared)) as ours,
        a_session(name, gateway.transport(), ledger=LedgerView(shared)) as theirs,
        asyncio.TaskGroup() as group,
    ):
        group.create_task(bought(ours, 20, budget=budget))
        group.create_task(run_batch(theirs, foxes(20, word="owl"), batch="spring", budget=budget))
    assert (gateway.sold, gateway.taken) == (10, budget.max_credits)


@virtually
async def test_budget_holds_over_restarts() -> None:
    gateway, shared, sold = ChargingGateway(), SharedLedger(), []
    for _ in range(3):
        async with a_session("apimall", gateway.transport(), ledger=LedgerView(shared)) as session:
            await bought(session, 2, budget=ALICE)
            sold.append(gateway.sold)
    assert sold == [2, 4, 5]


@virtually
async def test_budget_holds_for_a_job_that_a_later_session_adopts() -> None:
    gateway, shared = ChargingGateway(), SharedLedger()
    async with a_session("apimall", gateway.transport(), ledger=LedgerView(shared)) as session:
        await bought(session, 4, budget=ALICE)
        record = await session._require_engine().new_record(ImageRequest("a hen"), "hen-1", budget=ALICE)
        await session._components.ledger.claim(record)
        await session._components.ledger.claim(evolve(record, key="hen-2"))
    async with a_session("apimall", gateway.transport(), ledger=LedgerView(shared)) as session:
        first, second = await session.resume(buy=True)
        await first
        with pytest.raises(CreditLimitReached, match="budget alice"):
            await second
    assert gateway.sold == 5


@virtually
async def test_job_in_doubt_keeps_its_reservation_after_a_restart() -> None:
    gateway, shared = charging_gateway("defapi"), SharedLedger()
    budget = Budget(name="alice", max_credits=1)
    async with a_session("defapi", gateway.transport(), ledger=LedgerView(shared)) as session:
        assert (await bought(session, 1, budget=budget))[0] == 1
        gateway.faults.append(True)
        with pytest.raises(JobUncertain):
            await session.generate("a hen", idempotency_key="hen", budget=budget)
        state = (await session.budgets())["alice"]
        assert (state.spent, state.reserved, state.left) == (Decimal("0.5"), Decimal("0.5"), Decimal(0))
    async with a_session("defapi", gateway.transport(), ledger=LedgerView(shared)) as session:
        with pytest.raises(CreditLimitReached, match="0 are left"):
            await session.generate("an owl", budget=budget)
        await session.resolve("hen", not_bought=True)
        assert await left(session) == Decimal("0.5")
        await session.generate("an owl", budget=budget)


@virtually
async def test_purchase_by_hand_counts_under_the_budget_of_the_job() -> None:
    gateway, budget = charging_gateway("defapi"), Budget(name="alice", max_credits=1)
    async with a_session("defapi", gateway.transport(), ledger=LedgerView(SharedLedger())) as session:
        await bought(session, 1, budget=budget)
        gateway.faults.append(True)
        assert isinstance(await outcome(session, "a hen", idempotency_key="hen", budget=budget), JobUncertain)
        with pytest.raises(
            CreditLimitReached, match=r"budget alice: its cap is 1, 1 are .* 0 are left; raise"
        ) as caught:
            await session.resolve("hen", buy_again=True)
        assert (caught.value.budget, caught.value.left) == ("alice", Decimal(0))
        hen = await session.job("hen")
        assert hen is not None
        assert hen.state is JobState.UNCERTAIN  # it can still be resolved
        await session.resolve("hen", not_bought=True)
        assert await left(session) == Decimal("0.5")
    assert gateway.sold == 2


@virtually
async def test_another_purchase_by_hand_counts_under_the_budget_of_the_job() -> None:
    gateway, budget = charging_gateway("defapi"), Budget(name="alice", max_credits=2)
    async with a_session("defapi", gateway.transport(), ledger=LedgerView(SharedLedger())) as session:
        gateway.faults.append(True)
        assert isinstance(await outcome(session, "a hen", idempotency_key="hen", budget=budget), JobUncertain)
        with pytest.raises(CreditLimitReached, match="an earlier job was bought at an estimate"):
            await session.resolve("hen", buy_again=True)
        await bought(session, 1)  # by which the price becomes known
        await (await session.resolve("hen", buy_again=True))
        assert await left(session) == 1
    assert gateway.sold == 3


@virtually
async def test_budget_that_another_job_takes_before_a_purchase_by_hand_is_not_passed() -> None:
    """Between the check and the create, while the job waits for a slot."""
    gateway, shared, budget = charging_gateway("defapi"), SharedLedger(), Budget(name="alice", max_credits=2)
    one_slot = ConcurrencyPolicy(max_jobs=1, learn=False)
    async with (
        a_session("defapi", gateway.transport(), ledger=LedgerView(shared)) as theirs,
        a_session("defapi", gateway.transport(), ledger=LedgerView(shared), concurrency=one_slot) as ours,
    ):
        await ours.generate("a crow")  # by which the price becomes known
        gateway.faults.append(True)
        assert isinstance(await outcome(ours, "a hen", idempotency_key="hen", budget=budget), JobUncertain)
        await asyncio.sleep(200.0)  # the hen holds its slot no longer
        before = await ours.submit("a slow owl")
        await before.wait_for_task_id()
        hen = await ours.resolve("hen", buy_again=True)
        assert hen.state is JobState.PENDING
        assert (await bought(theirs, 3, budget=budget))[0] == 3
        with pytest.raises(CreditLimitReached, match="budget alice") as caught:
            await hen
        assert (caught.value.budget, caught.value.left, hen.state) == ("alice", Decimal(0), JobState.WITHDRAWN)
        state = (await ours.budgets())["alice"]
        assert [state.spent, state.reserved, state.left] == [1.5, 0.5, 0]  # reserved for the first hen
        await ours.generate("a hen", idempotency_key="hen", budget=evolve(budget, max_credits=3))
    assert [sale.prompt for sale in gateway.sales.values()].count("a hen") == 2


@virtually
async def test_groups_that_wait_for_budgets_read_these_together_once_a_second() -> None:
    """Their budgets are used by long jobs of another session, of which one ends early without a charge."""
    gateway, shared, names = ChargingGateway(job_s=10.0), SharedLedger(), [f"user {number}" for number in range(20)]
    budgets = {name: Budget(name=name, max_credits=8) for name in names}
    ours_ledger = LedgerView(shared)
    async with (
        a_session("apimall", gateway.transport(), ledger=LedgerView(shared), budgets=budgets) as theirs,
        a_session("apimall", gateway.transport(), ledger=ours_ledger, budgets=budgets) as ours,
    ):
        await theirs.generate("a crow")
        await ours.generate("a crow")
        await theirs.submit("an owl [fail]", group=names[0])
        await asyncio.sleep(1.0)
        gateway.job_s = 60.0
        for name in names[1:]:
            await theirs.submit("an owl", group=name)
        await asyncio.sleep(2.0)
        hens = [await ours.submit("a hen", group=name) for name in names]
        await asyncio.sleep(2.0)
        calls, sold = ours_ledger.calls.copy(), gateway.sold
        await asyncio.sleep(20.0)
        seen = ours_ledger.calls - calls
        assert gateway.sold == sold + 1  # that of the user whose owl was refunded
        assert hens[0].state is JobState.RUNNING
        assert 18 <= seen["budgets"] <= 21
        assert seen["advance_and_reserve"] <= 2 * len(names) + 2  # in any case each asks every ten seconds
        await asyncio.sleep(80.0)
        assert {hen.state for hen in hens[1:]} == {JobState.WITHDRAWN}
        calls = ours_ledger.calls.copy()
        await asyncio.sleep(30.0)
        assert (ours_ledger.calls - calls)["budgets"] == 0  # none waits


@virtually
async def test_job_that_waits_gets_the_value_that_another_session_gives_its_budget() -> None:
    gateway, shared = ChargingGateway(job_s=100.0), SharedLedger()
    async with (
        a_session("apimall", gateway.transport(), ledger=LedgerView(shared)) as theirs,
        a_session("apimall", gateway.transport(), ledger=LedgerView(shared)) as ours,
    ):
        await theirs.submit("an owl", budget=evolve(ALICE, max_credits=8))
        await asyncio.sleep(1.0)
        hen = await ours.submit("a hen", budget=evolve(ALICE, max_credits=8))
        await asyncio.sleep(5.0)
        assert hen.state is JobState.PENDING
        await theirs.submit("a crow", budget=evolve(ALICE, max_credits=24))
        await asyncio.sleep(3.0)
        assert (hen.state, gateway.sold) == (JobState.RUNNING, 3)


@virtually
async def test_stored_job_keeps_its_budget_when_a_later_session_names_another() -> None:
    gateway, shared, bob = ChargingGateway(), SharedLedger(), Budget(name="bob", max_credits=40)
    async with a_session("apimall", gateway.transport(), ledger=LedgerView(shared)) as session:
        engine, ledger = session._require_engine(), session._components.ledger
        await ledger.claim(await engine.new_record(ImageRequest("a hen"), "hen", budget=ALICE))
        await ledger.claim(await engine.new_record(ImageRequest("an owl"), "owl"))
    async with a_session("apimall", gateway.transport(), ledger=LedgerView(shared)) as session:
        await session.generate("a hen", idempotency_key="hen", budget=bob)
        assert [await left(session), await left(session, "bob")] == [32, 40]
        await session.generate("an owl", idempotency_key="owl", budget=bob)
        assert [await left(session), await left(session, "bob")] == [32, 32]


@virtually
async def test_job_that_its_budget_refuses_says_so_to_other_sessions() -> None:
    gateway, shared, refusal = (
        ChargingGateway(),
        SharedLedger(),
        "job owl was withdrawn: budget alice: its cap is 40, 40",
    )
    async with (
        a_session("apimall", gateway.transport(), ledger=LedgerView(shared)) as ours,
        a_session("apimall", gateway.transport(), ledger=LedgerView(shared)) as theirs,
        asyncio.TaskGroup() as group,
    ):
        assert (await bought(ours, 5, budget=ALICE))[0] == 5
        owner = group.create_task(outcome(ours, "an owl", idempotency_key="owl", budget=ALICE))
        follower = group.create_task(outcome(theirs, "an owl", idempotency_key="owl"))
        assert isinstance(await owner, CreditLimitReached)
        error = await follower
        assert isinstance(error, CreditLimitReached)
        assert (error.budget, error.key, error.safe_to_repeat) == ("alice", "owl", True)
        assert str(error).startswith(refusal)
    async with a_session("apimall", gateway.transport(), ledger=LedgerView(shared)) as later:
        job = await later.job("owl")
        assert job is not None
        with pytest.raises(CreditLimitReached, match=refusal):
            await job
        await later.generate("an owl", idempotency_key="owl", budget=evolve(ALICE, max_credits=48))
        assert job.key == "owl"
    assert gateway.sold == 6


@virtually
async def test_budget_of_a_day_opens_at_midnight_in_utc() -> None:
    gateway = ChargingGateway()
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    async with a_session("apimall", gateway.transport(), ledger=LedgerView(SharedLedger())) as session:
        assert (await bought(session, 9, budget=DAILY))[0] == 5
        with pytest.raises(CreditLimitReached, match="counts from 0 again at 2026-01-02 00:00 UTC"):
            await session.generate("an owl", budget=DAILY)
        await asyncio.sleep(DAY_S - loop.time() - 5.0)
        assert (await bought(session, 1, budget=DAILY))[0] == 0
        await asyncio.sleep(10.0)
        assert (await bought(session, 9, word="owl", budget=DAILY))[0] == 5
        assert await left(session) == 0
    assert gateway.sold == 10


@virtually
async def test_create_that_is_repeated_after_midnight_counts_in_the_new_day() -> None:
    gateway = ChargingGateway()
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    async with a_session("apimall", gateway.transport(), ledger=LedgerView(SharedLedger())) as session:
        await asyncio.sleep(DAY_S - 1.0)
        gateway.faults.extend([full()] * 3)
        await session.generate("a fox", budget=DAILY)
        assert loop.utcnow().day == 2
        assert await left(session) == 32


@virtually
async def test_newest_value_of_a_budget_holds_for_all_sessions() -> None:
    gateway, shared = ChargingGateway(), SharedLedger()
    async with (
        a_session("apimall", gateway.transport(), ledger=LedgerView(shared)) as ours,
        a_session("apimall", gateway.transport(), ledger=LedgerView(shared)) as theirs,
    ):
        assert (await bought(ours, 9, budget=ALICE))[0] == 5
        assert (await bought(theirs, 9, word="owl", budget=evolve(ALICE, max_credits=56)))[0] == 2
        await asyncio.sleep(2.0)
        assert (await bought(theirs, 9, word="hen", budget=evolve(ALICE, max_credits=64)))[0] == 1
        with pytest.raises(CreditLimitReached, match="its cap is 64, 64 are spent"):
            await ours.generate("a crow", budget=ALICE)
    assert gateway.sold == 8


@virtually
async def test_budget_that_counts_in_another_way_is_refused_before_any_create() -> None:
    gateway = ChargingGateway()
    async with a_session("apimall", gateway.transport()) as session:
        await session.generate("a fox", budget=ALICE)
        with pytest.raises(ConfigurationError, match="use another name"):
            await session.generate("an owl", budget=DAILY)
        with pytest.raises(ConfigurationError, match="budget must be a Budget, such as Budget"):
            await session.generate("an owl", budget=40)  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match="budget must be a Budget"):
            session.generate_many(["an owl"], budget="alice")  # type: ignore[arg-type]
    assert gateway.sold == 1


@virtually
async def test_key_that_is_asked_for_again_counts_once() -> None:
    gateway, bob = ChargingGateway(), Budget(name="bob", max_credits=40)
    async with a_session("apimall", gateway.transport()) as session:
        async with asyncio.TaskGroup() as group:  # no budget counts the job until the second caller names one
            for budget in (None, ALICE, bob):
                group.create_task(session.generate("a fox", idempotency_key="fox", budget=budget))
        await session.generate("a fox", idempotency_key="fox", budget=bob)
        states = await session.budgets()
    assert gateway.sold == 1
    assert [state.spent for state in states.values()] == [8, 0]


@virtually
async def test_group_has_the_budget_that_the_session_gives_it() -> None:
    bob = Budget(name="bob", max_credits=8)
    async with a_session("apimall", ChargingGateway().transport(), budgets={"alice": ALICE, "team": bob}) as session:
        assert {name: state.left for name, state in (await session.budgets()).items()} == {"alice": 40, "bob": 8}
        await session.generate("a fox", group="team")
        assert await left(session, "bob") == 0
        await session.generate("a hen", group="team", budget=ALICE)  # what the call names goes first
        assert await left(session) == 32
        await session.generate("an owl", group="others")
        await run_batch(session, foxes(2), group="alice")
        assert (await left(session), await left(session, "bob")) == (Decimal(16), Decimal(0))


@pytest.mark.parametrize(
    ("budgets", "why"),
    [
        ([ALICE], "budgets must be the budgets of groups, such as"),
        ({1: ALICE}, "a key of budgets must be the name of a group"),
        ({"alice": 40}, r"budgets\['alice'\] must be a Budget"),
        ({"alice": ALICE, "bob": DAILY}, "two different ones with the name 'alice'"),
    ],
)
def test_wrong_budgets_of_groups_are_named(budgets: Any, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        a_session("apimall", ChargingGateway().transport(), budgets=budgets)


def test_ledger_in_memory_keeps_no_ended_charges() -> None:
    ledger: Ledger = MemoryLedger()

    @virtually
    async def many() -> None:
        async with a_session("apimall", ChargingGateway().transport(), ledger=ledger) as session:
            await bought(session, 50, budget=Budget(name="alice", max_credits=1000))
            assert await left(session) == 600

    many()
    charges = ledger._charges  # type: ignore[attr-defined]
    assert not charges._names
    assert not any(each.open for each in charges._charges.values())


class CountingLedger(MemoryLedger):
    """A ledger that counts how often jobs ask it whether they may be sent."""

    asked = 0

    async def advance_and_reserve(
        self, before: JobRecord, after: JobRecord, price: Price, max_credits: Decimal | None
    ) -> Allowance:
        self.asked += 1
        return await super().advance_and_reserve(before, after, price, max_credits)


@virtually
async def test_jobs_of_two_prices_and_priorities_wait_for_a_budget_without_asking_in_turn() -> None:
    settings = EmulatorSettings(job_limit=3, duration=Fixed(20.0))
    transport = EmulatorTransport(GatewaySimulator(settings), api_key=API_KEY)
    budget, ledger = Budget(name="alice", max_credits=100), CountingLedger()
    async with Session(ApiMall(api_key=API_KEY), http=transport, ledger=ledger) as session:
        async with asyncio.TaskGroup() as group:
            for number in range(14):
                options = {"priority": number % 2, "num_images": 1 + number % 2}
                group.create_task(outcome(session, f"a fox {number}", budget=budget, **options))
        assert await left(session) < 8
    assert ledger.asked < 100

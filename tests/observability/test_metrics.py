"""The metrics agree with the session's stats and with the gateway's."""

import asyncio
from decimal import Decimal
from typing import Any

import pytest

from nanobanana_async import ApiMall, ConcurrencyPolicy, PollPolicy, Session, TransportError
from nanobanana_async.emulator import API_KEY, Fixed
from nanobanana_async.emulator.settings import EmulatorSettings
from nanobanana_async.emulator.simulator import GatewaySimulator
from nanobanana_async.jobs import JobRecord
from nanobanana_async.testing import EmulatorTransport, FakeTransport
from tests.support.fakes import FakeGateway, RecordingLedger, apimall, defapi, virtually
from tests.support.replies import completed, created, in_turn, task
from tests.support.shared_ledger import KEY, FakeProcess, LosingGateway, SharedLedger
from tests.support.telemetry import TelemetryCollector, outcome

UNITS = {
    "gen_ai.client.operation.duration": "s",
    "nanobanana.job.duration": "s",
    "nanobanana.poll.delay": "s",
    "nanobanana.ledger.write.duration": "s",
    "nanobanana.job.ends": "{job}",
    "nanobanana.create.requests": "{request}",
    "nanobanana.create.refusals": "{request}",
    "nanobanana.poll.requests": "{request}",
    "nanobanana.credits.spent": "{credit}",
    "nanobanana.slot.held": "{slot}",
    "nanobanana.slot.limit": "{slot}",
}


@virtually
async def test_write_of_a_buried_owner_is_counted_as_refused() -> None:
    collector, shared, gateway = TelemetryCollector(), SharedLedger(), FakeGateway(job_s=20.0)
    async with (
        FakeProcess(shared, gateway.answer, session_of=apimall, observers=[collector.telemetry]) as first,
        FakeProcess(shared, gateway.answer, session_of=apimall) as second,
    ):
        waiting = asyncio.Task(first.session.generate("a fox", idempotency_key=KEY))
        await asyncio.sleep(5.0)
        first.ledger.bury(unnoticed=True)
        await second.session.resume()
        assert (await waiting).task_id == "t1"
        assert collector.value("nanobanana.ledger.write.refusals") == 1
    assert gateway.sold == 1


@pytest.mark.slow
@virtually
async def test_metrics_agree_with_the_stats_after_refusals() -> None:
    collector = TelemetryCollector()
    simulator = GatewaySimulator(EmulatorSettings(job_limit=6, duration=Fixed(5.0)))
    transport = EmulatorTransport(simulator, api_key=API_KEY)
    gateway, delay = ApiMall(api_key=API_KEY), PollPolicy(target_delay_s=0.5)
    async with Session(gateway, http=transport, polling=delay, observers=[collector.telemetry]) as session:
        async with asyncio.TaskGroup() as group:
            for number in range(40):
                group.create_task(session.generate(f"a fox, number {number}"))
            await asyncio.sleep(12.0)
            assert collector.value("nanobanana.slot.held") == session.stats().slots_held > 0
        stats = session.stats()
    assert collector.value("nanobanana.slot.held") == 0
    assert collector.value("nanobanana.slot.limit") == stats.job_limit == 6
    assert collector.value("nanobanana.create.refusals", {"nanobanana.limit.kind": "jobs"}) == stats.throttled > 0
    assert collector.value("nanobanana.create.requests") == 40 + stats.throttled
    assert collector.value("nanobanana.poll.requests") == stats.polls
    assert collector.value("nanobanana.job.ends", {"nanobanana.job.state": "succeeded"}) == 40
    assert Decimal(collector.value("nanobanana.credits.spent")) == stats.credits_spent > 0
    assert {name: metric.unit for name, metric in collector.metrics().items()} == UNITS
    (job_s,) = collector.measured("nanobanana.job.duration")
    (operation_s,) = collector.measured("gen_ai.client.operation.duration")
    (delay_s,) = collector.measured("nanobanana.poll.delay")
    assert job_s.count == operation_s.count == delay_s.count == 40
    assert 5.0 <= job_s.min < 8.0
    assert operation_s.max > 5.0 * 40 / 6  # includes the wait for a slot
    assert delay_s.sum / 40 == pytest.approx(job_s.sum / 40 - 5.0, abs=0.1)
    assert dict(operation_s.attributes or {}) == {
        "gen_ai.operation.name": "generate_content",
        "gen_ai.provider.name": "apimall",
        "gen_ai.request.model": "nano-banana-pro",
    }


@virtually
async def test_a_job_holds_a_slot_for_each_image_if_the_gateway_counts_images() -> None:
    collector = TelemetryCollector()
    gateway = ApiMall(api_key=API_KEY, slots_per_image=True)
    transport = FakeTransport(FakeGateway(job_s=30.0).answer)
    async with Session(gateway, http=transport, observers=[collector.telemetry]) as session:
        job = await session.submit("a fox", num_images=3)
        await job.wait_for_task_id()
        assert collector.value("nanobanana.slot.held") == session.stats().slots_held == 3
    assert collector.value("nanobanana.slot.held") == 0


@virtually
async def test_a_job_in_doubt_holds_its_slot() -> None:
    collector = TelemetryCollector()
    lost = TransportError("the connection was reset", possibly_sent=True)
    transport = FakeTransport(in_turn([lost, lost, created()], [completed()]))
    async with apimall(transport, observers=[collector.telemetry]) as session:
        job = await session.submit("a fox")
        await asyncio.sleep(0.1)
        assert collector.value("nanobanana.slot.held") == session.stats().slots_held == 1
        await job
    assert collector.value("nanobanana.create.requests", {"nanobanana.create.outcome": "failed"}) == 2
    assert collector.value("nanobanana.create.requests", {"nanobanana.create.outcome": "accepted"}) == 1
    assert collector.value("nanobanana.slot.held") == 0


@virtually
async def test_each_poll_counts_once_whether_it_succeeds_or_fails() -> None:
    collector = TelemetryCollector()
    lost = TransportError("the connection was reset", possibly_sent=True)
    answers: list[Any] = [lost, task("processing"), lost, completed()]
    transport = FakeTransport(in_turn([created()], answers))
    async with apimall(
        transport, ledger=RecordingLedger(failing_writes=[4]), observers=[collector.telemetry]
    ) as session:
        await session.generate("a fox")
        assert collector.value("nanobanana.poll.requests") == session.stats().polls == 4


class SlowLedger(RecordingLedger):
    """A ledger whose server takes its time."""

    async def advance(self, before: JobRecord, after: JobRecord) -> None:
        await asyncio.sleep(0.25)
        await super().advance(before, after)


@virtually
async def test_time_that_the_ledger_takes_for_a_change_of_state_is_measured() -> None:
    collector = TelemetryCollector()
    transport = FakeTransport(in_turn([created()], [completed()]))
    async with apimall(transport, ledger=SlowLedger(), observers=[collector.telemetry]) as session:
        await session.generate("a fox")
    points = collector.measured("nanobanana.ledger.write.duration")
    took = {(point.attributes or {})["nanobanana.job.state"]: (point.count, point.sum) for point in points}
    assert took == {"submitting": (1, 0.25), "running": (1, 0.25), "succeeded": (1, 0.25)}


@virtually
async def test_refunds_are_not_spent_and_uncertain_jobs_count_once() -> None:
    collector = TelemetryCollector()
    refunded = task("failed", error_message="no", credits_used=8, credits_refunded=8)
    async with apimall(FakeTransport(in_turn([created()], [refunded])), observers=[collector.telemetry]) as session:
        await outcome(session.generate("a fox"))
    gateway = LosingGateway()
    gateway.lost_answers = [True]
    async with defapi(FakeTransport(gateway.answer), observers=[collector.telemetry]) as session:
        await outcome(session.generate("a fox"))
        await asyncio.sleep(2000.0)
    ends = [("apimall", "failed", "JobFailed"), ("defapi", "uncertain", "JobUncertain")]
    for provider, state, error in ends:
        facts = {"gen_ai.provider.name": provider, "nanobanana.job.state": state, "error.type": error}
        assert collector.value("nanobanana.job.ends", facts) == 1
    assert collector.value("nanobanana.job.ends") == 2
    assert collector.value("nanobanana.credits.spent") == 0
    assert collector.value("nanobanana.slot.held") == 0


@virtually
async def test_slots_of_several_sessions_add_up_and_closing_releases_them() -> None:
    collector = TelemetryCollector()
    one, other = (FakeTransport(FakeGateway(job_s=1000.0).answer) for _ in range(2))
    policy = ConcurrencyPolicy(max_jobs=4, learn=False)
    async with apimall(one, concurrency=policy, observers=[collector.telemetry]) as first:
        async with apimall(other, concurrency=policy, observers=[collector.telemetry]) as second:
            for session in (first, second):
                for number in range(6):
                    await session.submit(f"a fox, number {number}")
            await asyncio.sleep(30.0)
            assert collector.value("nanobanana.slot.held") == 8
        assert collector.value("nanobanana.slot.held") == 4
    assert collector.value("nanobanana.slot.held") == 0
    assert len(collector.spans) == 8 + 4

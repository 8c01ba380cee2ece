"""What a session of several accounts states about each: slots, limits, what waits, what rests and why."""

import asyncio

import pytest

from nanobanana_async import ConcurrencyPolicy, ConfigurationError, DefApi, Session
from nanobanana_async.batch.progress import ProgressBar
from nanobanana_async.events import Event, LimitsChanged
from nanobanana_async.gateways.contract import HttpRequest
from nanobanana_async.report import Recorder
from nanobanana_async.testing import FakeTransport, Reply
from tests.engine.test_several_accounts import A, Account, B, both
from tests.support.fakes import virtually
from tests.support.replies import json_reply, refused


@virtually
async def test_account_without_credits_is_stated_to_rest_and_why() -> None:
    one, two = Account(job_s=20.0), Account(job_s=20.0)
    one.refuses = refused(402, message="no credits left")
    async with both(one, two) as session:
        await session.generate("a fox")
        resting = session.accounts()
        total = session.stats()
        await asyncio.sleep(61.0)
        later = session.accounts()
    assert "no credits left" in (resting[A.account].rests_because or "")
    assert resting[A.account].rests_for_s is not None
    assert "no credits left" in resting[A.account]._repr_html_()
    assert resting[B.account].rests_for_s is None
    assert total.rests_for_s is None  # the session buys
    assert later[A.account].rests_because is None


@virtually
async def test_each_account_states_its_own_slots_and_what_waits() -> None:
    one, two = Account(job_s=20.0), Account(job_s=20.0)
    async with both(one, two, concurrency=ConcurrencyPolicy(max_jobs=2)) as session:
        jobs = [await session.submit(f"fox {n}") for n in range(7)]
        await asyncio.sleep(5.0)
        accounts = session.accounts()
        for job in jobs:
            await job
    assert [each.slots_held for each in accounts.values()] == [2, 2]
    assert sum(each.queued for each in accounts.values()) == 3


class _Counts:
    done, failed = 3, 1


@virtually
async def test_bar_shows_the_slots_of_each_account() -> None:
    pytest.importorskip("tqdm")
    one, two = Account(job_s=20.0), Account(job_s=20.0)
    one.refuses = refused(402, message="no credits")
    async with both(one, two) as session:
        await (await session.submit("a fox")).wait_for_task_id()
        shown = ProgressBar(10, None, _Counts(), session._require_engine())._postfix()
    assert shown == "1 failed, apimall:a 0 slots, rests, apimall:b 1 slots, 8 credits spent"


@virtually
async def test_limits_of_accounts_are_kept_apart_and_their_sum_is_recorded() -> None:
    one, two = Account(job_s=20.0, limit=2), Account(job_s=20.0, limit=3)
    seen: list[Event] = []
    recorder = Recorder()
    async with both(one, two, observers=[seen.append, recorder]) as session:
        async for _ in session.generate_many([f"fox {n}" for n in range(60)]):
            pass
    limits = {event.account: event.job_limit for event in seen if isinstance(event, LimitsChanged)}
    assert limits == {A.account: 2, B.account: 3}
    assert recorder.job_limit == 5


@virtually
async def test_balance_is_read_for_the_named_account() -> None:
    def stating(amount: int) -> FakeTransport:
        def answer(_: HttpRequest) -> Reply:
            return json_reply(200, {"success": True, "data": {"api_credits": amount}, "request_id": "r"})

        return FakeTransport(answer)

    async with Session([A, B], http=[stating(7), stating(9)]) as session:
        assert await session.balance("a") == 7
        assert await session.balance(account=B.account) == 9
        for name, why in ((None, "several accounts"), ("z", "names 0"), ("apimall", "names 2"), (3, "as text")):
            with pytest.raises(ConfigurationError, match=why):
                await session.balance(name)  # type: ignore[arg-type]
    async with Session(A, http=stating(7)) as session:
        assert await session.balance() == await session.balance("a") == 7
        with pytest.raises(ConfigurationError, match="apimall:a"):
            await session.balance("b")


def test_gateways_of_a_session_are_listed_in_their_order() -> None:
    other = DefApi(api_key="sk-d-0123456789abcdef", account="d")
    session = Session([A, other])
    assert session.gateways == (A, other)
    assert session.gateway is A


@virtually
async def test_metrics_of_a_moved_job_are_counted_once_and_limits_are_summed() -> None:
    pytest.importorskip("opentelemetry.sdk")
    from tests.support.telemetry import TelemetryCollector

    collector = TelemetryCollector()
    one, two = Account(job_s=20.0, limit=2), Account(job_s=20.0, limit=3)
    async with both(one, two, observers=[collector.telemetry]) as session:
        async for _ in session.generate_many([f"fox {n}" for n in range(60)]):
            pass
        assert collector.value("nanobanana.slot.limit") == 5
        one.refuses = refused(402, message="no credits")
        await session.generate("a hare")
    assert len(collector.spans) == 61
    assert collector.value("nanobanana.job.ends") == 61
    assert collector.value("nanobanana.slot.held") == 0

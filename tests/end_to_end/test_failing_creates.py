"""Creates that fail: never two charges, and UNCERTAIN only where the answer is ambiguous."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from attrs import evolve

from nanobanana_async import JobState, JobUncertain, Timeouts, TransportError
from nanobanana_async.emulator import Emulator, Fault, Fixed, faults
from nanobanana_async.emulator.settings import Idempotency
from tests.support.loopback import (
    BOTH,
    CREATE,
    QUICK_RETRIES,
    TWO_ATTEMPTS,
    GatewayName,
    RecordingObserver,
    charged,
    emulated,
    gateway_of,
    quick,
)


def both_sides(make: str, *options: int) -> list[Fault]:
    """Return a fault of this kind before and after the gateway did its work."""
    kind = getattr(faults, make)
    return [kind(*options, processed=processed) for processed in (False, True)]


NOTHING_USABLE = [
    *both_sides("reset"),
    *(faults.stall(0.05, processed=processed) for processed in (False, True)),
    *both_sides("cut"),
    faults.cut(sent_share=0.0),
    faults.cut(sent_share=0.99),
    *both_sides("wrong_length"),
    *both_sides("garbage"),
    *both_sides("garbage", 500),
    *both_sides("html", 200),
    *both_sides("html", 502),
    *both_sides("html", 503),
    faults.answer(204, processed=True),
    faults.answer(200, body=b"{}", processed=True, headers={"Content-Type": "application/json"}),
    faults.answer(302, headers={"Location": "/elsewhere"}, processed=True),
    faults.answer(599, body=b"odd", processed=True),
    *(
        faults.error(status, envelope=envelope, processed=processed)
        for status in (500, 502, 503, 504)
        for envelope in (True, False)
        for processed in (True, False)
    ),
]
DELIVERED = [faults.delay(0.05), faults.late(0.05), faults.cut(sent_share=1.0)]


def named(fault: Fault) -> str:
    side = "after" if fault.processed else "before"
    return f"{fault.name}-{'bare' if fault.body == b'' else fault.status}-{side}"


async def ends_well(emulator: Emulator, fault: Fault) -> None:
    """Meet the fault twice on API Mall; it must end in one result and one charge."""
    listener = RecordingObserver()
    emulator.queue_faults("apimall.create", fault, fault)
    retry = evolve(QUICK_RETRIES, max_attempts=100)
    async with quick(emulator, retry=retry, observers=[listener]) as session:
        result = await session.generate("a fox", idempotency_key="fox-1")
        assert (result.key, len(result.images)) == ("fox-1", 1)
        assert session.stats().credits_spent == 8
    seen = emulator.stats()
    assert charged(seen, 1)
    assert seen.credits_charged == 8
    assert not {JobState.UNCERTAIN, JobState.REFUSED} & set(listener.states)


@pytest.mark.parametrize("fault", [*NOTHING_USABLE, *DELIVERED], ids=named)
async def test_every_fault_on_apimall_ends_in_one_charge(fault: Fault) -> None:
    async with emulated() as emulator:
        await ends_well(emulator, fault)
        assert emulator.stats().replays <= 3


@pytest.mark.slow
@pytest.mark.parametrize("manner", ["conflict", "forget"])
async def test_every_fault_ends_in_one_charge_with_other_key_handling(manner: Idempotency) -> None:
    refused = 0

    async def one(fault: Fault) -> None:
        nonlocal refused
        async with Emulator(idempotency=manner, duration=Fixed(2.0)) as emulator:  # still in work when repeated
            with said_of(fault):
                await ends_well(emulator, fault)
            refused += emulator.stats().creates_refused.get(409, 0)

    async with asyncio.TaskGroup() as group:
        for fault in (*NOTHING_USABLE, *DELIVERED):
            group.create_task(one(fault))
    assert (refused > 0) == (manner == "conflict")


@contextmanager
def said_of(fault: Fault) -> Iterator[None]:
    """Name the fault in what goes wrong."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"with {named(fault)}")
        raise


@pytest.mark.parametrize("fault", NOTHING_USABLE, ids=named)
async def test_ambiguous_answer_on_defapi_makes_the_job_uncertain(fault: Fault) -> None:
    async with emulated() as emulator:
        emulator.queue_faults("defapi.create", fault)
        async with quick(emulator, "defapi") as session:
            for _ in range(2):
                with pytest.raises(JobUncertain) as caught:
                    await session.generate("a fox", idempotency_key="fox-1")
                assert (caught.value.key, caught.value.safe_to_repeat) == ("fox-1", False)
            job = await session.job("fox-1")
            assert job is not None
            assert (job.state, job.task_id) == (JobState.UNCERTAIN, None)
            assert session.stats().uncertain == 1
            seen = emulator.stats()
        assert seen.creates_received == 1
        assert charged(seen, int(fault.processed))


@pytest.mark.slow
@pytest.mark.parametrize("fault", [None, *DELIVERED, faults.error(429)], ids=str)
async def test_clear_answer_on_defapi_never_makes_the_job_uncertain(fault: Fault | None) -> None:
    listener = RecordingObserver()
    async with emulated() as emulator:
        emulator.queue_faults("defapi.create", fault)
        async with quick(emulator, "defapi", observers=[listener]) as session:
            assert (await session.generate("a fox")).images
        assert charged(emulator.stats(), 1)
    assert JobState.UNCERTAIN not in listener.states


@pytest.mark.parametrize("manner", ["replay", "conflict", "forget"])
@pytest.mark.parametrize("fault", [faults.stall(30.0, processed=True), faults.delay(30.0), faults.late(0.3)], ids=named)
async def test_create_timeout_on_apimall_is_repeated(fault: Fault, manner: Idempotency) -> None:
    async with emulated(idempotency=manner, duration=Fixed(0.2)) as emulator:
        emulator.queue_faults("apimall.create", fault)
        async with quick(emulator, timeouts=Timeouts(create_s=0.15)) as session:
            assert (await session.generate("a fox")).images
        assert charged(emulator.stats(), 1)


@pytest.mark.parametrize("fault", [faults.stall(30.0, processed=True), faults.delay(30.0), faults.late(0.3)], ids=named)
async def test_create_timeout_on_defapi_makes_the_job_uncertain(fault: Fault) -> None:
    async with emulated() as emulator:
        emulator.queue_faults("defapi.create", fault)
        async with quick(emulator, "defapi", timeouts=Timeouts(create_s=0.15)) as session:
            with pytest.raises(JobUncertain):
                await session.generate("a fox")
        assert emulator.stats().creates_received == 1


async def test_expired_key_is_not_repeated() -> None:
    retry = evolve(QUICK_RETRIES, first_backoff_s=0.4, max_backoff_s=0.4)
    async with emulated(idempotency="forget", forget_keys_after_s=0.3) as emulator:
        gateway = gateway_of(emulator, "apimall", key_lifetime_s=0.1)
        emulator.queue_faults("apimall.create", faults.stall(0.15, processed=True))
        async with quick(emulator, gateway=gateway, retry=retry) as session:
            with pytest.raises(JobUncertain):
                await session.generate("a fox")
        assert emulator.stats().creates_received == 1
        assert charged(emulator.stats(), 1)


@pytest.mark.parametrize("fault", [faults.reset(processed=True), faults.html(502), faults.error(503)], ids=named)
async def test_exhausted_attempts_on_apimall_make_the_job_uncertain(fault: Fault) -> None:
    async with emulated() as emulator:
        emulator.queue_faults("apimall.create", *[fault] * 5)
        async with quick(emulator, retry=TWO_ATTEMPTS) as session:
            for _ in range(2):
                with pytest.raises(JobUncertain):
                    await session.generate("a fox", idempotency_key="fox-1")
        seen = emulator.stats()
    assert seen.creates_received == 2
    assert charged(seen, int(fault.processed))


REFUSALS = [429, 402, 401, 403, 400, 404, 451]


@pytest.mark.parametrize("status", REFUSALS)
@pytest.mark.parametrize(
    ("processed", "inside_200"),
    [(True, False), (True, True), (False, False)],
    ids=["bought", "bought, inside a 200", "not bought"],
)
async def test_lost_answer_then_refusal_is_repeated_until_resolved(
    status: int, processed: bool, inside_200: bool
) -> None:
    listener = RecordingObserver()
    async with emulated(refusals_in_200=inside_200) as emulator:
        emulator.queue_faults("apimall.create", faults.reset(processed=processed), *[faults.error(status)] * 2)
        async with quick(emulator, observers=[listener]) as session:
            assert (await session.generate("a fox")).images
        seen = emulator.stats()
    assert charged(seen, 1)
    assert seen.replays == int(processed)
    assert JobState.REFUSED not in listener.states


@pytest.mark.parametrize("status", [402, 401, 403, 400, 404, 451])
async def test_lost_answer_then_only_refusals_is_uncertain(status: int) -> None:
    listener = RecordingObserver()
    async with emulated() as emulator:
        emulator.queue_faults("apimall.create", faults.reset(processed=True), *[faults.error(status)] * 9)
        retry = evolve(TWO_ATTEMPTS, max_attempts=3)
        async with quick(emulator, retry=retry, observers=[listener]) as session:
            with pytest.raises(JobUncertain) as caught:
                await session.generate("a fox")
            assert caught.value.safe_to_repeat is False
        assert emulator.stats().creates_received == 3
        assert charged(emulator.stats(), 1)
    assert listener.states == [JobState.PENDING, JobState.SUBMITTING, JobState.UNCERTAIN]


async def test_lost_answer_then_only_429s_is_uncertain() -> None:
    listener = RecordingObserver()
    async with emulated() as emulator:
        emulator.queue_faults("apimall.create", faults.reset(processed=True), *[faults.error(429)] * 99)
        retry = evolve(TWO_ATTEMPTS, max_wait_s=0.3, first_backoff_s=0.05)
        async with quick(emulator, retry=retry, observers=[listener]) as session:
            with pytest.raises(JobUncertain):
                await session.generate("a fox")
        assert charged(emulator.stats(), 1)
    assert listener.states == [JobState.PENDING, JobState.SUBMITTING, JobState.UNCERTAIN]


@pytest.mark.parametrize("name", BOTH)
async def test_unreachable_gateway_is_safe_to_repeat(name: GatewayName) -> None:
    async with emulated() as gone:
        gateway = gone.apimall() if name == "apimall" else gone.defapi()
    async with quick(gone, gateway=gateway, retry=TWO_ATTEMPTS) as session:
        with pytest.raises(TransportError) as caught:
            await session.generate("a fox", idempotency_key="fox-1")
        assert (caught.value.possibly_sent, caught.value.safe_to_repeat, caught.value.key) == (False, True, "fox-1")
        job = await session.job("fox-1")
        assert job is not None
        assert job.state is JobState.PENDING


@pytest.mark.parametrize("name", BOTH)
async def test_unsent_job_is_sent_when_the_gateway_returns(name: GatewayName) -> None:
    listener = RecordingObserver()
    async with emulated() as gone:
        port = int(gone.url.rpartition(":")[2])
        gateway = gone.apimall(expected_job_s=0.05) if name == "apimall" else gone.defapi(expected_job_s=0.1)
    async with quick(gone, gateway=gateway, observers=[listener]) as session:
        job = await session.submit("a fox")
        async with emulated(port=port) as back:
            assert (await job).images
            assert charged(back.stats(), 1)
            await session.aclose()
    assert JobState.UNCERTAIN not in listener.states
    assert CREATE[name] in back.stats().requests

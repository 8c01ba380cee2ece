"""Virtual time and the fake transport: tools for other people's tests, tested themselves."""

import asyncio
import json
from datetime import timedelta

import pytest

from nanobanana_async import ApiMall, Session, TransportError
from nanobanana_async.emulator import EmulatorSettings, Fixed, GatewaySimulator
from nanobanana_async.emulator.faults import Fault, Script, cut, late, reset, stall, wrong_length
from nanobanana_async.gateways.contract import HttpRequest, HttpResponse
from nanobanana_async.testing import (
    EPOCH,
    EmulatorTransport,
    FakeTransport,
    Reply,
    VirtualLoop,
    run_virtual,
    virtual_time,
)

ASK = HttpRequest(method="GET", url="https://gateway.example/1")
BUY = HttpRequest(method="POST", url="https://gateway.example", body=b"{}")
FINE = HttpResponse(status=200, body=b"{}")


def test_virtual_day_passes_at_once() -> None:
    async def sleep() -> float:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(86_400.0)
        return loop.time()

    assert run_virtual(sleep()) == 86_400.0  # in real time the timeout of the test would come first


def test_things_happen_in_the_order_of_their_virtual_time() -> None:
    happened: list[tuple[float, str]] = []

    async def wait(seconds: float, name: str) -> None:
        await asyncio.sleep(seconds)
        happened.append((asyncio.get_running_loop().time(), name))

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            for seconds, name in ((30.0, "late"), (10.0, "soon"), (20.0, "then")):
                group.create_task(wait(seconds, name))

    run_virtual(main())
    assert happened == [(10.0, "soon"), (20.0, "then"), (30.0, "late")]


def test_wall_clock_follows_virtual_time_and_can_be_set() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        assert loop.utcnow() == EPOCH
        await asyncio.sleep(60.0)
        assert loop.utcnow() == EPOCH + timedelta(minutes=1)
        loop.wall_clock_offset = timedelta(hours=-2)
        assert loop.utcnow() == EPOCH - timedelta(minutes=119)
        assert loop.time() == 60.0

    run_virtual(main())


def test_timeouts_and_threads_work_on_virtual_time() -> None:
    async def main() -> str:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3600.0):
                await asyncio.Event().wait()
        return await asyncio.to_thread(lambda: "from a thread")

    assert run_virtual(main()) == "from a thread"


def test_a_deadlock_is_named_and_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(virtual_time, "DEADLOCK_S", 0.05)

    async def wait_for_ever() -> None:
        await asyncio.Event().wait()

    loop = VirtualLoop()
    waiting = loop.create_task(wait_for_ever())
    with pytest.raises(RuntimeError, match="deadlock: every task waits"):
        loop.run_until_complete(waiting)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        loop.run_until_complete(waiting)
    loop.close()


def test_run_hands_back_what_the_coroutine_raises() -> None:
    async def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_virtual(fail())


def test_fake_transport_answers_after_latency_and_keeps_requests() -> None:
    async def main() -> None:
        fake = FakeTransport(lambda _: FINE, latency_s=0.5)
        await fake.open()
        sending = asyncio.Task(fake.send(BUY, timeout_s=5.0))
        await asyncio.sleep(0.1)
        assert fake.in_flight == 1
        assert await sending is FINE
        assert asyncio.get_running_loop().time() == 0.5
        await fake.send(ASK, timeout_s=5.0)
        await fake.aclose()
        assert fake.in_flight == 0
        assert list(fake.requests) == [BUY, ASK]
        assert list(fake.creates) == [BUY]
        assert list(fake.polls) == [ASK]

    run_virtual(main())


def test_returned_exception_is_raised_after_the_latency() -> None:
    async def main() -> None:
        refused = TransportError("refused", possibly_sent=False)
        fake = FakeTransport(lambda _: refused, latency_s=0.5)
        with pytest.raises(TransportError) as caught:
            await fake.send(ASK, timeout_s=5.0)
        assert caught.value is refused
        assert asyncio.get_running_loop().time() == 0.5

    run_virtual(main())


def test_answer_after_the_timeout_is_possibly_sent() -> None:
    async def slowly(_: HttpRequest) -> Reply:
        await asyncio.sleep(10.0)
        return FINE

    async def main() -> None:
        fake = FakeTransport(slowly)
        with pytest.raises(TransportError, match="no answer in time") as caught:
            await fake.send(BUY, timeout_s=3.0)
        assert caught.value.possibly_sent
        assert not caught.value.safe_to_repeat
        assert asyncio.get_running_loop().time() == pytest.approx(3.0)
        assert fake.in_flight == 0
        assert (await fake.send(ASK, timeout_s=30.0)).status == 200

    run_virtual(main())


API_KEY = "emulator-key"
JOB = json.dumps({"model": "nano-banana-pro", "prompt": "a fox"}).encode()


def world_with(*meets: Fault | None) -> EmulatorTransport:
    script = Script({"apimall.create": list(meets)})
    return EmulatorTransport(GatewaySimulator(EmulatorSettings(duration=Fixed(10.0), script=script)), api_key=API_KEY)


def create() -> HttpRequest:
    return ApiMall(api_key=API_KEY).build_create(JOB, wire_key="order-1")


def test_simulator_transport_runs_an_hour_of_jobs_at_once() -> None:
    async def main() -> None:
        transport = world_with()
        async with Session(ApiMall(api_key=API_KEY), http=transport) as session:
            for number in range(30):
                assert (await session.generate(f"fox {number}")).images
        assert asyncio.get_running_loop().time() >= 300.0
        stats = transport.simulator.stats(asyncio.get_running_loop().time())
        assert (stats.creates_accepted, stats.double_charges) == (30, 0)

    run_virtual(main())


@pytest.mark.parametrize(("fault", "says"), [(reset(), "was reset"), (cut(), "was cut off")])
def test_a_world_can_lose_its_answers(fault: Fault, says: str) -> None:
    async def main() -> None:
        transport = world_with(fault)
        with pytest.raises(TransportError, match=says) as caught:
            await transport.send(create(), timeout_s=5.0)
        assert caught.value.possibly_sent
        assert (await transport.send(create(), timeout_s=5.0)).status == 200

    run_virtual(main())


def test_a_world_can_answer_in_part_late_and_never() -> None:
    async def main() -> None:
        transport = world_with(wrong_length(sent_share=0.5), late(2.0), stall(1e6))
        loop = asyncio.get_running_loop()
        short = await transport.send(create(), timeout_s=5.0)
        with pytest.raises(ValueError, match=r"."):
            json.loads(short.body)
        began = loop.time()
        assert (await transport.send(create(), timeout_s=5.0)).status == 200
        assert loop.time() - began > 2.0
        with pytest.raises(TransportError, match="no answer in time"):
            await transport.send(create(), timeout_s=5.0)

    run_virtual(main())

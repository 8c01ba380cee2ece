"""What is beside jobs: the balance, parameters that the references lack, and progress, over real sockets."""

from decimal import Decimal

import pytest

from nanobanana_async import AuthenticationError, InvalidRequest, JobState, Session
from nanobanana_async.emulator import Fixed, Script, faults
from nanobanana_async.emulator.faults import Fault
from tests.support.clocks import leap
from tests.support.loopback import BOTH, GatewayName, emulated, gateway_of, quick

BALANCE = {"apimall": "apimall.balance", "defapi": "defapi.balance"}


@pytest.mark.parametrize("name", BOTH)
async def test_balance_falls_with_each_job(name: GatewayName) -> None:
    async with emulated(credits=Decimal(100), web_credits=Decimal(7)) as emulator, quick(emulator, name) as session:
        assert await session.balance() == 100
        result = await session.generate("a fox")
        assert result.credits is not None
        assert await session.balance() == 100 - result.credits
        assert emulator.stats().creates_accepted == 1


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("fault", [faults.reset(), faults.error(503), faults.error(502, envelope=False)])
async def test_balance_survives_a_passing_fault(name: GatewayName, fault: Fault) -> None:
    script = Script({BALANCE[name]: [fault, fault]})  # type: ignore[dict-item]
    async with emulated(credits=Decimal(100), script=script) as emulator, quick(emulator, name) as session:
        assert await session.balance() == 100
        assert emulator.stats().requests[BALANCE[name]] == 3  # type: ignore[index]


@pytest.mark.parametrize("name", BOTH)
async def test_balance_of_a_wrong_key_is_refused_and_the_key_is_not_shown(name: GatewayName) -> None:
    key = "sk-another-key-0123456789"
    async with emulated() as emulator, Session(gateway_of(emulator, name, api_key=key)) as session:
        with pytest.raises(AuthenticationError) as caught:
            await session.balance()
    assert key not in repr(caught.value)


async def test_extra_reaches_api_mall_and_makes_another_job() -> None:
    async with emulated(extra_fields=True) as emulator, quick(emulator) as session:
        one = await session.generate("a fox", extra={"seed": 7, "quality": "high"})
        other = await session.generate({"prompt": "a fox", "extra": {"seed": 8, "quality": "high"}})
        assert one.request is not None
        assert one.request.extra == {"seed": 7, "quality": "high"}
        assert one.task_id != other.task_id
        with pytest.raises(InvalidRequest, match="quality"):
            await session.generate("a fox", extra={"quality": "best"})


async def test_upscale_is_bought_where_the_model_takes_it() -> None:
    image = "https://a.example/1.png"
    async with emulated(extra_fields=True) as emulator, quick(emulator) as session:
        result = await session.generate("sharper", task_type="upscale", model="z-image", images=[image])
        (job,) = emulator.jobs()
        assert (job.task_id, len(job.reference_digests)) == (result.task_id, 1)
    async with emulated() as emulator, quick(emulator) as session:
        with pytest.raises(InvalidRequest, match="type must be one of text-to-image, image-to-image"):
            await session.generate("sharper", task_type="upscale", images=[image])
        assert emulator.stats().creates_accepted == 0


async def test_extra_is_refused_by_a_gateway_that_does_not_know_it() -> None:
    async with emulated() as emulator, quick(emulator) as session:
        with pytest.raises(InvalidRequest, match="seed"):
            await session.generate("a fox", extra={"seed": 7})
        assert emulator.stats().creates_accepted == 0


async def test_aspect_ratio_and_many_images_go_to_other_models_of_defapi() -> None:
    async with emulated(extra_fields=True) as emulator, quick(emulator, "defapi") as session:
        result = await session.generate(
            "a fox",
            model="openai/gpt-image-2",
            images=[f"https://a.example/{number}.png" for number in range(6)],
            extra={"aspect_ratio": "16:9", "image_size": "2K"},
        )
        (job,) = emulator.jobs()
        assert (job.task_id, len(job.reference_digests)) == (result.task_id, 6)


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("form", ["number", "text"])
async def test_progress_of_the_gateway_is_shown(name: GatewayName, form: str) -> None:
    async with (
        emulated(progress=form, duration=Fixed(100.0)) as emulator,  # type: ignore[arg-type]
        quick(emulator, name) as session,
    ):
        job = await session.submit("a fox")
        await job.wait_for_task_id()
        seen = []
        async for each in job.updates():
            seen.append(each)
            leap(5.0)  # so that it is seen many times, however late the polls are
    running = [each.progress for each in seen if each.state is JobState.RUNNING]
    assert running == sorted(running)
    assert any(0.1 < each < 0.9 and round(each, 2) == each for each in running)  # whole percents, as they are stated
    assert (seen[-1].state, seen[-1].progress) == (JobState.SUCCEEDED, 1.0)

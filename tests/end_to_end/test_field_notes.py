"""Answers that public clients met, played by the emulator over loopback: how a job ends, and what is charged."""

from decimal import Decimal

import pytest

from nanobanana_async import GenerationResult, JobFailed
from nanobanana_async.emulator import RandomFault, Script, field_note
from nanobanana_async.errors import InvalidRequest
from nanobanana_async.jobs import JobState
from tests.support.loopback import BOTH, CREATE, QUERY, GatewayName, emulated, quick

pytestmark = pytest.mark.slow

WITH_IMAGE = (
    "text beside the image",
    "end word of the other dialect",
    "link in url",
    "link in big_image_url",
    "links in objects",
    "links in output",
    "links in output.images",
)


async def generate(name: GatewayName, note: str) -> GenerationResult:
    """Generate one image while every poll is answered as the note says."""
    always = [RandomFault(1.0, field_note(note), QUERY[name])]
    async with emulated(random_faults=always) as emulator, quick(emulator, name) as session:
        result = await session.generate("a fox")
        assert await session.download(result.images[0])
        assert emulator.stats().creates_accepted == 1
        return result


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("note", WITH_IMAGE)
async def test_a_job_delivers_its_image_in_each_form(name: GatewayName, note: str) -> None:
    result = await generate(name, note)
    assert (len(result.images), dict(result.missing)) == (1, {})


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize(
    ("note", "reason", "kind"),
    [
        ("text instead of the image", "may violate the content policy", "moderation"),
        ("empty result", "empty result, which is billed", "unknown"),
        ("reason in error", "no capacity", "capacity"),
        ("reason in an object", "no capacity", "capacity"),
    ],
)
async def test_a_job_without_image_fails_with_reason_kind_and_price(
    name: GatewayName, note: str, reason: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nanobanana_async.engine.poller.LATE_IMAGES_S", 0.2)
    always = [RandomFault(1.0, field_note(note), QUERY[name])]
    async with emulated(random_faults=always) as emulator, quick(emulator, name) as session:
        job = await session.submit("a fox", idempotency_key="k1")
        with pytest.raises(JobFailed, match=reason) as caught:
            await job
        assert caught.value.kind == kind
        assert job.state is JobState.FAILED
        assert job.credits == emulator.stats().credits_charged > Decimal(0)


@pytest.mark.parametrize("name", BOTH)
async def test_a_429_is_waited_for_as_its_body_or_reset_says(name: GatewayName) -> None:
    notes = [field_note("wait in the body"), field_note("wait until the reset"), None]
    async with emulated(script=Script({CREATE[name]: notes})) as emulator, quick(emulator, name) as session:
        await session.generate("a fox")
        assert (emulator.stats().creates_received, emulator.stats().creates_accepted) == (3, 1)


@pytest.mark.parametrize("name", BOTH)
async def test_a_413_of_a_proxy_ends_the_job_and_nothing_is_bought(name: GatewayName) -> None:
    too_large = Script({CREATE[name]: [field_note("too large for a proxy")]})
    async with emulated(script=too_large) as emulator, quick(emulator, name) as session:
        with pytest.raises(InvalidRequest) as caught:
            await session.generate("a fox")
        assert caught.value.safe_to_repeat
        assert emulator.stats().creates_accepted == 0


async def test_an_image_that_is_not_yet_there_is_fetched_a_little_later() -> None:
    early = [field_note("image not yet there"), field_note("host refuses the client"), None]
    async with emulated(script=Script({"cdn": early})) as emulator, quick(emulator) as session:
        result = await session.generate("a fox")
        assert await session.download(result.images[0])
        assert emulator.stats().requests["cdn"] == 3
        polls = emulator.stats().polls
        assert await session.download(result.images[0], verify=False)
        assert emulator.stats().polls == polls


def test_an_unknown_note_is_refused_with_the_known_names() -> None:
    with pytest.raises(ValueError, match="no field note 'x'; there are text beside the image"):
        field_note("x")

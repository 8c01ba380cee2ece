"""A job with five valid images and an invalid one: five are returned at once, the sixth is named missing."""

import logging
from pathlib import Path
from typing import Any

import pytest

from nanobanana_async import DefApi, GenerationResult, ImageRequest, JobState, Session
from nanobanana_async.errors import UnexpectedResponse
from nanobanana_async.gateways.contract import HttpRequest
from nanobanana_async.testing import FakeTransport, Reply, run_virtual
from tests.support.fakes import API_KEY, apimall, now, virtually
from tests.support.replies import created, defapi_created, json_reply, task

SIX = [f"https://cdn.example/{number}.png" for number in range(6)]
MISFITS: list[Any] = [None, "", 5, "pending", "https://[broken"]
WANTED = ImageRequest("a fox", num_images=6)


def gateway(urls: list[Any]) -> FakeTransport:
    def answer(request: HttpRequest) -> Reply:
        if request.method == "POST":
            return created(cost=48)
        return task("completed", output={"resultUrls": urls}, credits_used=48)

    return FakeTransport(answer)


def links_and_missing(result: GenerationResult) -> tuple[dict[int, str], list[int]]:
    return {image.index: image.url for image in result.images}, sorted(result.missing)


@pytest.mark.parametrize("misfit", MISFITS)
@virtually
async def test_valid_images_keep_their_index(misfit: Any, caplog: pytest.LogCaptureFixture) -> None:
    async with apimall(gateway([*SIX[:1], misfit, *SIX[2:]])) as session:
        with caplog.at_level(logging.WARNING, "nanobanana_async"):
            result = await session.generate(WANTED)
        assert now() < 60
    assert links_and_missing(result) == ({number: url for number, url in enumerate(SIX) if number != 1}, [1])
    assert result.credits == 48
    [line] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert line.startswith("job.state_changed")
    assert line.endswith("missing_images=1")


@virtually
async def test_defapi_valid_images_keep_their_index() -> None:
    def answer(request: HttpRequest) -> Reply:
        if request.method == "POST":
            return defapi_created("t1")
        results = [{"image": SIX[0]}, {"image": 7}, {"note": "none"}, {"image": SIX[3]}]
        return json_reply(200, {"code": 0, "data": {"task_id": "t1", "status": "success", "result": results}})

    async with Session(DefApi(api_key=API_KEY), http=FakeTransport(answer)) as session:
        assert links_and_missing(await session.generate("a fox")) == ({0: SIX[0], 3: SIX[3]}, [1, 2])


@virtually
async def test_images_fewer_than_requested_are_named_missing() -> None:
    async with apimall(gateway(SIX[:4])) as session:
        result = await session.generate(WANTED)
    assert links_and_missing(result) == (dict(enumerate(SIX[:4])), [4, 5])
    assert set(result.missing.values()) == {"the gateway returned fewer images than requested"}


@virtually
async def test_only_invalid_images_end_the_wait_with_a_reason() -> None:
    async with apimall(gateway([5, 5, None])) as session:
        job = await session.submit(WANTED)
        with pytest.raises(UnexpectedResponse, match="without an image; an image is a URL or a data URI, not int"):
            await job
        assert now() < 90
        assert job.state is JobState.RUNNING


def test_second_session_reports_the_same_missing_images(tmp_path: Path) -> None:
    inline = "data:image/png;base64,iVBORw0KGgo="

    async def buy(urls: list[Any]) -> GenerationResult:
        async with apimall(gateway(urls), ledger=tmp_path / "jobs.sqlite") as session:
            return await session.generate(WANTED, idempotency_key="order-1")

    first = run_virtual(buy([SIX[0], "", SIX[2], None, SIX[4], inline]))
    again = run_virtual(buy([SIX[0], "", SIX[2], None, SIX[4], inline]))
    assert links_and_missing(first) == links_and_missing(again)
    assert (sorted(first.missing), first.images[-1].index) == ([1, 3], 5)

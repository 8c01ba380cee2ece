"""The notebook HTML of results, jobs, batches and stats."""

import asyncio
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from nanobanana_async import (
    GeneratedImage,
    GenerationResult,
    ImageRequest,
    JobFailed,
    NanoBananaError,
    Outcome,
    SessionStats,
)
from nanobanana_async.gateways.contract import HttpRequest
from nanobanana_async.testing import FakeTransport, Reply
from tests.notebook.reading import HOSTILE, page
from tests.support.fakes import FakeGateway, apimall, virtually
from tests.support.replies import completed, created, in_turn, refused, task
from tests.support.rows import each_row

LINK = "https://cdn.example/a.png"
STARTED_AT = datetime(2026, 1, 1, tzinfo=UTC)


def result(*urls: str, **facts: object) -> GenerationResult:
    images = tuple(GeneratedImage(url=url, index=index) for index, url in enumerate(urls))
    fields = {"key": "order-17", "task_id": "img_1", "images": images, **facts}
    return GenerationResult(**fields)  # type: ignore[arg-type]


def test_an_image_has_html_and_a_plain_repr() -> None:
    image = GeneratedImage(url=LINK)
    assert page(image).images == [LINK]
    assert repr(image).startswith("GeneratedImage(")


def test_a_result_shows_images_prompt_credits_and_time() -> None:
    shown = page(
        result(
            LINK,
            "https://cdn.example/b.png",
            request=ImageRequest("a fox", aspect_ratio="16:9", resolution="2K", images=[LINK]),
            credits=Decimal("8.00"),
            model="nano-banana-pro",
            created_at=STARTED_AT,
            completed_at=STARTED_AT + timedelta(seconds=12.34),
        )
    )
    assert shown.images == [LINK, "https://cdn.example/b.png"]
    for words in (
        "a fox",
        "16:9",
        "2K",
        "references 1",
        "credits 8",
        "time 12 s",
        "nano-banana-pro",
        "order-17",
        "img_1",
    ):
        assert words in shown.text


def test_a_result_without_a_request_shows_its_images() -> None:
    shown = page(result(LINK))
    assert shown.images == [LINK]
    assert "None" not in shown.text


def test_the_request_is_not_part_of_equality_or_repr() -> None:
    one = result(LINK, request=ImageRequest("a fox"))
    assert one == result(LINK)
    assert "a fox" not in repr(one)


@each_row("words", HOSTILE)
def test_hostile_text_in_any_field_stays_text(words: str) -> None:
    shown = page(
        Outcome(
            index=3,
            key=words,
            request=(request := ImageRequest(words)),
            result=result(LINK, key=words, task_id=words, model=words, request=request),
            error=NanoBananaError(words),
            saved=(Path(words),),
        )
    )
    assert shown.images == shown.links == [LINK]
    assert shown.text.count(words) == 6


def test_a_failed_outcome_shows_error_class_and_message() -> None:
    shown = page(Outcome(index=3, key="", request=None, error=NanoBananaError("the row is no request")))
    assert "NanoBananaErrorthe row is no request" in shown.text
    assert "row 4" in shown.text
    assert shown.images == []


def test_a_saved_outcome_shows_images_and_paths() -> None:
    saved = (Path("out/order-17.png"),)
    outcome = Outcome(index=0, key="k", request=ImageRequest("a fox"), result=result(LINK), saved=saved)
    shown = page(outcome)
    assert shown.images == [LINK]
    assert "saved as out/order-17.png" in shown.text
    assert "a fox" in shown.text


def stats(**numbers: object) -> SessionStats:
    plain: dict[str, object] = {
        "job_limit": None,
        "max_creates_per_s": None,
        "limit_kind": None,
        "creates_paused": False,
        "outage": None,
        "slots_held": 2,
        "queued": 0,
        "requests_in_flight": 1,
        "polls": 7,
        "throttled": 0,
        "job_duration_median_s": None,
        "job_duration_sigma": None,
        "succeeded": 0,
        "failed": 0,
        "refused": 0,
        "uncertain": 0,
        "withdrawn": 0,
        "credits_spent": Decimal(0),
        "credits_remaining": None,
    }
    return SessionStats(**{**plain, **numbers})  # type: ignore[arg-type]


def test_stats_of_a_new_session_show_an_unknown_limit() -> None:
    text = page(stats()).text
    assert "2 of an unknown limit" in text
    assert "0 spent" in text
    assert "None" not in text


def test_stats_show_learned_values() -> None:
    shown = stats(
        job_limit=6,
        max_creates_per_s=1.25,
        creates_paused=True,
        job_duration_median_s=75.0,
        succeeded=11,
        failed=1,
        credits_spent=Decimal("88.50"),
        credits_remaining=Decimal(912),
    )
    text = page(shown).text
    for words in ("11 succeeded, 1 failed", "2 of 6", "1.2", "paused", "1 min 15 s", "88.5 spent, 912 left"):
        assert words in text


def test_stats_show_the_groups_that_wait_longest_first_and_count_the_rest() -> None:
    assert "waiting for a slot9throttled" in page(stats(queued=9, queued_by_group={"ann": 9})).text
    groups = {"<b>ann</b>": 4, "": 2, **{f"user {number}": 1 for number in range(4)}}
    text = page(stats(queued=10, queued_by_group=groups)).text
    assert "10 (<b>ann</b> 4, no group 2, user 0 1, user 1 1, user 2 1, 1 more groups)" in text


@virtually
async def test_a_job_shows_its_state_then_its_images_without_a_request() -> None:
    transport = FakeTransport(FakeGateway(job_s=2.0).answer)
    async with apimall(transport) as session:
        job = await session.submit("a fox", idempotency_key="order-17", aspect_ratio="16:9")
        before = page(job)
        assert before.images == []
        for words in ("a fox", "state pending", "16:9", "order-17", "await it for its images"):
            assert words in before.text
        await job.wait_for_task_id()
        assert "state running" in page(job).text
        assert "task t1" in page(job).text
        await asyncio.sleep(1.0)
        assert 0.0 < job.progress < 1.0
        assert f"{int(100 * job.progress)} %" in page(job).text
        await job
        before_showing = len(transport.requests)
        after = page(job)
        assert after.images == [LINK]
        assert "%" not in after.text
        assert "state succeeded" in after.text
        assert "a fox" in after.text
        assert len(transport.requests) == before_showing


@virtually
async def test_a_result_carries_its_request() -> None:
    async with apimall(FakeTransport(FakeGateway().answer)) as session:
        assert (await session.generate("a fox")).request == ImageRequest("a fox", model="nano-banana-pro")
        assert "a fox" in page(await session.generate("a fox")).text


@virtually
async def test_an_attached_task_shows_its_images() -> None:
    async with apimall(FakeTransport(in_turn([], [completed()]))) as session:
        job = await session.attach("img_1")
        assert page(await job).images == page(job).images == [LINK]


@pytest.mark.parametrize("words", HOSTILE)
@virtually
async def test_the_gateways_failure_message_stays_text(words: str) -> None:
    failed = task("failed", error_message=words)
    async with apimall(FakeTransport(in_turn([created()], [failed]))) as session:
        job = await session.submit(words)
        with pytest.raises(JobFailed):
            await job
        shown = page(job)
        assert "JobFailed" in shown.text
        assert shown.images == shown.links == []


@virtually
async def test_a_job_without_its_inline_images_says_how_to_get_them() -> None:
    def inline(request: HttpRequest) -> Reply:
        return created() if request.method == "POST" else completed(url="data:image/png;base64,iVBORw0KGgo=")

    async with apimall(FakeTransport(inline)) as session:
        job = await session.submit("a fox")
        await job
        assert page(job).images == ["data:image/png;base64,iVBORw0KGgo="]
        tracked = job._tracked
        tracked.observation = None
        assert tracked.images_missing
        assert "await the job to fetch them again" in page(job).text


@virtually
async def test_a_batch_shows_its_progress() -> None:
    transport = FakeTransport(in_turn([created(), refused(400, message="<b>no</b>")], [completed()]))
    async with apimall(transport) as session:
        batch = session.generate_many(["a fox", "an owl"])
        assert "It has not started" in page(batch).text
        outcomes = [outcome async for outcome in batch]
        shown = page(batch)
        assert "done 2" in shown.text
        assert "failed 1" in shown.text
        assert "It has ended" in shown.text
        assert sorted(outcome.ok for outcome in outcomes) == [False, True]
        assert batch.failed == 1


@virtually
async def test_a_running_batch_shows_what_is_done() -> None:
    async with apimall(FakeTransport(FakeGateway(job_s=20.0).answer)) as session:
        async with session.generate_many(["a fox", "an owl"]) as batch:
            await asyncio.sleep(8.0)
            shares = (batch.running_progress, batch.running_progress / 2)
            text = page(batch).text
            assert 0.1 < shares[1] < 0.9
            assert f"{int(100 * shares[1])} %" in text
            assert "It is running: 2 rows under way." in text
            _ = [outcome async for outcome in batch]
        assert batch.running_progress == 0.0
        endless = session.generate_many(iter(["a fox"]))
        async with endless:
            await asyncio.sleep(8.0)
            assert "%" not in page(endless).text


@virtually
async def test_a_stopped_batch_shows_the_cause() -> None:
    async with apimall(FakeTransport(in_turn([refused(402, message="<b>no credits</b>")], [completed()]))) as session:
        batch = session.generate_many(["a fox", "an owl"])
        with pytest.raises(NanoBananaError):
            _ = [outcome async for outcome in batch]
        assert "InsufficientCredits" in page(batch).text
        assert "<b>no credits</b>" in page(batch).text

"""What a notebook shows of results, jobs, batches and numbers: pictures where there are some, and text for the rest."""

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
from tests.engine.sayings import completed, created, in_turn, refused, task
from tests.engine.scenes import Shop, apimall, virtually
from tests.notebook.reading import HOSTILE, page

LINK = "https://cdn.example/a.png"
BEGUN = datetime(2026, 1, 1, tzinfo=UTC)


def result(*urls: str, **facts: object) -> GenerationResult:
    images = tuple(GeneratedImage(url=url, index=index) for index, url in enumerate(urls))
    told = {"key": "order-17", "task_id": "img_1", "images": images, **facts}
    return GenerationResult(**told)  # type: ignore[arg-type]


def test_a_picture_shows_itself_and_stays_text_in_a_terminal() -> None:
    image = GeneratedImage(url=LINK)
    assert page(image).images == [LINK]
    assert repr(image).startswith("GeneratedImage(")


def test_a_result_shows_its_pictures_with_prompt_credits_and_time() -> None:
    shown = page(
        result(
            LINK,
            "https://cdn.example/b.png",
            request=ImageRequest("a fox", aspect_ratio="16:9", resolution="2K", images=[LINK]),
            credits=Decimal("8.00"),
            model="nano-banana-pro",
            created_at=BEGUN,
            completed_at=BEGUN + timedelta(seconds=12.34),
        )
    )
    assert shown.images == [LINK, "https://cdn.example/b.png"]
    for words in ("a fox", "16:9", "2K", "references 1", "credits 8", "12.3 s", "nano-banana-pro", "order-17", "img_1"):
        assert words in shown.text


def test_a_result_of_a_task_attached_by_its_id_shows_its_pictures_without_a_prompt() -> None:
    shown = page(result(LINK))
    assert shown.images == [LINK]
    assert "None" not in shown.text


def test_the_prompt_of_a_result_is_no_part_of_its_value_or_repr() -> None:
    one = result(LINK, request=ImageRequest("a fox"))
    assert one == result(LINK)
    assert "a fox" not in repr(one)


@pytest.mark.parametrize("words", HOSTILE)
def test_hostile_prompts_task_ids_models_and_paths_stay_text(words: str) -> None:
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


def test_an_outcome_shows_its_error_by_name_and_words() -> None:
    shown = page(Outcome(index=3, key="", request=None, error=NanoBananaError("the row is no request")))
    assert "NanoBananaErrorthe row is no request" in shown.text
    assert "row 3" in shown.text
    assert shown.images == []


def test_an_outcome_shows_its_pictures_and_where_they_are() -> None:
    saved = (Path("out/order-17.png"),)
    outcome = Outcome(index=0, key="k", request=ImageRequest("a fox"), result=result(LINK), saved=saved)
    shown = page(outcome)
    assert shown.images == [LINK]
    assert "saved as out/order-17.png" in shown.text
    assert "a fox" in shown.text


def stats(**numbers: object) -> SessionStats:
    plain: dict[str, object] = {
        "job_limit": None,
        "creates_per_s": None,
        "limit_kind": None,
        "creates_paused": False,
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


def test_stats_say_at_the_start_what_is_not_known_yet() -> None:
    text = page(stats()).text
    assert "2 of an unknown limit" in text
    assert "0 spent" in text
    assert "None" not in text


def test_stats_are_a_table_of_what_was_learned() -> None:
    learned = stats(
        job_limit=6,
        creates_per_s=1.25,
        creates_paused=True,
        job_duration_median_s=75.0,
        succeeded=11,
        failed=1,
        credits_spent=Decimal("88.50"),
        credits_remaining=Decimal(912),
    )
    text = page(learned).text
    for words in ("11 succeeded, 1 failed", "2 of 6", "1.2", "paused", "1 min 15 s", "88.5 spent, 912 left"):
        assert words in text


@virtually
async def test_a_job_shows_where_it_stands_and_then_its_pictures_without_a_request_of_its_own() -> None:
    transport = FakeTransport(Shop(job_s=2.0).answer)
    async with apimall(transport) as session:
        job = await session.submit("a fox", idempotency_key="order-17", aspect_ratio="16:9")
        before = page(job)
        assert before.images == []
        for words in ("a fox", "state pending", "16:9", "order-17", "await it for its images"):
            assert words in before.text
        await job.accepted()
        assert "state running" in page(job).text
        assert "task t1" in page(job).text
        await job
        asked = len(transport.requests)
        after = page(job)
        assert after.images == [LINK]
        assert "state succeeded" in after.text
        assert "a fox" in after.text
        assert len(transport.requests) == asked


@virtually
async def test_a_result_knows_the_request_that_it_answers() -> None:
    async with apimall(FakeTransport(Shop().answer)) as session:
        assert (await session.generate("a fox")).request == ImageRequest("a fox", model="nano-banana-pro")
        assert "a fox" in page(await session.generate("a fox")).text


@virtually
async def test_a_task_attached_by_its_id_shows_its_pictures() -> None:
    async with apimall(FakeTransport(in_turn([], [completed()]))) as session:
        job = await session.attach("img_1")
        assert page(await job).images == page(job).images == [LINK]


@pytest.mark.parametrize("words", HOSTILE)
@virtually
async def test_what_a_gateway_says_of_a_failed_job_stays_text(words: str) -> None:
    failed = task("failed", error_message=words)
    async with apimall(FakeTransport(in_turn([created()], [failed]))) as session:
        job = await session.submit(words)
        with pytest.raises(JobFailed):
            await job
        shown = page(job)
        assert "JobFailed" in shown.text
        assert shown.images == shown.links == []


@virtually
async def test_a_job_whose_inline_pictures_are_not_at_hand_says_how_to_get_them() -> None:
    def inline(request: HttpRequest) -> Reply:
        return created() if request.method == "POST" else completed(url="data:image/png;base64,iVBORw0KGgo=")

    async with apimall(FakeTransport(inline)) as session:
        job = await session.submit("a fox")
        await job
        assert page(job).images == ["data:image/png;base64,iVBORw0KGgo="]
        entry = job._tracked
        entry.observation = None
        assert entry.images_missing
        assert "await the job to fetch them again" in page(job).text


@virtually
async def test_a_batch_shows_how_far_it_is() -> None:
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
async def test_a_batch_that_stopped_says_why() -> None:
    async with apimall(FakeTransport(in_turn([refused(402, message="<b>no credits</b>")], [completed()]))) as session:
        batch = session.generate_many(["a fox", "an owl"])
        with pytest.raises(NanoBananaError):
            _ = [outcome async for outcome in batch]
        assert "InsufficientCredits" in page(batch).text
        assert "<b>no credits</b>" in page(batch).text

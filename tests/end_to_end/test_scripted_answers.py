"""HTTP answers copied from the references."""

from decimal import Decimal

import pytest
from aioresponses import aioresponses as AioResponses  # noqa: N812
from yarl import URL

from nanobanana_async import ApiMall, DefApi, InsufficientCredits, Session
from tests.support.loopback import QUICK_POLLS, QUICK_RETRIES

CREATE = "https://gateway.apimall.ai/api/v1/images/generate"
TASK = "img_01HQ9M7XJQ7PZ3GQ9F6C5W3N2M"
QUERY = f"https://gateway.apimall.ai/api/v1/images/{TASK}"
CREATED = {
    "success": True,
    "data": {
        "task_id": TASK,
        "request_id": "provider_req_01HQ9M87A5Y2QZW0S1R3T6YQ2C",
        "credits_used": 8,
        "remaining_credits": 112,
        "model": "nano-banana-pro",
    },
    "request_id": "req_01HQ9M7J7X9P7Y8T6W5V4U3S2R",
}
COMPLETED = {
    "success": True,
    "data": {
        "task_id": TASK,
        "model": "nano-banana-pro",
        "status": "completed",
        "output": {"resultUrls": ["https://cdn.apimall.ai/generated/image-01.webp"]},
        "primary_url": "https://cdn.apimall.ai/generated/result.webp",
        "image_url": "https://cdn.apimall.ai/generated/cover.webp",
        "error_message": None,
        "credits_used": 8,
        "credits_refunded": 0,
        "created_at": "2026-03-12T09:30:00.000Z",
        "updated_at": "2026-03-12T09:31:06.000Z",
        "completed_at": "2026-03-12T09:31:06.000Z",
    },
    "request_id": "req_01HQ9M7J7X9P7Y8T6W5V4U3S2R",
}
POOR = {
    "success": False,
    "error": {"code": "insufficient_credits", "message": "Insufficient credits"},
    "request_id": "req_01HQ9M7J7X9P7Y8T6W5V4U3S2R",
}


def mall() -> Session:
    gateway = ApiMall(api_key="secret-key", expected_job_s=0.05)
    return Session(gateway, polling=QUICK_POLLS, retry=QUICK_RETRIES)


async def test_apimall_reference_examples_give_a_result(answers: AioResponses) -> None:
    answers.post(CREATE, payload=CREATED)
    answers.get(QUERY, payload={**CREATED, "data": {"task_id": TASK, "status": "processing"}})
    answers.get(QUERY, payload=COMPLETED)
    async with mall() as session:
        result = await session.generate("a fox", idempotency_key="fox-1")
        assert session.stats().credits_remaining == 112
    assert (result.task_id, result.url) == (TASK, "https://cdn.apimall.ai/generated/result.webp")
    assert (result.credits, result.model) == (Decimal(8), "nano-banana-pro")
    (post,) = answers.requests["POST", URL(CREATE)]
    assert post.kwargs["headers"]["Idempotency-Key"] == "fox-1"
    assert post.kwargs["headers"]["Authorization"] == "Bearer secret-key"
    assert post.kwargs["allow_redirects"] is False


async def test_apimall_reference_refusal_raises_its_exception(answers: AioResponses) -> None:
    answers.post(CREATE, status=402, payload=POOR)
    async with mall() as session:
        with pytest.raises(InsufficientCredits, match="Insufficient credits") as caught:
            await session.generate("a fox")
    assert caught.value.code == "insufficient_credits"
    assert caught.value.request_id == "req_01HQ9M7J7X9P7Y8T6W5V4U3S2R"


async def test_repeat_after_a_503_has_the_same_key(answers: AioResponses) -> None:
    answers.post(CREATE, status=503, payload={**POOR, "error": {"code": "busy", "message": "Busy"}})
    answers.post(CREATE, payload=CREATED)
    answers.get(QUERY, payload=COMPLETED)
    async with mall() as session:
        assert (await session.generate("a fox")).task_id == TASK
    first, second = answers.requests["POST", URL(CREATE)]
    assert first.kwargs["headers"]["Idempotency-Key"] == second.kwargs["headers"]["Idempotency-Key"]
    assert first.kwargs["data"].decode() == second.kwargs["data"].decode()


async def test_defapi_reference_examples_give_a_result(answers: AioResponses) -> None:
    task, image = "ta12345678-1234-1234-1234-123456789abc", "https://google.datas.systems/fileSystem/2989.png"
    answers.post(
        "https://api.defapi.org/api/image/gen", payload={"code": 0, "message": "ok", "data": {"task_id": task}}
    )
    answers.get(
        f"https://api.defapi.org/api/task/query?task_id={task}",
        payload={
            "result": [{"image": image}],
            "status": "success",
            "task_id": task,
            "consumed": "0.500000",
            "status_reason": {"message": None},
        },
    )
    async with Session(DefApi(api_key="dk-secret", expected_job_s=0.05), polling=QUICK_POLLS) as session:
        result = await session.generate("a fox")
    assert (result.task_id, result.url, result.credits) == (task, image, Decimal("0.5"))

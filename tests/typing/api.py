"""Read by type checkers, never run: the types of the public names in a user's editor.

Each `type: ignore` stands for an error that the checker must find; mypy complains about one that is not needed.
"""

import asyncio
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import assert_type

from nanobanana_async import (
    ApiMall,
    Budget,
    BudgetState,
    ConcurrencyPolicy,
    DefApi,
    Gateway,
    GeneratedImage,
    GenerationResult,
    ImageRequest,
    Job,
    JobError,
    JobState,
    JobUnfinished,
    Ledger,
    MemoryLedger,
    PollPolicy,
    RetryPolicy,
    Session,
    SessionStats,
    Timeouts,
)
from nanobanana_async.webhooks import ReferenceHost


def gateways_are_gateways() -> list[Gateway]:
    return [ApiMall(api_key="k"), DefApi(api_key="k", base_url="https://gateway.example"), ApiMall.from_env()]


def a_memory_ledger_is_a_ledger() -> Ledger:
    return MemoryLedger()


def a_session_takes_settings(gateway: Gateway) -> list[Session]:
    return [
        Session(),
        Session(gateway),
        Session(
            gateway,
            ledger=MemoryLedger(),
            concurrency=ConcurrencyPolicy(max_jobs=8),
            polling=PollPolicy(),
            retry=RetryPolicy(max_attempts=12, retry_uncertain=False),
            timeouts=Timeouts(create_s=60, query_s=10.0),
        ),
        Session("apimall"),  # type: ignore[arg-type]
    ]


async def local_images_are_references(session: Session, result: GenerationResult) -> None:
    await session.generate("a lighthouse", images=[Path("cat.png"), b"", "https://a.example", result, result.images[0]])
    await session.generate("a lighthouse", images=[Path("cat.png")])
    ImageRequest("a lighthouse", images=[Path("cat.png"), b""])
    ImageRequest("a lighthouse", images=[5])  # type: ignore[list-item]
    Session(references=ReferenceHost(public_url="https://app.example", folder="references"))


async def generating_gives_a_result(session: Session) -> None:
    result = await session.generate("a lighthouse", aspect_ratio="16:9", resolution="2K", output_format="png")
    assert_type(result, GenerationResult)
    assert_type(result.url, str)
    assert_type(result.images, tuple[GeneratedImage, ...])
    assert_type(result.credits, Decimal | None)
    await session.generate(ImageRequest("a lighthouse", num_images=2), idempotency_key="k", timeout=60)
    await session.generate("a lighthouse", extra={"seed": 7})
    await session.generate("a lighthouse", resolution="3K")  # type: ignore[arg-type]
    await session.generate("a lighthouse", colour="red")  # type: ignore[arg-type]
    await session.generate()  # type: ignore[call-arg]


async def a_job_is_awaited_in_many_ways(session: Session) -> None:
    job = await session.submit("a lighthouse", images=["https://example.com/a.png"])
    assert_type(job, Job)
    assert_type(job.key, str)
    assert_type(job.task_id, str | None)
    assert_type(job.state, JobState)
    assert_type(await job, GenerationResult)
    assert_type(await job.result(timeout=5), GenerationResult)
    async for seen in job.updates():
        assert_type(seen.state, JobState)
        assert_type(seen.progress, float)
        assert_type(seen.expected_end, datetime | None)
    assert_type(job.progress, float)
    assert_type(job.expected_end, datetime | None)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(job.result())
    assert_type(task.result(), GenerationResult)


async def jobs_are_found_again(session: Session) -> None:
    assert_type(await session.attach("img_1"), Job)
    assert_type(session.stats(), SessionStats)
    assert_type(await session.balance(), Decimal)
    assert_type(await session.budgets(), Mapping[str, BudgetState])
    assert_type(await session.generate("a fox", budget=Budget(name="alice", max_credits=5)), GenerationResult)


async def a_job_error_leads_back_to_its_job(session: Session) -> None:
    try:
        await session.generate("a lighthouse", timeout=1)
    except JobUnfinished as error:
        assert_type(error.key, str | None)
        assert_type(error.safe_to_repeat, bool)
        late: list[TimeoutError] = [error]
        assert_type(late, list[TimeoutError])
    except JobError as error:
        await error.job


def results_are_frozen(result: GenerationResult, request: ImageRequest) -> None:
    result.task_id = "t"  # type: ignore[misc]
    request.prompt = "p"  # type: ignore[misc]

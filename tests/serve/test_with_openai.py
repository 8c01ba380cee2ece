"""OpenAI's own client against the served API: nothing is bought twice, also when answers are lost."""

import asyncio
import base64
import hashlib
import io
import os
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("python_multipart", reason="the extra serve is missing: pip install -e '.[serve]'")

from PIL import Image

from nanobanana_async.emulator import Fixed, RandomFault, faults
from tests.serve.serving import client_of, served
from tests.support.lazy import lazy
from tests.support.loopback import charged, emulated

if TYPE_CHECKING:
    import openai
else:
    openai = lazy("openai", "OpenAI's client is missing: pip install openai")


async def bought(client: "openai.AsyncOpenAI", prompt: str, **options: object) -> bytes:
    """Return the content of the image that a prompt buys."""
    answer = await client.images.generate(prompt=prompt, **options)  # type: ignore[call-overload]
    (image,) = answer.data
    return base64.b64decode(image.b64_json)


@pytest.mark.slow
async def test_two_hundred_at_once_are_bought_once_each_on_five_slots() -> None:
    async with (
        emulated(job_limit=5, duration=Fixed(0.05)) as emulator,
        served(emulator) as (url, _),
        client_of(url) as client,
        asyncio.TaskGroup() as group,
    ):
        tasks = [group.create_task(bought(client, f"fox {number}")) for number in range(200)]
    assert len({hashlib.sha256(task.result()).digest() for task in tasks}) == 200
    assert charged(emulator.stats(), 200)


@pytest.mark.slow
async def test_lost_answers_and_impatient_retries_buy_nothing_twice() -> None:
    lost = RandomFault(0.2, faults.reset(processed=True), "apimall.create")
    async with (
        emulated(job_limit=5, duration=Fixed(0.1), random_faults=[lost]) as emulator,
        served(emulator) as (url, _),
        client_of(url, timeout=0.7, max_retries=30) as client,
        asyncio.TaskGroup() as group,
    ):
        tasks = [group.create_task(bought(client, f"fox {number // 2}")) for number in range(40)]
    assert all(task.result() for task in tasks)
    assert charged(emulator.stats(), 40)
    assert emulator.stats().creates_received > 40


@pytest.mark.slow
async def test_edit_sends_ten_megabytes_by_content() -> None:
    content = io.BytesIO()
    Image.frombytes("RGB", (1900, 1900), os.urandom(1900 * 1900 * 3)).save(content, "PNG", compress_level=0)
    assert len(content.getvalue()) > 10_000_000
    async with emulated() as emulator, served(emulator) as (url, _), client_of(url) as client:
        for retry in ("0", "1"):
            answer = await client.images.edit(
                image=[("cat.png", content.getvalue(), "image/png")],
                prompt="as a watercolour",
                size="1024x1024",
                n=1,
                extra_headers={"x-stainless-retry-count": retry},
            )
            assert answer.data is not None
            assert len(answer.data) == 1
        (job,) = emulator.jobs()
    assert job.prompt == "as a watercolour"
    assert charged(emulator.stats(), 1)

"""The fixture `answers` works with the aiohttp that is installed."""

import aiohttp
import pytest
from aioresponses import aioresponses as AioResponses  # noqa: N812

URL = "https://gateway.example/api/v1/images/t-1"


async def test_a_scripted_answer_arrives_with_status_headers_and_body(answers: AioResponses) -> None:
    answers.get(URL, status=402, payload={"success": False}, headers={"X-Request-Id": "r-1"})
    async with aiohttp.ClientSession() as session, session.get(URL) as response:
        assert response.status == 402
        assert response.headers["X-Request-Id"] == "r-1"
        assert await response.json() == {"success": False}


async def test_answers_come_in_the_order_they_were_scripted(answers: AioResponses) -> None:
    answers.post(URL, status=429)
    answers.post(URL, status=200, body=b"ok")
    async with aiohttp.ClientSession() as session:
        seen = []
        for _ in range(2):
            async with session.post(URL, data=b"{}") as response:
                seen.append((response.status, await response.read()))
    assert seen == [(429, b""), (200, b"ok")]


async def test_a_scripted_exception_is_raised(answers: AioResponses) -> None:
    answers.get(URL, exception=aiohttp.ServerDisconnectedError())
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await session.get(URL)


async def test_what_was_not_scripted_is_refused(answers: AioResponses) -> None:
    answers.get(URL)
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientConnectionError):
            await session.get("https://gateway.example/elsewhere")

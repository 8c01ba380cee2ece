"""Hostile answers end in a package error, don't block the event loop, and use little memory.

The limits on time are generous, since other work shares the machine: they catch a second or an hour.
`python -m tests.http.hostile` prints exact figures for answers of full size.
"""

import sys
import threading
from typing import ClassVar

import pytest

from nanobanana_async import ApiMall, Session
from nanobanana_async.gateways.contract import HttpRequest, HttpResponse
from nanobanana_async.gateways.large_answers import LARGE
from nanobanana_async.jobs import Accepted, Observation
from nanobanana_async.testing import FakeTransport, Reply
from tests.http import hostile_bodies
from tests.http.hostile import MAX_MEMORY_MIB, ask, measured, served
from tests.http.hostile_bodies import CASES, MIB
from tests.support.replies import completed, created

pytestmark = pytest.mark.slow

GENEROUS_MS = 1000.0
MEASURED = ["60 MiB of [],", "60 MiB behind an image", "a packed bomb of [],", "credits 0E-999999999999999999"]
MEASURED += ["a brotli bomb of [],", "a zstd bomb of zeros, to a create", "an image that is a gzip bomb"]


ALIKE = ("60 MiB inline, with escaped slashes", "60 MiB inline, as JSON in a string")


@pytest.mark.parametrize("name", [name for name in CASES if name not in ALIKE])
async def test_hostile_answer_ends_in_a_package_error_or_is_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostile_bodies, "BULK", 3 * MIB)
    monkeypatch.setattr("nanobanana_async.engine.resolver.LATE_REPLICA_S", 0.0)  # `ask` sets it: put it back after this
    case = CASES[name]
    with served(case.answer() if case.ask != "callback" else b"") as port:
        found = await ask(name, port)
    assert not found["ended"].startswith("ESCAPED")
    assert found["shown"] < 5000
    assert found["block_ms"] < GENEROUS_MS
    if case.legitimate:
        assert found["image"] > 45_000_000


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")
@pytest.mark.parametrize("name", MEASURED)
async def test_hostile_answer_uses_little_memory(name: str) -> None:
    found = await measured(name)
    assert found["memory_mib"] <= MAX_MEMORY_MIB
    assert found["block_ms"] < GENEROUS_MS


# Parsing in threads


class Watched(ApiMall):
    """API Mall that records in which thread its answers are parsed."""

    threads: ClassVar[list[tuple[str, bool]]] = []

    def read_create(self, response: HttpResponse) -> Accepted:
        self.threads.append(("create", threading.current_thread() is threading.main_thread()))
        return super().read_create(response)

    def read_query(self, response: HttpResponse) -> Observation:
        self.threads.append(("query", threading.current_thread() is threading.main_thread()))
        return super().read_query(response)


@pytest.mark.parametrize("large", [False, True])
async def test_large_answer_is_parsed_in_a_thread(large: bool) -> None:
    padding = b" " * (LARGE if large else 10)

    def answer(request: HttpRequest) -> Reply:
        reply = created() if request.method == "POST" else completed()
        return HttpResponse(status=200, body=reply.body + padding)

    Watched.threads.clear()
    gateway = Watched(api_key="k" * 8, expected_job_s=0.1)
    async with Session(gateway, http=FakeTransport(answer, latency_s=0.0)) as session:
        await session.generate("a fox")
    assert Watched.threads == [("create", not large), ("query", not large)]

"""Hostile answers end in an error of ours, hold up nobody and take little memory.

The bounds on time are generous here, since other work shares the machine: what they catch is a second or an hour.
`python -m tests.http.hostile` tells the exact figures, of answers of full size.
"""

import json
import sys
import threading
from typing import ClassVar

import pytest

from nanobanana_async import ApiMall, Session
from nanobanana_async.gateways.bulk import LARGE, MAX_PARTS, Bounds, TooBulky, lift, lifted_size, put_back
from nanobanana_async.gateways.contract import HttpRequest, HttpResponse
from nanobanana_async.jobs import Accepted, Observation
from nanobanana_async.testing import FakeTransport, Reply
from tests.engine.sayings import completed, created
from tests.http import hostile_bodies
from tests.http.hostile import MAX_MEMORY_MIB, ask, measured, served
from tests.http.hostile_bodies import CASES, MIB

GENEROUS_MS = 1000.0
MEASURED = ["60 MiB of [],", "60 MiB behind an image", "a packed bomb of [],", "credits 0E-999999999999999999"]


ALIKE = ("60 MiB inline, with escaped slashes", "60 MiB inline, as JSON in a string")


@pytest.mark.parametrize("name", [name for name in CASES if name not in ALIKE])
async def test_a_hostile_answer_ends_in_an_error_of_ours_or_is_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostile_bodies, "BULK", 3 * MIB)
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
async def test_a_hostile_answer_takes_little_memory(name: str) -> None:
    found = await measured(name)
    assert found["memory_mib"] <= MAX_MEMORY_MIB
    assert found["block_ms"] < GENEROUS_MS


# Beside the loop


class Watched(ApiMall):
    """API Mall, and who reads its answers."""

    threads: ClassVar[list[tuple[str, bool]]] = []

    def read_create(self, response: HttpResponse) -> Accepted:
        self.threads.append(("create", threading.current_thread() is threading.main_thread()))
        return super().read_create(response)

    def read_query(self, response: HttpResponse) -> Observation:
        self.threads.append(("query", threading.current_thread() is threading.main_thread()))
        return super().read_query(response)


@pytest.mark.parametrize("large", [False, True])
async def test_a_large_answer_is_read_beside_the_loop_and_a_small_one_on_it(large: bool) -> None:
    padding = b" " * (LARGE if large else 10)

    def answer(request: HttpRequest) -> Reply:
        reply = created() if request.method == "POST" else completed()
        return HttpResponse(status=200, body=reply.body + padding)

    Watched.threads.clear()
    async with Session(Watched(api_key="k" * 8), http=FakeTransport(answer, latency_s=0.0)) as session:
        await session.generate("a fox")
    assert Watched.threads == [("create", not large), ("query", not large)]


# What is counted, and what is lifted out


@pytest.mark.parametrize("size", [1, 2, 7, 8, 9, 1000, 10**6])
def test_pieces_of_any_size_are_counted_alike(size: int) -> None:
    body = b'{"a":"data:image/png;base64,' + b"A" * 500 + b'","b":"data:image/png;base64,BB","c":[1,2]}'
    bounds = Bounds(max_text=100)
    for start in range(0, len(body), size):
        bounds.feed(body[start : start + size])
    assert [body[start:end] for start, end in bounds.images] == [b"A" * 500, b"BB"]
    assert not bounds.in_image


@pytest.mark.parametrize("size", [1, 9, 1000])
def test_too_much_beside_the_images_is_refused_as_soon_as_it_is_there(size: int) -> None:
    def feed() -> None:
        bounds = Bounds(max_text=40)
        for _ in range(0, 60, size):
            bounds.feed(b"x" * size)

    with pytest.raises(TooBulky, match="more than 40 bytes beside its images"):
        feed()


@pytest.mark.parametrize("opener", [b"[", b"{", b",", b":"])
def test_values_are_counted_by_what_begins_them(opener: bytes) -> None:
    Bounds().feed(opener * MAX_PARTS)
    with pytest.raises(TooBulky, match="more than 50000 values"):
        Bounds().feed(opener * (MAX_PARTS + 20))
    with pytest.raises(TooBulky, match="more than 50000 values"):
        Bounds().feed(b'";base64,' * 1002)


IMAGE = "data:image/png;base64," + "AB/+" * 300_000 + "=="


@pytest.mark.parametrize("folds", [0, 1, 2])
@pytest.mark.parametrize("spelling", ["plain", "slashes", "equals signs"])
def test_an_image_is_lifted_out_and_put_back_as_it_was(spelling: str, folds: int) -> None:
    value: str = IMAGE
    body = ""
    for _ in range(folds + 1):
        body = json.dumps({"image": value})
        body = body.replace("/", "\\/") if spelling == "slashes" else body
        body = body.replace("=", "\\u003d") if spelling == "equals signs" else body
        value = body
    raw = body.encode()
    found = json.loads(lift(raw))["image"]
    for _ in range(folds):
        found = json.loads(found)["image"]
    assert len(found) < 100
    assert len(found) + lifted_size(found) >= len(IMAGE)
    assert put_back(found, raw) == IMAGE


def test_what_was_not_lifted_out_stays_as_it_is() -> None:
    assert put_back("https://a.example/lifted-1-2", b"x" * 100) == "https://a.example/lifted-1-2"
    assert json.loads(lift(b'{"a":"data:image/png;base64,"}')) == {"a": "data:image/png;base64,"}
    with pytest.raises(ValueError, match="ends within an image"):
        lift(b'{"a":"data:image/png;base64,AAAA')
    with pytest.raises(ValueError, match="ascii"):
        put_back("data:image/png;base64,lifted-0-2", "ää".encode())

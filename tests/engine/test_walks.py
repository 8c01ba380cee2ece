"""The two ways through the package that docs/architecture.md describes stay short.

A way is what is on the stack at its stations: when a step is handed to a worker, when the ledger is called, when a
request leaves, when the waiters are woken. A file is entered when it was not on the stack at the station before.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import nanobanana_async
from nanobanana_async.engine.tracked_job import TrackedJob
from nanobanana_async.engine.workers import WorkerPool
from nanobanana_async.handle import Job
from nanobanana_async.ledger.memory import MemoryLedger
from nanobanana_async.testing import FakeTransport
from tests.support.fakes import FakeGateway, apimall, virtually

PACKAGE = Path(nanobanana_async.__file__).parent


class Way:
    """The files of the package that were entered, in order."""

    def __init__(self) -> None:
        self.files: list[str] = []
        self._frames: list[FrameType] = []

    def reach(self, code_of: Callable[..., Any]) -> None:
        """Note the stack of a call of this function."""
        frames = list(_package_frames())[::-1]
        same = 0
        while same < min(len(frames), len(self._frames)) and frames[same] is self._frames[same]:
            same += 1
        self._frames = frames
        for file in [*(frame.f_code.co_filename for frame in frames[same:]), code_of.__code__.co_filename]:
            name = Path(file).relative_to(PACKAGE).as_posix()
            if self.files[-1:] != [name]:
                self.files.append(name)

    def begin(self) -> None:
        """Forget what was entered so far."""
        self.files.clear()


def _package_frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(3)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PACKAGE) and frame.f_code.co_name != "run_virtual":
            yield frame
        frame = frame.f_back


@virtually
async def ways(monkeypatch: pytest.MonkeyPatch, found: dict[str, list[str]]) -> None:
    way = Way()

    def watch(owner: type, name: str) -> None:
        original = getattr(owner, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            method = getattr(args[-1], "method", "")
            if "to the POST" in found or name != "wake":
                way.reach(original)
            if method == "POST":
                found["to the POST"] = list(way.files)
            if method == "GET":
                way.begin()
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, watched)

    async with apimall(FakeTransport(FakeGateway().answer)) as session:
        watch(WorkerPool, "_hand_to_worker")
        watch(MemoryLedger, "claim")
        watch(MemoryLedger, "advance")
        watch(TrackedJob, "wake")
        watch(FakeTransport, "send")
        watch(Job, "_result_from_record")
        await session.generate("a fox", idempotency_key="order-1")
        found["to the caller"] = way.files


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    files: dict[str, list[str]] = {}
    ways(monkeypatch, files)
    return files


def test_way_from_generate_to_the_post_is_short(found: dict[str, list[str]]) -> None:
    entered = Counter(found["to the POST"])
    assert set(entered) >= {"purchases.py", "engine/scheduler.py", "engine/submitter.py", "ledger/memory.py"}
    assert len(entered) <= 14
    assert sum(file.startswith("engine/") for file in entered) <= 7
    assert max(entered.values()) <= 2, entered


def test_way_from_an_answer_to_the_caller_is_short(found: dict[str, list[str]]) -> None:
    entered = Counter(found["to the caller"])
    assert set(entered) >= {"engine/poller.py", "engine/store.py", "handle.py"}
    assert len(entered) <= 12
    assert "engine/dispatcher.py" not in entered

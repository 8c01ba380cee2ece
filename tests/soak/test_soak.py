"""The short forms of `python -m tests.soak`: much work at once leaves nothing behind."""

import sys
from pathlib import Path

import pytest

from nanobanana_async.events import Event
from nanobanana_async.ledger import memory
from tests.soak import steady
from tests.soak.__main__ import MAX_WAL_KB, bought, listed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(180),  # on a busy machine
    pytest.mark.skipif(sys.platform != "linux", reason="descriptors and memory are read from /proc"),
]

SHORT = steady.Orders(seconds=400.0, callers=10, every_s=10.0)


@pytest.mark.parametrize("on_disk", [True, False])
def test_faulty_gateway_at_full_pace_loses_nothing(tmp_path: Path, on_disk: bool) -> None:
    figures = bought(600, tmp_path, on_disk=on_disk)
    assert (figures["rows bought twice"], figures["rows lost"], figures["rows without a result"]) == (0, 0, {})
    assert figures["creates charged"] == 600
    assert min(figures[fault] for fault in ("answers lost by the gateway", "repeats answered from the key")) > 0
    assert figures["left when it was closed"] == {"descriptors": 0, "tasks": 0}
    assert figures["-wal file at most, KB"] < MAX_WAL_KB


def test_steady_work_holds_no_more_memory_over_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "TASKS_KEPT", 50)
    worked = steady.run(SHORT)
    assert worked.jobs > 500
    assert worked.bytes_per_job < 100


def test_kept_events_are_found_as_growing_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "TASKS_KEPT", 50)
    events: list[Event] = []
    worked = steady.run(SHORT, [events.append])
    assert worked.bytes_per_job > 1000


def test_ledger_of_many_rows_is_resumed_and_listed_whole(tmp_path: Path) -> None:
    figures = listed(1000, tmp_path)
    assert figures["breaches"] == []
    assert [figures[count] for count in ("resumed", "uncertain", "listed", "rows")] == [10, 10, 50, 1000]

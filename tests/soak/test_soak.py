"""The short form of `python -m tests.soak jobs`: much work at once leaves nothing behind."""

import sys
from pathlib import Path

import pytest

from tests.soak.__main__ import MAX_WAL_KB, bought

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(180),  # on a busy machine
    pytest.mark.skipif(sys.platform != "linux", reason="descriptors and memory are read from /proc"),
]


@pytest.mark.parametrize("on_disk", [True, False])
def test_faulty_gateway_at_full_pace_loses_nothing(tmp_path: Path, on_disk: bool) -> None:
    figures = bought(600, tmp_path, on_disk=on_disk)
    assert (figures["rows bought twice"], figures["rows lost"], figures["rows without a result"]) == (0, 0, {})
    assert figures["creates charged"] == 600
    assert min(figures[fault] for fault in ("answers lost by the gateway", "repeats answered from the key")) > 0
    assert figures["left when it was closed"] == {"descriptors": 0, "tasks": 0}
    assert figures["-wal file at most, KB"] < MAX_WAL_KB

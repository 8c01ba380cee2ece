"""Downloads that break at any byte of head or body: the image is saved whole, or not at all."""

import pytest

from tests.faults.downloads import ANSWERS, break_downloads


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("framing", ANSWERS)
async def test_download_that_breaks_at_any_byte_is_whole_or_absent(framing: str) -> None:
    ends, breaches = await break_downloads(framing, 11, ("cut", "reset", "garbage", "drip"))
    assert breaches == []
    assert set(ends) >= {"cut: absent", "reset: absent", "garbage: absent", "drip: whole"}
    ends, breaches = await break_downloads(framing, 60, ("stall", "delay"))
    assert breaches == []
    assert set(ends) == {"stall: absent", "delay: whole"}

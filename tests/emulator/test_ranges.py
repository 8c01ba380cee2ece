"""The ranges of numbers in the emulator's settings."""

import math
from decimal import Decimal
from typing import Any

import pytest

from nanobanana_async.emulator import Bimodal, Fixed, LogNormal, Script
from nanobanana_async.emulator.faults import RandomFault, cut, reset, stall
from nanobanana_async.emulator.settings import EmulatorSettings
from tests.support.rows import each_row

NO_NUMBERS = [math.nan, -1, True, "5", [5], 10**400]
ODD = ["nan", "-1", "True", "text", "list", "10**400"]


@each_row("bad", NO_NUMBERS)
@each_row(
    "name",
    [
        "job_limit",
        "slot_freed_after_s",
        "creates_per_minute",
        "queries_per_minute",
        "requests_per_second",
        "requests_per_minute",
        "requests_per_day",
        "rate_burst",
        "retry_after_s",
        "speed",
        "pending_share",
        "failure_probability",
        "visible_after_s",
        "forget_keys_after_s",
        "links_expire_after_s",
        "image_scale",
        "callback_delay_s",
    ],
)
def test_setting_out_of_range_is_refused_by_name(name: str, bad: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be a (whole )?number .* and at most "):
        EmulatorSettings(**{name: bad})


def test_infinity_is_allowed_for_events_that_never_happen() -> None:
    assert EmulatorSettings(forget_keys_after_s=math.inf).forget_keys_after_s == math.inf
    assert Fixed(math.inf)(None) == math.inf  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="speed must be a number above 0"):
        EmulatorSettings(speed=math.inf)


@each_row("bad", ["much", "NaN", "1E+1000000", "Infinity", "1E-1000000", True, [8], "sNaN"])
def test_credits_are_a_finite_amount(bad: Any) -> None:
    with pytest.raises(ValueError, match="an amount of credits must be a finite number"):
        EmulatorSettings(credits=bad)
    with pytest.raises(ValueError, match="an amount of credits must be a finite number"):
        EmulatorSettings(defapi_price=bad)
    assert EmulatorSettings(credits="8.5").credits == Decimal("8.5")
    assert str(EmulatorSettings(defapi_price="-0.0").defapi_price) == "0"


@pytest.mark.parametrize("bad", [math.nan, -1, "5", True])
def test_durations_and_faults_are_checked_too(bad: Any) -> None:
    for make in (Fixed, stall):
        with pytest.raises(ValueError, match="must be a number of at least 0"):
            make(bad)
    with pytest.raises(ValueError, match="median_s must be a number above 0"):
        LogNormal(median_s=bad)
    with pytest.raises(ValueError, match="sigma must be"):
        LogNormal(median_s=1, sigma=bad)
    with pytest.raises(ValueError, match="second_share must be"):
        Bimodal(first=Fixed(1), second=Fixed(2), second_share=bad)
    with pytest.raises(ValueError, match="probability must be"):
        RandomFault(probability=bad, fault=reset())
    with pytest.raises(ValueError, match="sent_share must be"):
        Script({"apimall.create": [cut(sent_share=bad)]})

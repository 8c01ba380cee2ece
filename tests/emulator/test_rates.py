"""Request rates: token buckets, windows by the clock, sliding windows, of creates, queries and both."""

import pytest

from nanobanana_async.emulator import ACCOUNTS, EmulatedRequest
from nanobanana_async.emulator.rates import RateWindow, make_rate
from tests.emulator.calling import HEADERS, Caller


def taken(window: RateWindow, times: list[float], count: float = 2, burst: int | None = None) -> list[float]:
    """Send a request at each time; return the wait of each, 0 for an accepted one."""
    rate = make_rate(window, count, 60.0, burst)
    waits = []
    for now in times:
        waits.append(rate.wait_s(now))
        if not waits[-1]:
            rate.take(now)
    return waits


def test_token_bucket_refills_all_the_time() -> None:
    assert taken("bucket", [0, 0, 0, 30, 30]) == [0, 0, 30, 0, 30]
    assert taken("bucket", [0, 0], burst=1) == [0, 30]


def test_clock_window_empties_with_each_period() -> None:
    assert taken("clock", [50, 55, 58, 60, 60, 61]) == [0, 0, 2, 0, 0, 59]


def test_sliding_window_ends_at_each_request() -> None:
    assert taken("sliding", [50, 55, 58, 109, 110, 111]) == [0, 0, 52, 1, 0, 4]


@pytest.mark.parametrize("window", ["bucket", "clock", "sliding"])
def test_creates_and_queries_share_one_rate(window: RateWindow) -> None:
    caller = Caller(requests_per_minute=3, rate_window=window)
    task = caller.bought("1")
    assert [caller.poll(task).status, caller.buy("2").status] == [200, 200]
    assert [caller.poll(task).status, caller.buy("3").status] == [429, 429]
    assert caller.stats().refusals_429 == {"queries": 1, "creates": 1}
    caller.now = 60.0
    assert caller.poll(task).status == 200


def test_refusal_of_one_rate_takes_nothing_from_another() -> None:
    caller = Caller(requests_per_minute=2, requests_per_day=3)
    assert [caller.buy(f"{n}").status for n in range(4)] == [200, 200, 429, 429]
    caller.now = 120.0
    assert [caller.buy(f"{n}").status for n in range(4, 6)] == [200, 429]
    caller.now = 86_400.0
    assert caller.buy("6").status == 200


def test_small_account_has_the_limits_of_accounts_as_sold() -> None:
    caller = Caller(**ACCOUNTS["small"])
    assert [caller.buy(f"{n}").status for n in range(6)] == [200] * 5 + [429]
    assert caller.stats().refusals_429 == {"jobs": 1}


def test_windows_of_the_small_account_hold_for_every_endpoint() -> None:
    caller = Caller(**ACCOUNTS["small"])
    calls = (
        ("GET", "/api/v1/images/history"),
        ("GET", "/api/v1/account/balances"),
        ("POST", "/api/v1/files/base64"),
        ("GET", "/api/v1/webhooks"),
        ("GET", "/api/user"),
    )
    requests = [EmulatedRequest(method, path, {}, HEADERS, b"") for method, path in calls]
    statuses = [caller.simulator.handle(0.0, request).status for request in requests * 12]
    assert 429 not in statuses
    assert [caller.simulator.handle(0.0, request).status for request in requests] == [429] * 5
    assert caller.buy().status == 429

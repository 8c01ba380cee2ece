"""`Retry-After`, and the limit that a 429 reports."""

import math
from datetime import UTC, datetime, timedelta, timezone

from hypothesis import given
from hypothesis import strategies as st

from nanobanana_async.gateways.rate_limits import budget_used_up_for_s, limit_kind, retry_after_s
from tests.support.rows import each_row

NOON = datetime(2026, 3, 12, 12, tzinfo=UTC)
DATE = "Thu, 12 Mar 2026 12:00:00 GMT"
LATER = "Thu, 12 Mar 2026 12:00:30 GMT"


@each_row(
    ("headers", "now", "expected"),
    [
        ({"retry-after": "7"}, None, 7),
        ({"retry-after": " 1.5 "}, None, 1.5),
        ({"retry-after": "-3"}, None, 0),
        ({"retry-after": "9" * 400}, None, 120),
        ({"retry-after": "9" * 8000}, None, 120),
        ({"retry-after": "Mon, 99 Dec " + "9" * 5000, "date": DATE}, None, None),
        ({"retry-after": LATER, "date": DATE}, None, 30),
        ({"retry-after": LATER, "date": DATE.replace("GMT", "-0000")}, None, 30),
        ({"retry-after": LATER, "date": "yesterday"}, NOON, 30),
        ({"retry-after": LATER}, NOON.astimezone(timezone(timedelta(hours=2))), 30),
        ({"retry-after": DATE, "date": LATER}, None, 0),
        ({"retry-after": "Thu, 12 Mar 2027 12:00:00 GMT", "date": DATE}, None, 120),
        ({"retry-after": LATER}, None, None),
        ({"retry-after": LATER, "date": "yesterday"}, None, None),
        ({"retry-after": "soon", "date": DATE}, None, None),
        ({"retry-after": "nan"}, None, None),
        ({"retry-after": "٣"}, None, None),
        ({"retry-after": "Thu, 99 Mar 99999999999999999999 12:00:00 GMT"}, NOON, None),
        ({}, NOON, None),
    ],
)
def test_retry_after_is_parsed_in_both_forms(
    headers: dict[str, str], now: datetime | None, expected: float | None
) -> None:
    assert retry_after_s(headers, now) == expected


@given(st.text(), st.text())
def test_retry_after_never_raises(asked: str, date: str) -> None:
    wait_s = retry_after_s({"retry-after": asked, "date": date})
    assert wait_s is None or 0 <= wait_s <= 120


@each_row(
    ("code", "message", "headers", "expected"),
    [
        ("too_many_concurrent_jobs", "Rate limit exceeded or too many concurrent jobs", {}, "jobs"),
        ("queue_full", "", {}, "jobs"),
        ("inflight_limit", "", {}, "jobs"),
        (None, "Too many running jobs", {}, "jobs"),
        (None, "Too many concurrent requests", {}, "jobs"),
        ("rate_limited", "", {}, "rate"),
        (None, "Rate limit exceeded", {}, "rate"),
        (None, "60 per minute", {}, "rate"),
        (None, "Too many requests", {}, None),
        ("rate_limited", "Rate limit exceeded or too many concurrent jobs", {}, None),
        (None, "Rate limit exceeded or too many concurrent jobs", {"x-ratelimit-remaining": "0"}, "rate"),
        (None, "Wait for it to be generated", {}, None),
        (None, "Slow down", {"ratelimit": "limit=10, remaining=0, reset=5"}, "rate"),
        (None, "Slow down", {"ratelimit": '"default";r=0;t=5'}, "rate"),
        (None, "Slow down", {"ratelimit": '"default";r=5;t=0', "x-ratelimit-remaining": "5"}, None),
    ],
)
def test_limit_kind_follows_words_then_headers(
    code: str | None, message: str, headers: dict[str, str], expected: str | None
) -> None:
    assert limit_kind(code, message, headers) == expected


@each_row(
    ("code", "message", "headers", "in_body_s", "expected"),
    [
        (None, "Too many requests", {"retry-after": "36000"}, None, 36_000),
        (None, "Too many requests", {"retry-after": "Thu, 12 Mar 2026 22:00:00 GMT", "date": DATE}, None, 36_000),
        (None, "Too many requests", {"retry-after": "9" * 30}, None, 90_000),
        (None, "Too many requests", {}, 7200.0, 7200),
        (None, "Too many requests", {"x-ratelimit-reset": "7200"}, None, 7200),
        (None, "", {"x-ratelimit-remaining-day": "0", "x-ratelimit-reset-day": "7200"}, None, 7200),
        (None, "", {"x-ratelimit-remaining-day": "0"}, None, math.inf),
        (None, "", {"x-ratelimit-remaining-day": "17"}, None, None),
        ("daily_limit_exceeded", "", {}, None, math.inf),
        (None, "You have made 10,000 requests today", {}, None, math.inf),
        (None, "Limit of 10000 requests per day reached", {}, None, math.inf),
        (None, "quota exceeded for 24 hours", {}, None, math.inf),
        (None, "Limit of 10000 requests per day reached", {"retry-after": "30"}, None, None),
        (None, "Too many requests", {"retry-after": "599"}, None, None),
        (None, "Too many requests per minute", {}, None, None),
        ("rate_limited", "someday", {}, None, None),
    ],
)
def test_used_up_budget_of_a_day_is_recognised(
    code: str | None, message: str, headers: dict[str, str], in_body_s: float | None, expected: float | None
) -> None:
    assert budget_used_up_for_s(code, message, headers, in_body_s) == expected

"""Parse what an answer says about limits: how long to wait, and which limit was met."""

import math
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from email.utils import parsedate_to_datetime
from typing import Any

from nanobanana_async.errors import MAX_RETRY_AFTER_S, LimitKind

LONG_WAIT_S = 600.0
"""A wait of ten minutes or more is no matter of requests per minute: a budget of hours or of a day is used up."""
LONGEST_DAY_S = 90_000.0
"""A day and an hour: no budget is used up for longer."""

_LONG_HEADER = 1000
_LONG_SENTENCE = 1000
_LONG_NUMBER = 64
_EPOCH_S = 10.0**8  # a larger number of seconds is a time since 1970

_SECONDS = re.compile(r"[+-]?\d+(?:\.\d*)?", re.ASCII)
_JOBS = re.compile(
    r"concurren|in_?flight|queue_full|(?:too_many|max\w{0,20}|running|active|pending)_(?:jobs|tasks)|job_limit"
)
_RATE = re.compile(
    r"(?:^|_)(?:rate|ratelimit\w{0,40}|throttl\w{0,40}|rpm|rps|qps)(?:_|$)|per_(?:second|minute|hour|day)"
)
_DAY = re.compile(
    r"daily|(?:per|a|each|this|one)_day(?:_|$)|(?:^|_)day_(?:limit|quota)|24_?h(?:ours?)?(?:_|$)|_today(?:_|$)"
)
_REMAINING = (
    "x-ratelimit-remaining",
    "ratelimit-remaining",
    "x-ratelimit-remaining-requests",
    "x-rate-limit-remaining",
)
_RESET = tuple(name.replace("remaining", "reset") for name in _REMAINING)
_BODY_WAITS = (
    ("retry_after", 1.0),
    ("retryAfter", 1.0),
    ("retry_after_s", 1.0),
    ("retry_after_seconds", 1.0),
    ("retry_after_ms", 0.001),
)
_NONE_LEFT = re.compile(r"\b(?:r|remaining)\s*=\s*0+(?![\d.])")


def retry_after_s(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Return the seconds that `Retry-After` asks for, at most `MAX_RETRY_AFTER_S`; None if it is missing or invalid.

    An HTTP date is compared with `now`, or with the answer's own `Date` header.
    """
    wait_s = _retry_after_s(headers, now)
    return None if wait_s is None else min(wait_s, MAX_RETRY_AFTER_S)


def _retry_after_s(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    asked = headers.get("retry-after", "")[:_LONG_HEADER].strip()
    if _SECONDS.fullmatch(asked):
        wait_s = float(asked)
    else:
        until, now = http_date(asked), now or http_date(headers.get("date", "")[:_LONG_HEADER])
        if until is None or now is None:
            return None
        wait_s = (until - now).total_seconds()
    return max(wait_s, 0.0)


def throttle_wait_s(headers: Mapping[str, str], in_body_s: float | None = None) -> float | None:
    """Return the seconds that a 429 asks for: by `Retry-After`, by its body, or by when its limit is reset.

    The reset is in seconds, or an epoch time, which is compared with the answer's own `Date` header.
    """
    wait_s = _stated_wait_s(headers, in_body_s, _RESET)
    return None if wait_s is None else min(wait_s, MAX_RETRY_AFTER_S)


def budget_used_up_for_s(
    code: str | None, message: str, headers: Mapping[str, str], in_body_s: float | None = None
) -> float | None:
    """Return for how long a 429 says that a budget of hours or of a day is used up; None if it does not say so.

    It says so by a wait of `LONG_WAIT_S` or more, or by naming the day in words or headers; infinite without a time.
    """
    day_headers = [name for name in headers if "ratelimit" in name.replace("-", "") and "day" in name]
    resets = [name for name in day_headers if "reset" in name]
    wait_s = _stated_wait_s(headers, in_body_s, (*resets, *_RESET))
    if wait_s is not None and wait_s >= LONG_WAIT_S:
        return min(wait_s, LONGEST_DAY_S)
    none_left = any("remaining" in name and headers[name].strip() == "0" for name in day_headers)
    if wait_s is not None or not (none_left or _DAY.search(slug(f"{code or ''} {message}"))):
        return None
    return math.inf


def _stated_wait_s(headers: Mapping[str, str], in_body_s: float | None, resets: Iterable[str]) -> float | None:
    wait_s = _retry_after_s(headers)
    if wait_s is None:
        wait_s = in_body_s
    if wait_s is None:
        found = (_reset_s(headers.get(name, ""), headers) for name in resets)
        wait_s = next((each for each in found if each is not None), None)
    return None if wait_s is None else max(wait_s, 0.0)


def body_wait_s(envelope: Mapping[str, Any]) -> float | None:
    """Return the seconds that an error's body asks to wait; None if it names none."""
    for fields in (envelope, envelope.get("error"), envelope.get("data"), envelope.get("detail")):
        if not isinstance(fields, Mapping):
            continue
        for name, unit_s in _BODY_WAITS:
            value = fields.get(name)
            text = str(value) if isinstance(value, (int, Decimal, str)) else ""
            if len(text) <= _LONG_NUMBER and _SECONDS.fullmatch(text):
                return float(text) * unit_s
    return None


def _reset_s(text: str, headers: Mapping[str, str]) -> float | None:
    text = text.strip()
    if len(text) > _LONG_NUMBER or not _SECONDS.fullmatch(text):
        return None
    at = float(text)
    if at < _EPOCH_S:
        return at
    now = http_date(headers.get("date", "")[:_LONG_HEADER])
    return None if now is None else (at / 1000 if at >= _EPOCH_S * 1000 else at) - now.timestamp()


def http_date(text: str) -> datetime | None:
    """Return the time of an HTTP header; None if it is invalid."""
    try:
        at = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):  # the parser raises all of these
        return None
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)


def limit_kind(code: str | None, message: str, headers: Mapping[str, str]) -> LimitKind | None:
    """Return which limit a 429 reports; None if the answer names neither or both.

    A code that names jobs decides first, then the words of code and message together, then the headers.
    """
    if _JOBS.search(slug(code or "")):
        return "jobs"
    words = slug(f"{code or ''} {message}")
    jobs = _JOBS.search(words) is not None
    rate = _RATE.search(words) is not None  # "too many requests" is the name of every 429
    if jobs != rate:
        return "jobs" if jobs else "rate"
    none_left = any(headers.get(name, "").strip() == "0" for name in _REMAINING)
    return "rate" if none_left or _NONE_LEFT.search(headers.get("ratelimit", "")[:_LONG_HEADER]) else None


def slug(text: str) -> str:
    """Return the start of a text in the form of a code: "Too many jobs!" becomes "too_many_jobs_"."""
    return re.sub(r"[^a-z0-9]+", "_", text[:_LONG_SENTENCE].lower())

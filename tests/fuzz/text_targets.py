"""Parts of answers: headers, values, links, data URIs; and what is shown of them."""

import json
import math
from datetime import datetime, timedelta

from hypothesis import strategies as st

from nanobanana_async.errors import MAX_RETRY_AFTER_S
from nanobanana_async.gateways.data_uris import normal_data_uri
from nanobanana_async.gateways.failures import failure_kind
from nanobanana_async.gateways.images import parse_image_url
from nanobanana_async.gateways.large_answers import AnswerBounds, lift_images, restore_inline_image
from nanobanana_async.gateways.parsing import (
    parse_count,
    parse_decimal,
    parse_nested_json,
    parse_time,
    parse_word,
    without_inline_images,
)
from nanobanana_async.gateways.progress import parse_progress
from nanobanana_async.gateways.rate_limits import (
    LONGEST_DAY_S,
    body_wait_s,
    budget_used_up_for_s,
    http_date,
    limit_kind,
    retry_after_s,
    throttle_wait_s,
)
from nanobanana_async.gateways.redaction import EXCERPT_LENGTH, excerpt, redact
from nanobanana_async.gateways.secret import Secret
from tests.fuzz.gateway_targets import HEADER_MAPS, HEADERS, KEY, answer_seeds, is_price
from tests.fuzz.target import VALUES, Target, joined, json_of, json_shapes, parts_of, texts_of


def _headers(data: bytes) -> None:
    parts = parts_of(data if b"\n\n" in data else b"\n" + data + b"\n\n")
    headers, said = parts.headers, parts.body.decode("utf-8", "replace")
    waits = [retry_after_s(headers), throttle_wait_s(headers), throttle_wait_s(headers, 3.0)]
    assert all(wait is None or 0.0 <= wait <= MAX_RETRY_AFTER_S for wait in waits)
    used_up = budget_used_up_for_s(parts.first, said, headers)
    assert used_up is None or used_up == math.inf or 0.0 <= used_up <= LONGEST_DAY_S
    assert limit_kind(parts.first, said, headers) in ("jobs", "rate", None)
    assert failure_kind(parts.first, said) in ("moderation", "capacity", "input", "unknown")
    date = http_date(headers.get("date", ""))
    assert date is None or (date - date) == timedelta(0)


def _values(data: bytes) -> None:
    value = json_of(data)
    for each in (value, str(value)[:300], [value], {"retry_after": value, "error": {"retry_after_ms": value}}):
        assert is_price(parse_decimal(each))
        assert (parse_count(each) or 0) >= 0
        time = parse_time(each)
        assert time is None or isinstance(time, datetime)
        assert (word := parse_word(each)) is None or (word.isprintable() and len(word) <= 200)
        assert (share := parse_progress(each)) is None or 0.0 <= share <= 1.0
        parse_nested_json(each)
        assert len(json.dumps(without_inline_images(each), default=str)) < 4 << 20
        if isinstance(each, dict):
            body_wait_s(each)


def _data_uri(data: bytes) -> None:
    text = texts_of(data)
    uri = normal_data_uri(text)
    assert uri == normal_data_uri(uri)
    assert uri.isprintable()


def _image_url(data: bytes) -> None:
    url = parse_image_url(json_of(data))
    assert url is None or url.isprintable()


def _large_answer(data: bytes) -> None:
    """What is lifted out of an answer is put back as it was, and the bounds are the same in any pieces."""
    lifted = lift_images(data)
    whole, pieces = AnswerBounds(), AnswerBounds()
    whole.feed(data)
    for start in range(0, len(data), 7):
        pieces.feed(data[start : start + 7])
    assert whole.images == pieces.images
    for token in lifted.split(b'"'):
        text = token.decode("utf-8", "replace")
        if text.rpartition(",")[2].startswith("lifted-"):
            restore_inline_image(text, data)


def _redaction(data: bytes) -> None:
    parts, secret = parts_of(data), Secret(KEY)
    for text in (texts_of(data), f"{parts.first}{KEY}{texts_of(parts.body)}"):
        shown = redact(text, secret=secret)
        assert len(shown) <= EXCERPT_LENGTH
        assert shown.isprintable()
        assert not secret.is_in(shown)
        assert not secret.is_in(secret.hide(text))
    assert len(excerpt(data, secret=secret)) <= EXCERPT_LENGTH


_INLINE = answer_seeds("apimall_completed_inline")
_SECRETS = answer_seeds("apimall_error_secrets")

TARGETS = (
    Target(
        name="headers",
        run=_headers,
        seeds=(
            joined(
                "rate_limited", {"retry-after": "5", "ratelimit": "limit;r=0;t=60"}, b"too many requests per minute"
            ),
            joined("", {"retry-after": "Thu, 01 Jan 2026 00:00:09 GMT", "date": "Thu, 01 Jan 2026 00:00:00 GMT"}, b""),
            joined("", {"x-ratelimit-reset": "1767225600000", "date": "Thu, 01 Jan 2026 00:00:00 GMT"}, b"daily"),
        ),
        words=tuple(f"{name}: ".encode() for name in HEADERS),
        shapes=st.builds(joined, st.just(""), HEADER_MAPS, st.binary(max_size=40)),
    ),
    Target(
        name="values",
        run=_values,
        seeds=(b"12.5", b'"2026-01-01T00:00:00Z"', b'{"retry_after": 5}', b'"[1, 2]"', b'"45 %"', b"1767225600000"),
        words=(b"e999", b"NaN", b"-", b'"', b"Z", b"+14:00", b"%"),
        shapes=json_shapes(VALUES),
    ),
    Target(
        name="data-uri",
        run=_data_uri,
        errors=(ValueError,),
        seeds=(b"data:image/png;base64,AAAA", b"DATA:image/svg+xml;a=b;base64,%2B/-_="),
        words=(b";base64,", b"data:image/", b"%2B", b"=", b"\xed\xa0\x80"),
    ),
    Target(
        name="image-url",
        run=_image_url,
        errors=(ValueError,),
        seeds=(b'"https://a.example:80/b c?d=e"', b'"http://[::1%25]:0/"'),
        words=(b"http://", b"[", b"]", b":99999", b"\\ud800"),
        shapes=json_shapes(VALUES),
    ),
    Target(
        name="large-answer",
        run=_large_answer,
        errors=(ValueError,),
        seeds=_INLINE,
        words=(b";base64,", b'"', b"\\", b"\\/", b"lifted-0-9"),
    ),
    Target(
        name="redaction",
        run=_redaction,
        seeds=_SECRETS,
        words=(KEY.encode(), b"Bearer ", b"sk-", b"https://", b"?a=", b"data:", b"api_key="),
    ),
)

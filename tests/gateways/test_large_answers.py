"""Large answers: bounds, and inline images that are lifted out and restored."""

import json
from typing import Any

import pytest

from nanobanana_async.errors import GatewayUnavailable, UnexpectedResponse
from nanobanana_async.gateways import ApiMall, DefApi, HttpResponse
from nanobanana_async.gateways.large_answers import (
    LARGE,
    MAX_VALUES,
    AnswerBounds,
    AnswerTooLarge,
    lift_images,
    lifted_length,
    restore_inline_image,
)
from nanobanana_async.gateways.parsing import parse_nested_json, without_inline_images
from nanobanana_async.gateways.rate_limits import slug
from tests.support.rows import each_row


@each_row("size", [1, 2, 7, 8, 9, 1000, 10**6])
def test_bounds_do_not_depend_on_chunk_size(size: int) -> None:
    body = b'{"a":"data:image/png;base64,' + b"A" * 500 + b'","b":"data:image/png;base64,BB","c":[1,2]}'
    bounds = AnswerBounds(max_text=100)
    for start in range(0, len(body), size):
        bounds.feed(body[start : start + size])
    assert [body[start:end] for start, end in bounds.images] == [b"A" * 500, b"BB"]
    assert not bounds.in_image


@pytest.mark.parametrize("size", [1, 9, 1000])
def test_excess_text_is_refused_at_once(size: int) -> None:
    def feed() -> None:
        bounds = AnswerBounds(max_text=40)
        for _ in range(0, 60, size):
            bounds.feed(b"x" * size)

    with pytest.raises(AnswerTooLarge, match="more than 40 bytes outside its images"):
        feed()


@pytest.mark.parametrize("opener", [b"[", b"{", b",", b":"])
def test_values_are_counted_by_their_openers(opener: bytes) -> None:
    AnswerBounds().feed(opener * MAX_VALUES)
    with pytest.raises(AnswerTooLarge, match="more than 50000 values"):
        AnswerBounds().feed(opener * (MAX_VALUES + 20))
    with pytest.raises(AnswerTooLarge, match="more than 50000 values"):
        AnswerBounds().feed(b'";base64,' * 1002)


IMAGE = "data:image/png;base64," + "AB/+" * 300_000 + "=="


@each_row("folds", [0, 1, 2])
@each_row("spelling", ["plain", "slashes", "equals signs"])
def test_lifted_image_is_restored_exactly(spelling: str, folds: int) -> None:
    value: str = IMAGE
    body = ""
    for _ in range(folds + 1):
        body = json.dumps({"image": value})
        body = body.replace("/", "\\/") if spelling == "slashes" else body
        body = body.replace("=", "\\u003d") if spelling == "equals signs" else body
        value = body
    raw = body.encode()
    found = json.loads(lift_images(raw))["image"]
    for _ in range(folds):
        found = json.loads(found)["image"]
    assert len(found) < 100
    assert len(found) + lifted_length(found) >= len(IMAGE)
    assert restore_inline_image(found, raw) == IMAGE


def test_text_without_token_is_unchanged() -> None:
    assert restore_inline_image("https://a.example/lifted-1-2", b"x" * 100) == "https://a.example/lifted-1-2"
    assert json.loads(lift_images(b'{"a":"data:image/png;base64,"}')) == {"a": "data:image/png;base64,"}
    with pytest.raises(ValueError, match="ends inside an image"):
        lift_images(b'{"a":"data:image/png;base64,AAAA')
    with pytest.raises(ValueError, match="ascii"):
        restore_inline_image("data:image/png;base64,lifted-0-2", "ää".encode())


def defapi_success(**facts: Any) -> HttpResponse:
    data = {"task_id": "t1", "status": "success", **facts}
    return HttpResponse(status=200, body=json.dumps({"code": 0, "data": data}).encode())


@pytest.mark.parametrize("folded", [False, True])
def test_large_inline_image_is_complete_and_not_in_raw(folded: bool) -> None:
    result: Any = [{"image": IMAGE}, {"image": "https://cdn.example/2.png"}, {"image": "data:image/png;base64,ä"}]
    seen = DefApi(api_key="k" * 8).read_query(defapi_success(result=json.dumps(result) if folded else result))
    assert seen.images == (IMAGE, "https://cdn.example/2.png")
    assert [place for place, _ in seen.missing] == [2]
    assert len(str(seen.raw)) < 1000
    if not folded:
        assert seen.raw["data"]["result"][0]["image"] == f"<image/png, {len(IMAGE)} characters>"


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b'{"success":true,"data":[' + b"[]," * 30_000 + b"0]}", "more than 50000 values"),
        (b'{"data":"' + b"x" * 1_100_000 + b'"}', "more than 1048576 bytes outside its images"),
        (b'{"data":"data:image/png;base64,' + b"A" * LARGE, "not JSON"),
    ],
)
def test_oversized_answer_is_refused_before_parsing(body: bytes, why: str) -> None:
    for read in (ApiMall(api_key="k" * 8).read_query, DefApi(api_key="k" * 8).read_create):
        with pytest.raises(UnexpectedResponse, match=why):
            read(HttpResponse(status=200, body=body))


def test_json_in_a_string_with_many_values_is_not_decoded() -> None:
    many = "[" + "[]," * 30_000 + "0]"
    assert parse_nested_json(many) == many
    assert parse_nested_json("[" + " " * LARGE + "1]") == [1]


# Long text


def test_raw_has_a_total_size_limit() -> None:
    kept = without_inline_images(
        {f"{number:04}": "x" * 1000 for number in range(500)} | {"last": {"a": 1}, "n" * 5000: 2}
    )
    assert 250_000 < len(str(kept)) < 300_000
    assert kept["0000"] == "x" * 1000
    assert (kept["0400"], kept["last"], kept["n" * 64]) == ("<1000 characters>", "<more>", 2)


def test_only_the_start_of_a_message_is_classified() -> None:
    assert len(slug("a! " * 500_000)) <= 1000
    body = json.dumps({"success": False, "error": {"message": "insufficient_" * 5000 + "credits"}}).encode()
    with pytest.raises(GatewayUnavailable):
        ApiMall(api_key="k" * 8).read_query(HttpResponse(status=200, body=body))

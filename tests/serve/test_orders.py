"""Which order a retry continues, how fields are mapped, and how tokens are read."""

import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("python_multipart", reason="the extra serve is missing: pip install -e '.[serve]'")

from nanobanana_async import Budget, ConfigurationError
from nanobanana_async.serve import Token, parse_tokens
from nanobanana_async.serve.bearer_tokens import find_token
from nanobanana_async.serve.fields import SIZES, wanted_of
from nanobanana_async.serve.orders import Attempt, Order, _continued
from tests.support.rows import each_row

MODELS = {"nano-banana-pro": "nano-banana-pro"}
SECRET = "0123456789-abcdef"


@each_row(
    ("orders", "continued"),
    [
        ([], None),
        ([Order("same attempt", 1)], None),
        ([Order("waits", 0, waiting=1), Order("left", 0)], "left"),
        ([Order("answered", 0, answered_after_s=1.0), Order("left", 0)], "left"),
        ([Order("waits", 0, waiting=1), Order("answered", 0, answered_after_s=1.0)], "answered"),
        ([Order("soon", 0, answered_after_s=1.0), Order("late", 0, answered_after_s=60.0)], "late"),
        ([Order("waits", 0, waiting=1)], "waits"),
    ],
)
def test_retry_continues_the_likeliest_order(orders: list[Order], continued: str | None) -> None:
    found = _continued(orders, 1)
    assert (None if found is None else found.key) == continued


def test_retry_prefers_the_order_of_the_attempt_before_it() -> None:
    found = _continued([Order("first", 0), Order("second", 1)], 2)
    assert found is not None
    assert found.key == "second"


@each_row(("text", "count"), [("2", 2), ("", 0), ("-1", 0), ("1e9", 0), ("9" * 400, 0), ("²", 0)])
def test_retry_count_that_is_no_number_is_none(text: str, count: int) -> None:
    assert Attempt.of({"x-stainless-retry-count": text}).retry_count == count


@each_row(
    ("fields", "ratio", "resolution"),
    [
        ({}, None, None),
        ({"size": "auto", "quality": "auto"}, None, None),
        ({"size": None, "quality": "hd"}, None, "2K"),
        ({"quality": "low"}, None, "1K"),
        ({"quality": "4K"}, None, "4K"),
        ({"size": "1536x1024", "quality": "high"}, "3:2", "1K"),
        ({"size": "3840x2160"}, "16:9", "4K"),
        ({"size": "21:9", "quality": "high"}, "21:9", "2K"),
    ],
)
def test_size_and_quality_become_ratio_and_resolution(
    fields: dict[str, Any], ratio: str | None, resolution: str | None
) -> None:
    request = wanted_of({"prompt": "a fox", **fields}, (), MODELS).request
    assert (request.aspect_ratio, request.resolution) == (ratio, resolution)


def test_other_fields_are_mapped_or_have_no_effect() -> None:
    fields = {
        "prompt": "a fox",
        "n": "3",
        "model": "nano-banana-pro",
        "output_format": "png",
        "response_format": "url",
        "extra": {"seed": 7},
        "user": "u1",
        "stream": False,
        "partial_images": 0,
        "background": "opaque",
        "style": None,
    }
    wanted = wanted_of(fields, (), MODELS)
    request = wanted.request
    assert (request.num_images, request.model, request.output_format) == (3, "nano-banana-pro", "png")
    assert (wanted.response_format, dict(request.extra)) == ("url", {"seed": 7})


def test_sizes_have_the_shape_that_they_name() -> None:
    for size, (ratio, resolution) in SIZES.items():
        width, height = map(int, size.split("x"))
        wide, high = map(int, ratio.split(":"))
        assert abs(width / height - wide / high) < 0.03
        assert max(width, height) <= {"1K": 1792, "2K": 2048, "4K": 4096}[resolution]


def test_page_has_the_table_of_sizes() -> None:
    page = (Path(__file__).parents[2] / "docs/serve.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\d+x\d+)` \| (\S+) \| (\S+) \|$", page, re.MULTILINE)
    assert {size: (ratio, resolution) for size, ratio, resolution in rows} == SIZES


def test_tokens_are_read_with_their_settings() -> None:
    ann, ben, cid, dan = parse_tokens(
        f"# people\nann:{SECRET}\n\nben:{SECRET}2:12.5\n cid:{SECRET}3:9/day:group=the team:priority=-5\n"
        f"dan:{SECRET}4:priority=7:budget=the team=80/day"
    )
    assert (ann.name, ann.budget, ann.turn_group, ann.priority) == ("ann", None, "ann", 0)
    assert (ben.name, ben.budget, ben.turn_group) == ("ben", Budget(name="ben", max_credits=12.5), "ben")
    assert cid.budget == Budget(name="cid", max_credits=9, per="day")
    assert (cid.turn_group, cid.priority) == ("the team", -5)
    assert (dan.budget, dan.priority) == (Budget(name="the team", max_credits=80, per="day"), 7)
    assert SECRET not in repr(ann)
    assert find_token([ann, ben], f"bearer {SECRET}2") == ben
    for header in ("", SECRET, f"Basic {SECRET}", "Bearer ", f"Bearer {SECRET}3"):
        assert find_token([ann, ben], header) is None


@each_row(
    ("text", "said"),
    [
        ("", "no token"),
        ("ann", "line 1: a token must be 16"),
        (f"ann:{SECRET}:1:2", "line 1: after NAME:TOKEN come settings"),
        (f"ann:{SECRET}:many", "after NAME:TOKEN come settings"),
        (f"ann:{SECRET}:-1", "CREDITS or CREDITS/day"),
        (f"ann:{SECRET}:1/week", "after NAME:TOKEN come settings"),
        (f"ann:{SECRET}:budget=20", "budget=NAME=CREDITS"),
        (f"ann:{SECRET}:5:budget=team=20", "each once"),
        (f"ann:{SECRET}:group=", "group=NAME"),
        (f"ann:{SECRET}:priority=high", "priority=NUMBER from -100 to 100"),
        (f"ann:{SECRET}:priority=101", "priority=NUMBER from -100 to 100"),
        (f"ann:{SECRET}:{SECRET}", "after NAME:TOKEN come settings"),
        (f"ann:{SECRET}:secret={SECRET}", "after NAME:TOKEN come settings"),
        (f"ann:{SECRET}:budget=team=5\nben:{SECRET}2:budget=team=6", "two different ones with the name 'team'"),
        ("\nann:short", "line 2: a token must be 16"),
        (f"a n:{SECRET}", "the name of a token"),
        (f"ann:{SECRET}\nann:{SECRET}2", "same name"),
        (f"ann:{SECRET}\nben:{SECRET}", "same name or text"),
    ],
)
def test_wrong_tokens_are_refused_without_their_text(text: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as caught:
        parse_tokens(text)
    assert SECRET not in str(caught.value)
    assert "short" not in str(caught.value)


def test_token_under_a_name_keeps_its_batch_with_a_new_text() -> None:
    assert Token("ann", SECRET).batch == Token("ann", f"{SECRET}2").batch != Token("ben", SECRET).batch


@each_row(
    ("settings", "said"),
    [
        ({"budget": 500}, "budget must be a Budget"),
        ({"group": ""}, "group must be printable text"),
        ({"priority": 1000}, "priority must be a whole number from -100 to 100"),
    ],
)
def test_wrong_setting_of_a_token_is_named(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        Token("ann", SECRET, **settings)

"""Requests are validated field by field; results are plain values."""

from decimal import Decimal
from typing import Any

import pytest
from attrs import evolve
from attrs.exceptions import FrozenInstanceError
from hypothesis import given
from hypothesis import strategies as st

from nanobanana_async.errors import InvalidRequest
from nanobanana_async.models import GeneratedImage, GenerationResult, ImageRequest, same_request, shorten


def test_prompt_alone_is_a_valid_request() -> None:
    wanted = ImageRequest("a fox")
    assert (wanted.prompt, wanted.images, wanted.num_images) == ("a fox", (), 1)
    others = (wanted.aspect_ratio, wanted.resolution, wanted.output_format, wanted.model, wanted.task_type)
    assert others == (None,) * 5
    assert wanted.callback_url is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", "zwei\nZeilen ä 🦊"),
        ("images", ["https://a.example/1.png", "http://a.example:8080/2.png?x=1"]),
        ("num_images", 1),
        ("num_images", 6),
        ("aspect_ratio", "16:9"),
        ("resolution", "1K"),
        ("resolution", "4K"),
        ("output_format", "jpg"),
        ("model", "google/gempix2"),
        ("task_type", "image-to-image"),
        ("callback_url", "https://a.example/hook"),
    ],
)
def test_valid_field_is_kept(field: str, value: Any) -> None:
    wanted = ImageRequest(**{"prompt": "x", field: value})
    assert getattr(wanted, field) == (tuple(value) if isinstance(value, list) else value)


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("prompt", "", "prompt is empty"),
        ("prompt", " \n", "prompt is empty"),
        ("prompt", None, "prompt must be text, not NoneType"),
        ("prompt", b"x", "prompt must be text, not bytes"),
        ("prompt", "a\ud800", "prompt contains a lone surrogate at index 1"),
        ("images", "https://a.example/1.png", "images must be a list of URLs, not one string"),
        ("images", None, "images must be a list of URLs, not NoneType"),
        ("images", {"https://a.example/1.png"}, "images must be a list of URLs, not set"),
        ("images", ["https://a.example/1.png", "1.png"], r"images\[1\] must be an http or https URL"),
        ("images", [5], r"images\[0\]"),
        ("images", ["ftp://a.example/1.png"], r"images\[0\]"),
        ("images", ["https:///1.png"], r"images\[0\]"),
        ("images", ["https://[::1/1.png"], r"images\[0\]"),
        ("images", ["https://a.example/a b.png"], r"images\[0\]"),
        ("images", ["https://a.example/\n"], r"images\[0\]"),
        ("images", ["data:image/png;base64,AA"], r"images\[0\]"),
        ("num_images", 0, "num_images must be a whole number from 1 to 6, not 0"),
        ("num_images", 7, "num_images"),
        ("num_images", True, "num_images"),
        ("num_images", "2", "num_images"),
        ("num_images", 1.0, "num_images"),
        ("aspect_ratio", "", "aspect_ratio must be non-empty printable text"),
        ("aspect_ratio", "16\n9", "aspect_ratio"),
        ("aspect_ratio", 1.5, "aspect_ratio"),
        ("resolution", "2k", "resolution must be one of 1K, 2K, 4K, not '2k'"),
        ("output_format", "webp", "output_format must be one of jpeg, jpg, png"),
        ("model", " ", "model"),
        ("task_type", "video", "task_type must be one of text-to-image, image-to-image"),
        ("callback_url", "a.example/hook", "callback_url must be an http or https URL"),
    ],
)
def test_invalid_field_is_refused_by_name(field: str, value: Any, why: str) -> None:
    with pytest.raises(InvalidRequest, match=why) as caught:
        ImageRequest(**{"prompt": "x", field: value})
    assert caught.value.status is None
    assert caught.value.safe_to_repeat


def test_long_invalid_url_is_cut_in_the_message() -> None:
    with pytest.raises(InvalidRequest) as caught:
        ImageRequest("x", images=["data:image/png;base64," + "A" * 100_000])
    assert len(caught.value.message) < 200


@given(st.text())
def test_any_text_gives_a_request_or_invalid_request(prompt: str) -> None:
    try:
        wanted = ImageRequest(prompt)
    except InvalidRequest:
        assert not prompt.strip() or any("\ud800" <= character <= "\udfff" for character in prompt)
    else:
        assert wanted.prompt.encode().decode() == prompt


def test_requests_compare_by_value() -> None:
    wanted = ImageRequest("x", images=["https://a.example/1.png"])
    assert wanted == ImageRequest("x", images=("https://a.example/1.png",))
    assert hash(wanted) == hash(evolve(wanted))
    with pytest.raises(FrozenInstanceError):
        wanted.prompt = "y"  # type: ignore[misc]
    with pytest.raises(InvalidRequest):
        evolve(wanted, num_images=9)


def test_same_request_ignores_callback_url() -> None:
    one = ImageRequest("x", callback_url="https://a.example/hook")
    assert same_request(one, ImageRequest("x"))
    assert not same_request(one, ImageRequest("y", callback_url="https://a.example/hook"))


def test_result_url_is_the_first_image() -> None:
    images = (GeneratedImage(url="https://a.example/1.png"), GeneratedImage(url="https://a.example/2.png", index=1))
    result = GenerationResult(key="k", task_id="t", images=images, credits=Decimal(8), raw={"a": 1})
    assert result.url == "https://a.example/1.png"
    assert result == evolve(result, raw={})
    assert "raw" not in repr(result)


def test_repr_cuts_inline_images() -> None:
    image = GeneratedImage(url="data:image/png;base64," + "A" * 1_000_000)
    assert len(repr(image)) < 200
    assert "(1000022 characters)" in repr(image)


def test_short_url_is_not_cut() -> None:
    assert shorten("https://a.example/1.png") == "https://a.example/1.png"
    assert shorten("abcdef", limit=3) == "abc... (6 characters)"

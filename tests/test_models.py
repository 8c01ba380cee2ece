"""Requests are validated field by field; results are plain values."""

from datetime import time
from decimal import Decimal
from typing import Any

import pytest
from attrs import evolve, fields_dict
from attrs.exceptions import FrozenInstanceError
from hypothesis import given
from hypothesis import strategies as st

from nanobanana_async.errors import InvalidRequest
from nanobanana_async.formatting import shorten
from nanobanana_async.models import GeneratedImage, GenerationResult, ImageRequest, same_request
from tests.support.lazy import lazy
from tests.support.rows import each_row

np, pd = lazy("numpy"), lazy("pandas")


def test_prompt_alone_is_a_valid_request() -> None:
    wanted = ImageRequest("a fox")
    assert (wanted.prompt, wanted.images, wanted.num_images) == ("a fox", (), 1)
    others = (wanted.aspect_ratio, wanted.resolution, wanted.output_format, wanted.model, wanted.task_type)
    assert others == (None,) * 5
    assert wanted.callback_url is None


@each_row(
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
        ("task_type", "upscale"),
        ("callback_url", "https://a.example/hook"),
    ],
)
def test_valid_field_is_kept(field: str, value: Any) -> None:
    wanted = ImageRequest(**{"prompt": "x", field: value})
    assert getattr(wanted, field) == (tuple(value) if isinstance(value, list) else value)


@each_row(
    ("field", "value", "why"),
    [
        ("prompt", "", "prompt is empty"),
        ("prompt", " \n", "prompt is empty"),
        ("prompt", None, "prompt is empty"),
        ("prompt", float("nan"), "prompt is empty"),
        ("prompt", b"x", "prompt must be text, not bytes"),
        ("prompt", "a\ud800", "prompt contains a lone surrogate at index 1"),
        ("prompt", "a\0b", "prompt contains a NUL character at index 1"),
        ("images", ["https://a.example/1.png,"], r"images\[0\] seems to be several URLs"),
        ("images", ["https://a.example/1.png;https://a.example/2.png"], r"images\[0\] seems to be several URLs"),
        ("images", "https://a.example/1.png", r'not one string: images=\["https://..."\], or \[Path\("cat.png"\)\]'),
        ("images", "cat.png", r"images must be a list of URLs or Paths, not one string: images=\[Path\('cat.png'\)\]"),
        ("images", {"https://a.example/1.png"}, "images must be a list of URLs, paths, bytes or results, not set"),
        ("images", ["https://a.example/1.png", "1.png"], r"images\[1\] must be an http or https URL"),
        ("images", [5], r"images\[0\] must be .*, not '5': the number of images is num_images"),
        ("images", ["2"], r"images\[0\] must be .*, not '2': the number of images is num_images"),
        ("images", ["ftp://a.example/1.png"], r"images\[0\]"),
        ("images", ["https:///1.png"], r"images\[0\]"),
        ("images", ["https://[::1/1.png"], r"images\[0\]"),
        ("images", ["https://a.example/a b.png"], r"images\[0\]"),
        ("images", ["https://a.example/\n"], r"images\[0\]"),
        ("images", ["cat.png"], r"images\[0\] must be .*: for a file pass Path\('cat.png'\)"),
        ("images", ["/etc/passwd"], r"for a file pass Path\('/etc/passwd'\)"),
        ("images", ["sha256:" + "g" * 64], r"images\[0\]"),
        ("images", [None], r"images\[0\]"),
        ("num_images", 0, "num_images must be a whole number from 1 to 6, not 0"),
        ("num_images", 7, "num_images"),
        ("num_images", True, "num_images"),
        ("num_images", "two", "num_images"),
        ("num_images", 1.5, "num_images"),
        ("num_images", "1e1", "num_images"),
        ("aspect_ratio", "16x9", "must be two numbers such as 16:9, not '16x9': did you mean 16:9?"),
        ("aspect_ratio", "4 / 3", "did you mean 4:3?"),
        ("aspect_ratio", "16\n9", "aspect_ratio"),
        ("aspect_ratio", "16:0", "aspect_ratio"),
        ("aspect_ratio", "wide", r"not 'wide' \(change the request\)"),
        ("aspect_ratio", 1.5, "aspect_ratio"),
        ("aspect_ratio", time(16, 9, 30), "not '16:09:30'"),
        ("resolution", "2048", "resolution must be one of 1K, 2K, 4K, not '2048'"),
        ("resolution", "2KK", "did you mean 2K?"),
        ("output_format", "webp", "output_format must be one of jpeg, jpg, png"),
        ("model", "a\nb", "model must be printable text"),
        ("output_format", "pngg", "did you mean png?"),
        ("task_type", "video", "task_type must be one of text-to-image, image-to-image, upscale"),
        ("callback_url", "a.example/hook", "callback_url must be an http or https URL"),
    ],
)
def test_invalid_field_is_refused_by_name(field: str, value: Any, why: str) -> None:
    with pytest.raises(InvalidRequest, match=why) as caught:
        ImageRequest(**{"prompt": "x", field: value})
    assert caught.value.status is None
    assert caught.value.safe_to_repeat


@each_row("name", [name for name in fields_dict(ImageRequest) if name != "prompt"])
def test_absent_value_is_the_default(name: str) -> None:
    values: list[Any] = [None, "", " ", float("nan"), np.float32("nan"), Decimal("NaN"), pd.NA, pd.NaT]
    for nothing in values:
        assert ImageRequest("x", **{name: nothing}) == ImageRequest("x"), repr(nothing)


@each_row(
    ("field", "given", "meant"),
    [
        ("num_images", 2.0, 2),
        ("num_images", Decimal("4"), 4),
        ("num_images", " 2 ", 2),
        ("num_images", "2.0", 2),
        ("resolution", "2k", "2K"),
        ("resolution", " 4K ", "4K"),
        ("output_format", "PNG", "png"),
        ("task_type", "Text-to-Image", "text-to-image"),
        ("aspect_ratio", "16 : 9", "16:9"),
        ("aspect_ratio", "16:09", "16:9"),
        ("aspect_ratio", "04:03:00", "4:3"),
        ("aspect_ratio", time(9, 16), "9:16"),
        ("aspect_ratio", "1.91:1", "1.91:1"),
        ("model", " nano-banana ", "nano-banana"),
    ],
)
def test_value_written_by_a_table_is_read(field: str, given: Any, meant: Any) -> None:
    read = getattr(ImageRequest("x", **{field: given}), field)
    assert (read, type(read)) == (meant, type(meant))


def test_number_of_an_array_is_read() -> None:
    for two in (np.int64(2), np.float32(2)):
        read = ImageRequest("x", num_images=two).num_images
        assert (read, type(read)) == (2, int)


def test_long_invalid_url_is_cut_in_the_message() -> None:
    with pytest.raises(InvalidRequest) as caught:
        ImageRequest("x", images=["datum:image/png;base64," + "A" * 100_000])
    assert len(caught.value.message) < 200


@given(st.text())
def test_any_text_gives_a_request_or_invalid_request(prompt: str) -> None:
    try:
        wanted = ImageRequest(prompt)
    except InvalidRequest:
        assert not prompt.strip() or any(character == "\0" or "\ud800" <= character <= "\udfff" for character in prompt)
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

"""The keys of rows. They must never change: a changed key buys a row again."""

import tracemalloc
from typing import Any
from uuid import UUID

import pytest
from attrs import fields_dict
from hypothesis import given
from hypothesis import strategies as st

from nanobanana_async import ImageRequest
from nanobanana_async.batch.rows import RowReader
from nanobanana_async.keys import batch_key_prefix, validate_key
from tests.support.rows import each_row

MANY = ImageRequest(
    "a boat",
    images=["https://example.com/a.png"],
    num_images=3,
    aspect_ratio="16:9",
    resolution="2K",
    output_format="png",
    model="nano-banana-pro",
    task_type="image-to-image",
)


def keys(*rows: Any, batch: str = "spring") -> list[str]:
    """Return the keys of the rows of a batch."""
    reader = RowReader(batch)
    read = [reader.read(row) for row in rows]
    assert [row.error for row in read] == [None] * len(rows)
    return [row.key for row in read]


def test_keys_never_change() -> None:
    """Never change these: a batch that is run again after an upgrade would buy every row a second time."""
    assert keys("a lighthouse", "a lighthouse", MANY, {"prompt": "fog", "key": "row-7"}) == [
        "b63e1c46566b-d3b0583388e8d7063703eca81d41543e",
        "b63e1c46566b-742f0c717aa741543fb9a606189a31f4",
        "b63e1c46566b-54a8753befbc25000e5ced961c681ee9",
        "b63e1c46566b-f697d50ca0919d685bb65043ed6994fd",
    ]
    assert keys("a lighthouse", batch="autumn") == ["626a95598a1a-d3b0583388e8d7063703eca81d41543e"]


def test_each_field_of_a_request_is_part_of_its_key() -> None:
    names = {name for name in fields_dict(ImageRequest) if name not in ("prompt", "callback_url")}
    facts: dict[str, Any] = {name: getattr(MANY, name) for name in names} | {"extra": {"seed": 7}}
    rows = [ImageRequest("a boat", **{name: value}) for name, value in facts.items() if name != "task_type"]
    assert len(set(keys("a boat", *rows, MANY))) == len(rows) + 2


def test_default_fields_do_not_change_a_key() -> None:
    plain = keys("a boat")
    assert keys(ImageRequest("a boat", num_images=1, resolution=None)) == plain
    assert keys({"prompt": "a boat", "images": [], "extra": {}}) == plain


def test_order_of_extra_values_does_not_change_a_key() -> None:
    one, other = {"a": 1, "b": {"c": [1], "d": 2}}, {"b": {"d": 2, "c": [1]}, "a": 1}
    assert keys({"prompt": "a boat", "extra": one}) == keys(ImageRequest("a boat", extra=other))
    assert keys({"prompt": "a boat", "extra": {"a": 1}}) != keys({"prompt": "a boat", "extra": {"a": 2}})


def test_callback_url_is_not_part_of_the_key() -> None:
    assert keys(ImageRequest("a boat", callback_url="https://example.com/here")) == keys("a boat")


def test_metadata_is_not_part_of_the_key() -> None:
    assert keys({"prompt": "a boat", "metadata": object()}) == keys("a boat")


def test_own_key_replaces_the_request() -> None:
    assert keys({"prompt": "a boat", "key": "k"}) == keys({"prompt": "fog", "key": "k", "num_images": 2})
    assert keys({"prompt": "a boat", "key": "k"}) != keys({"prompt": "a boat", "key": "K"})


def test_keys_of_a_batch_share_a_prefix() -> None:
    found = keys("a boat", "a boat", {"prompt": "fog", "key": "k"})
    assert all(key.startswith(batch_key_prefix("spring")) for key in found)
    assert batch_key_prefix("spring") != batch_key_prefix("Spring")


def test_row_without_a_batch_has_its_own_or_a_new_key() -> None:
    reader = RowReader(None)
    rows = [reader.read(row) for row in ("a boat", "a boat", {"prompt": "a boat", "key": "mine"})]
    assert len({row.key for row in rows}) == 3
    assert rows[2].key == "mine"


@given(st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=12), st.randoms(use_true_random=False))
def test_reordered_rows_have_the_same_keys(prompts: list[str], chance: Any) -> None:
    other = list(prompts)
    chance.shuffle(other)
    assert sorted(keys(*prompts)) == sorted(keys(*other))
    assert len(set(keys(*prompts))) == len(prompts)


@given(st.lists(st.sampled_from(["a", "b", "c"]), max_size=8), st.integers(0, 8), st.sampled_from(["a", "b", "new"]))
def test_inserted_row_adds_one_key(prompts: list[str], place: int, prompt: str) -> None:
    longer = [*prompts[:place], prompt, *prompts[place:]]
    assert len(set(keys(*longer)) - set(keys(*prompts))) == 1
    assert set(keys(*prompts)) < set(keys(*longer))


@given(st.text(min_size=1).filter(str.isprintable), st.text(min_size=1).filter(lambda text: text.strip() != ""))
def test_every_key_is_valid_in_a_header(batch: str, prompt: str) -> None:
    row = RowReader(batch).read(prompt)
    if row.error is None:  # else it holds a lone surrogate
        assert validate_key(row.key) == row.key


@pytest.mark.parametrize("item", ["", {"key": "k"}, {"prompt": 5, "key": "k"}, object()])
def test_invalid_row_does_not_change_other_keys(item: Any) -> None:
    reader = RowReader("spring")
    bad, good = reader.read(item), reader.read("a boat")
    assert bad.request is None
    assert bad.error is not None
    assert (bad.index, good.index) == (0, 1)
    assert [good.key] == keys("a boat")


@pytest.mark.slow
def test_reader_keeps_eight_bytes_per_row() -> None:
    reader = RowReader("spring")
    reader.read("the first")
    tracemalloc.start()
    try:
        for number in range(5_000):
            reader.read(f"image {number}")
        assert tracemalloc.get_traced_memory()[0] < 5_000 * 16
    finally:
        tracemalloc.stop()
    assert reader.read("the first").key == keys("the first", "the first")[1]


class Ambiguous:
    """A value that is neither true nor false, as an array of numpy."""

    def __bool__(self) -> bool:
        raise ValueError("the truth value is ambiguous")


@pytest.mark.parametrize("nothing", [None, "", " ", float("nan")])
def test_absent_key_is_no_key(nothing: object) -> None:
    assert keys({"prompt": "fog", "key": nothing, "num_images": nothing}) == keys("fog")


def test_number_and_uuid_are_the_same_key_as_their_text() -> None:
    given = [{"prompt": "fog", "key": key} for key in (17, 17.0, "17")]
    assert len(set(keys(*given))) == 1
    assert keys({"prompt": "fog", "key": UUID(int=5)}) == keys({"prompt": "fog", "key": str(UUID(int=5))})


@each_row("key", [Ambiguous(), 1.5, True, b"k", ["k"], "\ud800"])
def test_invalid_key_is_an_error_of_its_row(key: object) -> None:
    row = RowReader("spring").read({"prompt": "a fox", "key": key, "metadata": Ambiguous()})
    assert row.request is None
    assert row.error is not None
    assert isinstance(row.metadata, Ambiguous)

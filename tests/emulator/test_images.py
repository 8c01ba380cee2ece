"""Image specs, sizes, painting, and the fallback without Pillow."""

import importlib.util
import io

import pytest
from PIL import Image

from nanobanana_async.emulator import images
from nanobanana_async.emulator.composition import ImageSpec
from nanobanana_async.emulator.images import data_uri, paint, plain_png, require_pillow, size_of
from tests.emulator.calling import Caller
from tests.support.rows import each_row

FOX = ImageSpec(prompt="a fox", seed=0, index=0, width=160, height=90, is_png=True)


@each_row(
    ("aspect_ratio", "resolution", "scale", "size"),
    [
        (None, "1K", 1.0, (1024, 1024)),
        ("16:9", "1K", 1.0, (1024, 576)),
        ("9:16", "2K", 1.0, (1152, 2048)),
        ("1:1", "4K", 1.0, (4096, 4096)),
        ("100:1", "1K", 1.0, (1024, 128)),
        ("1:100", "1K", 0.001, (1, 8)),
    ],
)
def test_size_follows_ratio_and_resolution(
    aspect_ratio: str | None, resolution: str, scale: float, size: tuple[int, int]
) -> None:
    assert size_of(aspect_ratio, resolution, scale) == size


@pytest.mark.parametrize(("ending", "kind"), [("png", "PNG"), ("jpg", "JPEG"), ("jpeg", "JPEG")])
def test_download_has_the_requested_format_and_size(ending: str, kind: str) -> None:
    caller = Caller(image_scale=0.125)
    task_id = caller.bought(aspect_ratio="3:2", resolution="2K", output_format=ending)
    caller.now = 10.0
    answer = caller.fetch(caller.polled(task_id)["primary_url"])
    image = Image.open(io.BytesIO(answer.content()))
    assert (image.format, image.size) == (kind, (256, 171))
    assert answer.headers["Content-Type"] == f"image/{kind.lower()}"


def test_tasks_with_equal_prompts_have_different_images_that_the_seed_repeats() -> None:
    def contents(seed: int) -> list[bytes]:
        caller = Caller(image_scale=0.125, seed=seed)
        tasks = [caller.bought(prompt="a fox", key=f"key {number}") for number in range(2)]
        caller.now = 10.0
        return [caller.fetch(caller.polled(task)["primary_url"]).content() for task in tasks]

    one, other = contents(7)
    assert one != other
    assert contents(7) == [one, other]


def test_equal_specs_give_equal_bytes() -> None:
    others = [
        ImageSpec("a wolf", 0, 0, 160, 90, True),
        ImageSpec("a fox", 1, 0, 160, 90, True),
        ImageSpec("a fox", 0, 1, 160, 90, True),
        ImageSpec("a fox", 0, 0, 160, 90, True, task_id="another"),
    ]
    first = paint(FOX)
    paint.cache_clear()
    assert paint(FOX) == first
    assert len({first, *(paint(other) for other in others)}) == 5


@each_row("prompt", ["", " ", "word " * 400, "x" * 500, "\ud800 lone", "日本語 🦊\nline"])
def test_any_prompt_can_be_painted(prompt: str) -> None:
    image = Image.open(io.BytesIO(paint(ImageSpec(prompt, 0, 0, 96, 96, False))))
    assert image.size == (96, 96)


@pytest.mark.parametrize("size", [(1, 8), (8, 1), (47, 47)])
def test_smallest_images_can_be_painted(size: tuple[int, int]) -> None:
    image = Image.open(io.BytesIO(paint(ImageSpec("tiny", 0, 0, *size, True))))
    assert image.size == size


def test_builtin_image_is_a_valid_png() -> None:
    image = Image.open(io.BytesIO(plain_png(FOX)))
    image.load()
    assert (image.format, image.size, image.mode) == ("PNG", (8, 8), "RGB")


def test_without_pillow_images_are_plain_pngs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    paint.cache_clear()
    assert paint(FOX) == plain_png(FOX)
    assert data_uri(ImageSpec("a fox", 0, 0, 160, 90, False)).startswith("data:image/png;base64,")
    with pytest.raises(ImportError, match=r"nanobanana-async\[emulator\]"):
        require_pillow()
    paint.cache_clear()
    assert not images.has_pillow()

"""The grid of images that a notebook shows for a batch."""

import base64
import io
import os
from pathlib import Path

import pytest
from PIL import Image

from nanobanana_async import GeneratedImage, GenerationResult, ImageRequest, Outcome
from nanobanana_async.batch import recent_images
from nanobanana_async.batch.recent_images import RecentImages
from nanobanana_async.notebook_html import MAX_INLINE_CHARS, Html, image_grid
from nanobanana_async.testing import FakeTransport
from tests.notebook.reading import HOSTILE, Page, page
from tests.support.fakes import apimall, virtually
from tests.support.replies import completed, created, in_turn
from tests.support.rows import each_row

LINK = "https://cdn.example/a.png"


def painted(edge: int = 600) -> bytes:
    """Return a PNG of noise, which does not compress."""
    content = io.BytesIO()
    Image.frombytes("RGB", (edge, edge), os.urandom(3 * edge * edge)).save(content, "PNG")
    return content.getvalue()


def inline(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def outcome(index: int, *urls: str, prompt: str = "a fox", saved: tuple[Path, ...] = ()) -> Outcome:
    images = tuple(GeneratedImage(url=url, index=number) for number, url in enumerate(urls))
    result = GenerationResult(key=f"row-{index}", task_id=f"t{index}", images=images)
    return Outcome(index=index, key=f"row-{index}", request=ImageRequest(prompt), result=result, saved=saved)


def shown(*outcomes: Outcome) -> Page:
    recent = RecentImages()
    for one in outcomes:
        recent.add(one)
    return Page(recent.html())


def size_of(uri: str) -> tuple[int, int]:
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as image:
        return image.size


def test_links_are_shown_in_row_order() -> None:
    seen = shown(outcome(2, f"{LINK}?2"), outcome(0, f"{LINK}?0", f"{LINK}?1"))
    assert seen.images == seen.links == [f"{LINK}?0", f"{LINK}?1", f"{LINK}?2"]
    assert "row 1: a fox" in seen.text
    assert "The last" not in seen.text


def test_an_outcome_has_the_number_of_its_file_names() -> None:
    second = outcome(1, LINK)
    assert second.row_number == 2
    assert "row 2" in page(second).text
    with pytest.raises(RuntimeError, match="row 2 has"):
        Outcome(index=1, key="", request=None).unwrap()


def test_an_inline_image_is_shown_by_its_thumbnail() -> None:
    (image,) = shown(outcome(0, inline(painted()))).images
    assert image.startswith("data:image/webp;base64,")
    assert size_of(image) == (256, 256)


def test_a_saved_image_is_shown_by_its_thumbnail(tmp_path: Path) -> None:
    path = tmp_path / "fox.png"
    path.write_bytes(painted())
    for url in (LINK, inline(b"not kept")):
        saved = outcome(0, url, saved=(path,))
        assert size_of(shown(saved).images[0]) == (256, 256)
        assert size_of(page(saved).images[0]) == (600, 600)


@pytest.mark.parametrize("content", [None, b"no image"])
def test_a_saved_image_that_is_gone_is_shown_by_its_link_or_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "fox.png"
    if content is not None:
        path.write_bytes(content)
    assert shown(outcome(0, LINK, saved=(path,))).images == [LINK]
    named = shown(outcome(0, inline(b"x"), saved=(path,)))
    assert named.images == []
    assert f"saved as {path}" in named.text


def test_the_last_images_of_many_are_shown() -> None:
    seen = shown(*(outcome(index, f"{LINK}?{index}") for index in range(1000)))
    assert seen.images == [f"{LINK}?{index}" for index in range(976, 1000)]
    assert "The last 24 of 1,000 images:" in seen.text


def test_inline_images_are_kept_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    uri = inline(painted(60))
    monkeypatch.setattr(recent_images, "MAX_KEPT_CHARS", 3 * len(uri))
    seen = shown(*(outcome(index, uri) for index in range(10)))
    assert len(seen.images) == 3
    assert "row 8" in seen.text
    assert "row 7" not in seen.text
    assert "The last 3 of 10 images:" in seen.text


def test_a_display_decodes_a_limited_amount_and_the_next_one_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recent, content = RecentImages(), painted(60)
    monkeypatch.setattr(recent_images, "MAX_DECODED_BYTES", 2 * len(content))
    for index in range(3):
        path = tmp_path / f"{index}.png"
        path.write_bytes(content)
        recent.add(outcome(index, LINK, saved=(path,)))
    first, second = Page(recent.html()).images, Page(recent.html()).images
    assert [image[:5] for image in first] == ["https", "data:", "data:"]
    assert [image[:5] for image in second] == ["data:"] * 3
    assert second[1:] == first[1:]


def test_the_html_of_inline_images_is_bounded() -> None:
    grid = image_grid(
        [("data:image/png;base64," + "A" * (MAX_INLINE_CHARS - 1000), str(number)) for number in range(3)]
    )
    assert len(grid) < MAX_INLINE_CHARS + 5000
    assert len(Page(grid).images) == 1
    assert Page(grid).text.count("use session.save") == 2


@each_row("words", HOSTILE)
def test_hostile_prompts_paths_and_links_stay_text(words: str) -> None:
    assert shown(outcome(0, LINK, prompt=words)).text == f"row 1: {words}"
    for html in (image_grid([(words, words)]), image_grid([(f"{LINK}?{words}", words)])):
        assert isinstance(html, str)
        assert words in Page(Html(html)).text
        assert not Page(html).links
    assert words in shown(outcome(0, inline(b"x"), saved=(Path(words),))).text


@virtually
async def test_a_batch_shows_the_images_of_taken_outcomes() -> None:
    async with apimall(FakeTransport(in_turn([created()], [completed(url=inline(painted(20)))]))) as session:
        batch = session.generate_many(["a fox"])
        assert page(batch).images == []
        _ = [outcome async for outcome in batch]
        assert size_of(page(batch).images[0]) == (20, 20)
        assert "row 1: a fox" in page(batch).text

"""The HTML of notebooks: untrusted text stays text, and only images become images."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanobanana_async.notebook_html import MAX_INLINE_CHARS, card, error_box, image_gallery, note, table
from tests.notebook.reading import HOSTILE, Page

pytestmark = pytest.mark.slow

INLINE = "data:image/png;base64,iVBORw0KGgo="


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text_in_every_element(text: str) -> None:
    html = card(text, [(text, text)], error_box(text, text), note(text), table([(text, text)]))
    seen = Page(html)
    assert seen.text.count(text) == 8
    assert seen.images == seen.links == []


@given(st.text())
def test_any_text_is_shown_unchanged(text: str) -> None:
    assert Page(note(text)).text == text
    assert Page(card(text, [("key", text)])).text == f"{text}key {text}"


def test_a_lone_surrogate_is_replaced() -> None:
    assert Page(note("a\ud83d b")).text == "a? b"


def test_a_link_becomes_an_image_with_alt_text_for_expiry() -> None:
    url = "https://cdn.example/a.png?sig=1&expires=2"
    html = image_gallery([url])
    seen = Page(html)
    assert (seen.images, seen.links) == ([url], [url])
    assert "may have expired" in html
    assert 'referrerpolicy="no-referrer"' in html


def test_inline_images_are_embedded_without_links() -> None:
    seen = Page(image_gallery([INLINE, INLINE.replace("png", "jpeg"), INLINE.replace("png", "webp")]))
    assert len(seen.images) == 3
    assert seen.images[0] == INLINE
    assert seen.links == []


@pytest.mark.parametrize(
    "url",
    [
        "javascript:alert(1)",
        "JavaScript:alert(1)//https://a.example",
        "java\nscript:alert(1)",
        "data:text/html;base64,PHNjcmlwdD4=",
        "data:image/svg+xml;base64,PHN2Zz4=",
        "data:image/png,<script>",
        'data:image/png;base64,AAAA" onerror="alert(1)',
        'https://a.example/" onerror="alert(1)',
        "https://a.example/\tb",
        "https://a.example/ b",
        "file:///etc/passwd",
        "//a.example/b.png",
        "vbscript:x",
        "",
    ],
)
def test_other_urls_become_neither_link_nor_image(url: str) -> None:
    seen = Page(image_gallery([url]))
    assert seen.images == seen.links == []
    assert "image 1" in seen.text


def test_too_large_inline_images_are_named_instead() -> None:
    half = "data:image/png;base64," + "A" * (MAX_INLINE_CHARS // 2)
    seen = Page(image_gallery([half, half, INLINE]))
    assert seen.images == [half, INLINE]
    assert "image 2 is too large to show here (0.9 MB): use session.save" in seen.text


def test_an_empty_gallery_is_empty_html() -> None:
    assert image_gallery([]) == ""


def test_html_sets_no_colours_of_text_or_background() -> None:
    html = card("a", [("b", 1)], image_gallery([INLINE]), error_box("c", "d"), note("e"), table([("f", 1)]))
    styles = " ".join(Page(html).styles)
    assert "background" not in styles
    assert " color" not in f" {styles}".replace(";", " ; ")


def test_mathjax_ignores_the_html() -> None:
    for html in (card("$a$", ()), image_gallery(["$b$"])):
        assert html.startswith('<div class="tex2jax_ignore mathjax_ignore"')


def test_a_very_long_prompt_is_truncated() -> None:
    assert "(1000000 characters)" in card("x" * 1_000_000, ())
    assert len(card("x" * 1_000_000, ())) < 3000


def test_none_is_omitted_in_cards_and_a_dash_in_tables() -> None:
    assert Page(card(None, [("model", None)])).text == ""
    assert Page(table([("model", None)])).text == "model–"  # noqa: RUF001

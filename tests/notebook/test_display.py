"""The HTML of notebooks: what others wrote stays text, and only pictures become pictures."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanobanana_async.notebook_html import MOST_INLINE, amount, card, error_box, image_gallery, note, seconds, table
from tests.notebook.reading import HOSTILE, Page

INLINE = "data:image/png;base64,iVBORw0KGgo="


@pytest.mark.parametrize("words", HOSTILE)
def test_hostile_words_stay_text_wherever_they_stand(words: str) -> None:
    html = card(words, [(words, words)], error_box(words, words), note(words), table([(words, words)]))
    seen = Page(html)
    assert seen.text.count(words) == 8
    assert seen.images == seen.links == []


@given(st.text())
def test_any_words_come_out_as_they_went_in(words: str) -> None:
    assert Page(note(words)).text == words
    assert Page(card(words, [("key", words)])).text == f"{words}key {words}"


def test_half_a_character_does_not_stop_the_output() -> None:
    assert Page(note("a\ud83d b")).text == "a? b"


def test_a_link_is_shown_as_a_picture_with_words_for_when_it_has_expired() -> None:
    url = "https://cdn.example/a.png?sig=1&expires=2"
    html = image_gallery([url])
    seen = Page(html)
    assert (seen.images, seen.links) == ([url], [url])
    assert "may have expired" in html
    assert 'referrerpolicy="no-referrer"' in html


def test_inline_pictures_are_shown_as_they_are_and_are_no_links() -> None:
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
def test_what_is_no_link_and_no_picture_becomes_neither(url: str) -> None:
    seen = Page(image_gallery([url]))
    assert seen.images == seen.links == []
    assert "picture 1" in seen.text


def test_pictures_that_a_notebook_server_would_drop_are_named_instead() -> None:
    half = "data:image/png;base64," + "A" * (MOST_INLINE // 2)
    seen = Page(image_gallery([half, half, INLINE]))
    assert seen.images == [half, INLINE]
    assert "picture 2 is too large to show here (0.9 MB): use session.save" in seen.text


def test_no_pictures_are_no_row() -> None:
    assert image_gallery([]) == ""


def test_dark_and_light_notebooks_keep_their_colours() -> None:
    html = card("a", [("b", 1)], image_gallery([INLINE]), error_box("c", "d"), note("e"), table([("f", 1)]))
    styles = " ".join(Page(html).styles)
    assert "background" not in styles
    assert " color" not in f" {styles}".replace(";", " ; ")


def test_dollars_are_not_typeset_as_mathematics() -> None:
    for html in (card("$a$", ()), image_gallery(["$b$"])):
        assert html.startswith('<div class="tex2jax_ignore mathjax_ignore"')


def test_a_book_of_a_prompt_is_cut() -> None:
    assert "(1000000 characters)" in card("x" * 1_000_000, ())
    assert len(card("x" * 1_000_000, ())) < 3000


def test_facts_without_a_value_are_left_out_and_rows_without_one_get_a_dash() -> None:
    assert Page(card(None, [("model", None)])).text == ""
    assert Page(table([("model", None)])).text == "model–"  # noqa: RUF001


@pytest.mark.parametrize(
    ("value", "words"), [(0, "0.0 s"), (3.14159, "3.1 s"), (59.94, "59.9 s"), (59.96, "1 min 0 s"), (61, "1 min 1 s")]
)
def test_seconds_are_said_as_people_say_them(value: float, words: str) -> None:
    assert seconds(value) == words


def test_amounts_lose_the_zeros_that_say_nothing() -> None:
    shown = [amount(Decimal(value)) for value in ("0.500000", "8", "1200", "0E+3")]
    assert shown == ["0.5", "8", "1,200", "0"]

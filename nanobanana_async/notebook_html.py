"""Build the HTML that notebooks show.

Prompts, messages and links are untrusted: each is escaped and isolated from its neighbours. Colours are inherited,
because a notebook may be dark or light. Nothing is fetched here.
"""

import math
import re
from collections.abc import Iterable
from html import escape
from typing import NewType

Html = NewType("Html", str)
"""Text that is safe to show unescaped; only this module creates it."""

LabelledValue = tuple[str, object]
"""A label and its value."""

# Jupyter's server limits output to 1 MB/s over three seconds, and drops larger outputs.
MAX_INLINE_CHARS = 2_500_000

MAX_TEXT_CHARS = 2000

_LINK = re.compile(r"https?://[^\s\"'<>\\]+", re.IGNORECASE)
_INLINE = re.compile(r"data:image/(?:png|jpeg|webp|gif);base64,[A-Za-z0-9+/]+={0,2}")

# Without these classes MathJax typesets text between dollar signs.
_NO_MATHJAX = 'class="tex2jax_ignore mathjax_ignore"'

_CARD = (
    f'<div {_NO_MATHJAX} style="border:1px solid rgba(128,128,128,.4);border-radius:8px;'
    "padding:10px 12px;margin:2px 0;box-sizing:border-box;width:fit-content;"
    'min-width:min(24em,100%);max-width:960px;line-height:1.45">'
)
_WORDS = '<div dir="auto" style="white-space:pre-wrap;overflow-wrap:anywhere">'
_TILE = "display:block;width:150px;height:112px;object-fit:contain;margin:0;border-radius:5px"
_CAPTION = "font-size:85%;line-height:1.3;overflow:hidden;text-overflow:ellipsis;white-space:nowrap"
_IMAGE = "display:block;max-width:100%;max-height:{height}px;margin:0;border-radius:5px"


def escaped(value: object) -> Html:
    """Return a value as escaped text, truncated if it is very long."""
    text = value if isinstance(value, str) else str(value)
    if len(text) > MAX_TEXT_CHARS:
        text = f"{text[:MAX_TEXT_CHARS]}... ({len(text)} characters)"
    return Html(escape(text.encode("utf-8", "replace").decode()))  # a lone surrogate would suppress the whole output


def image_gallery(urls: Iterable[str]) -> Html:
    """Show images side by side: links are loaded by the browser, inline images are embedded up to a size limit."""
    all_urls = list(urls)
    left, height, shown = MAX_INLINE_CHARS, 340 if len(all_urls) < 2 else 260, list[str]()
    for number, url in enumerate(all_urls, start=1):
        if _LINK.fullmatch(url) and url.isprintable():
            shown.append(_linked(url, number, height))
        elif url[:5].lower() != "data:":
            shown.append(_placeholder_box(f"image {number} is not a link: {url[:80]}"))
        elif len(url) > left:
            shown.append(
                _placeholder_box(f"image {number} is too large to show here ({_megabytes(url)}): use session.save")
            )
        elif _INLINE.fullmatch(url):
            left -= len(url)
            shown.append(_image(url, number, height, f"image {number}"))
        else:
            shown.append(_placeholder_box(f"image {number} has a type that is not shown: {url[:40]}"))
    return _side_by_side(shown)


def image_grid(images: Iterable[tuple[str, str]]) -> Html:
    """Show small images with captions, as `image_gallery` does; any other text in place of a URL is shown as text."""
    left, tiles = MAX_INLINE_CHARS, list[str]()
    for url, caption in images:
        if _LINK.fullmatch(url) and url.isprintable():
            image = _tile_image(url, caption)
            shown = f'<a href="{escape(url)}" target="_blank" rel="noopener noreferrer">{image}</a>'
        elif len(url) <= left and _INLINE.fullmatch(url):
            left -= len(url)
            shown = _tile_image(url, caption)
        elif url[:5].lower() == "data:":
            shown = _placeholder_box(f"not shown here ({_megabytes(url)}): use session.save")
        else:
            shown = _placeholder_box(url[:300])
        tiles.append(
            f'<div style="width:150px">{shown}<div dir="auto" style="{_CAPTION}">{escaped(caption)}</div></div>'
        )
    return _side_by_side(tiles)


def card(title: str | None, facts: Iterable[LabelledValue], *parts: Html) -> Html:
    """Show a title, then the parts one below the other, then the labelled values that are not None in small type."""
    head = "" if title is None else f"{_WORDS}<b>{escaped(title)}</b></div>"
    values = " &nbsp; ".join(
        f'<span style="white-space:nowrap;opacity:.7">{escaped(label)}</span> '
        f'<bdi style="overflow-wrap:anywhere">{escaped(value)}</bdi>'
        for label, value in facts
        if value is not None
    )
    foot = f'<div style="font-size:90%">{values}</div>' if values else ""
    return Html(f"{_CARD}{head}{''.join(parts)}{foot}</div>")


def error_box(kind: str, message: str) -> Html:
    """Show an error: its class and its message."""
    return Html(
        '<div style="border-left:4px solid #d9534f;padding-left:8px;margin:6px 0">'
        f"<b>{escaped(kind)}</b>{_WORDS}{escaped(message)}</div></div>"
    )


def note(message: str) -> Html:
    """Show a note in italics."""
    return Html(f'<div style="margin:6px 0;opacity:.8"><i dir="auto">{escaped(message)}</i></div>')


def progress_bar(share: float) -> Html:
    """Show a share from 0 to 1 as a thin bar with its percentage."""
    percent = math.floor(100 * share)
    return Html(
        '<div style="display:flex;align-items:center;gap:8px;margin:6px 0">'
        '<div style="flex:1;max-width:24em;height:4px;border-radius:2px;background:rgba(128,128,128,.3)">'
        f'<div style="width:{percent}%;height:4px;border-radius:2px;background:#3a7bd5"></div></div>'
        f'<span style="font-size:85%;opacity:.8">{percent} %</span></div>'
    )


def table(rows: Iterable[LabelledValue]) -> Html:
    """Show labelled values one below the other; None becomes a dash."""
    lines = "".join(
        f'<tr><th scope="row" style="text-align:left;font-weight:normal;opacity:.7">{escaped(label)}</th>'
        f'<td style="text-align:left"><bdi>{escaped("–" if value is None else value)}</bdi></td></tr>'  # noqa: RUF001
        for label, value in rows
    )
    return Html(f'<table style="width:auto;margin:0">{lines}</table>')


def _side_by_side(items: list[str]) -> Html:
    style = "display:flex;flex-wrap:wrap;gap:10px;margin:6px 0;align-items:flex-start"
    return Html(f'<div {_NO_MATHJAX} style="{style}">{"".join(items)}</div>' if items else "")


def _linked(url: str, number: int, height: int) -> Html:
    image = _image(url, number, height, f"image {number}: if it is not shown, its link may have expired")
    return Html(f'<a href="{escape(url)}" target="_blank" rel="noopener noreferrer">{image}</a>')


def _image(url: str, number: int, height: int, alternative: str) -> Html:
    return Html(
        f'<img src="{escape(url)}" alt="{escape(alternative)}" title="image {number}" loading="lazy" '
        f'referrerpolicy="no-referrer" style="{_IMAGE.format(height=height)}">'
    )


def _tile_image(url: str, caption: str) -> Html:
    return Html(
        f'<img src="{escape(url)}" alt="{escaped(caption)}" title="{escaped(caption)}" loading="lazy" '
        f'referrerpolicy="no-referrer" style="{_TILE}">'
    )


def _placeholder_box(message: str) -> Html:
    return Html(f'<div style="padding:8px;border:1px dashed rgba(128,128,128,.6)"><bdi>{escaped(message)}</bdi></div>')


def _megabytes(uri: str) -> str:
    return f"{len(uri) * 3 / 4 / 1e6:.1f} MB"

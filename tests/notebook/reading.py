"""Parse HTML as a browser would, and collect its images, links, styles and text."""

from html.parser import HTMLParser

TAGS = {"div", "span", "b", "i", "bdi", "a", "img", "table", "tr", "th", "td"}
ATTRIBUTES = {"class", "style", "dir", "src", "alt", "title", "loading", "referrerpolicy", "href", "target", "rel"} | {
    "scope"
}
EMPTY = {"img"}

# Texts that would inject markup if they were shown unescaped.
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onload='alert(1)",
    "</div></div><iframe src=javascript:alert(1)>",
    "&lt;b&gt; & <b>bold</b>",
    "\u202eright to left\u2066 <style>*{display:none}</style>",
]


class Page(HTMLParser):
    """Parsed HTML, which must be well-formed and contain harmless tags only."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.images: list[str] = []
        self.links: list[str] = []
        self.styles: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        assert tag in TAGS
        assert set(values) <= ATTRIBUTES
        self.images += [values["src"] or ""] if "src" in values else []
        self.links += [values["href"] or ""] if "href" in values else []
        self.styles += [values["style"] or ""] if "style" in values else []
        if tag not in EMPTY:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")


def page(shown: object) -> Page:
    """Parse the HTML that a notebook shows for an object."""
    html = shown._repr_html_()  # type: ignore[attr-defined]
    assert isinstance(html, str)
    return Page(html)

"""Parse URLs from outside with yarl, which raises other errors than ValueError for some."""

from yarl import URL


def parse_url(text: str, *, encoded: bool = False) -> URL:
    """Return a URL; raise ValueError for a text that is none."""
    try:
        return URL(text, encoded=encoded)
    except IndexError:  # of yarl, for "http://[]@"
        raise ValueError("the URL has no host after its user") from None

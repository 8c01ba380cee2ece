"""Normalise images that are delivered as `data:` URIs."""

import re

_HEAD = re.compile(r"data:image/[\w.+-]+(?:;[\w=.+-]+)*;base64", re.IGNORECASE | re.ASCII)
_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")
_ESCAPES = (("%2B", "+"), ("%2b", "+"), ("%2F", "/"), ("%2f", "/"), ("%3D", "="), ("%3d", "="))
_URL_SAFE = str.maketrans("-_", "+/")


def normal_data_uri(uri: str) -> str:
    """Return the standard form of a base64 data URI of an image; raise ValueError for anything else.

    Every character is checked, since the URI is printed and passed on. Line breaks in the base64, the URL-safe alphabet
    and percent escapes are undone: such an image is complete, and paid for.
    """
    head, _, data = uri.partition(",")
    if not _BASE64.fullmatch(data):
        data = "".join(data.split()).translate(_URL_SAFE)
        for escape, sign in _ESCAPES if "%" in data else ():
            data = data.replace(escape, sign)
    if not _HEAD.fullmatch(head) or not _BASE64.fullmatch(data) or len(data.rstrip("=")) % 4 == 1:
        raise ValueError("an image's data URI is not a base64 image")
    return f"{head},{data}"

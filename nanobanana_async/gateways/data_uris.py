"""Images that come inside their own URL."""

import re

_HEAD = re.compile(r"data:image/[\w.+-]+(?:;[\w=.+-]+)*;base64", re.IGNORECASE | re.ASCII)
_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")
_ESCAPES = (("%2B", "+"), ("%2b", "+"), ("%2F", "/"), ("%2f", "/"), ("%3D", "="), ("%3d", "="))
_URL_SAFE = str.maketrans("-_", "+/")


def normal_data_uri(uri: str) -> str:
    """Return a base64 data URI of an image in its plainest spelling; raise ValueError for anything else.

    It is checked to its last character, since it is printed and passed on. Line breaks within the base64, the alphabet
    of URLs and escapes of its signs are undone: such an image is whole, and paid for.
    """
    head, _, data = uri.partition(",")
    if not _BASE64.fullmatch(data):
        data = "".join(data.split()).translate(_URL_SAFE)
        for escape, sign in _ESCAPES if "%" in data else ():
            data = data.replace(escape, sign)
    if not _HEAD.fullmatch(head) or not _BASE64.fullmatch(data) or len(data.rstrip("=")) % 4 == 1:
        raise ValueError("an image's data URI is not a base64 picture")
    return f"{head},{data}"

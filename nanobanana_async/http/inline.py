"""Pictures that come inside their own link: `data:` URIs."""

import base64
import binascii
from urllib.parse import unquote_to_bytes

from nanobanana_async.http.missed import Missed


def is_inline(url: str) -> bool:
    return url[:5].lower() == "data:"


def inline_content(uri: str, max_bytes: int) -> bytes:
    """Return what a data URI holds; its media type is not asked, and missing padding is forgiven."""
    head, comma, data = uri[5:].partition(",")
    if not comma:
        raise Missed("the data URI holds no data")
    # Percent signs may triple what base64 has lengthened by a third: what is longer still must be too large.
    if len(data) > 4 * (max_bytes + 3):
        raise Missed(f"the picture is larger than {max_bytes} bytes")
    content = unquote_to_bytes(data)
    if "base64" in (option.strip().lower() for option in head.split(";")[1:]):
        content = content.translate(None, b" \t\r\n").rstrip(b"=")
        try:
            content = base64.b64decode(content + b"=" * (-len(content) % 4), validate=True)
        except binascii.Error:
            raise Missed("the data URI is not proper base64") from None
    if len(content) > max_bytes:
        raise Missed(f"the picture is larger than {max_bytes} bytes")
    return content

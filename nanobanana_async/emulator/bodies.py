"""Read request bodies: JSON objects, and the files in them as base64. Slow for large ones, so done in a thread."""

import base64
import binascii
import hashlib
from collections.abc import Mapping
from typing import Any, cast

from attrs import frozen

from nanobanana_async.emulator import checks

_BASE64_FIELD = "data"  # of an upload; its data-URI prefix is optional


@frozen
class Content:
    """The bytes of a file."""

    data: bytes
    sha256: str
    stated_type: str | None = None  # the media type in a data URI

    @classmethod
    def of(cls, data: bytes, stated_type: str | None = None) -> "Content":
        """Return these bytes with their SHA-256."""
        return cls(data, hashlib.sha256(data).hexdigest(), stated_type)


@frozen
class JsonBody:
    """A JSON object, with the files that it has as base64."""

    fields: Mapping[str, Any]
    canonical: str  # equal for equal objects
    files: Mapping[tuple[str, int], Content]  # by field and place in its array

    def file(self, field: str, index: int = 0) -> Content | None:
        """Return the file in a field; None if it is no base64."""
        return self.files.get((field, index))


def read_json(headers: Mapping[str, str], body: bytes) -> JsonBody | str:
    """Return the JSON object of a request, or an error message."""
    parsed = checks.read_object(headers, body)
    if isinstance(parsed, str):
        return parsed
    files: dict[tuple[str, int], Content] = {}
    for field, value in parsed.items():
        values = cast("list[object]", value) if isinstance(value, list) else [value]
        for index, item in enumerate(values):
            if isinstance(item, str) and (field == _BASE64_FIELD or is_data_uri(item)):
                content = _decode(item)
                if content is not None:
                    files[field, index] = content
    canonical = hashlib.sha256(checks.canonical(parsed).encode()).hexdigest()
    return JsonBody(parsed, canonical, files)


def is_data_uri(text: str) -> bool:
    """Return whether a text begins as a data URI does."""
    return text[:5].lower() == "data:"


def image_type(data: bytes) -> str | None:
    """Return the media type of an image by its first bytes, or None."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "image/webp"
    if data[4:8] == b"ftyp" and data[8:12] in (b"avif", b"avis", b"heic", b"heix", b"mif1"):
        return "image/avif" if data[8:11] == b"avi" else "image/heic"
    return None


def _decode(text: str) -> Content | None:
    stated_type = None
    if is_data_uri(text):
        head, comma, text = text.partition(",")
        parts = head[5:].split(";")
        if not comma or parts[-1].strip().lower() != "base64":
            return None
        stated_type = parts[0].strip().lower() or None
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return Content.of(data, stated_type) if data else None

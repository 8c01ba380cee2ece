"""File names made of keys: safe on every system, and different keys stay different."""

import hashlib
import re

_MAX_LENGTH = 120  # with number and ending far below the 255 bytes that file systems take
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")
# A leading dot hides a file, a leading dash is read as an option, Windows drops trailing dots.
_SAFE = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_-])?")
_RESERVED = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?", re.IGNORECASE)  # devices on Windows


def safe_name(key: str) -> str:
    """Return a file name, without ending, for a key: the key if it is safe, else a likeness and a digest of it."""
    if len(key) <= _MAX_LENGTH and _SAFE.fullmatch(key) and not _RESERVED.fullmatch(key):
        return key
    digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    likeness = _UNSAFE.sub("_", key)[: _MAX_LENGTH - 18].strip(".-")
    return f"_{likeness}-{digest}" if _RESERVED.fullmatch(likeness) or not likeness else f"{likeness}-{digest}"

"""Foreign text made fit for eyes: short, on one line, and free of secrets."""

import re

from nanobanana_async.escaping import one_line
from nanobanana_async.gateways.secret import Secret

EXCERPT = 200  # characters of an answer that an error shows
MESSAGE = 500  # characters of a gateway's own sentence that an error keeps
_WINDOW = 4096  # characters that are looked at: an answer may have megabytes
_MARGIN = 512  # longer than an escaped key

_PATTERNS = (
    (re.compile(r"\bbearer(?:\s|%20|\+)+(?!token\b|auth|scheme\b|realm\b)[^\s\"'<>(),;\\]+", re.I), "Bearer ***"),
    (re.compile(r"(?<![a-z0-9])([dspar]k[-_])[\w.-]{4,}", re.I), r"\1***"),
    (re.compile(r"(data:[\w;=.+\\/-]*,)[^\s\"'<>\\]{16,}", re.I), r"\1..."),
    (re.compile(r"(https?:(?:\\?/){2})[^\s\"'<>/@]++@", re.I), r"\1***@"),
    (re.compile(r"(https?:(?:\\?/){2}[^\s\"'<>?]++\?)[^\s\"'<>\\]+", re.I), r"\1..."),
    (
        re.compile(
            r"\b(authorization|x-api-key|api_?key)([\"']?\s*[:=]\s*[\"']?(?:basic\s+)?)(?!bearer)[^\s\"'<>,;&]+", re.I
        ),
        r"\1\2***",
    ),
)


def redact(text: str, *, secret: Secret | None = None, limit: int = EXCERPT) -> str:
    """Return the text's beginning on one line: keys, inline pictures and signed queries out, odd characters escaped."""
    seen = text[:_WINDOW]
    if secret is not None:
        seen = secret.hide(seen)
    for pattern, instead in _PATTERNS:
        seen = pattern.sub(instead, seen)
    if len(text) > _WINDOW and not seen.endswith(("***", "...")):
        # The window's edge may have cut a secret in two, and what was shortened before it may bring it into view.
        seen = seen[:-_MARGIN]
    line = one_line(seen)
    return line if len(line) <= limit and len(text) <= _WINDOW else f"{line[: limit - 3]}..."


def excerpt(body: bytes, *, secret: Secret | None = None) -> str:
    """Return the beginning of an answer as `tidy` text."""
    return redact(body[: 2 * _WINDOW].decode("utf-8-sig", "replace"), secret=secret)

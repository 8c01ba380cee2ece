"""Make text from a gateway safe to show: short, on one line, without secrets."""

import re

from nanobanana_async.escaping import one_line
from nanobanana_async.gateways.secret import Secret

EXCERPT_LENGTH = 200  # characters of an answer shown in an error
MAX_MESSAGE_LENGTH = 500  # characters of the gateway's message kept in an error
_WINDOW = 4096  # characters that are processed: an answer may have megabytes
_MARGIN = 512  # longer than an escaped key

_PATTERNS = (
    (re.compile(r"\bbearer(?:\s|%20|\+)+(?!token\b|auth|scheme\b|realm\b)[^\s\"'<>(),;\\]+", re.I), "Bearer ***"),
    (re.compile(r"(?<![a-z0-9])([dspar]k[-_])[\w.-]{4,}", re.I), r"\1***"),
    (re.compile(r"(data:[\w;=.+\\/-]*,)[^\s\"'<>\\]{16,}", re.I), r"\1..."),
    (re.compile(r"(https?:(?:\\*/){2})[^\s\"'<>/@]++@", re.I), r"\1***@"),
    (re.compile(r"(https?:(?:\\*/){2}[^\s\"'<>?]++\?)[^\s\"'<>\\]+", re.I), r"\1..."),
    (
        re.compile(
            r"\b(authorization|x-api-key|api_?key|secret_key|client_secret|password)"
            r"([\"']?\s*[:=]\s*[\"']?(?:basic\s+)?)(?!bearer)[^\s\"'<>,;&]+",
            re.I,
        ),
        r"\1\2***",
    ),
)


def redact(text: str, *, secret: Secret | None = None, limit: int = EXCERPT_LENGTH) -> str:
    """Return the start of the text on one escaped line, without keys, inline images and signed queries."""
    shown = text[:_WINDOW]
    if secret is not None:
        shown = secret.hide(shown)
    for pattern, replacement in _PATTERNS:
        shown = pattern.sub(replacement, shown)
    if len(text) > _WINDOW and not shown.endswith(("***", "...")):
        # The window may have cut a secret in two; drop the end of the text, where an unmasked part may be.
        shown = shown[:-_MARGIN]
    line = one_line(shown)
    return line if len(line) <= limit and len(text) <= _WINDOW else f"{line[: limit - 3]}..."


def excerpt(body: bytes, *, secret: Secret | None = None) -> str:
    """Return the start of an answer as redacted text."""
    return redact(body[: 2 * _WINDOW].decode("utf-8-sig", "replace"), secret=secret)

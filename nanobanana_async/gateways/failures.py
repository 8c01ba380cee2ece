"""Classify why a task failed, from the code and the words of the gateway."""

import re

from nanobanana_async.errors import JobFailureKind
from nanobanana_async.gateways.rate_limits import slug

# First match first. Moderation comes first, because a job that moderation stopped must not be bought again by accident,
# and a message such as "provider: content blocked" names the provider as well.
_WORDS: tuple[tuple[JobFailureKind, re.Pattern[str]], ...] = (
    (
        "moderation",
        re.compile(
            r"moderat|safety|nsfw|(?:^|_)(?:block(?:ed)?|prohibited|sensitive|explicit|violat\w{0,10})(?:_|$)"
            r"|content_(?:policy|filter)|(?:usage|content)_guidelines|copyright|not_allowed"
        ),
    ),
    (
        "capacity",
        re.compile(
            r"capacity|overload|(?:^|_)(?:busy|upstream|internal)(?:_|$)|provider|unavailable|time_?out|timed_out"
            r"|rate_limit|too_many|quota|try_again|server_error|maintenance|no_(?:worker|channel)"
        ),
    ),
    (
        "input",
        re.compile(
            r"invalid|unsupported|malformed|corrupt|too_(?:large|long|big)|(?:^|_)(?:download|fetch|load|read)_"
            r"|(?:image|file|url)_(?:\w{1,20}_)?(?:not_found|missing|unreachable)|(?:reference|input)_image"
            r"|aspect_ratio|resolution|is_required|bad_request"
        ),
    ),
)


def failure_kind(code: str | None, message: str | None) -> JobFailureKind:
    """Return the kind of a failure: of its code if that says one, otherwise of its words."""
    for text in (slug(code or ""), slug(message or "")):
        for kind, words in _WORDS:
            if words.search(text):
                return kind
    return "unknown"

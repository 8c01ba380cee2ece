"""Recognise texts that are no API key, without showing them."""

import re
import unicodedata

from nanobanana_async.errors import ConfigurationError
from nanobanana_async.gateways.secret import Secret

_QUOTES = "\"'`\u2018\u2019\u201c\u201d"
_PLACEHOLDER = re.compile(
    r"<.*>|\[.*\]|\{.*\}|\$.*|%.*%|none|null|undefined|todo|change[-_ ]?me|api[-_ ]?key|(apimall|defapi)[-_]api[-_]key"
    r"|(sk-)?(\.{3,}|\u2026|x{3,}|\*{3,})|(sk-)?(your|my|insert|enter|paste|put)[-_ ].*(key|token|secret|here).*",
    re.IGNORECASE | re.DOTALL,
)


def to_secret(key: object, title: str, variable: str) -> Secret | ConfigurationError:
    """Return the key without surrounding spaces and line breaks, or the error if it can't be an API key.

    Functions that hold the key return their errors instead of raising them: some tools show the locals of every frame
    of a traceback.
    """
    if isinstance(key, Secret):
        return key
    advice = f'set {variable} or pass api_key="..."'  # without the key itself: the message ends up in logs
    if not isinstance(key, str) or not (key := key.strip()):
        return ConfigurationError(f'{title} needs an API key: from_env() reads {variable}, or pass api_key="..."')
    if wrong := fault_of_api_key(key):
        return ConfigurationError(f"the API key of {title} {wrong}: {advice}")
    return Secret(key)


def fault_of_api_key(key: str) -> str | None:
    """Return what is wrong with an API key, without showing it; None if nothing is."""
    if _PLACEHOLDER.fullmatch(key):
        return "is a placeholder: put the key of your account in its place"
    if key[0] in _QUOTES or key[-1] in _QUOTES:
        return "has quotation marks around it, which are not part of it: leave them out (env files take no quotes)"
    if key.partition(" ")[0].lower().rstrip(":") in ("bearer", "authorization"):
        return 'begins with "Bearer": leave that out, it is added to each request'
    if "\n" in key or "\r" in key:
        return "has a line break in it: it must be one line"
    if any(character.isspace() for character in key):
        return "has a space in it: it must be one word"
    for position, character in enumerate(key):
        if not "!" <= character <= "~":
            name = unicodedata.name(character, "control character")
            return (
                f"has the character U+{ord(character):04X} ({name}) at position {position + 1}, and must be visible"
                " ASCII: copy it again"
            )
    return None

"""Hold an API key or password so that no output shows it."""

import base64
import hmac
import html
import re
from collections.abc import Iterator
from typing import Any, NoReturn

from attrs import frozen

MASK = "***"

_SHORTEST = 8  # a shorter secret would mask common words
_ESCAPES = ("%", "\\", "&")
_URL_SAFE = str.maketrans("+/", "-_")


class Secret:
    """An API key, or a URL with a password. Its repr, str and format are masked; `reveal` returns the text.

    It can't be pickled, since a pickle would hold the text. A copy is the same object.
    """

    __slots__ = ("__forms", "__word")

    def __init__(self, word: str) -> None:
        self.__word = word
        self.__forms: _Forms | None = None

    def reveal(self) -> str:
        """Return the secret. Do not store it in a variable: some tools show the locals of a traceback."""
        return self.__word

    def is_in(self, text: str) -> bool:
        """Return whether text holds the secret: plain, in any case, escaped for a URL, JSON or HTML, or in base64.

        Secrets of fewer than eight characters are not searched for, since they would match common words.
        """
        if len(self.__word) < _SHORTEST:
            return False
        if self.__forms is None:
            self.__forms = _Forms.of(self.__word)
        return self.__forms.may_be_in(text) and self.__forms.pattern.search(text) is not None

    def hide(self, text: str) -> str:
        """Return text with the secret masked in each form that `is_in` finds."""
        return self.__forms.pattern.sub(MASK, text) if self.is_in(text) and self.__forms is not None else text

    def hide_in_json(self, value: Any) -> Any:
        """Return decoded JSON with the secret masked in values and field names."""
        if isinstance(value, str):
            return self.hide(value)
        if isinstance(value, dict):
            return {self.hide(name): self.hide_in_json(inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [self.hide_in_json(inner) for inner in value]
        return value

    def __repr__(self) -> str:
        return f"<Secret {MASK}>"

    def __str__(self) -> str:
        return MASK

    def __format__(self, _: str) -> str:
        return MASK

    def __eq__(self, other: object) -> bool:
        """Compare in constant time, with another `Secret` only."""
        if not isinstance(other, Secret):
            return NotImplemented
        ours, theirs = (word.encode(errors="surrogatepass") for word in (self.__word, other.reveal()))
        return hmac.compare_digest(ours, theirs)

    def __hash__(self) -> int:
        return hash((Secret, self.__word))

    def __copy__(self) -> "Secret":
        return self

    def __deepcopy__(self, _: object) -> "Secret":
        return self

    def __getstate__(self) -> NoReturn:
        raise TypeError(
            "a gateway's API key and the passwords of a proxy or a ledger are not pickled: create the gateway or the"
            " session in the process that uses it, for example with from_env()"
        )

    def __reduce_ex__(self, _: object) -> NoReturn:
        self.__getstate__()


@frozen(repr=False)
class _Forms:
    """The forms in which a secret may appear in text."""

    lower: str
    signs: tuple[str, ...]
    """What text has in it that holds the secret escaped or encoded."""
    pattern: re.Pattern[str]

    @classmethod
    def of(cls, word: str) -> "_Forms":
        encoded = tuple(dict.fromkeys(_in_base64(word)))
        starts = re.escape(f"{word[0].lower()}{word[0].upper()}{''.join(_ESCAPES)}")
        escaped = "".join(map(_any_spelling, word))
        pattern = "|".join([f"(?=[{starts}]){escaped}", *map(re.escape, encoded)])
        return cls(word.lower(), (*_ESCAPES, *encoded), re.compile(pattern))

    def may_be_in(self, text: str) -> bool:
        """Return False quickly for most text: the pattern alone takes seconds for an inline image of 20 MB."""
        if self.lower in text.lower():
            return True
        for sign in self.signs:  # noqa: SIM110 - a generator costs as much again, for each answer of the gateway
            if sign in text:
                return True
        return False


def _any_spelling(character: str) -> str:
    """Return a pattern for a character in both cases, and as URLs, JSON and HTML escape it."""
    found: list[str] = [rf"\\+{re.escape(character)}"] if character in "/\"'\\" else []
    found += [re.escape(html.escape(character))] if html.escape(character) != character else []
    for case in dict.fromkeys((character, character.lower(), character.upper())):
        byte, number = _any_case(f"{ord(case):02x}"), _any_case(f"{ord(case):x}")
        # Percent signs are escaped again in a URL inside a URL, backslashes in JSON inside JSON.
        found += [re.escape(case), f"%(?:25)*{byte}", rf"\\+u00{byte}", f"&#(?:0*{ord(case)}|[xX]0*{number});"]
    return f"(?:{'|'.join(found)})"


def _any_case(digits: str) -> str:
    return re.sub("[a-f]", lambda digit: f"[{digit[0]}{digit[0].upper()}]", digits)


def _in_base64(word: str) -> Iterator[str]:
    """Yield the base64 of the secret at each offset within the encoded text, in both alphabets."""
    for before in range(3):
        encoded = base64.b64encode(bytes(before) + word.encode()).decode()
        # A character holds six bits: those at the edges also hold bits of the neighbouring text.
        inner = encoded[-(-8 * before // 6) : 8 * (before + len(word.encode())) // 6]
        yield inner
        yield inner.translate(_URL_SAFE)

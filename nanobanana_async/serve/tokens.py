"""The bearer tokens of the served API: each has a name, and perhaps a cap of credits."""

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Sequence
from decimal import Decimal

from attrs import Attribute, field, frozen

from nanobanana_async.errors import ConfigurationError
from nanobanana_async.keys import batch_key_prefix
from nanobanana_async.policy.prices import parse_credits
from nanobanana_async.validators import kind_of

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_TEXT = re.compile(r"[A-Za-z0-9_.~+/=-]{16,512}")


def _check_name(_: object, __: "Attribute[str]", name: object) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigurationError("the name of a token must be 1 to 64 letters, digits and characters of _.-")


def _to_digest(text: object) -> bytes | ConfigurationError:
    if not isinstance(text, str) or not _TEXT.fullmatch(text):
        return ConfigurationError("a token must be 16 to 512 letters, digits and characters of _.~+/=-, without spaces")
    return hashlib.sha256(text.encode()).digest()


def _to_cap(credits_: Decimal | float | None) -> Decimal | None:
    return parse_credits("max_credits", credits_)


@frozen(init=False, repr=False)
class Token:
    """A bearer token: `Token("ann", "...", max_credits=500)`. Only a digest of its text is kept.

    The name identifies it in the ledger: under it a new text continues the jobs and the cap of the old one.
    """

    name: str = field(validator=_check_name)
    digest: bytes = field(repr=False)
    max_credits: Decimal | None = field(default=None, converter=_to_cap, kw_only=True)
    """The most credits that are ever spent under the name, on all hosts that share the ledger."""

    def __init__(self, name: str, text: str, *, max_credits: Decimal | float | None = None) -> None:
        digest = _to_digest(text)
        del text  # some tools show the locals of a traceback
        if isinstance(digest, ConfigurationError):
            raise digest
        self.__attrs_init__(name, digest, max_credits=max_credits)

    def __repr__(self) -> str:
        # attrs' own raises for a token whose constructor raised, and tracebacks show such a one.
        return f"Token({getattr(self, 'name', '...')!r}, max_credits={getattr(self, 'max_credits', None)!r})"

    @property
    def batch(self) -> str:
        """What the keys of its jobs begin with: the ledger counts its credits as those of a batch."""
        return batch_key_prefix(f"serve {self.name}")


LOCAL = Token("local", secrets.token_hex())
"""Whose jobs those of an application without tokens are; its text is never given out."""


def parse_tokens(text: str) -> list[Token]:
    """Return the tokens of lines `NAME:TOKEN` or `NAME:TOKEN:MAX_CREDITS`; a line that begins with # is a comment.

    Raises `ConfigurationError`, which names a line by its number and shows nothing of it.
    """
    tokens = _tokens_in(text)
    del text  # some tools show the locals of a traceback
    if isinstance(tokens, ConfigurationError):
        raise tokens
    if (fault := fault_of_tokens(tokens)) is not None:
        raise fault
    return tokens


def _tokens_in(text: str) -> list[Token] | ConfigurationError:
    """Return the tokens in a text, or the error in one of its lines: this frame holds them."""
    tokens: list[Token] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, *rest = line.strip().split(":")
        if len(rest) not in (1, 2):
            return ConfigurationError(f"tokens, line {number}: a line is NAME:TOKEN or NAME:TOKEN:MAX_CREDITS")
        try:
            tokens.append(Token(name, rest[0], max_credits=Decimal(rest[1]) if len(rest) == 2 else None))
        except ArithmeticError:
            return ConfigurationError(f"tokens, line {number}: MAX_CREDITS must be a number")
        except ConfigurationError as error:
            return ConfigurationError(f"tokens, line {number}: {error.message}")
    return tokens


def fault_of_tokens(tokens: Sequence[Token]) -> ConfigurationError | None:
    """Return the error if there is no token, or one name or text is there twice, or a token is a mere text.

    It is returned, not raised: this frame holds that text.
    """
    for token in tokens:
        if not isinstance(token, Token):
            return ConfigurationError(f"a token must be a Token, not {kind_of(token)}")
    if not tokens:
        return ConfigurationError("there is no token: write lines NAME:TOKEN")
    for facts in ([token.name for token in tokens], [token.digest for token in tokens]):
        if len(set(facts)) < len(facts):
            return ConfigurationError("two tokens have the same name or text: each needs its own")
    return None


def find_token(tokens: Iterable[Token], authorization: str) -> Token | None:
    """Return the token that an Authorization header names; None if it is none of these."""
    scheme, _, text = authorization.partition(" ")
    digest = hashlib.sha256(text.strip().encode("utf-8", "surrogateescape")).digest()
    matches = [token for token in tokens if hmac.compare_digest(token.digest, digest)]
    return matches[0] if matches and scheme.lower() == "bearer" else None

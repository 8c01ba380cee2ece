"""The bearer tokens of the served API: each has a name, and perhaps a budget, a group and a priority."""

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Sequence
from typing import Any

from attrs import Attribute, field, frozen

from nanobanana_async.errors import ConfigurationError
from nanobanana_async.keys import batch_key_prefix
from nanobanana_async.policy.named_budget import Budget, check_names_apart, parse_budget
from nanobanana_async.policy.turn_settings import check_group, check_priority
from nanobanana_async.validators import check_kind, kind_of

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_TEXT = re.compile(r"[A-Za-z0-9_.~+/=-]{16,512}")
_SETTINGS_MESSAGE = (
    "after NAME:TOKEN come settings with colons between: CREDITS or CREDITS/day, or budget=NAME=CREDITS or"
    " budget=NAME=CREDITS/day; group=NAME; priority=NUMBER from -100 to 100; each once"
)


def _check_name(_: object, __: "Attribute[str]", name: object) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigurationError("the name of a token must be 1 to 64 letters, digits and characters of _.-")


def _to_digest(text: object) -> bytes | ConfigurationError:
    if not isinstance(text, str) or not _TEXT.fullmatch(text):
        return ConfigurationError("a token must be 16 to 512 letters, digits and characters of _.~+/=-, without spaces")
    return hashlib.sha256(text.encode()).digest()


def _check_budget(_: object, __: "Attribute[Budget | None]", budget: object) -> None:
    check_kind("budget", budget, (Budget, type(None)), 'a Budget, such as Budget(name="ann", max_credits=100)')


@frozen(repr=False, init=False)
class Token:
    """A bearer token: `Token("ann", "...", budget=Budget(name="ann", max_credits=500))`. Only a digest of it is kept.

    The name identifies it in the ledger: under it a new text continues the jobs of the old one. Budget, group and
    priority are those of `Session.generate`.
    """

    name: str = field(validator=_check_name)  # what identifies it in the ledger
    digest: bytes = field(repr=False)  # of its text
    budget: Budget | None = field(default=None, validator=_check_budget, kw_only=True)
    """Which counts its jobs in the ledger, on all hosts and after restarts; tokens may share one."""
    group: str | None = field(default=None, converter=check_group, kw_only=True)
    """With which jobs its own share turns for a slot; None: its name is their group."""
    priority: int = field(default=0, converter=check_priority, kw_only=True)  # from -100 to 100

    def __init__(
        self, name: str, text: str, *, budget: Budget | None = None, group: str | None = None, priority: int = 0
    ) -> None:
        digest = _to_digest(text)
        del text  # some tools show the locals of a traceback
        if isinstance(digest, ConfigurationError):
            raise digest
        self.__attrs_init__(  # pyright: ignore[reportAttributeAccessIssue]
            name, digest, budget=budget, group=group, priority=priority
        )

    def __repr__(self) -> str:
        # attrs' own raises for a token whose constructor raised, and tracebacks show such a one.
        return f"Token({getattr(self, 'name', '...')!r}, budget={getattr(self, 'budget', None)!r})"

    @property
    def batch(self) -> str:
        """What the keys of its jobs begin with."""
        return batch_key_prefix(f"serve {self.name}")

    @property
    def turn_group(self) -> str:
        """The group of its jobs."""
        return self.group or self.name


LOCAL = Token("local", secrets.token_hex())
"""Whose jobs those of an application without tokens are; its text is never given out."""


def parse_tokens(text: str) -> list[Token]:
    """Return the tokens of lines `NAME:TOKEN` or `NAME:TOKEN:SETTING:...`; a line that begins with # is a comment.

    A setting is `500` or `500/day` (a budget with the name of the token), `budget=team=500/day`, `group=team` or
    `priority=5`. Raises `ConfigurationError`, which names a line by its number and shows nothing of it.
    """
    tokens = _parse_token_lines(text)
    del text  # some tools show the locals of a traceback
    if isinstance(tokens, ConfigurationError):
        raise tokens
    if (fault := tokens_error(tokens)) is not None:
        raise fault
    return tokens


def _parse_token_lines(text: str) -> list[Token] | ConfigurationError:
    """Return the tokens in a text, or the error in one of its lines: this frame holds them."""
    tokens: list[Token] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, _, rest = line.strip().partition(":")
        secret, *settings = rest.split(":")
        try:
            tokens.append(Token(name, secret, **_settings_of(name, settings)))
        except ConfigurationError as error:
            return ConfigurationError(f"tokens, line {number}: {error.message}")
    return tokens


def _settings_of(name: str, texts: Sequence[str]) -> dict[str, Any]:
    """Return the settings of a token; the error for a wrong one shows nothing of it, which may be part of a token."""
    settings: dict[str, Any] = {}
    try:
        for text in texts:
            setting, sign, value = text.partition("=")
            if not sign:
                setting, value = "budget", f"{name}={text}"
            if setting in settings:
                raise ConfigurationError(_SETTINGS_MESSAGE)
            match setting:
                case "budget":
                    settings[setting] = parse_budget(setting, value)
                case "group":
                    settings[setting] = check_group(value)
                case "priority":
                    settings[setting] = check_priority(int(value))
                case _:
                    raise ConfigurationError(_SETTINGS_MESSAGE)
    except ValueError:  # a `ConfigurationError` is one, too
        raise ConfigurationError(_SETTINGS_MESSAGE) from None
    return settings


def tokens_error(tokens: Sequence[Token]) -> ConfigurationError | None:
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
    try:
        check_names_apart("the budgets of tokens", [token.budget for token in tokens if token.budget is not None])
    except ConfigurationError as error:
        return ConfigurationError(error.message)
    return None


def find_token(tokens: Iterable[Token], authorization: str) -> Token | None:
    """Return the token that an Authorization header names; None if it is none of these."""
    scheme, _, text = authorization.partition(" ")
    digest = hashlib.sha256(text.strip().encode("utf-8", "surrogateescape")).digest()
    matches = [token for token in tokens if hmac.compare_digest(token.digest, digest)]
    return matches[0] if matches and scheme.lower() == "bearer" else None

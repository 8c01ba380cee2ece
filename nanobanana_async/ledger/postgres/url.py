"""The URL of a PostgreSQL ledger, and its texts without the password."""

import os
import re
from typing import Any
from urllib.parse import quote, unquote

from attrs import field, frozen

from nanobanana_async.errors import ConfigurationError
from nanobanana_async.gateways.secret import Secret

SCHEMA = "nanobanana"
"""The PostgreSQL schema that holds the tables, if none is named."""

MAX_SCHEMA_BYTES = 63  # PostgreSQL cuts longer names off, so that two applications would share one schema

# What the path of a file does not begin with, and what may hold a password.
_ALMOST = re.compile(
    r"[\s\"'<]*(psql\s+[\"']?)?(jdbc:)?(postgres(ql)?|pgsql)(\+\w+)?\s*(:|//)"
    r"|\s*(host|hostaddr|port|dbname|user|password|service)\s*=",
    re.IGNORECASE,
)
# As libpq reads it: user and password end at the first `@` or `/`. A second `@`, a port that is no number or an option
# without a name is a part of a password with special characters, which messages would show.
_HOST = r"(?:\[[^\]@/?\s]*\]|[^:@/?,\[\]\s]*)(?::\d*)?"
_OPTION = r"[a-z_]+=[^&@\s]*"
_FORM = re.compile(
    r"(?P<scheme>postgres(?:ql)?)://(?:(?P<user>[^:@/\s]*)(?::(?P<password>[^@/\s]*))?@)?"
    rf"(?P<hosts>{_HOST}(?:,{_HOST})*)(?P<database>/[^@?\s]*)?(?:\?(?P<options>(?:{_OPTION}(?:&{_OPTION})*)?))?",
    re.IGNORECASE,
)
_NO_ESCAPE = re.compile(r"%(?![0-9a-f]{2})|%00", re.IGNORECASE)
_SECRETS = re.compile(r"(?<!\w)(\w*(?:password|secret)|scram_\w*key)=[^&\s]*", re.IGNORECASE)
_HIDDEN = "***"


def is_postgres_url(value: object) -> bool:
    """Return whether a value is the URL of a PostgreSQL server, or was meant to be: `parse` then says what is wrong."""
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    return isinstance(text, str) and _ALMOST.match(text) is not None


def _as_secret(url: "str | Secret") -> Secret:
    return url if isinstance(url, Secret) else Secret(url)


@frozen
class PostgresUrl:
    """The URL of a server as libpq reads it, and the schema of one application in its database.

    `?schema=NAME` in the URL names the schema, as the parameter does. `str` shows everything but the password.
    """

    _url: Secret = field(alias="url", repr=False, converter=_as_secret)
    schema: str

    @classmethod
    def parse(cls, url: str, schema: str | None = None) -> "PostgresUrl":
        """Return the address in a text; raise `ConfigurationError`, which shows nothing of it, if it is none."""
        found = cls.read(url, schema)
        del url  # it may hold a password, and some tools show the locals of a traceback
        if isinstance(found, ConfigurationError):
            raise found
        return found

    @classmethod
    def read(cls, url: object, schema: object = None) -> "PostgresUrl | ConfigurationError":
        """Return the address in a text, or the error if it is none: this frame holds the password."""
        given = url.strip() if isinstance(url, str) and "\0" not in url else ""
        found = _FORM.fullmatch(given)
        if found is None or _NO_ESCAPE.search(given):
            return ConfigurationError(
                "a PostgreSQL ledger needs a URL such as postgresql://user@host:5432/database, without the name of a"
                " driver; special characters in it are written as %XX, such as %40 for @; keep the password in"
                " ~/.pgpass or PGPASSWORD"
            )
        text, kept = found[0], []
        for option in filter(None, (found["options"] or "").split("&")):
            name, _, value = option.partition("=")
            if name != "schema":
                kept.append(option)
            elif schema is None:
                schema = unquote(value)
        if found["options"] is not None:
            text = text[: found.start("options") - 1] + ("?" + "&".join(kept) if kept else "")
        scheme = found["scheme"]  # libpq knows it in small letters only
        checked = _check_schema(SCHEMA if schema is None else schema)
        return (
            checked if isinstance(checked, ConfigurationError) else cls(scheme.lower() + text[len(scheme) :], checked)
        )

    @property
    def url(self) -> str:
        """The URL with its password. Do not store it in a variable: some tools show the locals of a traceback."""
        return self._url.reveal()

    def __str__(self) -> str:
        text = self.masked_url
        if self.schema != SCHEMA:
            text += f"{'&' if self._part('options') else '?'}schema={quote(self.schema)}"
        return text

    @property
    def masked_url(self) -> str:
        """The URL without its password."""
        user, password, options = self._part("user"), self._part("password"), self._part("options")
        text = f"{self._part('scheme')}://"
        if user is not None:
            text += user + ("" if password is None else f":{_HIDDEN}") + "@"
        text += self._part("hosts") + (self._part("database") or "")
        return text if options is None else f"{text}?{_SECRETS.sub(_hide, options)}"

    def mask(self, text: str) -> str:
        """Return a message without the password, whichever way it is written in it."""
        for secret in sorted(self._secrets(), key=len, reverse=True):
            text = text.replace(secret, _HIDDEN)
        return _SECRETS.sub(_hide, text)

    def _secrets(self) -> set[str]:
        options = self._part("options") or ""
        secrets = {self._part("password"), *(found[0].partition("=")[2] for found in _SECRETS.finditer(options))}
        return {form for secret in secrets if secret for form in (secret, unquote(secret))}

    @property
    def has_several_hosts(self) -> bool:
        """Whether the URL names several servers, of which one takes writes."""
        options = (self._part("options") or "").split("&")
        named = [unquote(value) for name, _, value in (option.partition("=") for option in options) if "host" in name]
        return any("," in hosts for hosts in (self._part("hosts"), *named))

    def _part(self, name: str) -> Any:
        found = _FORM.fullmatch(self.url)
        assert found is not None  # `parse` has checked it
        return found[name]


def _hide(found: re.Match[str]) -> str:
    return f"{found[1]}={_HIDDEN}"


def _check_schema(schema: object) -> str | ConfigurationError:
    size = len(schema.encode(errors="replace")) if isinstance(schema, str) and schema.isprintable() else 0
    if not isinstance(schema, str) or not 0 < size <= MAX_SCHEMA_BYTES:
        return ConfigurationError(f"schema must be a name of 1 to {MAX_SCHEMA_BYTES} bytes, such as {SCHEMA!r}")
    if schema.startswith("pg_") or schema in ("public", "information_schema"):
        return ConfigurationError(f"schema {schema!r} is PostgreSQL's own or shared by all: name one for this ledger")
    return schema

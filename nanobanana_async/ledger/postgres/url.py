"""The URL of a PostgreSQL ledger, and its texts without the password."""

import re
from urllib.parse import quote, unquote, urlsplit

from attrs import field, frozen

from nanobanana_async.errors import ConfigurationError

SCHEMA = "nanobanana"
"""The PostgreSQL schema that holds the tables, if none is named."""

MAX_SCHEMA_BYTES = 63  # PostgreSQL cuts longer names off, so that two applications would share one schema

_SCHEME = re.compile(r"postgres(ql)?://", re.IGNORECASE)
_ALMOST = re.compile(r"postgres(ql)?(\+\w+)?:", re.IGNORECASE)  # no path begins so, and it may hold a password
_SECRETS = re.compile(r"(?<![a-z])((?:ssl)?password|sslkey)=[^&#\s]*", re.IGNORECASE)
_SCHEMA_OPTION = re.compile(r"(?<=[?&])schema=([^&#]*)&?")
_HIDDEN = "***"


def is_postgres_url(text: object) -> bool:
    """Return whether a text is the URL of a PostgreSQL server, or was meant to be: `parse` then says what is wrong."""
    return isinstance(text, str) and _ALMOST.match(text.strip()) is not None


@frozen
class PostgresUrl:
    """The URL of a server as libpq reads it, and the schema of one application in its database.

    `?schema=NAME` in the URL names the schema, as the parameter does. `str` shows everything but the password.
    """

    url: str = field(repr=False)
    schema: str

    @classmethod
    def parse(cls, url: str, schema: str | None = None) -> "PostgresUrl":
        """Return the address in a text; raise `ConfigurationError`, which shows nothing of it, if it is none."""
        if not isinstance(url, str) or not _SCHEME.match(url.strip()) or "\0" in url:
            raise ConfigurationError(
                "a PostgreSQL ledger needs a URL such as postgresql://user@host/database, without the name of a driver;"
                " keep the password in ~/.pgpass or PGPASSWORD"
            )
        url = url.strip()
        if (named := _SCHEMA_OPTION.search(url)) is not None:
            url = _SCHEMA_OPTION.sub("", url).rstrip("?&")
            schema = schema or unquote(named[1])
        return cls(url, _check_schema(SCHEMA if schema is None else schema))

    def __str__(self) -> str:
        text = self.masked_url
        if self.schema != SCHEMA:
            text += f"{'&' if '?' in text else '?'}schema={quote(self.schema)}"
        return text

    @property
    def masked_url(self) -> str:
        """The URL without its password."""
        address, question, options = self.url.partition("?")
        scheme, _, rest = address.partition("//")
        credentials, at, host = rest.rpartition("@")
        user, colon, _ = credentials.partition(":")
        return f"{scheme}//{user}{colon and ':' + _HIDDEN}{at}{host}{question}{_SECRETS.sub(_hide, options)}"

    def mask(self, text: str) -> str:
        """Return a message without the password, whichever way it is written in it."""
        for secret in sorted(self._secrets(), key=len, reverse=True):
            text = text.replace(secret, _HIDDEN)
        return _SECRETS.sub(_hide, text)

    def _secrets(self) -> set[str]:
        address, _, options = self.url.partition("?")
        password = address.partition("//")[2].rpartition("@")[0].partition(":")[2]
        named = {value for name, _, value in (option.partition("=") for option in options.split("&")) if "pass" in name}
        return {form for secret in {password, *named} if secret for form in (secret, unquote(secret))}

    @property
    def has_several_hosts(self) -> bool:
        """Whether the URL names several servers, of which one takes writes."""
        return "," in urlsplit(self.masked_url).netloc


def _hide(found: re.Match[str]) -> str:
    return f"{found[1]}={_HIDDEN}"


def _check_schema(schema: object) -> str:
    if not isinstance(schema, str) or not schema or "\0" in schema or len(schema.encode()) > MAX_SCHEMA_BYTES:
        raise ConfigurationError(f"schema must be a name of 1 to {MAX_SCHEMA_BYTES} bytes, such as {SCHEMA!r}")
    if schema.startswith("pg_") or schema in ("public", "information_schema"):
        raise ConfigurationError(f"schema {schema!r} is PostgreSQL's own or shared by all: name one for this ledger")
    return schema

"""What both gateways are told: a key, where they are, and a few guesses. Checked at birth, frozen."""

import ipaddress
import os
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, ClassVar, Self
from urllib.parse import urlsplit

from attrs import field, frozen

from nanobanana_async.checks import switch, within
from nanobanana_async.errors import ConfigurationError, InvalidRequest
from nanobanana_async.jobs import fingerprint, named_account
from nanobanana_async.models import ImageRequest, TaskType

BASE_URL_VARIABLE = "NANOBANANA_BASE_URL"
EXPECTED_VARIABLE = "NANOBANANA_EXPECTED_JOB_S"
ACCOUNT_VARIABLE = "NANOBANANA_ACCOUNT"

MAX_ACCOUNT_LENGTH = 64


def clean_api_key(key: object, title: str, variable: str) -> str:
    """Return the key without the spaces that copying leaves around it; refuse what can't stand in a header."""
    advice = f'set {variable} or pass api_key="..."'  # never with the key itself: this sentence ends in logs
    if not isinstance(key, str) or not (key := key.strip()):
        raise ConfigurationError(f"{title} needs an API key: {advice}")
    if not _is_visible_ascii(key):
        raise ConfigurationError(f'the API key must be visible ASCII, without spaces or "Bearer": {advice}')
    return key


def clean_base_url(url: object) -> str:
    """Return the URL without trailing slashes; refuse one to which the key must not be sent."""
    if not isinstance(url, str) or not (url := url.strip().rstrip("/")):
        raise ConfigurationError("base_url must be a URL such as https://gateway.example")
    # A backslash is read as a slash by some parsers and not by others: the key could go to another host.
    if not _is_visible_ascii(url) or "\\" in url:
        raise ConfigurationError("base_url must be visible ASCII without spaces or backslashes")
    try:
        parts = urlsplit(url)
        host, _port = parts.hostname, parts.port
    except ValueError:
        raise ConfigurationError("base_url is not a URL: its host or port can't be read") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigurationError("base_url must begin with https:// and name a host")
    if "@" in parts.netloc:
        raise ConfigurationError("base_url must not hold credentials; the API key goes into api_key")
    if "?" in url or "#" in url:
        raise ConfigurationError("base_url must not hold a query or a fragment")
    if parts.scheme == "http" and not is_loopback(host):
        raise ConfigurationError(f"base_url must be https: the API key would travel in clear text to {host}")
    return url


def clean_model(model: object) -> str:
    """Return the model's name without spaces around it; refuse what can't be one."""
    if not isinstance(model, str) or not model.strip() or not model.strip().isprintable():
        raise ConfigurationError(f"model must be non-empty printable text, not {model!r}")
    return model.strip()


def clean_account(name: object, api_key: str) -> str:
    """Return the name of an account without spaces around it, empty for none; refuse what can't be one."""
    if not isinstance(name, str):
        raise ConfigurationError(f"account must be text, not {type(name).__name__}")
    name = name.strip()
    if len(name) > MAX_ACCOUNT_LENGTH or not _is_visible_ascii(name):
        raise ConfigurationError(f"account must be 1 to {MAX_ACCOUNT_LENGTH} visible ASCII characters without spaces")
    if name == api_key:
        raise ConfigurationError("account is the API key: it would be written to the ledger; choose a name for it")
    return name


def _is_visible_ascii(text: str) -> bool:
    return all("!" <= character <= "~" for character in text)


def is_loopback(host: str) -> bool:
    """Tell whether a host is this machine by its very name: localhost, 127.0.0.0/8 or ::1."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback


@frozen(kw_only=True)
class GatewaySettings:
    """What is common to the gateways. Each names itself, its defaults and the variable of its key."""

    short_name: ClassVar[str]
    title: ClassVar[str]
    key_variable: ClassVar[str]
    credits_per_image: ClassVar[Decimal]

    api_key: str = field(repr=False)
    base_url: str
    """https, or http to this machine; without credentials, query and fragment."""
    model: str
    """For requests that name none."""
    expected_job_s: float = field(default=20.0, validator=within(above=0))
    """A first guess of how long a job takes."""
    slots_per_image: bool = field(default=False, validator=switch)
    """Whether the account's limit counts images: then a request for n of them takes n job slots."""
    account_name: str = field(default="", alias="account")
    """A name for the account, passed as `account`: jobs in a ledger stay the account's when its API key changes."""

    def __attrs_post_init__(self) -> None:
        # Not as converters of the fields: pyright then takes them for descriptors, which do not fit the protocol.
        key = clean_api_key(self.api_key, self.title, self.key_variable)
        object.__setattr__(self, "api_key", key)
        object.__setattr__(self, "base_url", clean_base_url(self.base_url))
        object.__setattr__(self, "model", clean_model(self.model))
        object.__setattr__(self, "account_name", clean_account(self.account_name, key))

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, **settings: Any) -> Self:
        """Return the gateway with the key of the environment; with base URL, account and duration if they are set.

        Further settings are passed on, and win. Raises `ConfigurationError` that names a missing or broken variable.
        """
        environ = os.environ if environ is None else environ
        if "api_key" not in settings:
            if not environ.get(cls.key_variable, "").strip():
                raise ConfigurationError(f"{cls.key_variable} is not set: it holds the API key of {cls.title}")
            settings["api_key"] = environ[cls.key_variable]
        if "base_url" not in settings and environ.get(BASE_URL_VARIABLE, "").strip():
            settings["base_url"] = environ[BASE_URL_VARIABLE]
        if "account" not in settings and environ.get(ACCOUNT_VARIABLE, "").strip():
            settings["account"] = environ[ACCOUNT_VARIABLE]
        if "expected_job_s" not in settings and environ.get(EXPECTED_VARIABLE, "").strip():
            try:
                settings["expected_job_s"] = float(environ[EXPECTED_VARIABLE])
            except ValueError:
                raise ConfigurationError(f"{EXPECTED_VARIABLE} must be a number of seconds") from None
        return cls(**settings)

    @property
    def name(self) -> str:
        """A short stable word; it stands in ledgers."""
        return self.short_name

    @property
    def account(self) -> str:
        """What stands for the account in a ledger: its name, or else a fingerprint of the API key."""
        if self.account_name:
            return named_account(self.name, self.account_name)
        return fingerprint(self.name, self.api_key)

    def weight(self, request: ImageRequest) -> int:
        """How many job slots the request takes in the gateway's count."""
        return request.num_images if self.slots_per_image else 1

    def price_class(self, request: ImageRequest) -> str:
        """Requests of one class are taken to cost the same and to last about as long."""
        size = request.resolution or "default"
        return f"{self.name}/{request.model or self.model}/{task_type(request)}/{size}/{request.num_images}"

    def example_credits(self, request: ImageRequest) -> Decimal:
        """Return what such a request costs by the example of the gateway's reference: an estimate until it says."""
        return self.credits_per_image * request.num_images


def task_type(request: ImageRequest) -> TaskType:
    """Return the kind of task: as given, else by the presence of images."""
    return request.task_type or ("image-to-image" if request.images else "text-to-image")


def not_taken(gateway: GatewaySettings, field_name: str, why: str = "") -> InvalidRequest:
    """Return the error for a field that this gateway does not take."""
    return InvalidRequest(f"{gateway.title} does not take {field_name}{why}")

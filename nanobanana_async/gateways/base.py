"""What both gateways are told: a key, where they are, and a few guesses. Checked at birth, frozen."""

import functools
import hmac
import ipaddress
import os
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, ClassVar, Self
from urllib.parse import urlsplit

from attrs import field, fields, frozen

from nanobanana_async.errors import ConfigurationError, InvalidRequest
from nanobanana_async.gateways.secret import Secret
from nanobanana_async.jobs import account_fingerprint, named_account
from nanobanana_async.models import ImageRequest, TaskType
from nanobanana_async.validators import switch, within

BASE_URL_VARIABLE = "NANOBANANA_BASE_URL"
EXPECTED_VARIABLE = "NANOBANANA_EXPECTED_JOB_S"
ACCOUNT_VARIABLE = "NANOBANANA_ACCOUNT"

MAX_ACCOUNT_LENGTH = 64


def to_secret(key: object, title: str, variable: str) -> Secret | ConfigurationError:
    """Return the key without the spaces that copying leaves around it, or why it can't stand in a header.

    The error is returned and not raised, here and below: this frame holds the key, and tools show the locals of every
    frame of a traceback.
    """
    if isinstance(key, Secret):
        return key
    advice = f'set {variable} or pass api_key="..."'  # never with the key itself: this sentence ends in logs
    if not isinstance(key, str) or not (key := key.strip()):
        return ConfigurationError(f"{title} needs an API key: {advice}")
    if not _is_visible_ascii(key):
        return ConfigurationError(f'the API key must be visible ASCII, without spaces or "Bearer": {advice}')
    return Secret(key)


def validate_base_url(url: object) -> str | ConfigurationError:
    """Return the URL without trailing slashes, or why the key must not be sent to it."""
    if not isinstance(url, str) or not (url := url.strip().rstrip("/")):
        return ConfigurationError("base_url must be a URL such as https://gateway.example")
    # A backslash is read as a slash by some parsers and not by others: the key could go to another host.
    if not _is_visible_ascii(url) or "\\" in url:
        return ConfigurationError("base_url must be visible ASCII without spaces or backslashes")
    try:
        parts = urlsplit(url)
        host, _port = parts.hostname, parts.port
    except ValueError:
        return ConfigurationError("base_url is not a URL: its host or port can't be read")
    if parts.scheme not in ("http", "https") or not host:
        return ConfigurationError("base_url must begin with https:// and name a host")
    if "@" in parts.netloc:
        return ConfigurationError("base_url must not hold credentials; the API key goes into api_key")
    if "?" in url or "#" in url:
        return ConfigurationError("base_url must not hold a query or a fragment")
    if parts.scheme == "http" and not is_loopback(host):
        return ConfigurationError(f"base_url must be https: the API key would travel in clear text to {host}")
    return url


def validate_model(model: object) -> str:
    """Return the model's name without spaces around it; refuse what can't be one."""
    if not isinstance(model, str) or not model.strip() or not model.strip().isprintable():
        raise ConfigurationError(f"model must be non-empty printable text, not {model!r}")
    return model.strip()


def validate_account(name: object, api_key: Secret) -> str:
    """Return the name of an account without spaces around it, empty for none; refuse what can't be one."""
    if not isinstance(name, str):
        raise ConfigurationError(f"account must be text, not {type(name).__name__}")
    name = name.strip()
    if len(name) > MAX_ACCOUNT_LENGTH or not _is_visible_ascii(name):
        raise ConfigurationError(f"account must be 1 to {MAX_ACCOUNT_LENGTH} visible ASCII characters without spaces")
    if hmac.compare_digest(name.encode(), api_key.reveal().encode()):
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


def _as_secret(key: str | Secret) -> Secret:
    return key if isinstance(key, Secret) else Secret(key)


def settings_in(
    environ: Mapping[str, str], kind: "type[GatewaySettings]", **given: Any
) -> dict[str, Any] | ConfigurationError:
    """Return the settings of a gateway: those given, and for others what the environment says; or what is wrong."""
    settings = given
    if "api_key" not in settings:
        if not (key := variable_in(environ, kind.key_variable)):
            return ConfigurationError(f"{kind.key_variable} is not set: it holds the API key of {kind.title}")
        settings["api_key"] = key
    if "base_url" not in settings and (url := variable_in(environ, BASE_URL_VARIABLE)):
        settings["base_url"] = url
    if "expected_job_s" not in settings and (seconds := variable_in(environ, EXPECTED_VARIABLE)):
        try:
            settings["expected_job_s"] = float(seconds)
        except ValueError:
            return ConfigurationError(f"{EXPECTED_VARIABLE} must be a number of seconds")
    if "account" not in settings and (account := variable_in(environ, ACCOUNT_VARIABLE)):
        settings["account"] = account
    return _seal_secrets(kind, settings) or settings


def variable_in(environ: Mapping[str, str], name: str) -> str:
    """Return a variable without spaces around it; empty if it is not set."""
    value = environ.get(name, "")
    return value.strip() if isinstance(value, str) else ""


def _with_sealed_secrets(init: Callable[..., None]) -> Callable[..., None]:
    """Return an `__init__` that checks the secret settings before attrs' own sees them.

    The frame of that one stands in the traceback of every setting that is refused, and would hold them in clear.
    """

    @functools.wraps(init)
    def checked(self: "GatewaySettings", *args: Any, **settings: Any) -> None:
        problem = _seal_secrets(type(self), settings)
        if problem is not None:
            settings.clear()
            raise problem
        init(self, *args, **settings)

    return checked


def _seal_secrets(kind: "type[GatewaySettings]", settings: dict[str, Any]) -> ConfigurationError | None:
    """Put the checked key and URL into the settings; return what is wrong with them."""
    checks: dict[str, Callable[[object], object]] = {
        "api_key": lambda key: to_secret(key, kind.title, kind.key_variable),
        "base_url": validate_base_url,
    }
    for name, check in checks.items():
        if name in settings:
            checked = settings[name] = check(settings[name])
            if isinstance(checked, ConfigurationError):
                return checked
    return None


@frozen(kw_only=True, repr=False)
class GatewaySettings:
    """What is common to the gateways. Each names itself, its defaults and the variable of its key."""

    short_name: ClassVar[str]
    title: ClassVar[str]
    key_variable: ClassVar[str]
    credits_per_image: ClassVar[Decimal]

    # Under a name of its own: pyright takes a field with a converter for a descriptor, which does not fit the protocol.
    _api_key: Secret = field(alias="api_key", repr=False, converter=_as_secret)
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

    @classmethod
    def __attrs_init_subclass__(cls) -> None:
        cls.__init__ = _with_sealed_secrets(cls.__init__)  # type: ignore[method-assign]

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "model", validate_model(self.model))
        object.__setattr__(self, "account_name", validate_account(self.account_name, self._api_key))

    def __repr__(self) -> str:
        # Not attrs' own: that one raises for a gateway half made, which stands in the traceback of a refused setting.
        known = (f"{each.name}={getattr(self, each.name, '...')!r}" for each in fields(type(self)) if each.repr)
        return f"{type(self).__name__}({', '.join(known)})"

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, **settings: Any) -> Self:
        """Return the gateway with the key of the environment; with base URL, account and duration if they are set.

        Further settings are passed on, and win. Raises `ConfigurationError` that names a missing or broken variable.
        """
        found = settings_in(os.environ if environ is None else environ, cls, **settings)
        del environ, settings  # a traceback that shows locals must not show them
        if isinstance(found, ConfigurationError):
            raise found
        return cls(**found)

    @property
    def api_key(self) -> Secret:
        """The API key, masked wherever it is printed."""
        return self._api_key

    @property
    def name(self) -> str:
        """A short stable word; it stands in ledgers."""
        return self.short_name

    @property
    def account(self) -> str:
        """What stands for the account in a ledger: its name, or else a fingerprint of the API key."""
        if self.account_name:
            return named_account(self.name, self.account_name)
        return account_fingerprint(self.name, self.api_key.reveal())

    def slots_for(self, request: ImageRequest) -> int:
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


def unsupported_field(gateway: GatewaySettings, field_name: str, why: str = "") -> InvalidRequest:
    """Return the error for a field that this gateway does not take."""
    return InvalidRequest(f"{gateway.title} does not take {field_name}{why}")

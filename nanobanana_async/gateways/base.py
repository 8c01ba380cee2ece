"""The settings that all gateways share, validated when a gateway is created."""

import functools
import hmac
import ipaddress
import os
import re
from collections.abc import Callable, Collection, Mapping
from decimal import Decimal
from typing import Any, ClassVar, Self
from urllib.parse import urlsplit

from attrs import field, fields, frozen

from nanobanana_async.accounts import account_fingerprint, named_account
from nanobanana_async.commands import command_line
from nanobanana_async.errors import ConfigurationError, InvalidRequest
from nanobanana_async.gateways.api_keys import to_secret
from nanobanana_async.gateways.secret import Secret
from nanobanana_async.misspelt import unknown_fields
from nanobanana_async.models import ImageRequest, TaskType
from nanobanana_async.validators import shown, validate_switch, within

BASE_URL_VARIABLE = "NANOBANANA_BASE_URL"
EXPECTED_JOB_VARIABLE = "NANOBANANA_EXPECTED_JOB_S"
ACCOUNT_VARIABLE = "NANOBANANA_ACCOUNT"
ALLOW_HTTP_VARIABLE = "NANOBANANA_ALLOW_HTTP"

MAX_ACCOUNT_LENGTH = 64

PRICED_EXTRA = ("image_resolution", "image_size", "quality", "resolution", "size")
"""What of `ImageRequest.extra` may change the price and the duration of a job."""

_API_PATH = re.compile(
    r"/api(?:/v1(?:/(?:images|account|files|webhooks)(?:/[^/]*)?)?|/image(?:/gen)?|/task(?:/query)?|/user)?$"
)
_SWITCH_WORDS = dict.fromkeys(("1", "true", "yes", "on"), True) | dict.fromkeys(("0", "false", "no", "off"), False)


def validate_base_url(
    url: object, *, allow_http: bool = False, permission: str = "allow_http=True"
) -> str | ConfigurationError:
    """Return the URL without trailing slashes, or the error if the key must not be sent to it.

    Plain http is accepted to this machine, and with `allow_http` to any host; `permission` is how the caller sets that.
    """
    if not isinstance(url, str) or not (url := url.strip().rstrip("/")):
        return ConfigurationError("base_url must be a URL such as https://gateway.example")
    # Some URL parsers read a backslash as a slash: the key could go to another host.
    if not _is_visible_ascii(url) or "\\" in url:
        return ConfigurationError("base_url must be visible ASCII without spaces or backslashes")
    try:
        parts = urlsplit(url)
        host, _port = parts.hostname, parts.port
    except ValueError:
        return ConfigurationError("base_url is not a URL: its host or port can't be read")
    if parts.scheme not in ("http", "https") or not host:
        given = "" if re.search("[@?#]", url) else f", not {shown(url)}"  # it may hold a password
        return ConfigurationError(
            f"base_url must begin with https:// and name a host{given}: as in https://gateway.example, or in"
            " http://localhost:8123 for this machine"
        )
    if "@" in parts.netloc:
        return ConfigurationError("base_url must not hold credentials; the API key goes into api_key")
    if "?" in url or "#" in url:
        return ConfigurationError("base_url must not hold a query or a fragment")
    if _API_PATH.search(parts.path):
        path = parts.path
        return ConfigurationError(
            f"base_url ends before the paths of the API, which are added to it: leave out {path[path.index('/api') :]}"
        )
    if parts.scheme == "http" and not (allow_http or is_loopback(host)):
        return ConfigurationError(
            f"base_url must be https: the API key would travel in clear text to {host} (in a network that you trust,"
            f" such as one of containers, {permission} permits that)"
        )
    return url


def validate_model(model: object) -> str:
    """Return the model's name without surrounding spaces; raise `ConfigurationError` if it is not printable text."""
    if not isinstance(model, str) or not model.strip() or not model.strip().isprintable():
        raise ConfigurationError(f"model must be non-empty printable text, not {model!r}")
    return model.strip()


def validate_account(name: object, gateway: str, api_key: Secret) -> str:
    """Return the account's name without surrounding spaces, empty for none; raise `ConfigurationError` if invalid.

    The form in which ledgers show the account, `gateway:name`, is the same account.
    """
    if not isinstance(name, str):
        raise ConfigurationError(f"account must be text, not {type(name).__name__}")
    given, name = name.strip(), name.strip().removeprefix(f"{gateway}:")
    if len(name) > MAX_ACCOUNT_LENGTH or not _is_visible_ascii(name):
        raise ConfigurationError(f"account must be 1 to {MAX_ACCOUNT_LENGTH} visible ASCII characters without spaces")
    if any(hmac.compare_digest(text.encode(), api_key.reveal().encode()) for text in (given, name)):
        raise ConfigurationError("account is the API key: it would be written to the ledger; choose a name for it")
    if ":" in name:
        raise ConfigurationError(f"account must be a name without a colon: ledgers store it as {gateway}:NAME")
    return name


def _is_visible_ascii(text: str) -> bool:
    return all("!" <= character <= "~" for character in text)


def is_loopback(host: str) -> bool:
    """Return whether a host name or address is this machine: localhost, 127.0.0.0/8 or ::1."""
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
    """Return the given settings, completed from the environment; or the error in the environment."""
    settings = given
    if "api_key" not in settings:
        if not (key := environ_value(environ, kind.key_variable)):
            state = "empty" if kind.key_variable in environ else "not set"
            return ConfigurationError(
                f"{kind.key_variable} is {state}: it holds the API key of {kind.title}, which its website issues; to"
                f" try it without a key, run `{command_line('demo')}`, or pass --gateway emulator to a command"
            )
        settings["api_key"] = key
    if "base_url" not in settings and (url := environ_value(environ, BASE_URL_VARIABLE)):
        settings["base_url"] = url
    if "expected_job_s" not in settings and (seconds := environ_value(environ, EXPECTED_JOB_VARIABLE)):
        try:
            settings["expected_job_s"] = float(seconds)
        except ValueError:
            return ConfigurationError(f"{EXPECTED_JOB_VARIABLE} must be a number of seconds")
    if "account" not in settings and (account := environ_value(environ, ACCOUNT_VARIABLE)):
        settings["account"] = account
    if "allow_http" not in settings and (word := environ_value(environ, ALLOW_HTTP_VARIABLE).lower()):
        if word not in _SWITCH_WORDS:
            return ConfigurationError(f"{ALLOW_HTTP_VARIABLE} must be 1 or 0")
        settings["allow_http"] = _SWITCH_WORDS[word]
    return _check_key_and_url(kind, settings, f"allow_http=True or {ALLOW_HTTP_VARIABLE}=1") or settings


def environ_value(environ: Mapping[str, str], name: str) -> str:
    """Return a variable without surrounding spaces; empty if it is not set."""
    value = environ.get(name, "")
    return value.strip() if isinstance(value, str) else ""


def _with_sealed_secrets(init: Callable[..., None]) -> Callable[..., None]:
    """Return an `__init__` that wraps the secret settings before it calls the one that attrs generated.

    The frame of the generated `__init__` is in the traceback of every refused setting. It must hold no key in clear.
    """

    @functools.wraps(init)
    def checked(self: "GatewaySettings", *args: Any, **settings: Any) -> None:
        problem = _argument_error(type(self), args, settings) or _check_key_and_url(type(self), settings)
        if problem is not None:
            del args  # it may hold the key, as the settings do
            settings.clear()
            raise problem
        init(self, **settings)

    return checked


def _argument_error(
    kind: "type[GatewaySettings]", args: tuple[Any, ...], settings: dict[str, Any]
) -> ConfigurationError | None:
    """Return the error for arguments that Python would refuse without saying what to pass."""
    known = [each.alias or each.name for each in fields(kind) if each.init]
    if args:
        return ConfigurationError(f'pass the settings of {kind.__name__} by name, as in {kind.__name__}(api_key="...")')
    if unknown := [name for name in settings if name not in known]:
        return ConfigurationError(f"{kind.__name__}: {unknown_fields(unknown, known)}")
    if "api_key" not in settings:
        return to_secret("", kind.title, kind.key_variable)  # type: ignore[return-value]
    return None


def _check_key_and_url(
    kind: "type[GatewaySettings]", settings: dict[str, Any], permission: str = "allow_http=True"
) -> ConfigurationError | None:
    """Replace the key and the URL in the settings by checked ones; return the error if one is refused."""
    checks: dict[str, Callable[[object], object]] = {
        "api_key": lambda key: to_secret(key, kind.title, kind.key_variable),
        "base_url": lambda url: validate_base_url(
            url, allow_http=settings.get("allow_http") is True, permission=permission
        ),
    }
    for name, check in checks.items():
        if name in settings:
            checked = settings[name] = check(settings[name])
            if isinstance(checked, ConfigurationError):
                return checked
    return None


@frozen(kw_only=True, repr=False)
class GatewaySettings:
    """The base class of the gateways. A subclass sets its names, its defaults and the variable of its key."""

    short_name: ClassVar[str]
    title: ClassVar[str]
    key_variable: ClassVar[str]
    credits_per_image: ClassVar[Decimal]

    # A private field with a property: pyright takes a field with a converter for a descriptor, and that does not match
    # the protocol.
    _api_key: Secret = field(alias="api_key", repr=False, converter=_as_secret)
    base_url: str
    """https, or http to this machine; no credentials, query or fragment."""
    allow_http: bool = field(default=False, validator=validate_switch)
    """Whether `base_url` may be http to another machine: the API key and all requests then travel in clear text."""
    model: str
    """The model of requests that name none."""
    expected_job_s: float = field(default=20.0, validator=within(above=0))
    """The first guess of a job's duration."""
    slots_per_image: bool = field(default=False, validator=validate_switch)
    """Whether the account's limit counts images: a request for n images then takes n job slots."""
    account_name: str = field(default="", alias="account")
    """A name for the account, passed as `account`. With it, jobs in a ledger survive a change of API key."""

    @classmethod
    def __attrs_init_subclass__(cls) -> None:
        cls.__init__ = _with_sealed_secrets(cls.__init__)  # type: ignore[method-assign]

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "model", validate_model(self.model))
        object.__setattr__(self, "account_name", validate_account(self.account_name, self.name, self._api_key))

    def __repr__(self) -> str:
        # attrs' own repr raises for a half-initialised gateway, and tracebacks of refused settings show such gateways.
        known = (f"{each.name}={getattr(self, each.name, '...')!r}" for each in fields(type(self)) if each.repr)
        return f"{type(self).__name__}({', '.join(known)})"

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, **settings: Any) -> Self:
        """Return the gateway with the API key, base URL, account and expected duration of the environment.

        Settings that are passed override the environment. Raises `ConfigurationError`, which names a missing or invalid
        variable.
        """
        found = settings_in(os.environ if environ is None else environ, cls, **settings)
        del environ, settings  # they hold the API key, and some tools show the locals of a traceback
        if isinstance(found, ConfigurationError):
            raise found
        return cls(**found)

    @property
    def api_key(self) -> Secret:
        """The API key, masked in every repr and string."""
        return self._api_key

    @property
    def name(self) -> str:
        """A short name that never changes, since ledgers store it."""
        return self.short_name

    @property
    def account(self) -> str:
        """The account as ledgers store it: its name, or a fingerprint of the API key."""
        if self.account_name:
            return named_account(self.name, self.account_name)
        return account_fingerprint(self.name, self.api_key.reveal())

    def slots_for(self, request: ImageRequest) -> int:
        """Return how many job slots of the account the request takes."""
        return request.num_images if self.slots_per_image else 1

    def price_class(self, request: ImageRequest) -> str:
        """Return the class of the request: requests of one class cost the same and take about as long."""
        size, extra = request.resolution or "default", request.extra
        # Not all of `extra`: with a class for each seed, no price and no duration would be learned.
        more = "".join(f"/{name}={extra[name]}"[:40] for name in PRICED_EXTRA if name in extra) if extra else ""
        return f"{self.name}/{request.model or self.model}/{task_type(request)}/{size}/{request.num_images}{more}"

    def example_credits(self, request: ImageRequest) -> Decimal:
        """Return the cost by the example of the gateway's reference: an estimate until the gateway states a price."""
        return self.credits_per_image * request.num_images


_FIELDS = ("model", "prompt", "images", "num_images", "aspect_ratio", "resolution", "output_format", "callback_url")
_RESERVED_EXTRA_NAMES = dict(zip(_FIELDS, _FIELDS, strict=True)) | {
    **{"type": "task_type", "task_type": "task_type", "image_urls": "images"}
}
"""The names that `extra` can't have, and the field of a request for each."""


def task_type(request: ImageRequest) -> TaskType:
    """Return the task type: the given one, or the one that the presence of images implies."""
    return request.task_type or ("image-to-image" if request.images else "text-to-image")


def check_extra(request: ImageRequest, taken_as_extra: Collection[str] = ()) -> None:
    """Raise `InvalidRequest` if `extra` has a name that a field of the request stands for, on any gateway.

    Case and surrounding spaces do not matter. `taken_as_extra` are fields that the gateway takes in `extra` only.
    """
    for name in request.extra:
        folded = name.strip().casefold()
        if (field_name := _RESERVED_EXTRA_NAMES.get(folded)) is not None and folded not in taken_as_extra:
            raise InvalidRequest(f"pass {field_name}=..., not extra={{{name!r}: ...}}")


def unsupported_field_error(gateway: GatewaySettings, field_name: str, why: str = "") -> InvalidRequest:
    """Return the error for a field that this gateway does not take."""
    return InvalidRequest(f"{gateway.title} does not take {field_name}{why}")

"""The headers of image downloads."""

from collections.abc import Mapping

from nanobanana_async._version import __version__
from nanobanana_async.errors import ConfigurationError
from nanobanana_async.escaping import as_plain_str
from nanobanana_async.validators import shown

# Some hosts answer 403 to the usual names of HTTP libraries, and let this form pass.
_DEFAULTS = {
    "User-Agent": f"Mozilla/5.0 (compatible; nanobanana-async/{__version__})",
    "Accept": "image/png,image/jpeg,image/*;q=0.9,*/*;q=0.8",
}
_CREDENTIALS = frozenset({"authorization", "cookie", "proxy-authorization"})
_CONNECTION = frozenset(
    {"accept-encoding", "connection", "content-length", "host", "range", "te", "transfer-encoding", "upgrade"}
)


def download_headers(given: Mapping[str, str] | None) -> dict[str, str]:
    """Return the headers that downloads send; raise `ConfigurationError` for a header that must not be set."""
    headers = dict(_DEFAULTS)
    if given is not None and not isinstance(given, Mapping):
        raise ConfigurationError(f"download_headers must map names to values, not be {shown(given)}")
    for name, value in (given or {}).items():
        if not isinstance(name, str) or not name.isascii() or not name.replace("-", "").isalnum():
            raise ConfigurationError(f"download_headers: {shown(name)} is not the name of a header")
        if not isinstance(value, str) or not value.isprintable() or not value.isascii():
            raise ConfigurationError(f"download_headers: the value of {name} must be printable ASCII text")
        if name.lower() in _CREDENTIALS:
            raise ConfigurationError(f"download_headers: {name} is not sent, because any host may serve an image")
        if name.lower() in _CONNECTION:
            raise ConfigurationError(f"download_headers: {name} is set by the library")
        replaced = next((known for known in headers if known.lower() == name.lower()), name)
        headers[as_plain_str(replaced)] = as_plain_str(value)
    return headers

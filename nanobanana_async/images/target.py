"""Where images are saved: a folder, or a prefix of an object store. `as_target` reads what users pass for it.

`store_of` finds the store of a reference image.

`obstore` (the extra `store`) is imported only when a store is used.
"""

import functools
import hashlib
import os
import re
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

from nanobanana_async.errors import ConfigurationError
from nanobanana_async.escaping import as_plain_str
from nanobanana_async.images.object_store import ObjectStore, StoreUrl
from nanobanana_async.references import STORE_SCHEMES, StoreObject, is_store, path_of_file_url, scheme_of
from nanobanana_async.validators import as_folder, kind_of, shown

_VARIABLES = ("AWS_", "GOOGLE_", "AZURE_")
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_UNREAD = re.compile(r'failed to parse "(.*?)" as ')  # what obstore says about a value
_MAX_PREFIX = 600  # with the name below the 1,024 bytes of S3
_EXTRA_HINT = "needs the extra `store`: pip install 'nanobanana-async[store]'"
_memory_stores: dict[str, ObjectStore] = {}


Target = Path | StoreUrl

SaveTarget = str | os.PathLike[str] | ObjectStore | tuple[ObjectStore, str] | StoreUrl
"""What users pass for a target: a path, a URL, an obstore store, or one with a prefix."""


def as_target(name: str, value: object) -> Target:
    """Return where images are to be saved: a folder, or a prefix of an object store.

    Takes a path, a URL of a store, an obstore store, or a store and a prefix. Raises `ConfigurationError`.
    """
    if isinstance(value, StoreUrl):
        return value
    value = as_plain_str(value)
    if isinstance(value, str) and (path := path_of_file_url(value)) is not None:
        return as_image_folder(name, path)
    if isinstance(value, str) and (scheme := scheme_of(value)) in STORE_SCHEMES:
        return _target_of_url(name, value, scheme)
    if isinstance(value, tuple) and len(value) == 2:
        if not isinstance(value[1], str):
            raise ConfigurationError(f"{name}: the prefix in a store must be text, not {kind_of(value[1])}")
        return _target_of_store(name, value[0], as_plain_str(value[1]))
    if is_store(value):
        return _target_of_store(name, value, "")
    if isinstance(value, str) and "://" in value:
        if value[:7].lower() == "file://":
            raise ConfigurationError(f"{name}: the URL of a folder has its whole path, as in file:///srv/images")
        known = ", ".join(f"{scheme}://" for scheme in STORE_SCHEMES if scheme != "memory")  # that is for tests
        raise ConfigurationError(
            f"{name} must be the path of a folder or the URL of an object store ({known}), not a URL"
            f" that begins with {value.partition('://')[0][:20]}://"
        )
    return as_image_folder(name, value)


def as_image_folder(name: str, value: object) -> Path:
    """Return a folder for images; raise `ConfigurationError` as `as_folder` does, and for the name of an image.

    A folder that exists may have such a name.
    """
    folder = as_folder(name, value)
    if folder.suffix.lower() in _IMAGE_SUFFIXES and not os.path.lexists(folder):
        meant = "images" if folder.parent == Path() else folder.parent
        raise ConfigurationError(
            f"{name}: {shown(str(folder))} names a folder, and looks like an image: pass a folder, such as {meant}"
        )
    return folder


def store_of(found: StoreObject) -> StoreUrl:
    """Return the store of an object: its methods take the object's path. Raises `ConfigurationError`."""
    name = f"reference image {found}"
    if found.store is not None:
        return _target_of_store(name, found.store, "")
    return _target_of_url(name, found.root, found.root.partition("://")[0])


def _target_of_url(name: str, url: str, scheme: str) -> StoreUrl:
    _require_obstore(f"{name} is in an object store, which")
    root, _, path = url.partition("://")[2].partition("/")
    if set(url) & set("?#") or set(root) & set("@:"):
        # Not shown: the rest of such a URL may be a signature or a password.
        raise ConfigurationError(
            f"{name}: a URL of a store is {scheme}://bucket/prefix and nothing more: credentials come from the"
            " environment (AWS_*, GOOGLE_*, AZURE_*)"
        )
    if not root and scheme != "memory":
        raise ConfigurationError(f"{name}: {url[:60]!r} names no bucket: {scheme}://bucket/prefix")
    prefix = _prefix(name, path)
    base = f"{scheme}://{root}"
    return StoreUrl(f"{base}/{prefix}" if prefix else base, _open_store(name, base, scheme), prefix)


def _open_store(name: str, base: str, scheme: str) -> ObjectStore:
    from obstore.store import MemoryStore

    if scheme == "memory":
        return _memory_stores.setdefault(base, MemoryStore())
    try:
        return _store_of(base, _environment_digest())
    except Exception as error:
        account = " (AZURE_STORAGE_ACCOUNT_NAME)" if "Account must be" in str(error) else ""
        unread = _variables_with(found[1]) if (found := _UNREAD.search(str(error))) else ""
    if unread:
        raise ConfigurationError(f"{name}: the store {base} can't be opened: correct or unset {unread}")
    raise ConfigurationError(
        f"{name}: the store {base} can't be opened: set the account and credentials of the store in its environment"
        f" variables{account}"
    )


def _variables_with(value: str) -> str:
    """Return the names of the settings of stores that have this value."""
    return " or ".join(sorted(key for key in os.environ if key.startswith(_VARIABLES) and os.environ[key] == value))


def _environment_digest() -> str:
    """Return a digest of the settings of stores: no frame of a traceback may hold the settings themselves."""
    settings = sorted(f"{key}={value}" for key, value in os.environ.items() if key.upper().startswith(_VARIABLES))
    return hashlib.sha256("\0".join(settings).encode("utf-8", "surrogateescape")).hexdigest()


@functools.lru_cache(maxsize=16)
def _store_of(base: str, _environment_digest: str) -> ObjectStore:
    """Return a store, which keeps its connections: the same one as long as its environment is the same."""
    from obstore.store import from_url

    # No `client_options`: they would replace those of the environment, such as AWS_ALLOW_HTTP.
    return from_url(base, retry_config={"max_retries": 5, "retry_timeout": timedelta(seconds=60)})


def _target_of_store(name: str, store: object, prefix: str) -> StoreUrl:
    _require_obstore(f"{name} is an object store, which")
    from obstore import store as stores

    kinds = (stores.S3Store, stores.GCSStore, stores.AzureStore, stores.LocalStore, stores.MemoryStore)
    if not isinstance(store, kinds):
        raise ConfigurationError(
            f"{name} must be a folder, the URL of an object store, or an S3Store, GCSStore, AzureStore, LocalStore or"
            f" MemoryStore of obstore, not {kind_of(store)}"
        )
    url, prefix = _url_of_store(store), _prefix(name, prefix)
    return StoreUrl(f"{url}/{prefix}" if prefix else url, cast(ObjectStore, store), prefix)


def _url_of_store(store: Any) -> str:
    from obstore import store as stores

    if isinstance(store, stores.MemoryStore):
        return "memory://"
    if isinstance(store, stores.LocalStore):
        return Path(store.prefix or "/").absolute().as_uri().removesuffix("/")
    scheme = "s3" if isinstance(store, stores.S3Store) else "gs" if isinstance(store, stores.GCSStore) else "az"
    bucket = store.config.get("container_name" if scheme == "az" else "bucket", "")
    prefix = str(store.prefix or "").strip("/")
    return f"{scheme}://{bucket}/{prefix}" if prefix else f"{scheme}://{bucket}"


def _prefix(name: str, path: str) -> str:
    prefix = path.strip("/")
    parts = prefix.split("/") if prefix else []
    if any(part in ("", ".", "..") for part in parts) or not prefix.isprintable():
        raise ConfigurationError(
            f"{name}: the prefix {prefix[:60]!r} can't be used: its parts must not be empty, . or .., and every"
            " character must be printable"
        )
    if len(prefix.encode()) > _MAX_PREFIX:
        raise ConfigurationError(f"{name}: the prefix is longer than {_MAX_PREFIX} bytes")
    return prefix


def _require_obstore(what: str) -> None:
    try:
        import obstore  # noqa: F401
    except ImportError:
        raise ConfigurationError(f"{what} {_EXTRA_HINT}") from None

"""Reference images: what a request may name, and by what each is recognised.

A local image is recognised by its content, wherever it lies, in an object store too: a request that is registered names
it `sha256:<hex>`. An image on the web is recognised by its URL, without what a signature adds to it.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
from urllib.parse import unquote, urlsplit

from attrs import field, frozen

from nanobanana_async.errors import InvalidRequest
from nanobanana_async.escaping import as_plain_str, escape_exactly

_LONGEST_PATH = 80  # in a message
STORE_SCHEMES = ("s3", "gs", "az", "memory")
_URL = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)", re.IGNORECASE | re.DOTALL)
_MAX_PATH_BYTES = 1024  # of S3; the other stores take no more
_SEVERAL_URLS = re.compile(r"[,;](?:https?://|$)")
_STORED = re.compile(r"sha256:([0-9a-f]{64})")

_HEX = r"[0-9a-f]{32,}"
_BASE64 = r"[\w+/~-]{20,}=*"  # of CloudFront and of URLs too
_SECONDS = r"\d{9,11}"
_WORD = r"\S+"


@frozen(kw_only=True)
class _SignatureScheme:
    """A way to sign URLs, in lower case. A URL is signed so only if all that the scheme needs is there, in its form.

    Otherwise URLs of different images that merely look signed would be taken for one image.
    """

    needs: Mapping[str, str]
    """Parameters, and the pattern of their values."""
    needs_one_of: Mapping[str, str] = field(factory=dict)
    more: str = ""
    """Other parameters that change with each signature."""

    def changing_parameters(self, values: Mapping[str, str]) -> frozenset[str]:
        """Return the parameters that change with each signature; none if the URL is not signed so."""

        def fits(name: str, pattern: str) -> bool:
            return name in values and re.fullmatch(pattern, values[name], re.IGNORECASE) is not None

        signed = all(fits(*each) for each in self.needs.items())
        if self.needs_one_of:
            signed = signed and any(fits(*each) for each in self.needs_one_of.items())
        return frozenset((*self.needs, *self.needs_one_of, *self.more.split())) if signed else frozenset()


_SIGNATURE_SCHEMES = (
    _SignatureScheme(  # AWS, version 4
        needs={"x-amz-algorithm": r"AWS4-\S+", "x-amz-credential": _WORD, "x-amz-signature": _HEX},
        more="x-amz-date x-amz-expires x-amz-signedheaders x-amz-security-token x-amz-content-sha256",
    ),
    _SignatureScheme(  # AWS, version 2
        needs={"awsaccesskeyid": _WORD, "expires": _SECONDS, "signature": _BASE64}, more="x-amz-security-token"
    ),
    _SignatureScheme(  # Google Cloud Storage, version 4
        needs={"x-goog-algorithm": r"GOOG4-\S+", "x-goog-credential": _WORD, "x-goog-signature": _HEX},
        more="x-goog-date x-goog-expires x-goog-signedheaders",
    ),
    _SignatureScheme(  # Google Cloud Storage, version 2
        needs={"googleaccessid": r"\S+@\S+", "expires": _SECONDS, "signature": _BASE64}
    ),
    _SignatureScheme(  # Azure: shared access signatures of accounts, services and users
        needs={"sig": _BASE64, "sv": r"\d{4}-\d\d-\d\d"},
        needs_one_of={"se": r"\d{4}-\d\d-\d\d\S*", "si": _WORD},
        more="ss srt sp st spr sip sr ses sdd scid skoid sktid skt ske sks skv saoid suoid",
    ),
    _SignatureScheme(  # CloudFront
        needs={"key-pair-id": r"\w{8,}", "signature": _BASE64},
        needs_one_of={"expires": _SECONDS, "policy": r"[\w+/~=-]{20,}"},
        more="hash-algorithm",
    ),
    _SignatureScheme(  # Aliyun OSS, version 1
        needs={"ossaccesskeyid": _WORD, "expires": _SECONDS, "signature": _BASE64}, more="security-token"
    ),
    _SignatureScheme(  # Aliyun OSS, version 4
        needs={"x-oss-signature-version": r"OSS4-\S+", "x-oss-credential": _WORD, "x-oss-signature": _HEX},
        more="x-oss-date x-oss-expires x-oss-additional-headers x-oss-security-token",
    ),
    _SignatureScheme(  # Tencent COS
        needs={"q-sign-algorithm": "sha1", "q-ak": _WORD, "q-sign-time": r"\d+;\d+", "q-signature": _HEX},
        more="q-key-time q-header-list q-url-param-list x-cos-security-token",
    ),
)


@frozen(weakref_slot=False)
class StoreObject:
    """An object in an object store: in the one that its URL names, or in a store of obstore's."""

    root: str
    """The URL of its store, such as `s3://bucket`; the kind of a store that was passed."""
    path: str
    store: Any = field(default=None, repr=False, eq=id)

    def __str__(self) -> str:
        return f"{self.root}/{self.path}" if self.store is None else f"{self.path} in {self.root}"


@frozen(weakref_slot=False)
class LocalImage:
    """A reference image that this machine reads when its request is registered.

    A file, bytes, a data URI, or an object in a store.
    """

    source: Path | bytes | str | StoreObject = field(repr=False)

    def __repr__(self) -> str:
        return f"<LocalImage {self}>"

    def __str__(self) -> str:
        match self.source:
            case Path():
                return escape_exactly(str(self.source))
            case bytes():
                return f"an image of {len(self.source)} bytes"
            case StoreObject():
                return escape_exactly(str(self.source))
            case _:
                return f"a data URI of {len(self.source)} characters"

    @property
    def name(self) -> str:
        """The name of its file or object; empty if it has none."""
        match self.source:
            case Path():
                return self.source.name
            case StoreObject():
                return self.source.path.rpartition("/")[2]
            case _:
                return ""


@runtime_checkable
class ReferencePublisher(Protocol):
    """Makes local reference images available to a gateway that does not store them: `Session(references=...)`."""

    async def publish(self, content: bytes, digest: str) -> str:
        """Return the http(s) URL of the content, whose SHA-256 in hex is `digest`. Equal content may come again."""
        ...


def to_reference(image: object) -> object:
    """Return a local image for a path, bytes, a data URI or an object in a store; any other value as it is.

    Raises `InvalidRequest` for a URL of a store that names no object.
    """
    match image:
        case bytes() | bytearray() | memoryview():
            return LocalImage(bytes(image))
        case os.PathLike():
            return LocalImage(Path(os.fsdecode(image)))
        case str() if image[:5].lower() == "data:":
            return LocalImage(as_plain_str(image))
        case str() if scheme_of(image) in STORE_SCHEMES:
            return LocalImage(_object_of_url(as_plain_str(image)))
        case (store, str(path)) if is_store(store):
            kind, path = type(store).__name__, as_plain_str(path)
            return LocalImage(StoreObject(kind, _object_path(path, f"{path[:80]!r} in {kind}"), store))
        case (store, *_) | store if is_store(store):
            raise InvalidRequest(
                f"images: for an object in a store pass the store and a path: ({type(store).__name__}, 'cat.png')"
            )
        case _:
            return as_plain_str(image)


def is_store(value: object) -> bool:
    """Return whether a value is an object of obstore, which is not imported for this."""
    return any(kind.__module__.partition(".")[0] == "obstore" for kind in type(value).__mro__)


def scheme_of(text: str) -> str:
    """Return the scheme of a URL in lower case; nothing for a text that is none."""
    found = _URL.match(text)
    return "" if found is None else found[1].lower()


def _object_of_url(url: str) -> StoreObject:
    scheme, _, rest = url.partition("://")
    scheme, (bucket, _, path) = scheme.lower(), rest.partition("/")
    if set(url) & set("?#") or set(bucket) & set("@:"):
        # Not shown: the rest of such a URL may be a signature or a password.
        raise InvalidRequest(
            f"reference image: a URL of an object is {scheme}://bucket/path and nothing more: credentials come from the"
            " environment (AWS_*, GOOGLE_*, AZURE_*)"
        )
    if not bucket and scheme != "memory":
        raise InvalidRequest(f"reference image {url[:80]!r} names no bucket: {scheme}://bucket/path")
    return StoreObject(f"{scheme}://{bucket}", _object_path(path, repr(url[:80])))


def _object_path(path: str, shown: str) -> str:
    if not path or path.endswith("/"):
        raise InvalidRequest(f"reference image {shown} is a folder: name the image in it")
    if any(part in ("", ".", "..") for part in path.split("/")) or not path.isprintable():
        why = "the parts of its path must not be empty, . or .., and every character must be printable"
        raise InvalidRequest(f"reference image {shown} can't be read: {why}")
    if len(path.encode()) > _MAX_PATH_BYTES:
        raise InvalidRequest(f"reference image {shown} can't be read: its path is longer than {_MAX_PATH_BYTES} bytes")
    return path


def path_of_file_url(url: str) -> str | None:
    """Return the path that a file URL names; None for any other text."""
    if scheme_of(url) != "file" or not url.partition("://")[2].startswith("/"):
        return None
    path = unquote(urlsplit(url).path)
    return path.lstrip("/") if os.name == "nt" else path  # file:///C:/images


def text_to_reference(text: str, folder: Path) -> str | LocalImage:
    """Return the image that a person names in a file or a command: a URL, a data URI, or else a path in the folder.

    Raises `InvalidRequest` for a URL of a store that names no object.

    Only for text of the user of this machine: a web app must not read the files that its users name.
    """
    if (path := path_of_file_url(text)) is not None:
        return LocalImage(Path(path))
    if scheme_of(text) or re.match(r"(?:data:|sha256:[0-9a-f]{64}\Z)", text, re.IGNORECASE):
        read = to_reference(text)
        return read if isinstance(read, LocalImage) else text
    try:
        return LocalImage(folder / Path(text).expanduser())
    except (RuntimeError, ValueError):  # "~name" of no user, or no name: shown as missing, like any other path
        return LocalImage(folder / text)


def stored_form(digest: str) -> str:
    """Return how a registered request names a local image."""
    return f"sha256:{digest}"


def digest_of(image: object) -> str | None:
    """Return the digest of a local image in its stored form; None for any other image."""
    found = _STORED.fullmatch(image) if isinstance(image, str) else None
    return None if found is None else found[1]


def local_digests(images: Sequence[object]) -> list[str]:
    """Return the digests of the local images among these, each once."""
    if not images:
        return []
    return list(dict.fromkeys(digest for image in images if (digest := digest_of(image)) is not None))


def image_identity(image: str | LocalImage) -> str | LocalImage:
    """Return by what an image is recognised: a URL without the parameters of a signature, anything else as it is."""
    if not isinstance(image, str) or "?" not in image:
        return image
    url, mark, fragment = image.partition("#")
    start, _, query = url.partition("?")
    given = [(unquote(part.partition("=")[0]).lower(), part) for part in query.split("&")]
    values = {name: unquote(part.partition("=")[2]) for name, part in given}
    dropped = frozenset[str]().union(*(scheme.changing_parameters(values) for scheme in _SIGNATURE_SCHEMES))
    if not dropped:
        return image
    kept = "&".join(part for name, part in given if name not in dropped)
    return f"{start}?{kept}{mark}{fragment}" if kept else f"{start}{mark}{fragment}"


def describe_reference(image: str | LocalImage) -> str:
    """Return an image as people read it: a local one with the start of its digest."""
    digest = digest_of(image)
    return str(image) if digest is None else f"sha256:{digest[:12]}..."


def check_url(name: str, url: object) -> None:
    """Raise `InvalidRequest` if the value of a field is not one http or https URL."""
    try:
        fits = isinstance(url, str) and url.isprintable() and " " not in url
        parts = urlsplit(url) if fits and isinstance(url, str) else None
        fits = parts is not None and parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:  # urlsplit raises for an invalid IPv6 literal
        fits = False
    if not fits:
        if name.startswith("images") and isinstance(url, str):
            raise _no_image(name, url)
        raise InvalidRequest(f"{name} must be an http or https URL, not {str(url)[:80]!r}")
    if _SEVERAL_URLS.search(str(url)):
        raise InvalidRequest(f"{name} seems to be several URLs: give each of its own, not {str(url)[:80]!r}")


def one_text_error(text: str) -> InvalidRequest:
    """Return the error for images that are one text: what to put into the list."""
    is_path = ":" not in text and len(text) <= _LONGEST_PATH
    example = f"images=[Path({text!r})]" if is_path else 'images=["https://..."], or [Path("cat.png")]'
    return InvalidRequest(f"images must be a list of URLs or Paths, not one string: {example}")


def _no_image(name: str, text: str) -> InvalidRequest:
    """Return why a text names no reference image, and what to pass instead."""
    if (scheme := scheme_of(text)) == "file":
        return InvalidRequest(f"{name} is the URL of a file, which only the command takes: for a file pass its Path")
    if scheme and scheme not in ("http", "https"):  # the rest may hold a password
        known = ", ".join(f"{each}://" for each in STORE_SCHEMES)
        return InvalidRequest(
            f"{name} must be an http or https URL or the URL of an object in a store ({known}), not a URL that begins"
            f" with {scheme[:20]}://"
        )
    hint = f": for a file pass Path({text!r})" if ":" not in text and len(text) <= _LONGEST_PATH else ""
    return InvalidRequest(f"{name} must be an http or https URL, not {text[:80]!r}{hint}")

"""Reference images: what a request may name, and by what each is recognised.

A local image is recognised by its content, wherever it lies: a request that is registered names it `sha256:<hex>`. An
image on the web is recognised by its URL, without what a signature adds to it.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol, runtime_checkable
from urllib.parse import unquote, urlsplit

from attrs import field, frozen

from nanobanana_async.errors import InvalidRequest
from nanobanana_async.escaping import exact

_LONGEST_PATH = 80  # in a message
_SEVERAL_URLS = re.compile(r"[,;](?:https?://|$)")
_STORED = re.compile(r"sha256:([0-9a-f]{64})")

# For each scheme of signed URLs: the parameters that show it, and all that change with each signature. In lower case.
_SIGNATURES: tuple[tuple[frozenset[str], frozenset[str]], ...] = tuple(
    (frozenset(shown_by.split()), frozenset(f"{shown_by} {more}".split()))
    for shown_by, more in (
        (  # AWS, signature version 4
            "x-amz-signature",
            "x-amz-algorithm x-amz-credential x-amz-date x-amz-expires x-amz-signedheaders x-amz-security-token"
            " x-amz-content-sha256",
        ),
        ("awsaccesskeyid signature", "expires x-amz-security-token"),  # AWS, version 2
        (  # Google Cloud Storage, version 4 and version 2
            "x-goog-signature",
            "x-goog-algorithm x-goog-credential x-goog-date x-goog-expires x-goog-signedheaders",
        ),
        ("googleaccessid signature", "expires"),
        (  # Azure: shared access signatures of accounts, services and users
            "sig sv",
            "ss srt sp se st spr sip sr si ses sdd scid skoid sktid skt ske sks skv saoid suoid",
        ),
        ("key-pair-id signature", "expires policy hash-algorithm"),  # CloudFront
        ("ossaccesskeyid signature", "expires security-token"),  # Aliyun OSS, version 1 and version 4
        (
            "x-oss-signature",
            "x-oss-signature-version x-oss-credential x-oss-date x-oss-expires x-oss-additional-headers"
            " x-oss-security-token",
        ),
        (  # Tencent COS
            "q-signature",
            "q-sign-algorithm q-ak q-sign-time q-key-time q-header-list q-url-param-list x-cos-security-token",
        ),
    )
)


@frozen(weakref_slot=False)
class LocalImage:
    """A reference image of this machine: a file, bytes, or a data URI. It is read when its request is registered."""

    source: Path | bytes | str = field(repr=False)

    def __repr__(self) -> str:
        return f"<LocalImage {self}>"

    def __str__(self) -> str:
        match self.source:
            case Path():
                return exact(str(self.source))
            case bytes():
                return f"an image of {len(self.source)} bytes"
            case _:
                return f"a data URI of {len(self.source)} characters"

    @property
    def name(self) -> str:
        """The name of its file; empty if it has none."""
        return self.source.name if isinstance(self.source, Path) else ""


@runtime_checkable
class ReferencePublisher(Protocol):
    """Makes local reference images available to a gateway that does not store them: `Session(references=...)`."""

    async def publish(self, content: bytes, digest: str) -> str:
        """Return the http(s) URL of the content, whose SHA-256 in hex is `digest`. Equal content may come again."""
        ...


def to_reference(image: object) -> object:
    """Return a local image for a path, bytes or a data URI; any other value as it is."""
    match image:
        case bytes() | bytearray() | memoryview():
            return LocalImage(bytes(image))
        case os.PathLike():
            return LocalImage(Path(os.fsdecode(image)))
        case str() if image[:5].lower() == "data:":
            return LocalImage(image)
        case _:
            return image


def text_to_reference(text: str, folder: Path) -> str | LocalImage:
    """Return the image that a person names in a file or a command: a URL, a data URI, or else a path in the folder.

    Only for text of the user of this machine: a web app must not read the files that its users name.
    """
    if re.match(r"(?:https?://|data:|sha256:[0-9a-f]{64}\Z)", text, re.IGNORECASE):
        return LocalImage(text) if text[:5].lower() == "data:" else text
    try:
        return LocalImage(folder / Path(text).expanduser())
    except RuntimeError:  # "~name" of no user: it is shown as missing, like any other path
        return LocalImage(folder / text)


def stored_form(digest: str) -> str:
    """Return how a registered request names a local image."""
    return f"sha256:{digest}"


def digest_of(image: object) -> str | None:
    """Return the digest of a local image in its stored form; None for any other image."""
    found = _STORED.fullmatch(image) if isinstance(image, str) else None
    return None if found is None else found[1]


def local_digests(images: Iterable[object]) -> list[str]:
    """Return the digests of the local images among these, each once."""
    return list(dict.fromkeys(digest for image in images if (digest := digest_of(image)) is not None))


def identity(image: str | LocalImage) -> str | LocalImage:
    """Return by what an image is recognised: a URL without the parameters of a signature, anything else as it is."""
    if not isinstance(image, str) or "?" not in image:
        return image
    url, mark, fragment = image.partition("#")
    start, _, query = url.partition("?")
    given = [(unquote(part.partition("=")[0]).lower(), part) for part in query.split("&")]
    names = {name for name, _ in given}
    dropped = frozenset[str]().union(*(changing for shown_by, changing in _SIGNATURES if shown_by <= names))
    if not dropped:
        return image
    kept = "&".join(part for name, part in given if name not in dropped)
    return f"{start}?{kept}{mark}{fragment}" if kept else f"{start}{mark}{fragment}"


def for_people(image: str | LocalImage) -> str:
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
        is_path = name.startswith("images") and isinstance(url, str) and ":" not in url and len(url) <= _LONGEST_PATH
        hint = f": for a file pass Path({url!r})" if is_path else ""
        raise InvalidRequest(f"{name} must be an http or https URL, not {str(url)[:80]!r}{hint}")
    if _SEVERAL_URLS.search(str(url)):
        raise InvalidRequest(f"{name} seems to be several URLs: give each of its own, not {str(url)[:80]!r}")

"""Stored files: where they lie, the PUT to a pre-signed URL, and their public URLs."""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from attrs import define

from nanobanana_async.emulator.addresses import is_loopback
from nanobanana_async.emulator.bodies import Content
from nanobanana_async.emulator.messages import EmulatedRequest, EmulatedResponse

PUBLIC_PREFIX = "/files/"
PUT_PREFIX = "/storage/"
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_PLAIN: Mapping[str, str] = {"Content-Type": "text/plain"}
_XML: Mapping[str, str] = {"Content-Type": "application/xml"}


@define(eq=False)
class StoredFile:
    """A place for one file. It has no content until the file is there."""

    key: str
    content_type: str
    size: int
    signature: str = ""
    expires_at: float = 0.0
    content: Content | None = None


class FileStore:
    """The files of the account. Equal contents are kept once."""

    def __init__(self, seed: str) -> None:
        self._seed = seed
        self._files: dict[str, StoredFile] = {}
        self._contents: dict[str, Content] = {}
        self.times_stored: Counter[str] = Counter()  # by SHA-256
        self.bytes_stored = 0

    def reserve(self, filename: str, content_type: str, size: int) -> StoredFile:
        """Return a new place, with a key that cannot be guessed."""
        source = f"{self._seed} file {len(self._files)}".encode()
        key = hashlib.blake2b(source, digest_size=16).hexdigest() + _suffix(filename)
        signature = hashlib.blake2b(source, digest_size=32).hexdigest()
        self._files[key] = StoredFile(key, content_type, size, signature)
        return self._files[key]

    def fill(self, file: StoredFile, content: Content) -> None:
        """Store a file, and count it."""
        file.content = self._contents.setdefault(content.sha256, content)
        self.times_stored[content.sha256] += 1
        self.bytes_stored += len(content.data)

    def find(self, key: str) -> StoredFile | None:
        """Return a place by its key."""
        return self._files.get(key)

    def find_by_url(self, url: str, base_url: str) -> tuple[bool, Content | None]:
        """Return whether a URL is one of stored files here, and the file that it names."""
        parts = urlsplit(url)
        here = parts.netloc == urlsplit(base_url).netloc or is_loopback(url)
        if not here or not parts.path.startswith(PUBLIC_PREFIX):
            return False, None
        file = self.find(parts.path[len(PUBLIC_PREFIX) :])
        return True, None if file is None else file.content

    def missing_among(self, urls: Sequence[str | None], base_url: str) -> str | None:
        """Return the first URL of a stored file that is not there."""
        return next((url for url in urls if url and self.find_by_url(url, base_url) == (True, None)), None)


def public_url(file: StoredFile, base_url: str) -> str:
    """Return where a stored file can be read without a key."""
    return f"{base_url}{PUBLIC_PREFIX}{file.key}"


def put_url(file: StoredFile, base_url: str) -> str:
    """Return the pre-signed URL of a place."""
    return f"{base_url}{PUT_PREFIX}{file.key}?X-Amz-SignedHeaders=content-type&X-Amz-Signature={file.signature}"


def put(store: FileStore, now: float, request: EmulatedRequest, headers: Mapping[str, str]) -> EmulatedResponse:
    """Return the response of the storage to a PUT. The caller counts an Authorization header as a leak."""
    file = store.find(request.path[len(PUT_PREFIX) :])
    if "authorization" in headers:
        return _xml_error(400, "InvalidArgument", "Only one auth mechanism allowed")
    if file is None or not file.signature or request.query.get("X-Amz-Signature") != file.signature:
        return _xml_error(403, "SignatureDoesNotMatch", "The request signature does not match")
    if file.expires_at <= now:
        return _xml_error(403, "AccessDenied", "Request has expired")
    if headers.get("content-type", "") != file.content_type:
        return _xml_error(403, "SignatureDoesNotMatch", f"Content-Type must be {file.content_type}")
    if len(request.body) != file.size:
        return _xml_error(400, "IncompleteBody", f"The body must have {file.size} bytes")
    store.fill(file, request.content)
    return EmulatedResponse(200, {"ETag": f'"{request.content.sha256[:32]}"'}, b"")


def serve_file(store: FileStore, request: EmulatedRequest, headers: Mapping[str, str]) -> EmulatedResponse:
    """Return a stored file, or the part that Range asks for."""
    file = store.find(request.path[len(PUBLIC_PREFIX) :])
    if file is None or file.content is None:
        return EmulatedResponse(404, _PLAIN, b"no such file")
    data = file.content.data
    headers_out = {"Content-Type": file.content_type, "Accept-Ranges": "bytes"}
    asked = _RANGE.fullmatch(headers.get("range", ""))
    if asked is None or asked.groups() == ("", ""):
        return EmulatedResponse(200, headers_out, data)
    first, last = asked.groups()
    begin = int(first) if first else max(0, len(data) - int(last))
    end = min(int(last) + 1, len(data)) if first and last else len(data)
    if begin >= end:
        return EmulatedResponse(416, {**_PLAIN, "Content-Range": f"bytes */{len(data)}"}, b"")
    headers_out["Content-Range"] = f"bytes {begin}-{end - 1}/{len(data)}"
    return EmulatedResponse(206, headers_out, data[begin:end])


def _suffix(filename: str) -> str:
    suffix = PurePosixPath(filename).suffix.lower()
    return suffix if re.fullmatch(r"\.[a-z0-9]{1,8}", suffix) else ""


def _xml_error(status: int, code: str, message: str) -> EmulatedResponse:
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>'
    return EmulatedResponse(status, _XML, body.encode())

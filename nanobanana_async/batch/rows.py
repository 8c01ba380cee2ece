"""Read the rows of a batch, and derive the idempotency key of each."""

import hashlib
import json
from array import array
from bisect import bisect_left
from collections.abc import Mapping
from typing import Any

from attrs import asdict, evolve, fields_dict, frozen

from nanobanana_async.errors import InvalidRequest
from nanobanana_async.jobs import generate_key, key_prefix, validate_key
from nanobanana_async.misspelt import unknown_fields
from nanobanana_async.models import ImageRequest

REQUEST_FIELDS = frozenset(fields_dict(ImageRequest))
ROW_FIELDS = frozenset({"key", "metadata"})


@frozen(kw_only=True)
class Row:
    """One row of the input; `error` says why it cannot be bought."""

    index: int
    key: str
    """The idempotency key of its job."""
    own_key: str | None = None
    """The `key` of the input, from which the key of a row of a named batch is derived."""
    request: ImageRequest | None = None
    metadata: Any = None
    error: InvalidRequest | None = None


RowInput = str | ImageRequest | Mapping[str, Any] | Row
"""A prompt, a request, a mapping (fields of `ImageRequest`, optionally `key` and `metadata`), or a `Row`."""


class RowReader:
    """Reads rows one by one.

    In a named batch a row's key is derived from the batch's name and the row's own `key`, or from the request and how
    often it occurred before. It never depends on the position: an inserted line must not buy the rest again.
    """

    def __init__(self, batch: str | None) -> None:
        self._prefix = None if batch is None else key_prefix(batch)
        self._count = 0
        self._seen = [array("Q") for _ in range(256)]
        """64 bits of each request's digest: in a million rows a collision occurs once in 37 million batches.

        Sorted arrays by first byte take 8 bytes per row, a tenth of a set.
        """
        self._repeats: dict[int, int] = {}

    def read(self, item: object) -> Row:
        """Return the next row: valid, or with its error."""
        index, self._count = self._count, self._count + 1
        if isinstance(item, Row):
            return evolve(item, index=index)
        own_key, metadata = None, None
        try:
            if isinstance(item, Mapping):
                own_key, metadata = item.get("key"), item.get("metadata")
            request = _to_request(item)
            key = self._key_of(request, None if own_key is None else validate_key(own_key))
            return Row(index=index, key=key, own_key=own_key, request=request, metadata=metadata)
        except InvalidRequest as error:
            return Row(index=index, key="" if own_key is None else str(own_key), metadata=metadata, error=error)

    def _key_of(self, request: ImageRequest, own_key: str | None) -> str:
        if self._prefix is None:
            return generate_key() if own_key is None else own_key
        if own_key is not None:
            return self._prefix + hashlib.sha256(f"key {own_key}".encode()).hexdigest()[:32]
        canonical = _canonical(request)
        digest = hashlib.sha256(f"request {canonical}".encode()).hexdigest()
        number = self._occurrence(int(digest[:16], 16))
        if number:
            digest = hashlib.sha256(f"repeat {number} {canonical}".encode()).hexdigest()
        return self._prefix + digest[:32]

    def _occurrence(self, digest: int) -> int:
        """Return how often this request occurred before."""
        digests = self._seen[digest >> 56]
        position = bisect_left(digests, digest)
        if position == len(digests) or digests[position] != digest:
            digests.insert(position, digest)
            return 0
        self._repeats[digest] = self._repeats.get(digest, 0) + 1
        return self._repeats[digest]


def _to_request(item: object) -> ImageRequest:
    match item:
        case ImageRequest():
            return item
        case str():
            return ImageRequest(item)
        case Mapping():
            unknown = [str(name) for name in item if name not in REQUEST_FIELDS | ROW_FIELDS]
            if unknown:
                raise InvalidRequest(unknown_fields(unknown, [*fields_dict(ImageRequest), *sorted(ROW_FIELDS)]))
            if "prompt" not in item:
                raise InvalidRequest("a row needs a prompt")
            return ImageRequest(**{name: value for name, value in item.items() if name in REQUEST_FIELDS})
        case _:
            raise InvalidRequest(f"a row is a prompt, a mapping or an ImageRequest, not {type(item).__name__}")


def _canonical(request: ImageRequest) -> str:
    """Return the request as text without default values, so that a new field does not change existing keys."""
    facts = asdict(evolve(request, callback_url=None))
    defaults = {name: field.default for name, field in fields_dict(ImageRequest).items()}
    return json.dumps({name: value for name, value in facts.items() if value != defaults[name]}, sort_keys=True)

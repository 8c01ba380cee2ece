"""Read the rows of a batch, and derive the idempotency key of each."""

import hashlib
import json
from array import array
from bisect import bisect_left
from collections.abc import AsyncIterable, Callable, Iterable, Mapping
from typing import Any

from attrs import evolve, fields_dict, frozen

from nanobanana_async.errors import ConfigurationError, InvalidRequest
from nanobanana_async.gateways.contract import Gateway
from nanobanana_async.images.local import KnownFacts, digest_local_images
from nanobanana_async.images.names import NameFacts
from nanobanana_async.keys import batch_key_prefix, generate_key, validate_key
from nanobanana_async.models import ImageRequest, to_request, without_transient_parts
from nanobanana_async.references import LocalImage
from nanobanana_async.values import is_absent, to_mapping, validate_row_key


@frozen(kw_only=True)
class Row:
    """One row of the input; `error` says why it cannot be bought."""

    index: int
    """Its position in the input; negative in a `Row` that is input: it gets the position at which it is read."""
    place: int = -1
    """Its place among the rows that this process has pulled."""
    key: str
    """The idempotency key of its job."""
    own_key: str | None = None
    """The `key` of the input, from which the key of a row of a named batch is derived."""
    request: ImageRequest | None = None
    metadata: Any = None
    error: InvalidRequest | None = None
    name: str = ""
    """The name of its images; empty if they are not saved."""


RowInput = str | ImageRequest | Mapping[str, Any] | Row
"""A prompt, a request, a mapping (fields of `ImageRequest`, optionally `key` and `metadata`), or a `Row`."""

Requests = Iterable[RowInput] | AsyncIterable[RowInput]


_DEFAULTS = {name: field.default for name, field in fields_dict(ImageRequest).items()}


class SweepRow(dict[str, Any]):
    """A row of a sweep: prompt, fields, key and metadata. Its key is its own among the rows of its sweep only."""


class RowReader:
    """Reads rows one by one.

    In a named batch a row's key is derived from the batch's name and the row's own `key`, or from the request and how
    often it occurred before. It never depends on the position: an inserted line must not buy the rest again.
    """

    def __init__(self, batch: str | None, name: Callable[[NameFacts], str] | None = None) -> None:
        self._name = name
        self._prefix = None if batch is None else batch_key_prefix(batch)
        self._validate = validate_key if batch is None else validate_row_key
        self._count = 0
        self._seen = [array("Q") for _ in range(256)]
        """64 bits of each request's digest: in a million rows a collision occurs once in 37 million batches.

        Sorted arrays by first byte take 8 bytes per row, a tenth of a set.
        """
        self._repeats: dict[int, int] = {}

    @property
    def repeated(self) -> int:
        """Number of rows without a key whose request occurred before."""
        return sum(self._repeats.values())

    def read(self, item: object) -> Row:
        """Return the next row: valid, or with its error."""
        index, self._count = self._count, self._count + 1
        if isinstance(item, Row):
            return evolve(item, index=index) if item.index < 0 else item
        own_key, metadata = None, None
        try:
            mapping = to_mapping(item)
            if mapping is not None:
                own_key, metadata = mapping.get("key"), mapping.get("metadata")
            own_key = None if is_absent(own_key) else self._validate(own_key)
            request = to_request(item, {})
            facts = NameFacts(row=index + 1, key=own_key, prompt=request.prompt, metadata=metadata)
            name = "" if self._name is None else self._name(facts)
            if self._prefix is None and isinstance(item, SweepRow):  # two sweeps may have it, for different prompts
                own_key = None
            # Without a key of its own, a row with local images gets its key when their content is known: `with_key`.
            waits = any(isinstance(image, LocalImage) for image in request.images)
            key = "" if waits and own_key is None else self._key_of(request, own_key)
            return Row(index=index, key=key, own_key=own_key, request=request, metadata=metadata, name=name)
        except (InvalidRequest, ConfigurationError) as error:
            text = None if own_key is None else str(own_key)
            invalid = InvalidRequest(error.message.replace("idempotency_key", "key"))
            return Row(index=index, key=text or "", own_key=text, metadata=metadata, error=invalid)

    def with_request_and_key(self, row: Row, request: ImageRequest) -> Row:
        """Return a row with its registered request, and with a key."""
        return evolve(row, request=request, key=row.key or self._key_of(request, None))

    def registered(self, row: Row, gateway: Gateway, known: KnownFacts) -> Row:
        """Return a row with its registered request, or with the error of a local image; reads unknown images here."""
        if row.request is None:
            return row
        try:
            return self.with_request_and_key(row, digest_local_images(row.request, gateway, known=known)[0])
        except (InvalidRequest, ConfigurationError) as error:
            return evolve(row, request=None, error=InvalidRequest(error.message))

    def _key_of(self, request: ImageRequest, own_key: str | None) -> str:
        if self._prefix is None:
            return generate_key() if own_key is None else own_key
        if own_key is not None:
            return job_key_of_row(self._prefix, own_key)
        canonical = canonical_request(request)
        digest = hashlib.sha256(f"request {canonical}".encode()).hexdigest()
        number = self._count_occurrence(int(digest[:16], 16))
        if number:
            digest = hashlib.sha256(f"repeat {number} {canonical}".encode()).hexdigest()
        return self._prefix + digest[:32]

    def _count_occurrence(self, digest: int) -> int:
        """Return how often this request occurred before."""
        digests = self._seen[digest >> 56]
        position = bisect_left(digests, digest)
        if position == len(digests) or digests[position] != digest:
            digests.insert(position, digest)
            return 0
        self._repeats[digest] = self._repeats.get(digest, 0) + 1
        return self._repeats[digest]


def job_key_of_row(batch_prefix: str, row_key: str) -> str:
    """Return the key of the job of a row with this key, in the named batch whose keys have this prefix."""
    return batch_prefix + hashlib.sha256(f"key {row_key}".encode()).hexdigest()[:32]


def canonical_request(request: ImageRequest) -> str:
    """Return the request as text without default values, so that a new field does not change existing keys."""
    if request.images or request.callback_url is not None:  # few have: making another request takes as long as the rest
        request = without_transient_parts(request)
    facts = {name: value for name, default in _DEFAULTS.items() if (value := getattr(request, name)) != default}
    if "extra" in facts:
        facts["extra"] = dict(request.extra)
    return json.dumps(facts, sort_keys=True)

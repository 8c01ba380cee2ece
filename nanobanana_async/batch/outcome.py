"""`Outcome`, the end of one row of a batch."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attrs import field, frozen

from nanobanana_async.batch.rows import Row
from nanobanana_async.errors import NanoBananaError
from nanobanana_async.handle import Job
from nanobanana_async.images.thumbnail import as_data_uri, file_thumbnail
from nanobanana_async.models import GenerationResult, ImageRequest, request_facts, result_facts, to_json_types
from nanobanana_async.notebook_html import Html, LabelledValue, card, error_box, image_gallery, note

THUMBNAIL_PIXELS = 640


@frozen(kw_only=True)
class Outcome:
    """The end of one row. With both a result and an error, its images were bought but could not be saved."""

    index: int
    """The row's position in the input, from 0."""
    key: str
    """The key of its job, for `Session.job`: in a named batch derived from the row's own `key`, or from its request.

    Empty if the row was invalid and had no key.
    """
    row_key: str | None = None
    """The `key` of the row, if it has one: `session.job(row_key, batch=...)` finds its job in a named batch."""
    request: ImageRequest | None
    """None if the row was invalid."""
    metadata: Any = None
    """The row's `metadata`."""
    job: Job | None = None
    """None if no job was stored."""
    result: GenerationResult | None = None  # None if there is none
    error: NanoBananaError | None = None  # why there is no result, or why its images are not saved
    saved: tuple[Path | str, ...] = field(default=())
    """With `save_to` its images: their paths in a folder, their URLs in an object store."""

    @property
    def row_number(self) -> int:
        """The row's number, from 1, as file names and messages have it."""
        return self.index + 1

    @property
    def ok(self) -> bool:
        """Whether there is no error."""
        return self.error is None

    def unwrap(self) -> GenerationResult:
        """Return the result, or raise the error."""
        if self.error is not None:
            raise self.error
        if self.result is None:
            raise RuntimeError(f"row {self.row_number} has neither a result nor an error")
        return self.result

    def to_dict(self) -> dict[str, Any]:
        """Return the outcome as JSON types: credits as numbers, times in ISO form, an error as its name and message."""
        error = self.error
        return {
            "index": self.index,
            "key": self.key,
            "row_key": self.row_key,
            "request": None if self.request is None else self.request.to_dict(),
            "metadata": to_json_types(self.metadata),
            "state": None if self.job is None else self.job.state.value,
            "result": None if self.result is None else self.result.to_dict(),
            "error": None if error is None else {"kind": type(error).__name__, "message": str(error)},
            "saved": [str(path) for path in self.saved],
        }

    def _repr_html_(self) -> str:
        facts: list[LabelledValue] = [("row", self.row_number)]
        shown: list[Html] = []
        if self.result is None:
            facts += [*request_facts(self.request), ("key", self.key or None)]
        else:
            facts += result_facts(self.result)
            shown.append(image_gallery(self._shown_urls(self.result)))
        if self.error is not None:
            shown.append(error_box(type(self.error).__name__, str(self.error)))
        shown.extend(note(f"saved as {path}") for path in self.saved)
        return card(None if self.request is None else self.request.prompt, facts, *shown)

    def _shown_urls(self, result: GenerationResult) -> Iterator[str]:
        """Yield each image's URL, or a thumbnail of its saved file: links expire, and inline images are large."""
        for number, image in enumerate(result.images):
            path = self.saved[number] if len(self.saved) == len(result.images) else None
            small = file_thumbnail(path, THUMBNAIL_PIXELS) if isinstance(path, Path) else None
            yield image.url if small is None else as_data_uri(small)


def outcome_of(row: Row, job: Job | None, **found: Any) -> Outcome:
    """Return the outcome of a row."""
    return Outcome(
        index=row.index,
        key=row.key,
        row_key=row.own_key,
        request=row.request,
        metadata=row.metadata,
        job=job,
        **found,
    )

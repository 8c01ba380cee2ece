"""What became of one row of a batch."""

from pathlib import Path
from typing import Any

from attrs import field, frozen

from nanobanana_async.errors import NanoBananaError
from nanobanana_async.handle import Job
from nanobanana_async.models import GenerationResult, ImageRequest, request_facts, result_facts
from nanobanana_async.notebook_html import Html, LabelledValue, card, error_box, image_gallery, note


@frozen(kw_only=True)
class Outcome:
    """One row that has ended. With both a result and an error its pictures were bought, and could not be saved."""

    index: int
    """The row's place in the input, from 0."""
    key: str
    """Its idempotency key; empty when the row was none."""
    request: ImageRequest | None
    """None when the row was none."""
    metadata: Any = None
    """What the row carried along."""
    job: Job | None = None
    """None when nothing was written down."""
    result: GenerationResult | None = None
    error: NanoBananaError | None = None
    saved: tuple[Path, ...] = field(default=())
    """Where its pictures are, with `save_to`."""

    @property
    def ok(self) -> bool:
        """Whether all went well."""
        return self.error is None

    def unwrap(self) -> GenerationResult:
        """Return the result, or raise the error."""
        if self.error is not None:
            raise self.error
        if self.result is None:
            raise RuntimeError(f"row {self.index} has neither a result nor an error")
        return self.result

    def _repr_html_(self) -> str:
        facts: list[LabelledValue] = [("row", self.index)]
        shown: list[Html] = []
        if self.result is None:
            facts += [*request_facts(self.request), ("key", self.key or None)]
        else:
            facts += result_facts(self.result)
            shown.append(image_gallery(image.url for image in self.result.images))
        if self.error is not None:
            shown.append(error_box(type(self.error).__name__, str(self.error)))
        shown.extend(note(f"saved as {path}") for path in self.saved)
        return card(None if self.request is None else self.request.prompt, facts, *shown)

"""The latest images of a batch, as a notebook shows them."""

import io
from collections import deque
from pathlib import Path

from attrs import define

from nanobanana_async.batch.outcome import Outcome
from nanobanana_async.formatting import plural
from nanobanana_async.images.inline import FetchError, decode_inline, is_inline
from nanobanana_async.images.thumbnail import as_data_uri, file_thumbnail, thumbnail
from nanobanana_async.notebook_html import Html, image_grid, note

SHOWN = 24
PIXELS = 256
MAX_KEPT_CHARS = 16_000_000
"""Of inline images that are not saved: with more, the oldest are forgotten."""
MAX_DECODED_BYTES = 64_000_000
"""Read for thumbnails in one display, which blocks the event loop: about two seconds."""
_MAX_CAPTION = 200


@define
class _GridImage:
    row: int
    caption: str
    url: str
    path: Path | None
    thumbnail_uri: str | None = None
    """Its thumbnail as a data URI, once it was shown."""

    @property
    def kept_chars(self) -> int:
        return len(self.url) if is_inline(self.url) else 0

    def make_thumbnail(self, left_bytes: int) -> int:
        """Make the thumbnail unless more than `left_bytes` would be read; return how many were."""
        try:
            size = len(self.url) if self.path is None else self.path.stat().st_size
        except OSError:
            return 0
        if self.thumbnail_uri is not None or size > left_bytes or not (self.path or is_inline(self.url)):
            return 0
        small = self._of_uri() if self.path is None else file_thumbnail(self.path, PIXELS)
        if small is not None:
            self.thumbnail_uri = as_data_uri(small)
            self.url = "" if is_inline(self.url) else self.url
        return size

    def _of_uri(self) -> bytes | None:
        try:
            return thumbnail(io.BytesIO(b"".join(decode_inline(self.url, len(self.url)))), PIXELS)
        except FetchError:
            return None


class RecentImages:
    """Keeps the last images of the outcomes that were taken: links and paths, and of inline images a limited amount."""

    def __init__(self) -> None:
        self._images: deque[_GridImage] = deque(maxlen=SHOWN)
        self._seen = 0

    def add(self, outcome: Outcome) -> None:
        """Remember the images of an outcome."""
        result = outcome.result
        if result is None:
            return
        prompt = "" if outcome.request is None else outcome.request.prompt[:_MAX_CAPTION]
        saved = outcome.saved if len(outcome.saved) == len(result.images) else [None] * len(result.images)
        for image, place in zip(result.images, saved, strict=True):
            path = place if isinstance(place, Path) else None  # an object in a store is shown by its link
            url = "" if path is not None and is_inline(image.url) else image.url
            self._images.append(_GridImage(outcome.index, f"row {outcome.row_number}: {prompt}", url, path))
            self._seen += 1
        while sum(image.kept_chars for image in self._images) > MAX_KEPT_CHARS:
            self._images.popleft()

    def html(self) -> Html:
        """Return a grid of the images in row order; images that are saved or inline are shown by thumbnails."""
        left_bytes = MAX_DECODED_BYTES
        for image in reversed(self._images):
            left_bytes -= image.make_thumbnail(left_bytes)
        shown = sorted(self._images, key=lambda image: image.row)
        grid = image_grid(
            (image.thumbnail_uri or image.url or f"saved as {image.path}", image.caption) for image in shown
        )
        if len(shown) == self._seen:
            return grid
        return Html(note(f"The last {len(shown)} of {plural(self._seen, 'image')}:") + grid)

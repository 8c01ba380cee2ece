"""Print results on stdout as they come; an stdout that can't be written stops nothing that is paid for."""

import sys
from collections.abc import Sequence

import anyio.to_thread
from rich.console import Console

from nanobanana_async import GeneratedImage, GenerationResult
from nanobanana_async.cli.streams import silence
from nanobanana_async.escaping import escape_exactly, one_line
from nanobanana_async.formatting import shorten as shorten_url


class ResultLines:
    """Prints lines for scripts on stdout, tab-separated. On a terminal they appear above the live display."""

    def __init__(self, console: Console) -> None:
        self._out = sys.stdout  # the live display redirects it to stderr
        self._console = console
        self._terminal = self._out.isatty()
        self.failure: OSError | None = None
        """Why stdout can't be written; nothing more is printed then."""

    async def print(self, *cells: str) -> None:
        """Print one line. Waits for a slow reader in a thread, so that jobs are polled meanwhile."""
        if self.failure is not None:
            return
        if self._terminal and self._console.is_terminal:
            line = one_line("  ".join(cells))
            self._console.print(line, markup=False, highlight=False, soft_wrap=True, emoji=False)
            return
        line = "\t".join(map(escape_exactly, cells))
        await anyio.to_thread.run_sync(self._print, line, abandon_on_cancel=True)

    def _print(self, line: str) -> None:
        try:
            print(line, file=self._out, flush=True)
        except OSError as error:
            self.failure = error
            silence(self._out)

    def links(self, result: GenerationResult) -> Sequence[str]:
        """Return the URLs of a result's images as they are printed."""
        return [link_of(image, terminal=self._terminal) for image in result.images]


def link_of(image: GeneratedImage, *, terminal: bool) -> str:
    """Return an image's URL; on a terminal the data of an inline image is truncated."""
    return shorten_url(image.url) if terminal and image.url[:5].lower() == "data:" else image.url


def missing_images_sentence(result: GenerationResult) -> str:
    """Return a sentence about the images that the gateway did not deliver."""
    reasons = "; ".join(f"image {index + 1}: {why}" for index, why in result.missing.items())
    return one_line(
        f"{len(result.missing)} of {len(result.images) + len(result.missing)} images are missing: {reasons}"
    )

"""Print the results of jobs as they end: images on stdout, the rest on stderr."""

import sys
from pathlib import Path

from nanobanana_async import GenerationResult, Job, JobUnfinished, NanoBananaError
from nanobanana_async.accounts import jobs_command
from nanobanana_async.cli.display import JobsDisplay
from nanobanana_async.cli.generate import link_of, missing_images
from nanobanana_async.escaping import exact


class ResultPrinter:
    """Print the results of jobs as they end: images on stdout, the rest on stderr above the display.

    With `one`, for a single job, the lines omit its key.
    """

    def __init__(self, display: JobsDisplay, *, one: bool = False) -> None:
        self.code = 0
        self._display = display
        self._one = one
        # Keep the real stdout: the live display redirects it to stderr.
        self._out = sys.stdout

    async def follow(self, job: Job) -> None:
        """Wait for the job's end and print its result or error."""
        try:
            self._print_result(await job)
        except NanoBananaError as error:
            self._print_error(job, error)

    async def accepted(self, job: Job, ledger: Path) -> None:
        """Wait until the gateway has accepted the job, and print its task id."""
        try:
            self.note(f"task {await job.accepted()}: `{jobs_command('resume', ledger)}` follows it")
        except NanoBananaError as error:
            self._print_error(job, error)

    def note(self, sentence: str) -> None:
        """Print a line on stderr."""
        self._display.print_note(sentence)

    def _print_error(self, job: Job, error: NanoBananaError) -> None:
        self.code = 1
        prefix = "" if self._one else f"{job.key}: "
        sentence = " ".join(str(error).split())
        if isinstance(error, JobUnfinished) and not error.safe_to_repeat:
            sentence = "the waiting ended before the job: `nanobanana jobs resume` continues it"
        self.note(f"nanobanana: {prefix}{sentence}")

    def _print_result(self, result: GenerationResult) -> None:
        terminal = self._out.isatty()
        for image in result.images:
            url = link_of(image, terminal=terminal)
            cells = [url] if self._one else [result.key, url]
            if terminal and self._display.console.is_terminal:
                self.note("  ".join(cells))
            else:
                print("\t".join(map(exact, cells)), file=self._out, flush=True)
        if result.missing:
            self.note(f"nanobanana: {'' if self._one else f'{result.key}: '}{missing_images(result)}")

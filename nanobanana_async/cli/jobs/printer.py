"""Print the results of jobs as they end: images on stdout, the rest on stderr."""

from pathlib import Path

from nanobanana_async import GenerationResult, Job, JobUnfinished, NanoBananaError
from nanobanana_async.accounts import jobs_command
from nanobanana_async.cli.display import JobsDisplay
from nanobanana_async.cli.result_lines import ResultLines, missing_images


class ResultPrinter:
    """Print the results of jobs as they end: images on stdout, the rest on stderr above the display.

    With `one`, for a single job, the lines omit its key.
    """

    def __init__(self, display: JobsDisplay, *, one: bool = False) -> None:
        self.code = 0
        self._display = display
        self._one = one
        self._failed = False
        self._lines = ResultLines(display.console)

    async def follow(self, job: Job) -> None:
        """Wait for the job's end and print its result or error."""
        try:
            await self._print_result(await job)
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

    async def _print_result(self, result: GenerationResult) -> None:
        for url in self._lines.links(result):
            await self._lines.print(*((url,) if self._one else (result.key, url)))
        if result.missing:
            self.note(f"nanobanana: {'' if self._one else f'{result.key}: '}{missing_images(result)}")
        if self._lines.failure is not None and not self._failed:
            self._failed, self.code = True, 1
            self.note(
                "nanobanana: standard output can't be written: the jobs are followed to their end, and"
                " `nanobanana jobs fetch KEY` prints them"
            )

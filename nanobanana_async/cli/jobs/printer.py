"""Print the results of jobs as they end: images on stdout, the rest on stderr."""

from nanobanana_async import GenerationResult, Job, JobState, JobUnfinished, NanoBananaError
from nanobanana_async.cli.display import JobsDisplay
from nanobanana_async.cli.options import in_cli_words
from nanobanana_async.cli.result_lines import ResultLines, missing_images_sentence
from nanobanana_async.commands import jobs_command, resolve_advice
from nanobanana_async.escaping import one_line
from nanobanana_async.ledger.location import Location


class ResultPrinter:
    """Print the results of jobs as they end: images on stdout, the rest on stderr above the display.

    With `one`, for a single job, the lines omit its key.
    """

    def __init__(self, display: JobsDisplay, ledger: Location, *, one: bool = False) -> None:
        self.code = 0
        self._ledger = ledger
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

    async def follow_until_accepted(self, job: Job) -> None:
        """Wait until the gateway has accepted the job, and print its task id."""
        try:
            self.note(
                f"task {await job.wait_for_task_id()}: `{jobs_command('resume', ledger=self._ledger)}` follows it"
            )
        except NanoBananaError as error:
            self._print_error(job, error)

    def note(self, sentence: str) -> None:
        """Print a line on stderr."""
        self._display.print_note(sentence)

    def _print_error(self, job: Job, error: NanoBananaError) -> None:
        self.code = 1
        prefix = "" if self._one else f"{job.key}: "
        sentence = one_line(in_cli_words(error))
        if job.state is JobState.UNCERTAIN:
            sentence = f"{one_line(in_cli_words(error.message))}: {resolve_advice(self._ledger, job.key)}"
        if isinstance(error, JobUnfinished) and not error.safe_to_repeat:
            sentence = f"the waiting ended before the job: `{jobs_command('resume', ledger=self._ledger)}` continues it"
        self.note(f"nanobanana: {prefix}{sentence}")

    async def _print_result(self, result: GenerationResult) -> None:
        for url in self._lines.links(result):
            await self._lines.print(*((url,) if self._one else (result.key, url)))
        if result.missing:
            self.note(f"nanobanana: {'' if self._one else f'{result.key}: '}{missing_images_sentence(result)}")
        if self._lines.failure is not None and not self._failed:
            self._failed, self.code = True, 1
            names = [result.key if self._one else "KEY"]
            self.note(
                "nanobanana: standard output can't be written: the jobs are followed to their end, and"
                f" `{jobs_command('fetch', ledger=self._ledger, names=names)}` prints them"
            )

"""Show progress on stderr from the session's events: a live display on a terminal, a line per job elsewhere."""

import math
from collections import Counter
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from nanobanana_async import TransportError
from nanobanana_async.cli.options import in_cli_words
from nanobanana_async.escaping import one_line
from nanobanana_async.events import BudgetUsedUp, CreateFailed, Event, GatewayUnreachable, JobStateChanged
from nanobanana_async.formatting import duration, moment
from nanobanana_async.jobs import TERMINAL_STATES, JobRecord, JobState

_WORDS = {
    JobState.PENDING: "waiting",
    JobState.SUBMITTING: "being sent",
    JobState.RUNNING: "running",
    JobState.SUCCEEDED: "done",
    JobState.FAILED: "failed",
    JobState.REFUSED: "refused",
    JobState.UNCERTAIN: "uncertain",
    JobState.WITHDRAWN: "withdrawn",
}
_ENDED = TERMINAL_STATES | {JobState.UNCERTAIN}


class LiveDisplay:
    """A context manager that shows a live display if the console is a terminal."""

    console: Console
    _live: Live

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()


class JobsDisplay(LiveDisplay):
    """The number of jobs in each state: an observer of the session, and a context manager that shows the display."""

    def __init__(self, total: int, console: Console) -> None:
        self.total = total
        self.console = console
        self.records: dict[str, JobRecord] = {}
        self.running_progress = 0.0
        """What the running jobs have done, in jobs."""
        self.left_s: float | None = None
        """How long the running jobs should take; None if that is unknown."""
        self.create_failures: dict[str, Exception] = {}
        """Why the last create of a job was not accepted."""
        self._bar = 0.0
        """The jobs that the bar shows as done, with shares of those that run. It never goes back."""
        self._reached = False
        """Whether the gateway has accepted a job in this run."""
        self._live = Live(console=console, get_renderable=self._render, transient=True)

    def __call__(self, event: Event) -> None:
        """Update the display from an event."""
        if isinstance(event, GatewayUnreachable):
            self.print_note(unreachable_message(event, reached=self._reached))
        if isinstance(event, BudgetUsedUp):
            self.print_note(used_up_message(event))
        if isinstance(event, CreateFailed):
            self.create_failures[event.record.key] = event.error
        if not isinstance(event, JobStateChanged):
            return
        self.records[event.record.key] = event.record
        self._reached = self._reached or event.record.state is JobState.RUNNING
        # An error is printed anyway, and so is the result of a single job.
        if event.record.state is JobState.SUCCEEDED and self.total > 1 and not self.console.is_terminal:
            self._say(event.record)

    @property
    def done(self) -> int:
        """Number of jobs that have ended."""
        return sum(record.state in _ENDED for record in list(self.records.values()))

    def count_unended_purchases(self) -> int:
        """Return how many jobs are bought, or being bought, and have not ended."""
        states = (JobState.SUBMITTING, JobState.RUNNING)
        return sum(record.state in states for record in list(self.records.values()))

    def print_note(self, sentence: str) -> None:
        """Print a line on stderr, above the live display if there is one."""
        self.console.print(one_line(sentence), markup=False, highlight=False, soft_wrap=True, emoji=False)

    def _say(self, record: JobRecord) -> None:
        prompt = "" if record.request is None else record.request.prompt
        self.print_note(f"{self.done}/{self.total} {record.state.value}: {shorten(prompt)}")

    def _render(self) -> RenderableType:
        # rich draws in another thread: `list` copies atomically.
        counts = Counter(record.state for record in list(self.records.values()))
        shown = [f"{counts[state]} {word}" for state, word in _WORDS.items() if counts[state]]
        waiting = counts.total() < self.total or counts[JobState.PENDING] or counts[JobState.SUBMITTING]
        if self.left_s is not None and counts[JobState.RUNNING] and not waiting:
            shown.append(f"about {duration(self.left_s, tenths=False)} left")
        facts = Text(", ".join(shown) or "starting", style="dim")
        bar = Table.grid(padding=(0, 1))
        self._bar = max(self._bar, self.done, min(self.done + self.running_progress, self.total))
        share = f"{self.done}/{self.total}, {math.floor(100 * self._bar / max(1, self.total))} %"
        bar.add_row(ProgressBar(total=self.total, completed=self._bar, width=40), share)
        return Group(bar, facts)


def unreachable_message(event: GatewayUnreachable, *, reached: bool) -> str:
    """Return why nothing happens while the gateway gives no usable answer.

    As long as it was not `reached`, the address may be wrong.
    """
    sentence = f"nanobanana: {shorten(in_cli_words(event.error), 300)}"
    if not reached and isinstance(event.error, TransportError) and not event.error.lasting:
        sentence += "; check the address (--base-url, NANOBANANA_BASE_URL)"
    if event.retried:
        sentence += "; trying again"
    return sentence if event.for_s < 1 else f"{sentence} (for {duration(event.for_s, tenths=False)} so far)"


def used_up_message(event: BudgetUsedUp) -> str:
    """Return why nothing happens while a budget of the account is used up."""
    return f"nanobanana: the account's daily budget of requests is used up; goes on at {moment(event.until)}"


def shorten(prompt: str, limit: int = 60) -> str:
    """Return a prompt on one line, truncated."""
    # Escape the beginning only: a prompt, or a message that quotes it, may have megabytes.
    line = one_line(prompt.lstrip()[: 100 * limit])
    return line if len(line) <= limit else f"{line[: limit - 3]}..."

"""What `nanobanana demo` prints: what the client does while it does it, in plain words."""

import asyncio
import math
from collections.abc import Callable, Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from nanobanana_async import Outcome, SessionStats
from nanobanana_async.cli.display import LiveDisplay, shorten
from nanobanana_async.emulator import Emulator
from nanobanana_async.escaping import one_line
from nanobanana_async.events import CreateFailed, Event, JobStateChanged, LimitsChanged
from nanobanana_async.formatting import duration, number
from nanobanana_async.formatting import plural as counted
from nanobanana_async.jobs import JobRecord, JobState

SPEED = 10
"""How many times as fast as at a gateway the emulated jobs run."""

_TICK_S = 0.2
_LINES = 4  # progress lines where there is no terminal


class DemoDisplay(LiveDisplay):
    """An observer of the session, and a context manager that shows a live board on a terminal."""

    def __init__(self, total: int, emulator: Emulator, console: Console) -> None:
        self.total = total
        self.console = console
        self.records: dict[str, JobRecord] = {}
        self._emulator = emulator
        self._began_at = asyncio.get_running_loop().time()
        self._took_s = 0.0
        self._images = 0
        self._limit: int | None = None
        self._lost: set[str] = set()
        self._found = 0
        self._board: RenderableType = Text("")
        """Made by the session's event loop: rich draws in another thread, which must not call the session."""
        self._live = Live(console=console, get_renderable=lambda: self._board, transient=True, redirect_stdout=False)
        self.say(
            f"{counted(total, 'image')} from an emulated gateway: no key, no network, no cost.\n"
            f"Time runs {SPEED} times as fast: a job takes about 2.5 s instead of 25 s.\n"
            "The client has to find out how many jobs the account may run at once, and the\n"
            "answer to one purchase will be lost.\n"
        )

    def __call__(self, event: Event) -> None:
        """Say what has happened, if it is worth a line."""
        match event:
            case LimitsChanged(job_limit=int(limit)) if limit != self._limit:
                self._limit = limit
                self._note(
                    f"The gateway refuses more than {limit} jobs at once (429, no charge):"
                    " the limit is learned, and its slots are kept full."
                )
            case CreateFailed(record=record, in_doubt=True) if record.key not in self._lost:
                self._lost.add(record.key)
                self._note(
                    f"An answer is lost: has {shorten(_prompt(record), 40)!r} been bought? It is sent again under"
                    " the same key, so that it can't be bought twice."
                )
            case JobStateChanged(record=record):
                before, self.records[record.key] = self.records.get(record.key), record
                new = before is None or before.state is not record.state
                if new and record.key in self._lost and record.state is JobState.RUNNING:
                    self._found += 1
                    self._note("The gateway knows the key: the job is found again and was paid for once.")
            case _:
                pass

    async def follow(self, stats: Callable[[], SessionStats]) -> None:
        """Update the board until cancelled."""
        while True:
            self._board = self._render_board(stats())
            await asyncio.sleep(_TICK_S)

    def ended(self, outcome: Outcome) -> None:
        """Count a row that has ended; say why if it has no image."""
        self._images += 1
        self._took_s = self._elapsed_s()
        if outcome.error is not None:
            prompt = "" if outcome.request is None else outcome.request.prompt
            self._note(f"{shorten(prompt)}: {outcome.error}")
        every = max(1, math.ceil(self.total / _LINES))
        if not self.console.is_terminal and (self._images % every == 0 or self._images == self.total):
            self._note(f"{self._images} of {self.total} images; polls: {self.describe_polls(self._emulator)}.")

    def say(self, text: str) -> None:
        """Print lines, above the board if there is one."""
        self.console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)

    def print_summary(self, stats: SessionStats, delays_s: Sequence[float]) -> None:
        """Print what the whole run has shown, as the gateway counted it; the delays are those of the page."""
        gateway = self._emulator.stats()
        delay_s = delays_s[len(delays_s) // 2] if delays_s else 0.0
        limit = "not reached"
        if stats.job_limit is not None:
            limit = f"{stats.job_limit}, learned from {counted(stats.throttled, 'refusal')}"
        facts = Table.grid(padding=(0, 2))
        facts.add_column(no_wrap=True)
        for name, value in (
            ("bought", f"{counted(gateway.creates_accepted, 'job')} in {duration(self._took_s)}"),
            ("credits", f"{number(gateway.credits_charged)}; jobs paid twice: {gateway.double_charges}"),
            ("lost answers", f"{gateway.lost_creates}; found again without a second purchase: {self._found}"),
            ("job limit", limit),
            ("jobs at once", f"{gateway.running_max} at most"),
            ("polls", self.describe_polls(self._emulator)),
            ("ends seen", f"at most {duration(delay_s)} after a job's end (median)"),
        ):
            facts.add_row(name, value)
        self.say("")
        self.console.print(facts, highlight=False)

    def _note(self, sentence: str) -> None:
        """Print a sentence and its time; on a terminal indented where it is wrapped."""
        at = f"{self._elapsed_s():4.1f} s"
        if not self.console.is_terminal:
            self.say(f"{at}  {one_line(sentence)}")
            return
        line = Table.grid(padding=(0, 2))
        line.add_column(no_wrap=True)
        line.add_row(at, Text(one_line(sentence)))
        self.console.print(line, highlight=False)

    def _render_board(self, stats: SessionStats) -> RenderableType:
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            ProgressBar(
                total=self.total, completed=self._images, width=40, complete_style="cyan", finished_style="green"
            ),
            f"{self._images} of {self.total} images",
        )
        facts = Table.grid(padding=(0, 2))
        limit = "the limit is not known yet" if stats.job_limit is None else f"of {stats.job_limit}, the learned limit"
        remaining = "" if stats.credits_remaining is None else f", {number(stats.credits_remaining)} left"
        facts.add_row("running", f"{stats.slots_held} {limit}")
        facts.add_row("polls", self.describe_polls(self._emulator))
        facts.add_row("credits", f"{number(stats.credits_spent)} spent{remaining}")
        facts.add_row("time left", self._left(stats))
        return Group(Text(""), bar, facts)

    def _left(self, stats: SessionStats) -> str:
        """Return the estimated time, from the learned duration of a job and the learned limit."""
        if stats.job_duration_median_s is None or stats.job_limit is None:
            return "not known yet"
        left_s = (self.total - self._images) * stats.job_duration_median_s / stats.job_limit
        return f"about {duration(left_s, tenths=False)}"

    @staticmethod
    def describe_polls(emulator: Emulator) -> str:
        """Return the polls so far, and those of a fixed interval that sees ends as early, where that needs more."""
        seen = [job for job in emulator.jobs() if job.first_seen_done_at is not None]
        polls = sum(job.polls for job in seen)
        interval_s = 2 * emulator.stats().notice_delay_mean_s  # its mean delay is half of it
        fixed = sum(math.ceil((job.ends_at - job.created_at) / interval_s) for job in seen) if interval_s > 0 else 0
        if fixed <= polls:
            return str(polls)
        return f"{polls} (a fixed interval with the same mean delay would have made {fixed})"

    def _elapsed_s(self) -> float:
        return asyncio.get_running_loop().time() - self._began_at


def _prompt(record: JobRecord) -> str:
    return "" if record.request is None else record.request.prompt

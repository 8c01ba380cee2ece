"""Progress of a batch for people's eyes, on stderr: a live display on a terminal, else lines of text.

It keeps numbers, not jobs: a hundred thousand rows are shown as cheaply as ten.
"""

import math
from collections import Counter, deque
from collections.abc import Callable
from decimal import Decimal
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from nanobanana_async import RateLimited, SessionStats
from nanobanana_async.cli.display import shorten
from nanobanana_async.cli.jobs.format import amount, pluralize
from nanobanana_async.escaping import one_line
from nanobanana_async.events import CreateFailed, Event, PollFailed

REDRAWS_A_SECOND = 4
LINES_FOR_EACH_ROW = 200  # rows up to which each gets a line of its own
SUMMARY_S = 5.0
WINDOW_S = 60.0
FULL_ROUNDS = 3  # of all slots, after which the pace is no longer that of the start
TROUBLE_S = 30.0  # how long a trouble is news

_STYLES = {"succeeded": "green", "failed": "red", "refused": "red", "invalid": "red", "uncertain": "magenta"}
_FAILED = ("failed", "refused", "invalid")


class BatchDisplay:
    """What is known of a batch. It is an observer of the session, and a context manager around the showing.

    `total` may be None: then nobody knows how many rows there are.
    """

    def __init__(
        self, total: int | None, console: Console, clock: Callable[[], float], *, max_credits: Decimal | None = None
    ) -> None:
        self.total = total
        self.console = console
        self.counts: Counter[str] = Counter()
        self.phase = "looking at what is there"
        """What goes on while nothing is bought; empty while something is."""
        self.stats: SessionStats | None = None
        """The session as it stood a moment ago; rich draws in a thread, where nobody may ask it."""
        self.spent_before = Decimal(0)
        self._clock = clock
        self._max_credits = max_credits
        self._ended: deque[tuple[float, int]] = deque()
        self._fresh = 0
        self._trouble: tuple[float, str] | None = None
        self._due = clock() + SUMMARY_S
        self._live = Live(
            console=console,
            get_renderable=self._picture,
            refresh_per_second=REDRAWS_A_SECOND,
            transient=True,
            redirect_stdout=False,
            vertical_overflow="crop",
        )

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def __call__(self, event: Event) -> None:
        """Take note of an event."""
        match event:
            case CreateFailed(error=RateLimited()):
                pass  # that is how the limit is found: it stands in the display
            case CreateFailed(error=error) | PollFailed(error=error):
                self._trouble = (self._clock(), shorten(str(error), 200))
            case _:
                pass

    def known(self, status: str) -> None:
        """Count a row that had ended before."""
        self.counts[status] += 1

    def ended(self, status: str, prompt: str, error: str | None) -> None:
        """Count a row that has just ended."""
        self.counts[status] += 1
        self._fresh += 1
        if error is not None:
            self._trouble = (self._clock(), f"{shorten(prompt, 30)}: {shorten(error, 200)}")
        if not self.console.is_terminal and (self.total or LINES_FOR_EACH_ROW + 1) <= LINES_FOR_EACH_ROW:
            why = "" if error is None else f": {error}"
            self.say(f"{self._progress()} {status}: {shorten(prompt)}{why}")

    def tick(self, stats: SessionStats | None) -> None:
        """Take a look at the session, where there is one; called several times a second."""
        now = self._clock()
        self.stats = stats
        if not self._ended or now - self._ended[-1][0] >= 1:
            self._ended.append((now, self._fresh))
            while now - self._ended[0][0] > WINDOW_S:
                self._ended.popleft()
        big = self.total is None or self.total > LINES_FOR_EACH_ROW
        if not self.console.is_terminal and big and now >= self._due:
            self._due = now + SUMMARY_S
            self.say("; ".join(line.plain for line in self._lines()))

    def say(self, sentence: str) -> None:
        """Print a line, above the display where there is one."""
        wrapped = self.console.is_terminal
        self.console.print(one_line(sentence), markup=False, highlight=False, emoji=False, soft_wrap=not wrapped)

    @property
    def done(self) -> int:
        """How many rows have ended, in this run or before."""
        return self.counts.total()

    @property
    def failed(self) -> int:
        """How many of these brought nothing."""
        return sum(self.counts[status] for status in _FAILED)

    @property
    def spent(self) -> Decimal:
        """What the batch has cost, earlier runs included."""
        return self.spent_before + (Decimal(0) if self.stats is None else self.stats.credits_spent)

    def left_s(self) -> float | None:
        """Return how long the rest will take: by the pace of the last minute, or first by what the session learned."""
        stats = self.stats
        if stats is None or self.total is None or stats.job_duration_median_s is None:
            return None
        slots = max(stats.job_limit or stats.slots_held, 1)
        pace = self.rows_per_minute()
        if pace is not None and self._fresh > FULL_ROUNDS * slots:
            return max(0, self.total - self.done) / pace * 60
        mean_s = stats.job_duration_median_s * math.exp((stats.job_duration_sigma or 0.0) ** 2 / 2)
        left = max(0, self.total - self.done)
        return left * mean_s / min(slots, max(left, 1))

    def rows_per_minute(self) -> float | None:
        """Return how fast rows have ended in the last minute."""
        if len(self._ended) < 2:
            return None
        (start, before), (end, after) = self._ended[0], self._ended[-1]
        return (after - before) / (end - start) * 60 if after > before else None

    def _progress(self) -> str:
        return f"{self.done}/{self.total}" if self.total is not None else f"{self.done}"

    def _lines(self) -> list[Text]:
        """Return how it stands: the rows, then what they cost and how long they take."""
        rows = [Text(f"{self._progress()} rows", "bold")]
        rows += [
            Text(f"{self.counts[status]} {status}", style) for status, style in _STYLES.items() if self.counts[status]
        ]
        rows += [Text(f"{self.counts['unfinished']} unfinished", "yellow")] if self.counts["unfinished"] else []
        stats = self.stats
        if stats is not None:
            limit = "limit not met yet" if stats.job_limit is None else f"limit {stats.job_limit}"
            rows.append(Text(f"{stats.slots_held} running, {limit}"))
        facts = [Text(self.phase, "yellow")] if self.phase else []
        if stats is not None and stats.creates_paused:
            facts.append(Text("paused by the gateway", "yellow"))
        most = "" if self._max_credits is None else f" of {amount(self._max_credits)}"
        facts.append(Text(f"{amount(self.spent)}{most} credits"))
        if (pace := self.rows_per_minute()) is not None:
            facts.append(Text(f"{pace:.0f} rows a minute"))
        if (left_s := self.left_s()) is not None:
            facts.append(Text(f"about {duration(left_s)} left"))
        return [Text(", ").join(rows), Text(", ").join(facts)]

    def _picture(self) -> RenderableType:
        bar = Table.grid(padding=(0, 1), expand=True)
        bar.add_column(ratio=1)
        share = "" if not self.total else f"{100 * self.done // self.total} %"
        bar.add_row(
            ProgressBar(total=self.total, completed=self.done, pulse=self.total is None, complete_style="cyan"), share
        )
        lines: list[RenderableType] = [bar, *self._lines()]
        now, trouble = self._clock(), self._trouble
        if trouble is not None and now - trouble[0] < TROUBLE_S:
            text = Text(f"{duration(now - trouble[0])} ago: {trouble[1]}", "dim", no_wrap=True, overflow="ellipsis")
            lines.append(text)
        return Group(*lines)


def duration(seconds: float) -> str:
    """Return a duration for people's eyes."""
    whole = max(0, round(seconds))
    if whole < 100:
        return f"{whole} s"
    if whole < 100 * 60:
        return f"{whole // 60} min {whole % 60:02d} s" if whole < 600 else f"{round(whole / 60)} min"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min" if whole < 72 * 3600 else f"{round(whole / 86400)} days"


def rows(number: int) -> str:
    """Return a number of rows in words."""
    return pluralize(number, "row")

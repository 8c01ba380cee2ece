"""Show the progress of a batch on stderr: a live display on a terminal, lines of text elsewhere.

The display keeps counts, not jobs: its cost does not depend on the number of rows.
"""

import math
from collections import Counter, deque
from collections.abc import Callable, Mapping, Set
from decimal import Decimal

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from nanobanana_async import RateLimited, Session, SessionStats
from nanobanana_async.cli.display import LiveDisplay, shorten, unreachable_message, used_up_message
from nanobanana_async.cli.options import in_cli_words
from nanobanana_async.escaping import one_line
from nanobanana_async.events import BudgetUsedUp, CreateFailed, Event, GatewayUnreachable, JobStateChanged, PollFailed
from nanobanana_async.formatting import duration, number, plural
from nanobanana_async.jobs import JobRecord, JobState
from nanobanana_async.stats import why_paused

REDRAWS_A_SECOND = 4
ROW_LINES_UP_TO = 200  # rows; a larger batch gets a status line every SUMMARY_S
SUMMARY_S = 5.0
WINDOW_S = 60.0
FULL_ROUNDS = 3  # of all slots: the pace before that is the one of the start
PROBLEM_S = 30.0  # how long the last problem is shown

COLLECTING = "collecting running jobs"
"""The phase after the buying stopped."""

_STYLES = {"succeeded": "green", "failed": "red", "refused": "red", "invalid": "red", "uncertain": "magenta"}
_FAILED = ("failed", "refused", "invalid")


class BatchDisplay(LiveDisplay):
    """The progress of a batch: an observer of the session, and a context manager that shows the display.

    `total` is None when the number of rows is unknown. With `on_stdout` each row has a line on stdout, so that none is
    printed here.
    """

    def __init__(
        self,
        total: int | None,
        console: Console,
        clock: Callable[[], float],
        *,
        max_credits: Decimal | None = None,
        on_stdout: bool = False,
    ) -> None:
        self.total = total
        self.console = console
        self.counts: Counter[str] = Counter()
        self.phase = "loading earlier results"
        """What the run does while it does not buy; empty while it buys."""
        self.stats: SessionStats | None = None
        """The latest stats; rich draws in a thread, which must not call the session."""
        self.accounts: Mapping[str, SessionStats] = {}
        """Those of each account."""
        self.spent = Decimal(0)
        """Credits charged for the batch, earlier runs included, by its ledger."""
        self.balance: Decimal | None = None
        """Credits of the account, for a gateway whose creates do not state them."""
        self.reserved = Decimal(0)
        """Credits reserved beside them: for jobs in doubt, and running ones whose price the gateway has not stated."""
        few = total is not None and total <= ROW_LINES_UP_TO
        self._prints_rows = few and not on_stdout and not console.is_terminal
        self._clock = clock
        self._max_credits = max_credits
        self._ended: deque[tuple[float, int]] = deque()
        self._ended_here = 0
        self._running: dict[str, float] = {}
        """When each running job began to run."""
        self._bar = 0.0
        """The rows that the bar shows as done, with shares of those that run. It never goes back."""
        self._saving: set[str] = set()
        """Jobs that have succeeded, and whose images are not saved yet."""
        self._problem: tuple[float, str] | None = None
        self._summary_due = clock() + SUMMARY_S
        self._reached = False
        """Whether the gateway has accepted a job in this run."""
        self._live = Live(
            console=console,
            get_renderable=self._render,
            refresh_per_second=REDRAWS_A_SECOND,
            transient=True,
            redirect_stdout=False,
            vertical_overflow="crop",
        )

    def __call__(self, event: Event) -> None:
        """Remember the last problem; print why nothing happens if the gateway does not answer."""
        match event:
            case GatewayUnreachable():
                self.say(unreachable_message(event, reached=self._reached))
            case BudgetUsedUp():
                self.say(used_up_message(event))
            case JobStateChanged(record=record):
                self._follow(record)
            case CreateFailed(error=RateLimited()):
                pass  # expected while the job limit is being learned; the display shows the limit
            case CreateFailed(error=error) | PollFailed(error=error):
                self._problem = (self._clock(), shorten(in_cli_words(error), 200))
            case _:
                pass

    def _follow(self, record: JobRecord) -> None:
        if record.state is JobState.RUNNING:
            self._reached = True
            self._running.setdefault(record.key, self._clock())
        else:
            self._running.pop(record.key, None)
        if record.state is JobState.SUCCEEDED:
            self._saving.add(record.key)

    def add_from_earlier_run(self, status: str) -> None:
        """Count a row that ended in an earlier run."""
        self.counts[status] += 1

    def ended(self, key: str, status: str, prompt: str, error: str | None) -> None:
        """Count a row that has just ended."""
        self._saving.discard(key)
        self.counts[status] += 1
        self._ended_here += 1
        if error is not None:
            self._problem = (self._clock(), f"{shorten(prompt, 30)}: {shorten(error, 200)}")
        if self._prints_rows:
            why = "" if error is None else f": {error}"
            self.say(f"{self._progress()} {status}: {shorten(prompt)}{why}")

    def show_session(self, session: Session) -> None:
        """Take the stats of a session."""
        self.stats, self.accounts = session.stats(), session.accounts()

    def tick(self, stats: SessionStats | None, running_progress: float = 0.0) -> None:
        """Update the stats, if there is a session, and what running rows have done; called several times a second."""
        now = self._clock()
        self.stats = stats
        self._bar = max(self._bar, self.done + running_progress)
        if not self._ended or now - self._ended[-1][0] >= 1:
            self._ended.append((now, self._ended_here))
            while now - self._ended[0][0] > WINDOW_S:
                self._ended.popleft()
        if not self.console.is_terminal and not self._prints_rows and now >= self._summary_due:
            self._summary_due = now + SUMMARY_S
            self.say("; ".join(line.plain for line in self._lines()))

    @property
    def shows_credits(self) -> bool:
        """Whether the lines with the credits are shown at all."""
        return self.console.is_terminal or self.total is None or self.total > ROW_LINES_UP_TO

    def say(self, sentence: str) -> None:
        """Print a line, above the live display if there is one."""
        # Not wrapped: a command that is copied from two lines would run as two.
        self.console.print(one_line(sentence), markup=False, highlight=False, emoji=False, soft_wrap=True)

    def running(self) -> int:
        """Return how many jobs hold a slot."""
        return 0 if self.stats is None else self.stats.slots_held

    @property
    def saving(self) -> Set[str]:
        """The keys of the jobs that have succeeded, and whose images are not saved yet."""
        return self._saving

    @property
    def done(self) -> int:
        """Number of rows that have ended, in this run or before."""
        return self.counts.total()

    @property
    def failed(self) -> int:
        """Number of rows without images: failed, refused or invalid."""
        return sum(self.counts[status] for status in _FAILED)

    @property
    def collecting(self) -> bool:
        """Whether nothing more will be bought: the buying has stopped, or every row that is left runs or is saved."""
        if self.phase == COLLECTING:
            return True
        held = 0 if self.stats is None else self.stats.slots_held
        left = None if self.total is None else self.total - self.done
        return not self.phase and left is not None and 0 < left <= held + len(self._saving)

    def left_s(self) -> float | None:
        """Estimate the remaining time: from the pace of the last minute, or from learned durations at the start.

        Once nothing more is bought, the pace says nothing: then it is the time until the youngest job should have
        ended, and None if that has passed. None, too, while the run neither buys nor collects.
        """
        stats = self.stats
        if stats is None or stats.job_duration_median_s is None:
            return None
        if self.collecting:
            youngest_at = max(list(self._running.values()), default=None)
            if youngest_at is None:
                return None
            most_s = stats.job_duration_median_s * math.exp(stats.job_duration_sigma or 0.0)
            left_s = youngest_at + most_s - self._clock()
            return left_s if left_s > 0 else None
        if self.total is None or self.phase:
            return None
        slots = max(stats.job_limit or stats.slots_held, 1)
        pace = self.rows_per_minute()
        if pace is not None and self._ended_here > FULL_ROUNDS * slots:
            return max(0, self.total - self.done) / pace * 60
        mean_s = stats.job_duration_median_s * math.exp((stats.job_duration_sigma or 0.0) ** 2 / 2)
        left = max(0, self.total - self.done)
        return left * mean_s / min(slots, max(left, 1))

    def rows_per_minute(self) -> float | None:
        """Return the pace of the last minute; None if no row ended."""
        if len(self._ended) < 2:
            return None
        (start, before), (end, after) = self._ended[0], self._ended[-1]
        return (after - before) / (end - start) * 60 if after > before else None

    def _progress(self) -> str:
        return f"{self.done}/{self.total}" if self.total is not None else f"{self.done}"

    def _lines(self) -> list[Text]:
        """Return the counts of rows and slots, a line for each account if there are several, then cost and time."""
        unit = "row" if self._progress() == "1" else "rows"
        rows = [Text(f"{self._progress()} {unit}", "bold")]
        rows += [
            Text(f"{self.counts[status]} {status}", style) for status, style in _STYLES.items() if self.counts[status]
        ]
        rows += [Text(f"{self.counts['unfinished']} unfinished", "yellow")] if self.counts["unfinished"] else []
        stats = self.stats
        if stats is not None:
            rows.append(Text(_slots(stats)))
        facts = [Text(self._phase(), "yellow")] if self._phase() else []
        if stats is not None and (why := why_paused(stats)) is not None:
            facts.append(Text(shorten(in_cli_words(why), 200), "yellow"))
        cap = "" if self._max_credits is None else f" of {number(self._max_credits)}"
        facts.append(Text(f"{number(self.spent)}{cap} credits spent"))
        if self.reserved:
            facts.append(Text(f"{number(self.reserved)} reserved"))
        remaining = None if stats is None else stats.credits_remaining
        if (balance := self.balance if remaining is None else remaining) is not None:
            facts.append(Text(f"balance {number(balance)}"))
        if (pace := self.rows_per_minute()) is not None and not self.collecting:
            facts.append(Text(f"{pace:.0f} rows a minute"))
        if (left_s := self.left_s()) is not None:
            facts.append(Text(f"about {duration(left_s, tenths=False)} left"))
        accounts = self.accounts if len(self.accounts) > 1 else {}
        each = [_account_line(account, found) for account, found in accounts.items()]
        return [Text(", ").join(rows), *each, Text(", ").join(facts)]

    def account_problems(self) -> list[str]:
        """Return which of several accounts send no creates at the end, and why."""
        accounts = self.accounts.items() if len(self.accounts) > 1 else ()
        paused = ((account, why_paused(stats)) for account, stats in accounts)
        return [f"account {account}: {in_cli_words(why)}" for account, why in paused if why is not None]

    def _phase(self) -> str:
        """Return what the run does while it does not buy, and what is left to collect."""
        if not self.collecting:
            return self.phase
        held = 0 if self.stats is None else self.stats.slots_held
        parts = [f"collecting {plural(held, 'running job')}"] if held else []
        if self._saving:
            parts.append(f"saving the images of {plural(len(self._saving), 'job')}")
        return " and ".join(parts) or self.phase

    def _render(self) -> RenderableType:
        bar = Table.grid(padding=(0, 1), expand=True)
        bar.add_column(ratio=1)
        done = max(self._bar, self.done)
        share = "" if not self.total else f"{math.floor(100 * done / self.total)} %"
        bar.add_row(
            ProgressBar(total=self.total, completed=done, pulse=self.total is None, complete_style="cyan"), share
        )
        lines: list[RenderableType] = [bar, *self._lines()]
        if self._problem is not None and (age_s := self._clock() - self._problem[0]) < PROBLEM_S:
            sentence = f"{duration(age_s, tenths=False)} ago: {self._problem[1]}"
            lines.append(Text(sentence, "dim", no_wrap=True, overflow="ellipsis"))
        return Group(*lines)


def _slots(stats: SessionStats) -> str:
    limit = "limit unknown" if stats.job_limit is None else f"limit {stats.job_limit}"
    return f"{stats.slots_held} running, {limit}"


def _account_line(account: str, stats: SessionStats) -> Text:
    parts = [Text(f"{one_line(account)}: {_slots(stats)}"), Text(f"{stats.queued} waiting")]
    if (why := why_paused(stats)) is not None:
        parts.append(Text(shorten(in_cli_words(why), 200), "yellow"))
    return Text(", ").join(parts)

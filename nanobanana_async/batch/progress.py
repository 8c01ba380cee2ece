"""A tqdm progress bar for a batch: a widget in a notebook, a line in a terminal."""

import asyncio
import warnings
from contextlib import suppress
from typing import Any, Protocol

from nanobanana_async.engine.engine import Engine
from nanobanana_async.errors import ConfigurationError
from nanobanana_async.escaping import one_line
from nanobanana_async.events import log
from nanobanana_async.formatting import number
from nanobanana_async.stats import SessionStats, stats_by_account, sum_stats

MIN_REDRAW_GAP_S, MAX_REDRAW_GAP_S = 0.2, 1.0


class Counts(Protocol):
    """The counts of a batch."""

    done: int
    failed: int


class ProgressBar:
    """Shows a bar while outcomes are awaited: rows ended, rows failed, slots in use and credits spent.

    A closed bar opens again when outcomes are awaited again: each notebook cell gets its own bar. Raises
    `ConfigurationError` if tqdm is missing.
    """

    def __init__(self, total: int | None, name: str | None, counts: Counts, engine: Engine) -> None:
        self._tqdm = _tqdm()
        self._total = total
        self._name = None if name is None else one_line(name)
        self._counts = counts
        self._engine = engine
        self._bar: Any = None
        self._redraw_at = 0.0
        self._broken = False

    async def wait(self, changed: asyncio.Event) -> None:
        """Wait for a change of the batch, or until the bar needs a refresh."""
        self.show()
        with suppress(TimeoutError):
            async with asyncio.timeout(MAX_REDRAW_GAP_S):
                await changed.wait()

    def show(self) -> None:
        """Draw the bar, at most every `MIN_REDRAW_GAP_S` seconds."""
        now = asyncio.get_running_loop().time()
        if now >= self._redraw_at:
            self._redraw_at = now + MIN_REDRAW_GAP_S
            self._draw()

    def close(self) -> None:
        """Draw the bar a last time and close it."""
        if self._bar is not None:
            self._draw()
            bar, self._bar, self._redraw_at = self._bar, None, 0.0
            if not self._broken:
                bar.close()

    def _draw(self) -> None:
        if self._broken:
            return
        try:
            if self._bar is None:
                self._bar = self._tqdm(total=self._total, initial=self._counts.done, unit=" rows", dynamic_ncols=True)
                # Set later, since a widget treats the description passed to its constructor as HTML.
                self._bar.set_description_str(self._name, refresh=False)
            self._bar.n = self._counts.done
            self._bar.set_postfix_str(self._postfix(), refresh=False)
            self._bar.refresh()
        # A failing display must not end a paid batch. Nothing here awaits: a CancelledError is not for this task.
        except (Exception, asyncio.CancelledError) as error:
            self._broken = True
            log.warning("progress.failed error=%s", repr(error))

    def _postfix(self) -> str:
        accounts = stats_by_account(self._engine)
        slots = ", ".join(
            f"{f'{one_line(account)} ' if len(accounts) > 1 else ''}{_slots(stats)}"
            for account, stats in accounts.items()
        )
        spent = sum_stats(list(accounts.values())).credits_spent
        return f"{self._counts.failed} failed, {slots}, {number(spent)} credits spent"


def _slots(stats: SessionStats) -> str:
    known = f"{stats.slots_held} slots" if stats.job_limit is None else f"{stats.slots_held} of {stats.job_limit} slots"
    return known if stats.rests_for_s is None else f"{known}, rests"


def _tqdm() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tqdm warns if ipywidgets is missing and uses a line of text
            from tqdm.auto import tqdm
    except ImportError:
        raise ConfigurationError("progress=True needs tqdm: pip install 'nanobanana-async[notebook]'") from None
    return tqdm

"""`Batch`, the async iterator of outcomes."""

import asyncio
from contextlib import suppress
from datetime import datetime
from types import TracebackType
from typing import NoReturn, Self

from nanobanana_async.batch.options import BatchOptions
from nanobanana_async.batch.outcome import Outcome
from nanobanana_async.batch.progress import ProgressBar
from nanobanana_async.batch.recent_images import RecentImages
from nanobanana_async.batch.runner import BatchRunner
from nanobanana_async.engine.engine import Engine
from nanobanana_async.engine.progress import expected_end_of_all, sum_of_progress
from nanobanana_async.errors import BatchStopped
from nanobanana_async.formatting import plural
from nanobanana_async.loop_guard import NoPlainWith, portal_hint
from nanobanana_async.notebook_html import Html, card, error_box, note, progress_bar


class Batch(NoPlainWith):
    """The outcomes of many requests: `async for outcome in batch`, in the order in which they end.

    Rows are pulled from the input only when a slot is free for them, and no faster than outcomes are taken. Memory does
    not grow with the input, and leaving early leaves the rest unbought: with `async with` at once, with a bare `break`
    when the batch is garbage collected. At most 128 rows, and 3 more for each outcome taken, have been pulled by then
    (with `learn=False` at least `max_jobs` plus 8). Running jobs go on, and stay in the ledger. Several tasks may take
    outcomes of one batch.

    The batch stops buying after a bad API key, no credits, `max_credits`, a ledger or `save_to` folder that cannot be
    written, or twenty refusals or twenty unsaved images of one kind in a row. It then pulls no more rows, yields the
    running ones, and raises `BatchStopped`. An exception of the input is raised in the same way, and `SessionClosed` if
    the session is closed meanwhile.
    """

    def __init__(self, runner: BatchRunner, options: BatchOptions, engine: Engine, total: int | None = None) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self.name = options.name  # None: it has no name, and can not be continued
        self._engine = engine
        self._scheduler = engine.scheduler
        self._guard = engine.guard
        self._total = total
        self._runner = runner
        self._recent = RecentImages()
        self._progress = ProgressBar(total, options.name, runner, engine) if options.progress else None

    def __repr__(self) -> str:
        if "_runner" not in self.__dict__:  # a debugger may show a batch whose constructor raised
            return "<Batch not built>"
        return f"<Batch {self.name or 'without a name'}: {self.done} done>"

    def _repr_html_(self) -> str:
        facts = [("done", self.done), ("failed", self.failed), ("unbought", self.unbought or None)]
        return card(f"Batch {self.name or 'without a name'}", facts, self._status_html(), self._recent.html())

    def _status_html(self) -> Html:
        runner = self._runner
        error = runner.input_error or runner.stop_reason
        if error is not None:
            return error_box(f"The batch stopped buying: {type(error).__name__}", str(error))
        if self._loop is None:
            return note("It has not started: take its outcomes with `async for`.")
        if runner.is_exhausted:
            return note("It has ended.")
        bar = progress_bar((self.done + self.running_progress) / self._total) if self._total else Html("")
        return Html(bar + note(f"It is running: {plural(len(runner.running), 'row')} under way."))

    @property
    def done(self) -> int:
        """Number of rows that have ended, with or without an error."""
        return self._runner.done

    @property
    def failed(self) -> int:
        """Number of rows that ended with an error."""
        return self._runner.failed

    @property
    def unbought(self) -> int:
        """Number of rows that were pulled but not bought because the batch stopped buying."""
        return self._runner.unbought

    @property
    def running_progress(self) -> float:
        """What the running rows have done, in rows: 2.5 for five rows that are half done."""
        return sum_of_progress(self._engine, self._runner.running.values())

    @property
    def expected_end(self) -> datetime | None:
        """When the last of the rows that run now should end; None if none runs."""
        return expected_end_of_all(self._engine, self._runner.running.values())

    def __iter__(self) -> NoReturn:
        raise TypeError(f"a batch is read with `async for outcome in batch`, not with `for`{portal_hint()}")

    def __await__(self) -> NoReturn:
        raise TypeError("a batch is not awaited: read it with `async for outcome in batch`")

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Outcome:
        self._guard.check()
        self._begin()
        try:
            return await self._next()
        except BaseException:
            if self._progress is not None:
                self._progress.close()
            raise

    async def _next(self) -> Outcome:
        runner, progress = self._runner, self._progress
        if progress is not None:
            progress.show()
        while (outcome := runner.take_outcome()) is None:
            if runner.is_exhausted:
                self._raise_error()
                raise StopAsyncIteration
            runner.changed.clear()
            await (runner.changed.wait() if progress is None else progress.wait(runner.changed))
        self._recent.add(outcome)
        return outcome

    async def __aenter__(self) -> Self:
        self._guard.check()
        self._begin()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
        self._runner.abandon()

    async def aclose(self) -> None:
        """Pull no more rows, and withdraw jobs that were not sent yet. Idempotent."""
        self._guard.check()
        self._runner.stop()
        if self._progress is not None:
            self._progress.close()

    def __del__(self) -> None:
        loop: asyncio.AbstractEventLoop | None = self.__dict__.get("_loop")  # missing if the constructor raised
        if loop is not None and not self._guard.forked:  # a forked child must not wake its parent's loop
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._runner.request_stop)  # garbage collection runs in any thread
                loop.call_soon_threadsafe(self._runner.abandon)
                if self._progress is not None:
                    loop.call_soon_threadsafe(self._progress.close)

    def _begin(self) -> None:
        if self._loop is None:
            self._scheduler.start_background_task(self._runner.run)
            self._loop = asyncio.get_running_loop()

    def _raise_error(self) -> None:
        runner = self._runner
        if runner.input_error is not None:
            raise runner.input_error
        if runner.stop_reason is not None:
            raise BatchStopped(
                f"the batch stopped buying after {plural(runner.done, 'row')}: {runner.stop_reason}",
                cause=runner.stop_reason,
                done=runner.done,
                unbought=runner.unbought,
            )

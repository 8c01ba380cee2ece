"""A running batch: its outcomes, one by one."""

import asyncio
from collections.abc import AsyncIterable, Iterable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Self

from nanobanana_async.batch.options import BatchOptions, Requests
from nanobanana_async.batch.outcome import Outcome
from nanobanana_async.batch.progress import Progress
from nanobanana_async.batch.runner import BatchRunner
from nanobanana_async.engine.engine import Engine
from nanobanana_async.errors import BatchStopped, InvalidRequest
from nanobanana_async.image_saver import ImageSaver
from nanobanana_async.notebook_html import Html, card, error_box, note


class Batch:
    """The outcomes of many requests: `async for outcome in batch`, in the order in which they end.

    Rows are pulled from the input only when a slot is free for them, and no faster than outcomes are taken, so memory
    does not grow with the input, and leaving early leaves the rest unbought: with `async with` at once, with a bare
    `break` when the batch is garbage collected. However one leaves, at most 128 rows and 3 for each outcome taken have
    been pulled (with `learn=False` at least `max_jobs` and 8). What runs by then goes on, and stays in the ledger.
    Several tasks may take outcomes of one batch.

    When buying more can't go well (bad API key, no credits, `max_credits`, a ledger or a `save_to` folder that can't be
    written, twenty refusals or twenty unsaved images of one kind in a row) no more is pulled, what runs is still
    yielded, then `BatchStopped` is raised. What the input raises comes out in the same way, `SessionClosed` when the
    session is closed meanwhile.
    """

    def __init__(self, requests: Requests, orders: BatchOptions, engine: Engine, keeper: ImageSaver) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self.name = orders.name
        self._scheduler = engine.scheduler
        self._guard = engine.guard
        self._runner = BatchRunner(_checked(requests), orders, engine, keeper)
        self._progress = Progress(requests, orders.name, self._runner, engine) if orders.progress else None

    def __repr__(self) -> str:
        if "_runner" not in self.__dict__:  # the input was refused; debuggers show it all the same
            return "<Batch not built>"
        return f"<Batch {self.name or 'without a name'}: {self.done} done>"

    def _repr_html_(self) -> str:
        facts = [("done", self.done), ("failed", self.failed), ("unbought", self.unbought or None)]
        return card(f"Batch {self.name or 'without a name'}", facts, self._story())

    def _story(self) -> Html:
        feeder = self._runner
        why = feeder.input_error or feeder.stop_reason
        if why is not None:
            return error_box(f"The buying stopped: {type(why).__name__}", str(why))
        if self._loop is None:
            return note("It has not begun: take its outcomes with `async for`.")
        return note("It has ended." if feeder.over else "It runs.")

    @property
    def done(self) -> int:
        """How many rows have ended, well or not."""
        return self._runner.done

    @property
    def failed(self) -> int:
        """How many of these did not end well."""
        return self._runner.failed

    @property
    def unbought(self) -> int:
        """How many rows were pulled and not bought, since the buying stopped."""
        return self._runner.unbought

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
        feeder, progress = self._runner, self._progress
        if progress is not None:
            progress.show()
        while (outcome := feeder.take()) is None:
            if feeder.over:
                self._raise_why()
                raise StopAsyncIteration
            feeder.changed.clear()
            await (feeder.changed.wait() if progress is None else progress.wait(feeder.changed))
        return outcome

    async def __aenter__(self) -> Self:
        self._guard.check()
        self._begin()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Pull no more, and take back what was not yet sent. Idempotent."""
        self._guard.check()
        self._runner.stop()
        if self._progress is not None:
            self._progress.close()

    def __del__(self) -> None:
        loop: asyncio.AbstractEventLoop | None = self.__dict__.get("_loop")  # missing if it was never built
        if loop is not None and not self._guard.forked:  # else it is the parent's loop that would be woken
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._runner.abandon)  # garbage is collected in any thread
                if self._progress is not None:
                    loop.call_soon_threadsafe(self._progress.close)

    def _begin(self) -> None:
        if self._loop is None:
            self._scheduler.start_background(self._runner.run)
            self._loop = asyncio.get_running_loop()

    def _raise_why(self) -> None:
        feeder = self._runner
        if feeder.input_error is not None:
            raise feeder.input_error
        if feeder.stop_reason is not None:
            raise BatchStopped(
                f"the buying stopped after {feeder.done} rows: {feeder.stop_reason}",
                cause=feeder.stop_reason,
                done=feeder.done,
                unbought=feeder.unbought,
            )


def _checked(requests: Requests) -> Requests:
    if isinstance(requests, (str, bytes, Mapping)) or not isinstance(requests, (Iterable, AsyncIterable)):
        raise InvalidRequest(f"requests must be an iterable of prompts, not {type(requests).__name__}")
    return requests

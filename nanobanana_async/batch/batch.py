"""A running batch: its outcomes, one by one."""

import asyncio
from collections.abc import AsyncIterable, Iterable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Self

from nanobanana_async.batch.feeder import Feeder
from nanobanana_async.batch.orders import Orders, Requests
from nanobanana_async.batch.outcome import Outcome
from nanobanana_async.engine.core import Engine
from nanobanana_async.errors import BatchStopped, InvalidRequest
from nanobanana_async.keeping import Keeper


class Batch:
    """The outcomes of many requests: `async for outcome in batch`, in the order in which they end.

    Rows are pulled from the input only when a slot is free for them, and no faster than outcomes are taken, so memory
    does not grow with the input, and leaving early leaves the rest unbought: with `async with` at once, with a bare
    `break` when the batch is garbage collected. What runs by then goes on, and stays in the ledger. Several tasks may
    take outcomes of one batch.

    When buying more can't go well (bad API key, no credits, `max_credits`, a ledger that can't be written, the same
    refusal twenty times in a row) no more is pulled, what runs is still yielded, then `BatchStopped` is raised. What
    the input raises comes out in the same way, `SessionClosed` when the session is closed meanwhile.
    """

    def __init__(self, requests: Requests, orders: Orders, engine: Engine, keeper: Keeper) -> None:
        self.name = orders.name
        self._runner = engine.runner
        self._feeder = Feeder(_checked(requests), orders, engine, keeper)
        self._loop: asyncio.AbstractEventLoop | None = None

    def __repr__(self) -> str:
        return f"<Batch {self.name or 'without a name'}: {self.done} done>"

    @property
    def done(self) -> int:
        """How many rows have ended, well or not."""
        return self._feeder.done

    @property
    def unbought(self) -> int:
        """How many rows were pulled and not bought, since the buying stopped."""
        return self._feeder.unbought

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Outcome:
        self._begin()
        feeder = self._feeder
        while (outcome := feeder.take()) is None:
            if feeder.over:
                self._raise_why()
                raise StopAsyncIteration
            feeder.changed.clear()
            await feeder.changed.wait()
        return outcome

    async def __aenter__(self) -> Self:
        self._begin()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Pull no more, and take back what was not yet sent. Idempotent."""
        self._feeder.stop()

    def __del__(self) -> None:
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._feeder.stop)  # garbage is collected in any thread

    def _begin(self) -> None:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._runner.run_beside(self._feeder.run)

    def _raise_why(self) -> None:
        feeder = self._feeder
        if feeder.broken is not None:
            raise feeder.broken
        if feeder.stopped is not None:
            raise BatchStopped(
                f"the buying stopped after {feeder.done} rows: {feeder.stopped}",
                cause=feeder.stopped,
                done=feeder.done,
                unbought=feeder.unbought,
            )


def _checked(requests: Requests) -> Requests:
    if isinstance(requests, (str, bytes, Mapping)) or not isinstance(requests, (Iterable, AsyncIterable)):
        raise InvalidRequest(f"requests must be an iterable of prompts, not {type(requests).__name__}")
    return requests

"""Run the steps of jobs in the worker pool, and count those that closing waits for."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

import anyio

from nanobanana_async.engine.next_step import Finish, Next
from nanobanana_async.engine.tracked_job import TrackedJob
from nanobanana_async.engine.workers import WorkerPool
from nanobanana_async.errors import NanoBananaError

JobStep = Callable[[TrackedJob], Awaitable[Next | None]]
"""Returns what is next; None if the job is no longer followed."""


class StepRunner:
    """Runs creates, polls and writes to the ledger. Closing the session waits for all but the polls."""

    def __init__(self, workers: WorkerPool, apply: Callable[[TrackedJob, Next], None]) -> None:
        self._workers = workers
        self._apply = apply
        self._pending = 0
        self._all_done = asyncio.Event()

    def send(self, step: JobStep, job: TrackedJob) -> None:
        """Run a step that makes a request to the gateway; a worker must be free for it."""
        self._begin()
        self._workers.run_request(partial(self._run, step), job)

    def write(self, step: JobStep, job: TrackedJob) -> None:
        """Run a step that only reads and writes the ledger."""
        self._begin()
        self._workers.run_local(partial(self._run, step), job)

    def poll(self, step: Callable[[TrackedJob], Awaitable[Next]], job: TrackedJob) -> None:
        """Run a poll; closing does not wait for it."""
        self._workers.run_request(partial(self._poll, step), job)

    async def finish(self, grace_s: float) -> None:
        """Wait until all steps are done, but not longer than `grace_s`."""
        with anyio.move_on_after(grace_s):
            if self._pending:
                await self._all_done.wait()

    async def _poll(self, step: Callable[[TrackedJob], Awaitable[Next]], job: TrackedJob) -> None:
        self._apply(job, await step(job))

    def _begin(self) -> None:
        self._pending += 1
        self._all_done.clear()

    async def _run(self, step: JobStep, job: TrackedJob) -> None:
        try:
            try:
                next_step = await step(job)
            except NanoBananaError as error:
                next_step = Finish(error)
            if next_step is not None:
                self._apply(job, next_step)
        finally:
            self._pending -= 1
            if not self._pending:
                self._all_done.set()

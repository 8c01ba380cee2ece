"""Run the steps of jobs in worker tasks; a semaphore bounds the requests in flight."""

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

import anyio
from anyio.abc import TaskGroup

from nanobanana_async.engine.next_step import CheckOwnerAt, Finish, Next
from nanobanana_async.engine.timers import Timed
from nanobanana_async.engine.tracked_job import TrackedJob
from nanobanana_async.errors import NanoBananaError
from nanobanana_async.events import log_failure
from nanobanana_async.ledger.base import NotOurs

JobTask = Callable[[Any], Awaitable[None]]

JobStep = Callable[[TrackedJob], Awaitable[Next | None]]
"""Returns what is next; None if the job is no longer followed."""


class WorkerPool:
    """Runs steps in the session's task group, those that make requests under the semaphore.

    Idle workers are kept, because a new task costs ten times as much as a hand-over to an idle one. A failure in a
    worker never ends another: a task that ended with a `CancelledError` would cancel the group and the session.
    """

    def __init__(
        self,
        max_requests: int,
        *,
        apply: Callable[[TrackedJob, Next], None],
        freed: Callable[[], None],
        crashed: Callable[[Timed, BaseException], None],
    ) -> None:
        self._permits = anyio.Semaphore(max_requests, max_value=max_requests)
        self._max_requests = max_requests
        self.free_requests = max_requests
        """How many more requests may leave."""
        self._apply = apply
        self._freed = freed
        self._crashed = crashed
        self._group: TaskGroup | None = None
        self._group_task: asyncio.Task[Any] | None = None
        self._idle: list[asyncio.Future[tuple[JobTask, Timed, bool]]] = []

        self._unfinished = 0
        """How many steps run that closing waits for."""
        self._all_finished = asyncio.Event()

    def set_group(self, group: TaskGroup) -> None:
        """Set the task group in which workers run; called in the group's own task."""
        self._group = group
        self._group_task = asyncio.current_task()
        self._context = contextvars.copy_context()

    @property
    def requests_in_flight(self) -> int:
        """How many requests are in flight."""
        return self._max_requests - self.free_requests

    def start_create(self, step: JobStep, job: TrackedJob) -> None:
        """Run a create of a job; a request must be free for it. Closing the session waits for it."""
        self._add_unfinished()
        self.start_request(partial(self._run_step, step), job)

    def start_ledger_step(self, step: JobStep, job: TrackedJob) -> None:
        """Run a step that only reads and writes the ledger. Closing the session waits for it."""
        self._add_unfinished()
        self._hand_to_worker(partial(self._run_step, step), job, False)

    def start_poll(self, step: Callable[[TrackedJob], Awaitable[Next]], job: TrackedJob) -> None:
        """Run a poll of a job; a request must be free for it. Closing the session does not wait for it."""
        self.start_request(partial(self._run_poll, step), job)

    async def wait_for_creates_and_writes(self, grace_s: float) -> None:
        """Wait until all creates and writes are done, but not longer than `grace_s`."""
        with anyio.move_on_after(grace_s):
            if self._unfinished:
                await self._all_finished.wait()

    def start_request(self, job_task: JobTask, job: Timed) -> None:
        """Run a coroutine that makes a request; a request must be free for it (`free_requests`)."""
        self._permits.acquire_nowait()
        self.free_requests -= 1
        self._hand_to_worker(job_task, job, True)

    def start_task(self, name: str, work: Callable[[], Coroutine[Any, Any, None]], *, restart: bool = False) -> None:
        """Run a coroutine in the task group. A failure is logged; then with `restart` it is started again."""
        if self._group is not None:
            self._group.start_soon(self._run_background_task, name, work, restart)

    def try_contain(self, failure: BaseException) -> bool:
        """Whether a failure concerns only the current step; otherwise the task has to end.

        A `CancelledError` concerns only the step unless the session or the event loop ends: it came from an observer,
        a ledger or a transport, or other code cancelled a task of the session.
        """
        if isinstance(failure, Exception):
            return True
        if not isinstance(failure, asyncio.CancelledError) or self._is_shutting_down:
            return False
        if (task := asyncio.current_task()) is not None:
            while task.cancelling():
                task.uncancel()
        return True

    @property
    def _is_shutting_down(self) -> bool:
        if self._group is None or self._group_task is None:
            return False
        # When the event loop shuts down it cancels all tasks, the session's too.
        return self._group.cancel_scope.cancel_called or self._group_task.cancelling() > 0 or self._group_task.done()

    def _add_unfinished(self) -> None:
        self._unfinished += 1
        self._all_finished.clear()

    async def _run_step(self, step: JobStep, job: TrackedJob) -> None:
        try:
            try:
                next_step = await step(job)
            except NotOurs:  # it went to another owner: follow it through the ledger
                next_step = CheckOwnerAt(asyncio.get_running_loop().time())
            except NanoBananaError as error:
                next_step = Finish(error)
            if next_step is not None:
                self._apply(job, next_step)
        finally:
            self._unfinished -= 1
            if not self._unfinished:
                self._all_finished.set()

    async def _run_poll(self, step: Callable[[TrackedJob], Awaitable[Next]], job: TrackedJob) -> None:
        try:
            next_step = await step(job)
        except NotOurs:
            next_step = CheckOwnerAt(asyncio.get_running_loop().time())
        self._apply(job, next_step)

    def _hand_to_worker(self, job_task: JobTask, job: Timed, permitted: bool) -> None:
        while self._idle:
            handover = self._idle.pop()
            if not handover.done():  # else its worker was cancelled
                handover.set_result((job_task, job, permitted))
                return
        if self._group is not None:  # in the session's context: a worker outlives the caller that needs it first
            self._context.copy().run(self._group.start_soon, self._worker_loop, job_task, job, permitted)

    async def _worker_loop(self, job_task: JobTask, job: Timed, permitted: bool) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._run_contained(job_task, job, permitted)
            if len(self._idle) >= self._max_requests:
                return
            handover: asyncio.Future[tuple[JobTask, Timed, bool]] = loop.create_future()
            self._idle.append(handover)
            try:
                job_task, job, permitted = await handover
            except asyncio.CancelledError as stray:
                if not self.try_contain(stray):
                    raise
                if handover.cancel() or handover.cancelled():
                    return
                job_task, job, permitted = handover.result()  # a step was handed over in the same iteration of the loop

    async def _run_contained(self, job_task: JobTask, job: Timed, permitted: bool) -> None:
        try:
            try:
                await job_task(job)
            finally:
                if permitted:
                    self._permits.release()
                    self.free_requests += 1
        except BaseException as failure:
            if not self.try_contain(failure):
                raise
            self._crashed(job, failure)
        try:
            self._freed()
        except BaseException as failure:
            if not self.try_contain(failure):
                raise
            log_failure("engine.crashed", failure, task="pump")

    async def _run_background_task(
        self, name: str, work: Callable[[], Coroutine[Any, Any, None]], restart: bool
    ) -> None:
        while True:
            try:
                await work()
            except BaseException as failure:
                if not self.try_contain(failure):
                    raise
                log_failure("engine.crashed", failure, task=name)
            if not restart:
                return


def error_of_crash(failure: BaseException) -> NanoBananaError:
    """Return what the waiters of a job get whose step raised what no step may raise."""
    why = f"a bug in nanobanana_async: {type(failure).__name__}: {failure}"
    if isinstance(failure, asyncio.CancelledError):
        why = "a step of the job was cancelled from within (by an observer, the ledger or the transport)"
    return NanoBananaError(f"{why}; see the log")

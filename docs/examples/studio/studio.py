"""What runs in each worker beside the requests: jobs are finished and saved even when no request waits for them."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from anyio.abc import TaskGroup
from board import Board, newest_orders, saved_images

from nanobanana_async import ConcurrencyPolicy, Job, JobState, NanoBananaError, PostgresLedger, Session, SqliteLedger

log = logging.getLogger("studio")

CATCH_UP_S = 10.0


class Studio:
    """The state of one worker: a session, the shared ledger, the jobs whose images it saves."""

    def __init__(self, ledger: SqliteLedger | PostgresLedger, images: Path) -> None:
        self.images = images
        self.ledger = ledger
        # A person waits for these images. Batch workers on the same ledger have time: free slots come here first.
        policy = ConcurrencyPolicy(interactive=True, reserve=2)
        self.session = Session(
            ledger=ledger,
            concurrency=policy,
            observers=[lambda event: self.board.refresh()],
            adopt="buy",  # the jobs of dead workers: a worker that is replaced may die after its successor has started
            adopt_every_s=CATCH_UP_S,
        )
        self.board = Board(self.session, self.ledger, images)
        self._saving: set[str] = set()
        self._tasks: TaskGroup | None = None

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Run the session, the board and the saving of images until the worker stops."""
        self.images.mkdir(parents=True, exist_ok=True)
        async with self.session, anyio.create_task_group() as self._tasks:
            self._tasks.start_soon(self.board.watch)
            self._tasks.start_soon(self._catch_up)
            yield
            self._tasks.cancel_scope.cancel()  # ends the waiting, not the jobs

    def keep(self, job: Job) -> None:
        """Save the images of a job when it has ended, even when no request waits for them."""
        if self._tasks is not None and job.key not in self._saving:
            self._saving.add(job.key)
            self._tasks.start_soon(self._keep, job)

    async def _keep(self, job: Job) -> None:
        try:
            await self.session.save(await job, self.images / job.key)
        except NanoBananaError as error:
            log.warning("job %s: %s", job.key, error)
        finally:
            self._saving.discard(job.key)
            self.board.refresh()

    async def _catch_up(self) -> None:
        """Save images that are not saved yet, of jobs that the session has adopted too, at the start and regularly."""
        while True:
            try:
                for record in await newest_orders(self.ledger, JobState.SUCCEEDED):
                    if not saved_images(record.key, self.images) and (known := await self.session.job(record.key)):
                        self.keep(known)
            except NanoBananaError:
                log.exception("catching up")
            await anyio.sleep(CATCH_UP_S)

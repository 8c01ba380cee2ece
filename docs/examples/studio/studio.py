"""What runs in each worker beside the requests: jobs are seen to their end, whether or not anybody waits for them."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from anyio.abc import TaskGroup
from board import Board, pictures_of

from nanobanana_async import Job, JobState, NanoBananaError, Session, SqliteLedger

log = logging.getLogger("studio")

CATCH_UP_S = 10.0
LOOKED_BACK = 500


class Studio:
    """What one worker holds: a session, the ledger it shares with the others, the jobs that it sees to their end."""

    def __init__(self, ledger: Path, pictures: Path) -> None:
        self.pictures = pictures
        self.ledger = SqliteLedger(ledger)
        self.board = Board(self.ledger, pictures)
        self.session = Session(ledger=self.ledger, observers=[lambda event: self.board.look()])
        self._kept: set[str] = set()
        self._tasks: TaskGroup | None = None

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Work for as long as the worker lives."""
        self.pictures.mkdir(parents=True, exist_ok=True)
        async with self.session, anyio.create_task_group() as self._tasks:
            self._tasks.start_soon(self.board.watch)
            self._tasks.start_soon(self._catch_up)
            yield
            self._tasks.cancel_scope.cancel()  # ends the waiting, not the jobs

    def keep(self, job: Job) -> None:
        """See a job to its end and keep its pictures, whether or not anybody still waits for them."""
        if self._tasks is not None and job.key not in self._kept:
            self._kept.add(job.key)
            self._tasks.start_soon(self._keep, job)

    async def _keep(self, job: Job) -> None:
        try:
            await self.session.save(await job, self.pictures / job.key)
        except NanoBananaError as error:
            log.warning("job %s: %s", job.key, error)
        finally:
            self._kept.discard(job.key)
            self.board.look()

    async def _catch_up(self) -> None:
        """Go on with what a dead worker left, and fetch what it had not fetched: at the start, and again and again.

        Once is not enough: the worker that is replaced may die only after its successor has started.
        """
        while True:
            try:
                for job in await self.session.resume(buy=True):
                    self.keep(job)
                async for record in self.ledger.jobs(JobState.SUCCEEDED, limit=LOOKED_BACK):
                    if not pictures_of(record.key, self.pictures) and (known := await self.session.job(record.key)):
                        self.keep(known)
            except NanoBananaError:
                log.exception("catching up")
            await anyio.sleep(CATCH_UP_S)

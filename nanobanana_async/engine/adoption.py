"""Adopt the jobs of a ledger that have no owner."""

from collections.abc import AsyncIterator

from nanobanana_async.engine.engine import Engine
from nanobanana_async.engine.phases import Phase
from nanobanana_async.engine.tracked_job import TrackedJob
from nanobanana_async.jobs import JobRecord

ADOPT_BATCH = 200
"""How many jobs are adopted at the same time: one flush of the ledger serves them all."""


async def adopt_all(engine: Engine, records: AsyncIterator[JobRecord]) -> list[TrackedJob]:
    """Follow jobs that have no owner; return those that this session owns now."""
    jobs: list[TrackedJob] = []
    waiting: list[TrackedJob] = []
    async for record in records:
        if record.key not in engine.tracked:
            job = engine.build_tracked_job(record)
            job.may_buy = True
            waiting.append(engine.ensure_followed(job))
        if len(waiting) >= ADOPT_BATCH:
            jobs += await _wait_for_claims(waiting)
            waiting = []
    return jobs + await _wait_for_claims(waiting)


async def _wait_for_claims(waiting: list[TrackedJob]) -> list[TrackedJob]:
    for job in waiting:
        while job.is_undecided:
            await job.wait_for_change()
    return [job for job in waiting if job.phase is not Phase.FOREIGN]

"""Adopt the jobs of a ledger that have no owner: when asked to, regularly, and when an exchange has seen some.

Until they are adopted they take slots of the account, also when the gateway has ended them.
"""

from collections.abc import Iterable
from typing import Literal

import anyio

from nanobanana_async.engine.engine import Engine
from nanobanana_async.engine.phases import Phase
from nanobanana_async.engine.tracked_job import TrackedJob
from nanobanana_async.errors import ConfigurationError, NanoBananaError, SessionClosed
from nanobanana_async.events import log
from nanobanana_async.jobs import JobState
from nanobanana_async.ledger.base import Ledger, SharesAccount
from nanobanana_async.validators import shown

Adopt = Literal["auto", "follow", "buy"]

LEAST_GAP_S = 0.5
"""The least time between two rounds: an exchange sees jobs without an owner until they are adopted or have ended."""
ADOPT_BATCH = 200
"""How many jobs are adopted at the same time: one flush of the ledger serves them all."""


def adopt_mode(adopt: Adopt | None, ledger: Ledger) -> Literal["follow", "buy"] | None:
    """Return which jobs a session adopts by itself; raise `ConfigurationError` for a wrong setting."""
    if adopt == "auto":
        return "follow" if isinstance(ledger, SharesAccount) else None
    if adopt is None or (isinstance(adopt, str) and adopt in ("follow", "buy")):
        return adopt
    raise ConfigurationError(
        "adopt must be 'follow' (jobs without an owner that may be bought already), 'buy' (also those that were never"
        f" sent), None, or 'auto' ('follow' if hosts share the ledger), not {shown(adopt)}"
    )


class Adoption:
    """Takes over the jobs of the session's accounts that have no owner, as `Session.resume` says."""

    def __init__(self, engine: Engine, adopt: Literal["follow", "buy"] | None, every_s: float) -> None:
        self._engine = engine
        self._adopt: Literal["follow", "buy"] | None = adopt
        self._every_s = every_s
        self._turn = anyio.Lock()
        self._unreturned: list[TrackedJob] = []
        """What was adopted and not returned: by the session itself, or by a call that failed or was cancelled."""

    def start(self) -> None:
        """Let the session adopt by itself, if it is to."""
        if self._adopt is not None:
            self._engine.scheduler.background_tasks.append(self._keep_adopting)

    async def adopt(self, *, buy: bool) -> list[TrackedJob]:
        """Adopt jobs; return them, with those that the session has adopted by itself and still follows."""
        async with self._turn:
            before = list(self._unreturned)
            adopted = await self._adopt_all(buy=buy)
            before, self._unreturned = self._still_followed(before), []
            return before + adopted

    async def _keep_adopting(self) -> None:
        failure_logged = False
        while True:
            self._engine.orphans_seen.clear()
            try:
                async with self._turn:
                    await self._adopt_all(buy=self._adopt == "buy", by_itself=True)
                    self._unreturned = self._still_followed(self._unreturned)
            except SessionClosed:
                return
            except NanoBananaError as error:  # the next round tries again
                if not failure_logged:
                    log.warning("ledger.failed error=%s", error.message)
                failure_logged = True
            else:
                failure_logged = False
            with anyio.move_on_after(self._every_s):
                await anyio.sleep(LEAST_GAP_S)
                await self._engine.orphans_seen.wait()

    def _still_followed(self, jobs: Iterable[TrackedJob]) -> list[TrackedJob]:
        tracked = self._engine.tracked
        return [job for job in jobs if tracked.get(job.key) is job and job.phase is not Phase.FOREIGN]

    async def _adopt_all(self, *, buy: bool, by_itself: bool = False) -> list[TrackedJob]:
        """Follow jobs that have no owner; return those that this session owns now.

        By itself a session leaves a job alone whose local image is not at hand. It is not sent, and it does not end
        either: it waits until it is requested with the image again, or until another job has uploaded that.
        """
        engine = self._engine
        jobs: list[TrackedJob] = []
        waiting: list[TrackedJob] = []
        for member in list(engine.members):
            async for record in engine.store.ledger.adoptable_jobs(member.account):
                unsent = record.state is JobState.PENDING
                if record.key in engine.tracked or (unsent and not buy):
                    continue
                if unsent and by_itself and not await member.references.are_at_hand(record.request):
                    continue
                job = engine.build_tracked_job(record)
                job.may_buy = buy  # it may be PENDING again by the time of the claim
                waiting.append(engine.ensure_followed(job))
                self._unreturned.append(job)
                if len(waiting) >= ADOPT_BATCH:
                    jobs += await _wait_for_claims(waiting)
                    waiting = []
        return jobs + await _wait_for_claims(waiting)


async def _wait_for_claims(waiting: list[TrackedJob]) -> list[TrackedJob]:
    for job in waiting:
        while job.awaits_ledger_decision:
            await job.wait_for_change()
        if job.phase is not Phase.FOREIGN:
            job.may_buy = True
        elif not job.callers:  # another session was faster, and follows it
            job.may_buy = False
            job.may_buy = job.is_wanted
    return [job for job in waiting if job.phase not in (Phase.FOREIGN, Phase.KNOWN)]

"""What the tools do: one job for each request id, however often it is asked for, in this process or in another one.

The jobs are rows of a named batch. The ledger counts the cap of the batch and the budget: so they hold across restarts,
and for all servers that use this ledger and these names. A job runs in the service's task group: a call that ends
leaves it alone.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup
from attrs import define, field, frozen

from nanobanana_async import (
    BatchStopped,
    Budget,
    BudgetState,
    GenerationResult,
    IdempotencyConflict,
    ImageRequest,
    Job,
    JobState,
    NanoBananaError,
    Session,
)
from nanobanana_async.batch.messages import log_crash_as_error
from nanobanana_async.batch.rows import Row
from nanobanana_async.images.names import safe_name
from nanobanana_async.images.saved import SavedImages
from nanobanana_async.jobs import JobRecord, with_indexes
from nanobanana_async.keys import batch_key_prefix
from nanobanana_async.ledger.base import StoredLedger

PROGRESS_EVERY_S = 1.0
"""How often a call that waits reports progress."""
MAX_SCANNED = 2_000
"""How many of the ledger's newest jobs, of all batches, are searched for those of this one."""

NOT_BOUGHT = frozenset({JobState.PENDING, JobState.WITHDRAWN, JobState.REFUSED})

Reporter = Callable[[float, str], Awaitable[None]]
"""Is called with percent, which always rise, and a sentence."""


@frozen(kw_only=True)
class ServiceOptions:
    """What the models may spend, under which name, and where the images go."""

    folder: Path
    batch: str
    max_credits: Decimal | None = None
    """The cap of the batch. It, or a budget, is needed."""
    budget: Budget | None = None
    expected_credits: Decimal | None = None
    priority: int = 0
    group: str | None = None


@define(eq=False)
class Purchase:
    """The job of one request id while a task works on it, and how that ended."""

    request_id: str
    image_request: ImageRequest | None
    """None where only the images of an earlier job are collected."""
    ended: anyio.Event = field(factory=anyio.Event)
    result: GenerationResult | None = None
    saved: Sequence[Path | str] = ()
    error: NanoBananaError | None = None


class Service:
    """Buys, collects and lists the images of one batch."""

    def __init__(self, session: Session, ledger: StoredLedger, options: ServiceOptions, group: TaskGroup) -> None:
        self._session = session
        self.ledger = ledger
        self.options = options
        self._group = group
        self._prefix = batch_key_prefix(options.batch)
        self._running: dict[str, Purchase] = {}

    @classmethod
    @asynccontextmanager
    async def opened(cls, session: Session, ledger: StoredLedger, options: ServiceOptions) -> AsyncIterator["Service"]:
        """Open a session with this ledger.

        At the end it is closed: jobs that were not sent are withdrawn, and those that run stay in the ledger.
        """
        async with session:
            if options.budget is not None:  # before any call, since it may count in another way in this ledger
                await ledger.set_budget(options.budget)
            async with anyio.create_task_group() as group:
                yield cls(session, ledger, options, group)
                group.cancel_scope.cancel()

    async def aclose(self) -> None:
        """Stop buying, and store the answers of creates in flight."""
        await self._session.aclose()

    def job_key(self, request_id: str) -> str:
        """Return the key of a request's job in the ledger."""
        return f"{self._prefix}{request_id}"

    async def buy(self, request_id: str, wanted: ImageRequest, wait_s: float, report: Reporter) -> Purchase:
        """Begin a request, or join the one that runs under this id, and wait for at most `wait_s` seconds."""
        purchase = self._running.get(request_id)
        if purchase is None:
            purchase = self._begin(Purchase(request_id, wanted), self._buy)
        elif purchase.image_request not in (None, wanted):
            raise IdempotencyConflict(f"request_id {request_id} is at work on another request")
        await self._wait(purchase, wait_s, report)
        return purchase

    async def collect(self, request_id: str, wait_s: float, report: Reporter) -> Purchase | None:
        """Wait for the images of a request that was bought, and save them. Nothing is bought; None if it was not."""
        purchase = self._running.get(request_id)
        if purchase is None:
            job = await self.job(request_id)
            if job is None or job.state in NOT_BOUGHT:
                return None
            purchase = self._begin(Purchase(request_id, None), self._collect)
        await self._wait(purchase, wait_s, report)
        return purchase

    async def job(self, request_id: str) -> Job | None:
        """Return the job of a request; None before it is in the ledger."""
        return await self._session.job(self.job_key(request_id))

    async def recent(self, limit: int) -> list[tuple[str, JobRecord, Sequence[Path]]]:
        """Return the newest jobs with their request ids, and with those of their files that are intact."""
        records: list[JobRecord] = []
        async for record in self.ledger.jobs(limit=MAX_SCANNED):
            if record.batch == self._prefix:
                records.append(record)
            if len(records) == limit:
                break
        return await anyio.to_thread.run_sync(self._with_files, records)

    async def spent(self) -> Decimal:
        """Return the credits that were spent or are reserved under the name of the batch."""
        return await self.ledger.spent_or_reserved(self.options.batch)

    async def budget(self) -> BudgetState | None:
        """Return the state of the budget; None if there is only the cap of the batch."""
        if self.options.budget is None:
            return None
        (state,) = await self.ledger.budgets(datetime.now(UTC), [self.options.budget.name])
        return state

    def _with_files(self, records: Sequence[JobRecord]) -> list[tuple[str, JobRecord, Sequence[Path]]]:
        saved = SavedImages.read(self.options.folder)
        found: list[tuple[str, JobRecord, Sequence[Path]]] = []
        for record in records:
            indexes = [index for index, _ in with_indexes(record.images, record.missing)]
            files = saved.find(record.key, record.task_id or "", indexes) if indexes else None
            found.append((record.key.removeprefix(self._prefix), record, files or ()))
        return found

    def _begin(self, purchase: Purchase, work: Callable[[Purchase], Awaitable[None]]) -> Purchase:
        self._running[purchase.request_id] = purchase
        self._group.start_soon(self._run_purchase, purchase, work)
        return purchase

    async def _run_purchase(self, purchase: Purchase, work: Callable[[Purchase], Awaitable[None]]) -> None:
        try:
            await work(purchase)
        except BatchStopped as stopped:
            purchase.error = stopped.cause
        except NanoBananaError as error:
            purchase.error = error
        except Exception as bug:  # it must not end the server
            purchase.error = log_crash_as_error(0, bug)
        finally:
            del self._running[purchase.request_id]
            purchase.ended.set()

    async def _buy(self, purchase: Purchase) -> None:
        row = Row(
            index=-1,
            key=self.job_key(purchase.request_id),
            own_key=purchase.request_id,
            request=purchase.image_request,
            name=safe_name(purchase.request_id),
        )
        options = self.options
        async with self._session.generate_many(
            [row],
            batch=options.batch,
            save_to=options.folder,
            max_credits=options.max_credits,
            budget=options.budget,
            expected_credits=options.expected_credits,
            priority=options.priority,
            group=options.group,
        ) as outcomes:
            async for outcome in outcomes:
                purchase.result, purchase.saved, purchase.error = outcome.result, outcome.saved, outcome.error

    async def _collect(self, purchase: Purchase) -> None:
        job = await self.job(purchase.request_id)
        if job is not None:
            purchase.result = await job.result()
            name = safe_name(purchase.request_id)
            purchase.saved = await self._session.save(purchase.result, self.options.folder, name=name)

    async def _wait(self, purchase: Purchase, wait_s: float, report: Reporter) -> None:
        ends_at, shown = anyio.current_time() + wait_s, 0.0
        while not purchase.ended.is_set() and (left_s := ends_at - anyio.current_time()) > 0:
            with anyio.move_on_after(min(PROGRESS_EVERY_S, left_s)):
                await purchase.ended.wait()
                return
            job = await self.job(purchase.request_id)
            # The protocol asks for numbers that rise, also while a job makes no progress.
            shown = max(shown + 0.01, 0.0 if job is None else 100 * job.progress)
            await report(shown, "not stored yet" if job is None else job.state.value)

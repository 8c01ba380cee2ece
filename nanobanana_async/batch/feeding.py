"""Feed the rows of a batch into a ledger that several hosts share: workers on any of them draw and buy the rows."""

import hashlib
import json
import time
from collections.abc import Mapping
from contextlib import aclosing
from decimal import Decimal
from functools import partial

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup
from attrs import evolve, frozen

from nanobanana_async.accounts import account_advice, account_conflict
from nanobanana_async.batch.inputs import to_requests
from nanobanana_async.batch.options import BatchOptions, iterate
from nanobanana_async.batch.rows import Requests, Row, RowReader, canonical_request
from nanobanana_async.engine.engine import Engine
from nanobanana_async.errors import ConfigurationError, IdempotencyConflict, InvalidRequest, LedgerError
from nanobanana_async.images.names import row_name
from nanobanana_async.jobs import JobRecord, JobState, has_failed_with
from nanobanana_async.keys import batch_key_prefix
from nanobanana_async.ledger.base import Ledger
from nanobanana_async.ledger.feeding import FedBatch, FedRow, FeedsRows
from nanobanana_async.models import ImageRequest, difference, to_json_types
from nanobanana_async.references import LocalImage

CHUNK = 2000
"""Rows in one transaction: a few tenths of a second, in which the owner can't beat."""

TURN = 100  # rows until other tasks of the event loop get a turn

# Refusals caused by the row itself: the same row would be refused again. Others were temporary.
PERMANENT_REFUSALS = frozenset({"InvalidRequest", "PromptBlocked", "IdempotencyConflict"})


@frozen(kw_only=True)
class FeedReport:
    """What feeding a batch has stored."""

    batch: str
    """The batch's name."""
    new: int = 0
    """How many rows were new in the ledger."""
    known: int = 0
    """How many rows it knew already: they keep their jobs."""
    again: int = 0
    """How many of the known ones had ended without images, and are bought again."""
    max_credits: Decimal | None = None
    """The cap of the batch; None: it has none."""


def ledger_to_feed(ledger: Ledger) -> FeedsRows:
    """Return the ledger; raise `ConfigurationError` for one from which workers can't draw rows."""
    if isinstance(ledger, FeedsRows):
        return ledger
    raise ConfigurationError(
        f"rows can't be fed into a {type(ledger).__name__}: several hosts need Session(ledger='postgresql://...');"
        " on one machine generate_many(rows, batch='name') does without feeding"
    )


class Feeding:
    """Feeds one input, in its order, some thousand rows at a time."""

    def __init__(self, engine: Engine, ledger: FeedsRows, options: BatchOptions) -> None:
        self._engine = engine
        self._ledger = ledger
        self._options = options
        self._name = options.name or ""
        self._prefix = batch_key_prefix(self._name)
        self._reader = RowReader(self._name, partial(row_name, options.names))
        self._without_key = 0
        self._report = FeedReport(batch=self._name)
        self._fed_batch = FedBatch(
            batch=self._prefix,
            name=self._name,
            gateway=engine.gateway.name,
            account=engine.account,
            max_credits=options.max_credits,
            expected_credits=options.expected_credits,
        )
        self._is_open = False
        self._chunk: dict[str, FedRow] = {}
        self._storing = anyio.Semaphore(1)  # one chunk is written while the next one is read

    async def feed(self, requests: Requests) -> FeedReport:
        """Store all rows. What was stored before an error stays: the same input again continues.

        A known batch gets its higher cap last, so that an input that is refused raises none. A lower one holds from the
        first rows on that are bought because they are fed.
        """
        items = to_requests(requests)
        known = await self._ledger.fed_batch(self._prefix)
        if known is not None:
            check_account(known, self._name, self._engine)
        await self._store_all(items)
        stored = await self._ledger.open_batch(self._fed_batch, change=True)
        check_account(stored, self._name, self._engine)
        return evolve(self._report, max_credits=stored.max_credits)

    async def _store_all(self, items: Requests) -> None:
        """Read and store at the same time; after an error of the input the rows before it are stored, too."""
        failure: Exception | None = None
        try:
            async with anyio.create_task_group() as group:
                try:
                    await self._read(items, group)
                except Exception as error:
                    failure = error
                await self._begin_storing(group)
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        if failure is not None:
            raise failure

    async def _read(self, items: Requests, group: TaskGroup) -> None:
        async with aclosing(iterate(items, time.perf_counter)) as rows:
            async for item in rows:
                row = await self._to_fed_row(self._reader.read(item))
                known = self._chunk.setdefault(row.record.key, row)
                if known is not row:
                    if known.digest != row.digest:
                        raise self._conflict(row, known.record)
                    self._report = evolve(self._report, known=self._report.known + 1)
                if row.index % TURN == 0:
                    await anyio.lowlevel.checkpoint()
                if len(self._chunk) >= CHUNK:
                    await self._begin_storing(group)

    async def _begin_storing(self, group: TaskGroup) -> None:
        chunk, self._chunk = self._chunk, {}
        if chunk:
            await self._storing.acquire()
            group.start_soon(self._store, chunk)

    async def _store(self, chunk: Mapping[str, FedRow]) -> None:
        try:
            await self._store_chunk(chunk)
        finally:
            self._storing.release()

    async def _store_chunk(self, chunk: Mapping[str, FedRow]) -> None:
        rows = tuple(chunk.values())
        if not self._is_open:
            check_account(await self._ledger.open_batch(self._fed_batch), self._name, self._engine)
            self._is_open = True
        found = await self._ledger.feed(self._prefix, rows, max_credits=self._options.max_credits)
        if found.misplaced is not None:
            raise self._another_input(next(row for row in rows if row.place == found.misplaced))
        for key, record in found.other_requests.items():
            raise self._conflict(chunk[key], record)
        again = [record for record in found.ended if _is_bought_again(record, self._options.retry_failed)]
        if again and self._options.max_credits is not None:  # workers may draw them before all rows are stored
            await self._ledger.lower_cap(self._prefix, self._options.max_credits)
        for record in again:
            await self._begin_again(record, chunk[record.key].record)
        if again:  # so that workers draw them
            await self._ledger.feed(self._prefix, [chunk[record.key] for record in again])
        before = self._report
        self._report = evolve(
            before,
            new=before.new + found.new,
            known=before.known + len(rows) - found.new,
            again=before.again + len(again),
        )

    async def _begin_again(self, known: JobRecord, wanted: JobRecord) -> None:
        """Start the next generation of a job, for a worker to buy."""
        now = self._engine.store.utcnow()
        after = known.next_generation(
            body=wanted.body, request=wanted.request, budget=wanted.budget, slots=wanted.slots, created_at=now
        )
        try:
            await self._ledger.advance(known, after)
        except LedgerError:
            found = await self._ledger.find(known.key)
            if found is None or found.revision == known.revision:
                raise
            return  # another host has begun it meanwhile
        await self._ledger.release(known.key)

    async def _to_fed_row(self, row: Row) -> FedRow:
        if row.error is not None or row.request is None:
            raise InvalidRequest(f"row {row.index + 1}: {'' if row.error is None else row.error.message}")
        for image in row.request.images:
            if isinstance(image, LocalImage):
                raise InvalidRequest(
                    f"row {row.index + 1}: {image} is at hand on this host only, and other hosts buy the row: upload it"
                    " and pass its URL"
                )
        try:
            record = await self._engine.new_record(
                row.request,
                row.key,
                batch=self._prefix,
                budget=self._options.budget,
                priority=self._options.priority,
                group=self._options.group,
                with_callback=False,
            )
        except InvalidRequest as error:
            raise InvalidRequest(f"row {row.index + 1}: {error.message}") from None
        place = None
        if row.own_key is None:
            place, self._without_key = self._without_key, self._without_key + 1
        request = record.request
        return FedRow(
            record=record,
            index=row.index,
            place=place,
            own_key=row.own_key,
            digest="" if request is None else _digest(request, keyed=row.own_key is not None),
            metadata=None if row.metadata is None else json.dumps(to_json_types(row.metadata)),
            name=row.name,
        )

    def _conflict(self, row: FedRow, known: JobRecord) -> IdempotencyConflict | ConfigurationError:
        number, wanted = row.index + 1, row.record
        if known.account != wanted.account:
            why = account_conflict(known, wanted.gateway, wanted.account, self._engine.claimer.ledger_location)
            return ConfigurationError(f"row {number}: {why}", key=known.key)
        which = f"key {row.own_key}" if row.own_key is not None else f"job {known.key}"
        why = "a task that was attached"
        if known.request is not None and wanted.request is not None:
            why = f"another request ({difference(known.request, wanted.request)})"
        return IdempotencyConflict(
            f"row {number}: {which} of batch {self._name!r} belongs to {why}: give another request another key. The"
            " rows before it are fed, and feeding the same input again continues",
            key=known.key,
            safe_to_repeat=False,
        )

    def _another_input(self, row: FedRow) -> ConfigurationError:
        return ConfigurationError(
            f"row {row.index + 1} is another one than the row that was fed at this place of batch {self._name!r}:"
            " rows without a key are distinguished by their order. Feed the same rows with new ones at the end, or"
            " under another name; or give all rows a `key`, in a batch with another name: then they may come in any"
            " order, in parts and from several hosts. Nothing of this row and those after it was stored"
        )


def check_account(fed: FedBatch, name: str, engine: Engine) -> None:
    """Raise `ConfigurationError` if a batch was fed for another account: its rows would be bought a second time."""
    if fed.account != engine.account:
        raise ConfigurationError(
            f"batch {name!r} was fed for account {fed.account} of {fed.gateway}, and this session has account"
            f" {engine.account}. "
            + account_advice(fed.gateway, fed.account, engine.account, engine.claimer.ledger_location)
        )


def _digest(request: ImageRequest, *, keyed: bool) -> str:
    """Return what a row is recognised by beside its key. A key that the batch derived has all but the model."""
    text = canonical_request(request) if keyed else str(request.model)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _is_bought_again(record: JobRecord, retry_failed: frozenset[str]) -> bool:
    """Return whether a job that has ended without images is bought again because its row is fed again."""
    if record.state is JobState.REFUSED:
        permanent = record.failure is not None and record.failure.kind in PERMANENT_REFUSALS
        return bool(retry_failed) or not permanent
    return record.state is JobState.WITHDRAWN or has_failed_with(record, retry_failed)

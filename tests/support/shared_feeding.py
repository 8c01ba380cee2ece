"""The rows of fed batches on the shared ledger in memory."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeVar

from attrs import define, evolve

from nanobanana_async.jobs import JobRecord
from nanobanana_async.ledger.feeding import UNSAVED, WITHOUT_IMAGES, Draw, Fed, FedBatch, FedRow
from nanobanana_async.models import same_request

if TYPE_CHECKING:
    from tests.support.shared_ledger import SharedLedger

T = TypeVar("T")


@define
class Row:
    record: JobRecord
    owner: Any


@define
class Stored:
    batch: str
    row: FedRow
    worker: Any = None
    delivered: int | None = None


class FeedingView:
    """What one owner does with the rows of fed batches."""

    __slots__ = ()
    shared: "SharedLedger"

    @abstractmethod
    async def _run(self, name: str, work: Callable[[], T]) -> T: ...

    async def open_batch(self, fed: FedBatch, *, change: bool = False) -> FedBatch:
        def stored() -> FedBatch:
            known = self.shared.fed_batches.get(fed.batch, fed)
            if change and known.account == fed.account:
                cap, price = fed.max_credits, fed.expected_credits
                known = evolve(
                    known,
                    max_credits=known.max_credits if cap is None else cap,
                    expected_credits=known.expected_credits if price is None else price,
                )
            self.shared.fed_batches[fed.batch] = known
            return known

        return await self._run("open_batch", stored)

    async def fed_batch(self, batch: str) -> FedBatch | None:
        return await self._run("fed_batch", lambda: self.shared.fed_batches.get(batch))

    async def feed(self, batch: str, rows: Sequence[FedRow], *, max_credits: Decimal | None = None) -> Fed:
        return await self._run("feed", lambda: self._feed(batch, rows, max_credits))

    def _feed(self, batch: str, rows: Sequence[FedRow], max_credits: Decimal | None) -> Fed:
        jobs, fed = self.shared.rows, self.shared.fed_rows
        places = {each.row.place: key for key, each in fed.items() if each.batch == batch}
        for row in sorted(rows, key=lambda row: -1 if row.place is None else row.place):
            if row.place is not None and places.get(row.place, row.record.key) != row.record.key:
                return Fed(misplaced=row.place, other_requests={})
        new, others, ended = 0, dict[str, JobRecord](), list[JobRecord]()
        for row in rows:
            key = row.record.key
            if key not in jobs:
                jobs[key] = Row(row.record, None)
                new += 1
            known, before = jobs[key].record, fed.get(key)
            if known.request is None or row.record.request is None:
                raise AssertionError(key)
            differs = known.account != row.record.account or (
                before.row.digest != row.digest if before else not same_request(known.request, row.record.request)
            )
            if differs:
                others[key] = known
                continue
            if known.state in WITHOUT_IMAGES:
                ended.append(known)
            if before is None:
                fed[key] = Stored(batch, row)
                facts = self.shared.fed_batches[batch]
                self.shared.fed_batches[batch] = evolve(facts, rows=facts.rows + 1)
                self._lower_cap(batch, max_credits)
            else:
                before.row = evolve(before.row, index=row.index, metadata=row.metadata, name=row.name)
                before.delivered = before.delivered if before.delivered == known.revision else None
        return Fed(new=new, other_requests=others, ended=tuple(ended))

    async def lower_cap(self, batch: str, max_credits: Decimal) -> None:
        await self._run("lower_cap", lambda: self._lower_cap(batch, max_credits))

    def _lower_cap(self, batch: str, max_credits: Decimal | None) -> None:
        facts = self.shared.fed_batches[batch]
        caps = [cap for cap in (facts.max_credits, max_credits) if cap is not None]
        self.shared.fed_batches[batch] = evolve(facts, max_credits=min(caps, default=None))

    async def draw(self, batch: str, count: int) -> Draw:
        def draw() -> Draw:
            open_rows = {
                key: each
                for key, each in self.shared.fed_rows.items()
                if each.batch == batch and each.delivered is None and key in self.shared.rows
            }
            drawn: list[FedRow] = []
            for key, each in sorted(open_rows.items(), key=lambda item: item[1].row.index):
                if len(drawn) < count and (each.worker is None or not each.worker.alive):
                    each.worker = self
                    drawn.append(evolve(each.row, record=self.shared.rows[key].record))
            facts = self.shared.fed_batches[batch]
            return Draw(rows=tuple(drawn), unfinished=bool(open_rows), batch=facts)

        return await self._run("draw", draw)

    async def deliver(self, revisions: Mapping[str, int | None]) -> None:
        def deliver() -> None:
            for key, revision in revisions.items():
                each = self.shared.fed_rows[key]
                if each.worker is self and each.delivered is None:
                    current = revision in (UNSAVED, self.shared.rows[key].record.revision)
                    each.worker, each.delivered = None, revision if current else None

        await self._run("deliver", deliver)

    async def draw_unsaved(self, batch: str) -> None:
        def free() -> None:
            for each in self.shared.fed_rows.values():
                if each.batch == batch and each.delivered == UNSAVED:
                    each.delivered = None

        await self._run("draw_unsaved", free)

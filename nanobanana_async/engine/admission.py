"""How a job comes in: written down as new, or found in the ledger in whatever state it was left."""

from collections.abc import Callable

from nanobanana_async.engine.books import Books
from nanobanana_async.engine.buying import Buyer
from nanobanana_async.engine.entry import NEVER, Entry
from nanobanana_async.engine.following import Follower
from nanobanana_async.engine.slots import Slots
from nanobanana_async.errors import ConfigurationError, IdempotencyConflict
from nanobanana_async.jobs import JobRecord, JobState
from nanobanana_async.models import same_wish


class Admission:
    """Claims a job's key, and finds where a known job goes on."""

    def __init__(
        self,
        account: str,
        books: Books,
        slots: Slots,
        buyer: Buyer,
        follower: Follower,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._account = account
        self._books = books
        self._slots = slots
        self._buyer = buyer
        self._follower = follower
        self._clock = clock

    async def claim(self, entry: Entry) -> float:
        """Write the job down, or take over what stands under its key; return when it is due."""
        wanted = entry.record
        found = await self._books.ledger.claim(wanted)
        if found is wanted:
            self._books.born(entry)
        else:
            self.check_same(found, wanted)
            entry.record = entry.stored = found
            if found.state in (JobState.REFUSED, JobState.WITHDRAWN):  # nothing was bought: this is a new purchase
                await self._books.renew(entry, body=wanted.body)
        return await self.take_up(entry)

    async def take_up(self, entry: Entry) -> float:
        """Go on with a job where its state says; return when it is due."""
        match entry.record.state:
            case JobState.PENDING:
                return self._clock()
            case JobState.SUBMITTING:
                return await self._buyer.take_up(entry)
            case JobState.RUNNING:
                self._slots.hold(entry)
                entry.running_at = self._follower.running_since(entry)
                return self._follower.begin(entry)
            case _:
                return NEVER

    def check_ours(self, record: JobRecord) -> None:
        """Raise `ConfigurationError` for a job of another account: under this one it could be bought again."""
        if record.account != self._account:
            raise ConfigurationError(
                f"job {record.key} belongs to another account: open a session with that account's API key",
                key=record.key,
                safe_to_repeat=not record.perhaps_bought,
            )

    @staticmethod
    def check_same(known: JobRecord, wanted: JobRecord) -> None:
        """Raise `IdempotencyConflict` if a key stands for another request already; found without asking anybody."""
        if known.account != wanted.account:
            raise IdempotencyConflict(f"key {known.key} belongs to a job of another account", key=known.key)
        if known.request is None or wanted.request is None:
            same = known.task_id == wanted.task_id
        else:
            same = same_wish(known.request, wanted.request)
        if not same:
            raise IdempotencyConflict(f"key {known.key} already stands for another request", key=known.key)

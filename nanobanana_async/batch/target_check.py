"""Check before the first purchase of a batch that its images can be saved."""

from pathlib import Path

from nanobanana_async.batch.rows import Row
from nanobanana_async.engine.engine import Engine
from nanobanana_async.image_saver import ImageSaver
from nanobanana_async.images.target import Target
from nanobanana_async.jobs import JobState

_BOUGHT = frozenset({JobState.RUNNING, JobState.SUCCEEDED})


class TargetCheck:
    """Checks the target once: a folder at the start, an object store before the first row that would be bought.

    The check of a store puts and removes an object: a run that finds everything done puts nothing.
    """

    def __init__(self, target: Target | None, saver: ImageSaver, engine: Engine) -> None:
        self._unchecked = target
        self._saver = saver
        self._engine = engine

    async def check_at_start(self) -> None:
        """Raise `SaveError` if the target is a folder that can't be written."""
        if isinstance(self._unchecked, Path):
            await self._check(self._unchecked)

    async def check_before_purchase(self, row: Row) -> Row:
        """Return the row; raise `SaveError` if the target can't be written and the row would be bought."""
        if self._unchecked is not None and row.request is not None:
            found = await self._engine.find(row.key)
            if found is None or found.record.state not in _BOUGHT:
                await self._check(self._unchecked)
        return row

    async def _check(self, target: Target) -> None:
        await self._saver.check(target)
        self._unchecked = None

"""What an owner knows of jobs because it wrote them: after a fail-over it writes again what the new server has lost."""

from collections.abc import Callable, Iterable, Mapping

from attrs import evolve, frozen

from nanobanana_async.jobs import ACTIVE_STATES, JobRecord

KEPT_S = 120.0
"""How long jobs are remembered that have ended or were released. Replicas are seconds behind, if at all."""


@frozen(kw_only=True)
class Known:
    """A record that this owner has written or adopted."""

    record: JobRecord
    owned: bool
    """Whether it is still this owner's, which works on it."""
    charges: str | None = None
    """The charges that were reserved for its purchase, as JSON, if this owner has reserved them."""


class KnownJobs:
    """The jobs of an owner, and those that it wrote a short time ago."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._jobs: dict[str, Known] = {}
        self._until: dict[str, float] = {}
        """When to forget jobs that are no longer ours."""

    def all(self) -> list[Known]:
        """Return all of them."""
        return list(self._jobs.values())

    def add(self, written: Mapping[str, Known | None]) -> None:
        """Take note of what a flush has committed: a record by its key, or None for a job that was released."""
        for key, new in written.items():
            before = self._jobs.get(key)
            if new is None:
                self._disown([key])
                continue
            if before is not None and new.charges is None and before.record.generation == new.record.generation:
                new = evolve(new, charges=before.charges)
            self._jobs[key] = new
            self._until.pop(key, None)
            if not (new.owned and new.record.state in ACTIVE_STATES):
                self._disown([key])

    def disown_all(self) -> None:
        """Take note that this owner was buried: its jobs are those of others."""
        self._disown(self._jobs.keys() - self._until.keys())

    def _disown(self, keys: Iterable[str]) -> None:
        for key in list(keys):
            if key in self._jobs:
                self._jobs[key] = evolve(self._jobs[key], owned=False)
                self._until.pop(key, None)
                self._until[key] = self._clock() + KEPT_S

    def forget_old(self) -> None:
        """Forget what was ours some minutes ago."""
        now = self._clock()
        while self._until and next(iter(self._until.values())) < now:  # in the order in which they were added
            key = next(iter(self._until))
            del self._jobs[key], self._until[key]

"""Remember which jobs of `nanobanana generate` are not delivered yet, so that the same command continues them.

Each run has a file in the folder `...-runs` beside the ledger, which names the key and the request of each of its jobs,
and the ledger. It is written before anything is bought, and removed once everything is delivered. A run holds a lock as
long as its process lives: a second run of the same command beside it buys images of its own.

A file that can't be read, or that belongs to a ledger which was lost since, is an error: what its run bought is unknown
here, and the same command would buy it again.
"""

import hashlib
import json
import os
import secrets
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from attrs import frozen
from cattrs import BaseValidationError, structure

from nanobanana_async import ConfigurationError, Gateway, ImageRequest
from nanobanana_async.cli.options import DEFAULT_LEDGER
from nanobanana_async.commands import jobs_command
from nanobanana_async.file_locks import try_lock, wait_for_lock
from nanobanana_async.images.files import sync_folder
from nanobanana_async.ledger.location import Location
from nanobanana_async.models import without_transient_parts

_JOBS, _LOCK = ".json", ".lock"


def fingerprint(gateway: Gateway, request: ImageRequest) -> str:
    """Return what identifies a request at a gateway: runs of equal requests continue each other."""
    whole = b"\0".join(
        (gateway.name.encode(), gateway.base_url.encode(), gateway.encode(without_transient_parts(request)))
    )
    return hashlib.sha256(whole).hexdigest()[:32]


def runs_beside(ledger: Location) -> Path:
    """Return the path beside which the runs are remembered: of the ledger's file, or for a URL one of this user.

    Runs on a server are remembered by the host that began them.
    """
    if isinstance(ledger, Path):
        return ledger
    name = hashlib.sha256(str(ledger).encode()).hexdigest()[:16]
    return DEFAULT_LEDGER.with_name(f"postgresql-{name}")


class OpenRun:
    """The jobs of one run, in the order of its requests; `continued` of them come from runs that did not end."""

    def __init__(self, ledger: Path, ledger_id: str, fingerprints: Sequence[str], *, buy_again: bool) -> None:
        """Take over the undelivered jobs of dead runs with these requests, and name new ones for the rest.

        `ledger_id` distinguishes the ledger from one that had its name before. With `buy_again` the jobs are forgotten
        instead. Raises OSError if the folder can't be written, `ConfigurationError` if it is unknown what a run bought.
        """
        self.folder = ledger.with_name(f"{ledger.name}-runs")
        self._name = secrets.token_hex(8)
        self._ledger_id = ledger_id
        self.folder.mkdir(mode=0o700, exist_ok=True)
        with _locked_folder(self.folder), _dead_runs(self.folder, ledger) as runs:
            dead = {name: run.jobs for name, run in runs.items() if buy_again or run.ledger == ledger_id}
            lost = {request for run in runs.values() if run.ledger != ledger_id for request in run.jobs.values()}
            if not buy_again and not lost.isdisjoint(fingerprints):
                raise ConfigurationError(
                    f"ledger {ledger} was lost or replaced since a run of this command that did not end: what that run"
                    " bought is unknown. Restore the ledger, or pass --buy-again to buy new images"
                )
            found, left = _split_jobs_of_dead_runs(dead, Counter(fingerprints))
            if buy_again:
                found = {}
            self.continued = sum(map(len, found.values()))
            free = {request: iter(keys) for request, keys in found.items()}
            self.keys = [
                next(free.get(request, iter(())), f"{self._name}-{number}")
                for number, request in enumerate(fingerprints, start=1)
            ]
            self._requests = dict(zip(self.keys, fingerprints, strict=True))
            self._descriptor = os.open(self._lock(self._name), os.O_RDWR | os.O_CREAT, 0o600)
            try_lock(self._descriptor)  # always free: the name is new
            self._write(self._name, self._requests)
            for name, jobs in left.items():
                self._write(name, jobs, runs[name].ledger)

    def close(self, keep: Collection[str] = ()) -> None:
        """End the run. The next run with these requests continues the jobs in `keep`; the others are forgotten."""
        with _locked_folder(self.folder):
            self._write(self._name, {key: self._requests[key] for key in self.keys if key in keep})
            with suppress(OSError):  # on Windows an open file stays; the next run removes it
                os.unlink(self._lock(self._name))
        os.close(self._descriptor)

    def _lock(self, name: str) -> Path:
        return self.folder / f"{name}{_LOCK}"

    def _write(self, name: str, jobs: Mapping[str, str], ledger_id: str | None = None) -> None:
        """Replace the file of a run atomically; without jobs remove it."""
        file = self.folder / f"{name}{_JOBS}"
        if jobs:
            part = file.with_suffix(".part")
            with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as content:
                json.dump({"ledger": ledger_id or self._ledger_id, "jobs": jobs}, content)
                content.flush()
                os.fsync(content.fileno())
            os.replace(part, file)
        else:
            file.unlink(missing_ok=True)
        sync_folder(self.folder)


_Jobs = dict[str, str]


@frozen
class _Run:
    """The file of a run: the identifier of its ledger, and the request of each job by key."""

    ledger: str
    jobs: _Jobs

    @classmethod
    def read(cls, file: Path, ledger: Path) -> "_Run":
        """Read a file; raise `ConfigurationError`, with commands for the ledger, if it is damaged."""
        try:
            return structure(json.loads(file.read_text(encoding="utf-8")), cls)
        except (OSError, ValueError, TypeError, AttributeError, KeyError, BaseValidationError, RecursionError):
            raise ConfigurationError(
                f"{file} can't be read: it names what a run bought and did not deliver. Fetch that with"
                f" `{jobs_command(ledger=ledger)}`, which lists the jobs, and"
                f" `{jobs_command('fetch', ledger=ledger, names=['KEY'])}` for each of them, then remove the file"
            ) from None


def _split_jobs_of_dead_runs(
    dead: Mapping[str, _Jobs], wanted: Counter[str]
) -> tuple[dict[str, list[str]], dict[str, _Jobs]]:
    """Return the keys to take over, by request, and what is left of each dead run that changes."""
    taken: dict[str, list[str]] = defaultdict(list)
    left: dict[str, _Jobs] = {}
    seen: set[str] = set()
    for name, jobs in dead.items():
        rest: _Jobs = {}
        for key, request in jobs.items():
            if key in seen:  # a kill while another run took it over left it in both
                continue
            if len(taken.get(request, ())) < wanted[request]:
                taken[request].append(key)
                seen.add(key)
            else:
                rest[key] = request
        if rest != jobs:
            left[name] = rest
    return taken, left


@contextmanager
def _dead_runs(folder: Path, ledger: Path) -> Iterator[dict[str, _Run]]:
    """Yield the runs whose process has ended, oldest first, and hold their locks."""
    dead: dict[str, _Run] = {}
    locks: list[tuple[int, Path]] = []
    try:
        for file in sorted(folder.glob(f"*{_JOBS}"), key=lambda file: file.stat().st_mtime_ns):
            lock = file.with_suffix(_LOCK)
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
            if not try_lock(descriptor):
                os.close(descriptor)
                continue
            locks.append((descriptor, lock))
            dead[file.stem] = _Run.read(file, ledger)
        yield dead
    finally:
        for descriptor, lock in locks:
            with suppress(OSError):
                lock.unlink()
            os.close(descriptor)


@contextmanager
def _locked_folder(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        wait_for_lock(descriptor)
        yield
    finally:
        os.close(descriptor)

"""Check the ledger: its place, its file system, what is in it, and what it knows of the account."""

import os
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from attrs import evolve

from nanobanana_async.cli.doctor.finding import Finding
from nanobanana_async.cli.jobs.actions import open_read_only
from nanobanana_async.commands import as_value, command_line
from nanobanana_async.errors import ConfigurationError
from nanobanana_async.formatting import duration, plural
from nanobanana_async.gateways.contract import Gateway
from nanobanana_async.jobs import JobState
from nanobanana_async.ledger.base import StoredLedger
from nanobanana_async.ledger.location import Location
from nanobanana_async.ledger.postgres.ledger import PostgresLedger
from nanobanana_async.ledger.stored import MISSING_PARTS_ADVICE, describe_missing
from nanobanana_async.policy.learned import LearnedAccount, LearnedLimits, is_fresh, is_kept

NETWORK_FILE_SYSTEMS = {
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "9p",
    "afs",
    "fuse.sshfs",
    "glusterfs",
    "ceph",
    "lustre",
}

MOUNTS = Path("/proc/self/mounts")
"""The mounted file systems; only on Linux."""


async def ledger_findings(location: Location, gateways: Sequence[Gateway]) -> AsyncIterator[Finding]:
    if isinstance(location, Path):
        for finding in _file_findings(location.expanduser()):
            yield finding
            if finding.verdict == "problem":
                return
        if not location.expanduser().exists():
            yield Finding("ledger", "ok", f"{location} does not exist yet; the first purchase creates it")
            return
    try:
        async with open_read_only(location) as ledger:
            if missing := await ledger.missing_parts():
                yield Finding("ledger", "problem", describe_missing(location, missing), MISSING_PARTS_ADVICE)
                return
            yield await _contents(location, ledger)
            for gateway in gateways:
                limits = await _limits(ledger, gateway.account)
                yield limits if len(gateways) == 1 else limits.of_account(gateway.account)
    except ConfigurationError as error:
        advice = f"`{command_line('ledger', 'migrate', '--ledger', as_value(location))}` does so"
        yield Finding("ledger", "problem", str(error), advice if "open it for writing once" in str(error) else "")


def _file_findings(file: Path) -> Iterator[Finding]:
    folder = next(parent for parent in (file.parent, *file.parents) if parent.exists())
    if not os.access(file if file.exists() else folder, os.W_OK):
        yield Finding("ledger", "problem", f"{file} can't be written", "set --ledger or NANOBANANA_LEDGER")
        return
    kind = file_system_type(folder)
    if kind in NETWORK_FILE_SYSTEMS:
        advice = "name a file on a local disk, or share a PostgreSQL ledger (docs/many-hosts.md)"
        yield Finding("ledger", "problem", f"{folder} is on a network file system ({kind}): its locks fail", advice)


def file_system_type(folder: Path) -> str | None:
    """Return the type of the file system that holds a folder; None where that is unknown."""
    if not MOUNTS.exists():
        return None
    path, found = str(folder.resolve()), ("", "")
    for line in MOUNTS.read_text(errors="replace").splitlines():
        _, at, kind, *_ = line.split()
        at = at.replace("\\040", " ")
        if path == at or path.startswith(at.rstrip("/") + "/"):
            found = max(found, (at, kind), key=lambda mount: len(mount[0]))
    return found[1]


async def _contents(location: Location, ledger: StoredLedger) -> Finding:
    counts, unowned = await ledger.count_by_state(), (await ledger.count_unowned()).total()
    text = f"{location} has {plural(counts.total(), 'job')}"
    if counts[JobState.UNCERTAIN]:
        advice = f"`{command_line('jobs', '--state', 'uncertain', '--ledger', as_value(location))}` lists them"
        return Finding("ledger", "note", f"{text}, {counts[JobState.UNCERTAIN]} uncertain", advice)
    if unowned:
        advice = f"`{command_line('jobs', 'resume', '--ledger', as_value(location))}` continues them"
        return Finding("ledger", "note", f"{text}, {unowned} unfinished without a session", advice)
    return Finding("ledger", "ok", text)


async def _limits(ledger: StoredLedger, account: str) -> Finding:
    """Return what was learned: of the account by all hosts together, if they share it, or by the last session."""
    if isinstance(ledger, PostgresLedger) and (state := await ledger.account_state(account)) is not None:
        learned = _learned(state.limiter.learned(now=state.spoke_at, at=datetime.fromtimestamp(state.spoke_at, UTC)))
        pause_s = state.gate_until - datetime.now(UTC).timestamp()
        if pause_s <= 1:
            return learned
        return evolve(learned, verdict="note", text=f"{learned.text}; paused for {duration(pause_s, tenths=False)}")
    text = await ledger.recall(account)
    try:
        return _learned(None if text is None else LearnedAccount.from_json(text).limits)
    except Exception:  # edited by hand, or written by another version
        return Finding("limits", "note", "what was learned can't be read: it is learned again")


def _learned(limits: LearnedLimits | None) -> Finding:
    now = datetime.now(UTC)
    if limits is None or not is_kept(limits.at, now):
        return Finding("limits", "ok", "nothing learned yet: no 429 in the last 30 days")
    facts = []
    if limits.job_limit is not None and is_fresh(limits.at, now):
        facts.append(f"{plural(limits.job_limit, 'job')} at once")
    rates = limits.rates
    pace = None if rates is None else rates.both or rates.create
    if pace is not None:
        facts.append(f"{60 * pace.rate:.0f} requests a minute")
    age = duration(max(0.0, (now - limits.at).total_seconds()), tenths=False)
    return Finding("limits", "ok", f"learned {age} ago: {', '.join(facts) or 'a pace'}")

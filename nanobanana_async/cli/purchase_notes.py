"""What `nanobanana generate` says about purchases: those of earlier runs, and those of this one."""

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal

from attrs import field, frozen

from nanobanana_async import Gateway, GenerationResult, JobState
from nanobanana_async.cli.open_runs import OpenRun, fingerprint
from nanobanana_async.cli.options import DEFAULT_LEDGER
from nanobanana_async.commands import jobs_command
from nanobanana_async.formatting import age, credit_count, duration, plural
from nanobanana_async.jobs import JobRecord
from nanobanana_async.ledger.base import StoredLedger

REHEARSAL_NOTE = "a rehearsal: images and credits are emulated, nothing was paid"
EARLIER_JOBS = 500
"""How many of the newest jobs are compared with the requests, to say which were bought before."""


@frozen
class Continued:
    """What an earlier run of the command had bought when this one began."""

    bought: frozenset[str] = frozenset()
    """The keys of jobs, bought or perhaps bought."""
    note: str = field(default="")

    @classmethod
    async def read(cls, ledger: StoredLedger, run: OpenRun) -> "Continued":
        """Read the jobs that a run continues."""
        records = [record for key in run.keys if (record := await ledger.find(key)) is not None]
        bought = [record for record in records if record.possibly_bought]
        ended = sum(record.state is JobState.SUCCEEDED for record in bought)
        parts = [f"{plural(ended, 'job')} of it ended with images"] if ended else []
        if running := len(bought) - ended:
            parts.append(f"{plural(running, 'job')} of it did not end")
        if unbought := run.continued - len(bought):
            parts.append(f"{plural(unbought, 'prompt')} of it not bought yet")
        note = (
            f"an earlier run of this command did not deliver everything: {', '.join(parts)}; what was bought is not"
            " bought again (--buy-again buys new images)"
        )
        return cls(frozenset(record.key for record in bought), note)


async def delivered_before_note(
    ledger: StoredLedger, gateway: Gateway, prints: Collection[str], own: Collection[str]
) -> str | None:
    """Return a note if requests with these fingerprints were bought before, by jobs with keys that are not our own."""
    earlier = [
        record
        async for record in ledger.jobs(JobState.SUCCEEDED, EARLIER_JOBS)
        if record.request is not None and record.gateway == gateway.name and record.key not in own
        if fingerprint(gateway, record.request) in prints
    ]
    if not earlier:
        return None
    ago = age(earlier[0].created_at, datetime.now(UTC))
    command = jobs_command(ledger=None if ledger.location == str(DEFAULT_LEDGER) else ledger.location)
    return (
        f"bought before, last {ago} ago as job {earlier[0].key}: this buys another; `{command}` lists the earlier ones"
    )


def summary(
    keys: Sequence[str],
    before: Collection[str],
    results: Mapping[str, GenerationResult],
    records: Mapping[str, JobRecord],
    took_s: float,
) -> str:
    """Return what this run bought and, apart from it, what an earlier run had bought."""
    if not before:
        return f"{_describe_images_and_cost(keys, results, records)}, {duration(took_s)}"
    found = _describe_images_and_cost([key for key in keys if key in before], results, records)
    new = [key for key in keys if key not in before and key in records and records[key].possibly_bought]
    bought = _describe_images_and_cost(new, results, records) if new else "nothing"
    return f"bought now: {bought}; bought by an earlier run: {found}; {duration(took_s)}"


def _describe_images_and_cost(
    keys: Sequence[str], results: Mapping[str, GenerationResult], records: Mapping[str, JobRecord]
) -> str:
    """Return the number of images of some jobs, and their cost."""
    images = sum(len(results[key].images) for key in keys if key in results)
    known = [price for key in keys if key in records and (price := records[key].credits) is not None]
    cost = credit_count(sum(known, Decimal(0))) if known else "price not stated"
    return f"{plural(images, 'image')}, {cost}"

"""The facts at the head of the page of a batch."""

from collections.abc import Iterator, Mapping

from attrs import frozen

from nanobanana_async.formatting import duration, number, plural
from nanobanana_async.report.summary import Credits, Summary
from nanobanana_async.report.timeline import BusyTimeAxis
from nanobanana_async.stats import SessionStats, why_paused


@frozen(kw_only=True)
class Fact:
    """A labelled value of the header, with a note and a CSS class."""

    label: str
    value: str
    note: str = ""
    tone: str = ""


def facts_of(summary: Summary, cost: Credits | None, axis: BusyTimeAxis) -> list[Fact]:
    """Return what the rows of a batch have become, what they cost, and how long it took."""
    counts = summary.statuses
    failed = [status for status in ("failed", "refused", "invalid") if counts[status]]
    facts = [
        None
        if not summary.rows
        else Fact(label="succeeded", value=f"{counts['succeeded']:,}", note=f"of {plural(summary.rows, 'row')}"),
        Fact(label="images", value=f"{summary.images:,}") if summary.images != counts["succeeded"] else None,
        Fact(label=", ".join(failed), value=f"{sum(counts[s] for s in failed):,}", tone="bad") if failed else None,
        Fact(label="uncertain", value=f"{counts['uncertain']:,}", tone="doubt") if counts["uncertain"] else None,
        Fact(label="unfinished", value=f"{counts['unfinished']:,}") if counts["unfinished"] else None,
        None if cost is None else Fact(label="credits spent", value=number(cost.spent)),
        Fact(label="credits reserved", value=number(cost.reserved)) if cost is not None and cost.reserved else None,
        Fact(label=f"running time{' without pauses' if axis.cuts else ''}", value=duration(axis.busy_s))
        if axis.busy_s
        else None,
    ]
    return [fact for fact in facts if fact is not None]


def account_facts(summary: Summary, accounts: Mapping[str, SessionStats]) -> Iterator[Fact]:
    """Yield what each account bought, its limit, and why it sends no creates now, if there are several."""
    names = [*accounts, *sorted(name for name in summary.accounts if name not in accounts)]
    for name in names if len(names) > 1 else ():
        stats = accounts.get(name)
        notes = ["succeeded"]
        notes += [] if stats is None or stats.job_limit is None else [f"limit {stats.job_limit}"]
        notes += [] if stats is None or not stats.slots_held else [f"{stats.slots_held} running"]
        notes += [] if stats is None or not stats.queued else [f"{stats.queued} waiting"]
        why = None if stats is None else why_paused(stats)
        note = ", ".join([*notes, *([] if why is None else [why])])
        yield Fact(label=name, value=f"{summary.accounts[name]:,}", note=note, tone="bad" if why else "")

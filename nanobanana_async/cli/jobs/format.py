"""How jobs look: a table for a terminal, tab-separated lines for a pipe, JSON lines, one job in full.

What stands in a ledger came from users and gateways: nothing of it reaches a terminal but printable characters.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, Literal

from attrs import asdict, fields
from rich.table import Table
from rich.text import Text

from nanobanana_async.cli.display import shorten
from nanobanana_async.escaping import json_line, one_line
from nanobanana_async.jobs import ACTIVE_STATES, Failure, JobRecord, JobState, with_indexes
from nanobanana_async.models import ImageRequest

NOTHING = "-"

WIDE = 110  # columns of a terminal from which on task ids have room
KEY = 36
LEAST = 16
GAP = 2

_TITLES = ("key", "state", "age", "task id", "credits", "prompt")

_STYLES = {
    JobState.SUBMITTING: "cyan",
    JobState.RUNNING: "yellow",
    JobState.SUCCEEDED: "green",
    JobState.FAILED: "red",
    JobState.REFUSED: "red",
    JobState.UNCERTAIN: "magenta",
}


def ago(now: datetime, then: datetime) -> str:
    """Return how long ago something was, in one unit."""
    seconds = max(0, int((now - then).total_seconds()))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def line_of(record: JobRecord, now: datetime) -> str:
    """Return a job as one tab-separated line: key, state, age, task id, credits, prompt."""
    return "\t".join(_cells(record, now))


def table_of(records: Sequence[JobRecord], now: datetime, width: int) -> Table:
    """Return jobs as a table; keys are never cut but folded, since they are what the other commands take."""
    rows = [_cells(record, now) for record in records]
    widest = [max(len(cell) for cell in column) for column in zip(*rows, _TITLES, strict=True)]
    widest[0] = max(LEAST, min(widest[0], KEY, width - sum(widest[i] + GAP for i in (1, 2, 4)) - GAP - LEAST))
    widest[3] = min(widest[3], KEY) if width >= WIDE else 0
    widest[5] = max(LEAST, width - sum(size + GAP for size in widest[:5] if size))
    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="bold")
    for title, size in zip(_TITLES, widest, strict=True):
        fold, right = title == "key", title in ("age", "credits")
        if size:
            table.add_column(
                title, width=size, no_wrap=not fold, overflow="fold" if fold else "ellipsis", justify=_side(right=right)
            )
    for record, row in zip(records, rows, strict=True):
        cells = [Text(cell) for cell, size in zip(row, widest, strict=True) if size]
        cells[1].stylize(_STYLES.get(record.state, "dim"))
        table.add_row(*cells)
    return table


def _side(*, right: bool) -> Literal["left", "right"]:
    return "right" if right else "left"


def _cells(record: JobRecord, now: datetime) -> tuple[str, ...]:
    prompt = "" if record.request is None else shorten(record.request.prompt)
    cells = (
        record.key,
        record.state.value,
        ago(now, record.created_at),
        record.task_id or "",
        "" if record.credits is None else amount(record.credits),
        prompt,
    )
    return tuple(one_line(cell) or NOTHING for cell in cells)


def json_of(record: JobRecord) -> str:
    """Return a job as one line of JSON: the whole record but for its body, of which the size; money is text."""
    facts = asdict(record, filter=lambda attribute, _: attribute.name != "body", value_serializer=_as_json)
    facts |= {"wire_key": record.wire_key, "body_bytes": len(record.body)}
    return json_line(json.dumps(facts))


def _as_json(_: object, __: object, value: Any) -> Any:
    match value:
        case Enum():
            return value.value
        case datetime():
            return value.isoformat()
        case Decimal():
            return f"{value:f}"
        case _:
            return value


def summary(counts: Counter[JobState]) -> str:
    """Return how many jobs stand where."""
    states = ", ".join(f"{counts[state]} {state.value}" for state in JobState if counts[state])
    return f"{pluralize(counts.total())}: {states}" if states else "no jobs"


def next_steps(counts: Counter[JobState], abandoned: Counter[JobState]) -> Iterator[str]:
    """Yield what the reader may want to do next."""
    if sent := abandoned.total() - abandoned[JobState.PENDING]:
        yield f"{pluralize(sent)} sent, not ended, and followed by nobody: `nanobanana jobs resume` goes on with them"
    if unsent := abandoned[JobState.PENDING]:
        yield f"{pluralize(unsent)} never sent, and followed by nobody: `nanobanana jobs resume --buy` buys them"
    if doubtful := counts[JobState.UNCERTAIN]:
        yield (
            f"{pluralize(doubtful)} perhaps bought: look at the gateway's own list of tasks, then"
            " `nanobanana jobs settle KEY --as refused|buy-again|task-id [ID]`"
        )


def amount(credit: Decimal) -> str:
    """Return credits for people's eyes: gateways say 0.500000."""
    return f"{credit.normalize():f}"


def pluralize(number: int, what: str = "job") -> str:
    """Return a number of things in words."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def job_details(record: JobRecord, *, followed: bool, now: datetime) -> str:
    """Return everything about one job, a line for each fact."""
    rows: list[tuple[str, Sequence[str]]] = [
        ("key", [record.key]),
        ("state", [record.state.value]),
        ("followed by", [_follower(record, followed=followed)]),
        ("gateway", [f"{record.gateway}, account {record.account}"]),
        ("task id", [record.task_id or NOTHING]),
        ("wire key", [record.wire_key]),
        ("purchase", [_purchase(record)]),
        ("in doubt", ["yes: a send may have been accepted" if record.in_doubt else "no"]),
        ("written down", [_when(record.created_at, now)]),
        ("first sent", [_when(record.first_sent_at, now)]),
        ("running since", [_when(record.running_since, now)]),
        ("ended", [_when(record.ended_at, now)]),
        ("credits", [_credits(record)]),
        ("model", [record.model or NOTHING]),
        ("failure", [NOTHING if record.failure is None else _failure(record.failure)]),
        ("body", [f"{len(record.body)} bytes"]),
        *_wish(record.request),
        *((f"image {index + 1}", [url or _INLINE]) for index, url in with_indexes(record.images, record.missing)),
        *((f"image {index + 1}", [f"missing: {why}"]) for index, why in record.missing),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(
        f"{name if not number else '':{width}}  {one_line(text)}".rstrip()
        for name, texts in rows
        for number, text in enumerate(texts)
    )


_INLINE = "came inline, and is kept by the gateway only"


def _follower(record: JobRecord, *, followed: bool) -> str:
    if record.state not in ACTIVE_STATES:
        return "nobody: it is over" if record.state is not JobState.UNCERTAIN else "nobody: it waits to be settled"
    if followed:
        return "a session that lives"
    buy = " --buy" if record.state is JobState.PENDING else ""
    return f"nobody: `nanobanana jobs resume{buy}` goes on with it"


def _purchase(record: JobRecord) -> str:
    again = "" if record.generation == 1 else f", bought anew {pluralize(record.generation - 1, 'time')}"
    return f"{pluralize(record.attempts, 'attempt')}{again}"


def _when(moment: datetime | None, now: datetime) -> str:
    if moment is None:
        return NOTHING
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S %z} ({ago(now, moment)} ago)"


def _credits(record: JobRecord) -> str:
    if record.credits is None:
        return NOTHING
    refund = record.credits_refunded
    if not refund:
        return amount(record.credits)
    return f"{amount(record.credits)} ({amount(record.credits + refund)} less {amount(refund)} refunded)"


def _failure(why: Failure) -> str:
    facts = [str(why.status)] if why.status is not None else []
    facts += [] if why.code is None else [f"code {why.code}"]
    facts += [] if why.request_id is None else [f"request {why.request_id}"]
    return f"{why.kind}: {why.message}" + (f" [{', '.join(facts)}]" if facts else "")


def _wish(request: ImageRequest | None) -> Iterator[tuple[str, Sequence[str]]]:
    """Yield what was wanted, the fields that were given."""
    if request is None:
        yield "prompt", ["not known: the task was attached by its id"]
        return
    yield "prompt", request.prompt.splitlines()
    for attribute in fields(ImageRequest)[1:]:
        value = getattr(request, attribute.name)
        if value != attribute.default:
            yield attribute.name.replace("_", " "), value if isinstance(value, tuple) else [str(value)]


def older_than(text: str) -> timedelta:
    """Read an age such as 30d or 12h; raise ValueError for anything else."""
    number, unit = text[:-1], text[-1:]
    if unit not in ("d", "h") or not (number.isascii() and number.isdigit()):
        raise ValueError(f"an age is a whole number of days or hours, such as 30d or 12h, not {text!r}")
    return timedelta(days=int(number)) if unit == "d" else timedelta(hours=int(number))

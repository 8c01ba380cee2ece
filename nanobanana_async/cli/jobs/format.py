"""Format jobs: a table for a terminal, tab-separated lines for a pipe, JSON lines, the details of one job.

The content of a ledger comes from users and gateways: only its printable characters reach a terminal.
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

from nanobanana_async.candidates import MOST_CANDIDATES
from nanobanana_async.cli.display import shorten
from nanobanana_async.commands import jobs_command, resolve_advice
from nanobanana_async.escaping import json_line, one_line
from nanobanana_async.extra import ExtraFields
from nanobanana_async.failures import Failure
from nanobanana_async.formatting import age, local_time, number, plain_number, plural
from nanobanana_async.jobs import ACTIVE_STATES, JobRecord, JobState, with_indexes
from nanobanana_async.ledger.location import Location
from nanobanana_async.models import ImageRequest

NOTHING = "-"

WIDE = 110  # columns; narrower terminals show no task ids, and neither do those that long keys fill
MAX_TASK_ID = 36
MIN_COLUMN = 16
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


_MEANINGS = {
    JobState.PENDING: "stored, not sent",
    JobState.SUBMITTING: "about to be sent, or sent without an answer",
    JobState.RUNNING: "the gateway gave a task id, and has not reported the end",
    JobState.SUCCEEDED: "the images are there",
    JobState.FAILED: "the gateway says that the task failed",
    JobState.REFUSED: "the gateway refused it, or a person said that it was not bought",
    JobState.UNCERTAIN: "sent, and no answer says whether it was accepted",
    JobState.WITHDRAWN: "taken back before it was sent",
}


def line_of(record: JobRecord, now: datetime) -> str:
    """Return a job as one tab-separated line: key, state, age, task id, credits, prompt."""
    return "\t".join(_cells(record, now))


def page_of(records: Sequence[JobRecord], now: datetime, width: int) -> Table | Text:
    """Return jobs as a table, or as two lines each where it is too narrow for their keys.

    Keys are neither folded nor truncated, because they are copied into other commands.
    """
    rows = [_cells(record, now) for record in records]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, _TITLES, strict=True)]
    room = width - sum(widths[column] + GAP for column in (0, 1, 2, 4)) - MIN_COLUMN
    if room < 0:
        return Text("\n").join(_two_lines(record, now, width) for record in records)
    widths[3] = min(widths[3], MAX_TASK_ID) if width >= WIDE else 0
    if widths[3] + GAP > room:
        widths[3] = 0
    widths[5] = max(MIN_COLUMN, width - sum(size + GAP for size in widths[:5] if size))
    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="bold")
    for title, size in zip(_TITLES, widths, strict=True):
        if size:
            side = _side(right=title in ("age", "credits"))
            table.add_column(title, width=size, no_wrap=True, overflow="ellipsis", justify=side)
    for record, row in zip(records, rows, strict=True):
        cells = [Text(cell) for cell, size in zip(row, widths, strict=True) if size]
        cells[1].stylize(_STYLES.get(record.state, "dim"))
        table.add_row(*cells)
    return table


def _two_lines(record: JobRecord, now: datetime, width: int) -> Text:
    key, state, since, _, price, prompt = _cells(record, now)
    cost = "" if price == NOTHING else f", {price} credits"
    facts = f", {since} ago{cost}: "
    return Text.assemble(
        f"{key}\n  ", (state, _STYLES.get(record.state, "dim")), facts, shorten(prompt, max(MIN_COLUMN, width - 40))
    )


def _side(*, right: bool) -> Literal["left", "right"]:
    return "right" if right else "left"


def _cells(record: JobRecord, now: datetime) -> tuple[str, ...]:
    prompt = "" if record.request is None else shorten(record.request.prompt)
    cells = (
        record.key,
        record.state.value,
        age(record.created_at, now),
        record.task_id or "",
        "" if record.credits is None else plain_number(record.credits),
        prompt,
    )
    return tuple(one_line(cell) or NOTHING for cell in cells)


def json_of(record: JobRecord) -> str:
    """Return a record as one line of JSON, with the size of its body instead of the body; credits are strings."""
    facts = asdict(record, filter=lambda attribute, _: attribute.name != "body", value_serializer=_as_json)
    facts |= {"idempotency_key": _sent_key(record), "body_bytes": len(record.body)}
    return json_line(json.dumps(facts))


def _sent_key(record: JobRecord) -> str | None:
    """Return the key that the creates of this purchase send; None at a gateway that takes none."""
    return None if record.gateway == "defapi" else record.wire_key


def _as_json(_: object, __: object, value: Any) -> Any:
    match value:
        case Enum():
            return value.value
        case datetime():
            return value.isoformat()
        case Decimal():
            return f"{value:f}"
        case ExtraFields():
            return dict(value)
        case _:
            return value


def summary(counts: Counter[JobState]) -> str:
    """Return the number of jobs in each state."""
    states = ", ".join(f"{counts[state]} {state.value}" for state in JobState if counts[state])
    return f"{plural(counts.total(), 'job')}: {states}" if states else "no jobs"


def next_steps(counts: Counter[JobState], unowned: Counter[JobState], ledger: Location) -> Iterator[str]:
    """Yield the commands that the user may want to run next."""
    resume, buy = jobs_command("resume", ledger=ledger), jobs_command("resume", "--buy", ledger=ledger)
    if sent := unowned.total() - unowned[JobState.PENDING]:
        yield f"{plural(sent, 'job')} sent, unfinished, without a session: `{resume}` continues them"
    if unsent := unowned[JobState.PENDING]:
        yield f"{plural(unsent, 'job')} never sent, without a session: `{buy}` buys them"
    if uncertain := counts[JobState.UNCERTAIN]:
        reconcile = jobs_command("reconcile", ledger=ledger)
        yield (
            f"{plural(uncertain, 'job')} perhaps bought: `{reconcile}` reads the gateway's history; or"
            f" {resolve_advice(ledger)}"
        )


def resume_command(record: JobRecord, ledger: Location) -> str:
    """Return the command that continues an unfinished job."""
    return jobs_command("resume", *(["--buy"] if record.state is JobState.PENDING else []), ledger=ledger)


def job_details(
    record: JobRecord,
    ledger: Location,
    *,
    followed: bool,
    now: datetime,
    batch: str | None = None,
    row_key: str | None = None,
    files: Sequence[str] = (),
) -> str:
    """Return what is known about one job, one line per field: keys and ids alone on theirs, to be copied.

    `batch` is the name of its batch, `row_key` the key of its row in it, `files` are its saved images.
    """
    rows: list[tuple[str, Sequence[str]]] = [
        ("key", [record.key]),
        ("batch", [batch or NOTHING]),
        ("row key", [row_key or NOTHING]),
        ("budget", [record.budget or NOTHING]),
        ("group", [record.group_name or NOTHING]),
        ("priority", [str(record.priority) if record.priority else NOTHING]),
        ("task id", [record.task_id or NOTHING]),
        ("Idempotency-Key", [_sent_key(record) or NOTHING]),
        ("state", [f"{record.state.value}: {_MEANINGS[record.state]}"]),
        ("owner", [_owner(record, ledger, followed=followed)]),
        ("gateway", [record.gateway]),
        ("account", [record.account]),
        ("generation", [_generation(record)]),
        ("in doubt", [_doubt(record)]),
        ("created", [_when(record.created_at, now)]),
        ("first sent", [_when(record.first_sent_at, now)]),
        ("running since", [_when(record.running_since, now)]),
        ("ended", [_when(record.ended_at, now)]),
        ("credits", [_credits(record)]),
        ("model", [record.model or NOTHING]),
        ("failure", [NOTHING if record.failure is None else _failure(record.failure)]),
        ("body", [f"{len(record.body)} bytes, which the create sends" if record.body else NOTHING]),
        *(row for row in _request_rows(record.request) if row != ("model", [record.model])),
        *((f"image {index + 1}", [url or _INLINE]) for index, url in with_indexes(record.images, record.missing)),
        *((f"image {index + 1}", [f"missing: {why}"]) for index, why in record.missing),
        *((f"file {number_}", [file]) for number_, file in enumerate(files, start=1)),
        *_candidate_rows(record, ledger, now),
    ]
    width = max(len(name) for name, _ in rows)
    rows = [(name, texts) for name, texts in rows if list(texts) != [NOTHING]]
    return "\n".join(
        f"{name if not line else '':{width}}  {one_line(text)}".rstrip()
        for name, texts in rows
        for line, text in enumerate(texts)
    )


_INLINE = "inline image, stored only at the gateway"


def _owner(record: JobRecord, ledger: Location, *, followed: bool) -> str:
    if record.state is JobState.UNCERTAIN:
        return f"no session: {resolve_advice(ledger, record.key)}"
    if record.state not in ACTIVE_STATES:
        return "no session: the job has ended"
    if followed:
        return "a running session"
    return f"no session: `{resume_command(record, ledger)}` continues it"


def _generation(record: JobRecord) -> str:
    """Return which purchase this is, and its creates. Earlier ones may have been withdrawn, and never bought."""
    again = "" if record.generation == 1 else f": it was requested again {plural(record.generation - 1, 'time')}"
    return f"{record.generation}, with {plural(record.attempts, 'create')}{again}"


def _doubt(record: JobRecord) -> str:
    if not record.in_doubt:
        return "no"
    known = " (the gateway knows its key: 409)" if record.conflict_at is not None else ""
    return f"yes: a create may have been accepted without our knowing{known}"


def _candidate_rows(record: JobRecord, ledger: Location, now: datetime) -> Iterator[tuple[str, Sequence[str]]]:
    """Yield the tasks that could be the job, each with its image, and the command that takes one of them."""
    for number_, candidate in enumerate(record.candidates, start=1):
        lines = [f"task {candidate.task_id}, created {_when(candidate.created_at, now)}"]
        yield f"candidate {number_}", [*lines, candidate.image_url or "no image yet"]
    if len(record.candidates) >= MOST_CANDIDATES:
        yield "candidates", [f"only the {MOST_CANDIDATES} nearest in time: the gateway's own list has all"]
    names = [[record.key, candidate.task_id] for candidate in record.candidates]
    takes = [f"`{jobs_command('resolve', '--as', 'task-id', ledger=ledger, names=each)}`" for each in names]
    if len(takes) == 1:
        yield "to take it", takes
    elif takes:
        yield "to take one", ["compare their images and times with the prompt and the first send, then run", *takes]


def _when(moment: datetime | None, now: datetime) -> str:
    if moment is None:
        return NOTHING
    return f"{local_time(moment)} ({age(moment, now)} ago)"


def _credits(record: JobRecord) -> str:
    if record.credits is None:
        return NOTHING
    refund = record.credits_refunded
    if not refund:
        return number(record.credits)
    return f"{number(record.credits)} ({number(record.credits + refund)} less {number(refund)} refunded)"


def _failure(failure: Failure) -> str:
    facts = [str(failure.status)] if failure.status is not None else []
    facts += [] if failure.code is None else [f"code {failure.code}"]
    facts += [] if failure.request_id is None else [f"request {failure.request_id}"]
    return f"{failure.kind}: {failure.message}" + (f" [{', '.join(facts)}]" if facts else "")


def _request_rows(request: ImageRequest | None) -> Iterator[tuple[str, Sequence[str]]]:
    """Yield the fields of the request that differ from their defaults."""
    if request is None:
        yield "prompt", ["unknown: the task was attached by its id"]
        return
    yield "prompt", request.prompt.splitlines()
    for attribute in fields(ImageRequest)[1:]:
        value = getattr(request, attribute.name)
        if value != attribute.default:
            yield attribute.name.replace("_", " "), value if isinstance(value, tuple) else [str(value)]


def parse_age(text: str) -> timedelta:
    """Parse an age such as 30d or 12h; raises ValueError for other text."""
    digits, unit = text[:-1], text[-1:]
    if unit not in ("d", "h") or not (digits.isascii() and digits.isdigit()):
        raise ValueError(f"an age must be a whole number of days or hours, such as 30d or 12h, not {text!r}")
    return timedelta(days=int(digits)) if unit == "d" else timedelta(hours=int(digits))

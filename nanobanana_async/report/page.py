"""The page: rendered row by row, so that ten thousand rows need no more memory than one, and put in place at once."""

import base64
import hashlib
import json
import os
import secrets
import tempfile
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from attrs import frozen
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup, escape

from nanobanana_async import formatting as words
from nanobanana_async.report.charts import charts_of
from nanobanana_async.report.recorder import Recorder
from nanobanana_async.report.row import STATUSES, ReportRow, json_value
from nanobanana_async.report.summary import Summary

_CHUNK = 1 << 16
_LONG = 64  # characters after which a prompt may not fit into its two lines
_ALT = 160

STATUS_HELP = {
    "succeeded": "The pictures are there.",
    "failed": "The gateway took the job and says that it failed.",
    "refused": "The gateway did not take the job.",
    "uncertain": "It was sent and the answer was lost: it may have been bought. It is never bought again by itself.",
    "unfinished": "It waits or still runs; run the batch again to go on.",
    "invalid": "The row could not be bought as it is written.",
}


def write_report(
    path: Path, rows: Iterable[ReportRow], *, title: str, run: Recorder | None = None, max_cards: int = 10_000
) -> None:
    """Write the report of some rows as one HTML file; an older one is replaced at once, or stays as it is.

    The rows are taken once and not kept. `run` adds what this run learned; without it the charts show what the rows
    tell. Of more than `max_cards` rows the gallery shows the first ones, and up to as many more that did not succeed:
    browsers do not take any number. Counts and charts tell of all. It blocks: call it in a thread.
    """
    part = path.with_name(f".nanobanana-{secrets.token_hex(8)}.html.part")
    summary = Summary()
    try:
        with tempfile.TemporaryFile(
            "w+", encoding="utf-8", errors="backslashreplace", newline="", dir=path.parent
        ) as cards:  # beside the page: one place that must have room
            for row in rows:
                summary.add(row)
                spare = summary.shown.total() - max_cards
                if spare < 0 or (row.status != "succeeded" and spare < max_cards):
                    summary.shown[row.status] += 1
                    cards.write(_card(row))
            cards.seek(0)
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            with open(descriptor, "w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
                file.writelines(_page(title, summary, run, cards))
                file.flush()
                os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@frozen(kw_only=True)
class Fact:
    """A number of the header, what it counts, and a word on it."""

    label: str
    value: str
    note: str = ""
    tone: str = ""


def _card(row: ReportRow) -> str:
    prompt = row.prompt if row.prompt.strip() else ""
    return (
        _templates()
        .get_template("card.html.j2")
        .render(
            row=row,
            prompt=prompt,
            long=_is_long(prompt) or (not row.images and len(row.error or "") > 2 * _LONG),
            pictures=[_link(image) for image in row.images],
            alt=prompt[:_ALT] or f"row {row.index + 1}",
            settings=_short_settings(row),
            took="" if row.seconds is None else words.seconds(row.seconds),
            price="" if row.credits is None else f"{words.number(row.credits)} cr",
            facts=json.dumps(_facts(row), ensure_ascii=False),
        )
    )


def _page(title: str, summary: Summary, run: Recorder | None, cards: IO[str]) -> Iterator[str]:
    charts, busy_s = charts_of(summary, run)
    style = Markup(f":root{{--frame:{summary.frame:.4f}}}\n{_text('page.css')}")
    script = Markup(_text("page.js"))
    return (
        _templates()
        .get_template("page.html.j2")
        .generate(
            title=title,
            style=style,
            script=script,
            policy=_policy(style, script),
            facts=_header(summary, busy_s),
            charts=charts,
            statuses=[(status, summary.shown[status]) for status in STATUSES if summary.shown[status]],
            help=STATUS_HELP,
            rows=summary.rows,
            shown=summary.shown.total(),
            when=_when(summary),
            cards=(Markup(chunk) for chunk in iter(lambda: cards.read(_CHUNK), "")),
        )
    )


def _policy(style: str, script: str) -> str:
    """Return a policy under which nothing runs and nothing is fetched but what was written here."""
    return (
        f"default-src 'none'; img-src 'self' data: file:; style-src '{_digest(style)}'; "
        f"script-src '{_digest(script)}'; base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _header(summary: Summary, busy_s: float) -> list[Fact]:
    counts = summary.statuses
    lost = [status for status in ("failed", "refused", "invalid") if counts[status]]
    facts = [
        None
        if not summary.rows
        else Fact(label="succeeded", value=f"{counts['succeeded']:,}", note=f"of {words.count(summary.rows, 'row')}"),
        Fact(label="pictures", value=f"{summary.pictures:,}") if summary.pictures != counts["succeeded"] else None,
        Fact(label=", ".join(lost), value=f"{sum(counts[s] for s in lost):,}", tone="bad") if lost else None,
        Fact(label="uncertain", value=f"{counts['uncertain']:,}", tone="doubt") if counts["uncertain"] else None,
        Fact(label="unfinished", value=f"{counts['unfinished']:,}") if counts["unfinished"] else None,
        None if summary.credits is None else Fact(label="credits", value=words.number(summary.credits)),
        Fact(label="running time", value=words.seconds(busy_s)) if busy_s else None,
    ]
    return [fact for fact in facts if fact is not None]


def _when(summary: Summary) -> str:
    moments = [*summary.began, *summary.ended]
    if not moments:
        return ""
    return words.period(datetime.fromtimestamp(min(moments), UTC), datetime.fromtimestamp(max(moments), UTC))


def _link(image: str) -> str:
    """Return a path as a link that stays beside the page, whatever the file is called."""
    return "./" + quote(image, errors="surrogateescape")


def _is_long(prompt: str) -> bool:
    return len(prompt) > _LONG or prompt.count("\n") > 1


def _short_settings(row: ReportRow) -> list[str]:
    """Return what distinguishes rows, in a few words; the large view tells all."""
    known = row.settings
    found = [str(known[name])[:24] for name in ("resolution", "aspect_ratio") if known.get(name)]
    references = known.get("images")
    if isinstance(references, (list, tuple)) and references:
        found.append(words.count(len(references), "reference"))
    return found


def _facts(row: ReportRow) -> dict[str, Any]:
    """Return what the page's script wants to know: for sorting and for the large view."""
    facts: dict[str, Any] = {"i": row.index}
    if row.credits is not None:
        facts["c"] = float(row.credits)
    if row.seconds is not None:
        facts["s"] = round(row.seconds, 3)
    if row.ended_at is not None:
        facts["e"] = round(row.ended_at.timestamp(), 3)
    told: list[tuple[str, Any]] = [("key", row.key), ("task id", row.task_id), *row.settings.items()]
    if row.credits is not None:
        told.append(("credits", words.number(row.credits)))
    if row.seconds is not None:
        told.append(("time", words.seconds(row.seconds)))
    if row.sent_at is not None:
        told.append(("sent", words.moment(row.sent_at)))
    if row.images:
        told.append(("remark", row.error))
    if row.metadata is not None:
        told.append(("metadata", row.metadata))
    facts["t"] = [[name.replace("_", " "), _detail(value)] for name, value in told if value not in (None, "", (), [])]
    return facts


def _detail(value: object) -> str:
    if isinstance(value, (list, tuple)) and all(isinstance(inner, str) for inner in value):
        return "\n".join(value)
    return value if isinstance(value, str) else json.dumps(json_value(value), ensure_ascii=False)


def _exactly(text: str) -> Markup:
    """Return text so that the page's script reads back what was written: a parser of HTML reads \\r as \\n."""
    return Markup(str(escape(text)).replace("\r", "&#13;").replace("\0", "\N{SYMBOL FOR NULL}"))


@cache
def _templates() -> Environment:
    environment = Environment(
        autoescape=True,
        loader=FunctionLoader(_text),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["exactly"] = _exactly
    environment.filters["count"] = words.count
    return environment


@cache
def _text(name: str) -> str:
    return files("nanobanana_async.report").joinpath(name).read_text(encoding="utf-8")

"""Write the HTML page: row by row, so that memory does not grow with the rows, then replace the old page atomically."""

import base64
import hashlib
import json
import os
import secrets
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup, escape

from nanobanana_async.formatting import duration, moment, number, period, plural
from nanobanana_async.report.charts import charts_of
from nanobanana_async.report.facts import account_facts, facts_of
from nanobanana_async.report.filters import Filters
from nanobanana_async.report.phrases import PHRASES, Advice
from nanobanana_async.report.recorder import Recorder
from nanobanana_async.report.row import STATUSES, ReportRow, json_value
from nanobanana_async.report.summary import Credits, Summary
from nanobanana_async.report.thumbnails import find_thumbnail, is_in_store
from nanobanana_async.report.timeline import BusyTimeAxis
from nanobanana_async.stats import SessionStats

MAX_CARDS = 10_000

_GROUP = 60  # cards that are laid out together: full rows of up to six
_CHUNK = 1 << 16
_LONG_CHARS = 64  # characters; a longer prompt may not fit into two lines
_MAX_ALT = 160
_MAX_WORD = 60

STATUS_HELP = {
    "succeeded": "The images are saved.",
    "failed": "The gateway accepted the job, which then failed.",
    "refused": "The gateway did not accept the job.",
    "uncertain": "The answer to the create was lost: the job may have been bought. It is not bought again.",
    "unfinished": "The job waits or still runs; run the batch again to continue.",
    "invalid": "The row is invalid and was not bought.",
}


def write_report(
    path: Path,
    rows: Iterable[ReportRow],
    *,
    title: str,
    run: Recorder | None = None,
    advice: Callable[[ReportRow], Advice] | None = None,
    credits: Credits | None = None,  # noqa: A002 - the word of the gateways
    accounts: Mapping[str, SessionStats] | None = None,
    max_cards: int = MAX_CARDS,
) -> None:
    """Write the report of rows as one HTML file, which replaces an older one atomically.

    The rows are iterated once and not kept. `run` adds the limit, refusals and detection delays of the run; `advice`
    returns what to do about a row that did not succeed; `credits` is what the batch has cost, where more is known than
    the sum of the rows; `accounts` is `Session.accounts()`: the page shows each account if there are several. The
    gallery shows the first
    `max_cards` rows and up to as many further rows that did not succeed, because browsers are slow with more; counts
    and charts include all rows. Images for which `make_thumbnail` was called are shown by their thumbnails. The
    function blocks: call it in a thread.
    """
    part = path.with_name(f".nanobanana-{secrets.token_hex(8)}.html.part")
    summary, filters = Summary(), Filters()
    try:
        with tempfile.TemporaryFile(
            "w+", encoding="utf-8", errors="backslashreplace", newline="", dir=path.parent
        ) as cards:  # in the same folder: only one file system needs space
            for row in rows:
                summary.add(row)
                spare = summary.shown.total() - max_cards
                if spare < 0 or (row.status != "succeeded" and spare < max_cards):
                    if summary.shown.total() and summary.shown.total() % _GROUP == 0:
                        cards.write('</div>\n<div class="grid">\n')
                    summary.shown[row.status] += 1
                    advised = advice is not None and (row.status != "succeeded" or row.changed)
                    todo = advice(row) if advice is not None and advised else None
                    cards.write(_card(row, path.parent, todo, filters.index_row(row)))
            cards.seek(0)
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            with open(descriptor, "w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
                file.writelines(_page(title, summary, filters, run, credits or summary.credits, accounts or {}, cards))
                file.flush()
                os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _card(row: ReportRow, folder: Path, advice: Advice | None, filtered: dict[int, int]) -> str:
    prompt = row.prompt if row.prompt.strip() else ""
    return (
        _templates()
        .get_template("card.html.j2")
        .render(
            row=row,
            prompt=prompt,
            long=_is_long(prompt)
            or bool(advice and advice.command)
            or (not row.images and len(row.error or "") > _LONG_CHARS),
            phrase="" if row.status == "invalid" else PHRASES.get(row.error_kind or "", ""),
            images=list(_links(folder, row)),
            stored=[image for image in row.images if is_in_store(image)],
            advice=advice,
            alt=prompt[:_MAX_ALT] or f"row {row.number or row.index + 1}",
            settings=_short_settings(row),
            took="" if row.seconds is None else duration(row.seconds),
            price="" if row.credits is None else f"{number(row.credits)} cr",
            facts=json.dumps({**_script_data(row), "f": filtered}, ensure_ascii=False),
        )
    )


def _page(
    title: str,
    summary: Summary,
    filters: Filters,
    run: Recorder | None,
    cost: Credits | None,
    accounts: Mapping[str, SessionStats],
    cards: IO[str],
) -> Iterator[str]:
    charts, axis = charts_of(summary, run)
    style = Markup(f":root{{--frame:{summary.frame_ratio:.4f}}}\n{_text('page.css')}")
    script = Markup(_text("page.js"))
    return (
        _templates()
        .get_template("page.html.j2")
        .generate(
            title=title,
            style=style,
            script=script,
            policy=_content_security_policy(style, script),
            facts=[*facts_of(summary, cost, axis), *account_facts(summary, accounts)],
            charts=charts,
            run_facts=" · ".join(f"{chart.title.lower()} {chart.headline}" for chart in charts),
            statuses=[(status, summary.shown[status]) for status in STATUSES if summary.shown[status]],
            help=STATUS_HELP,
            filters=filters.useful(),
            rows=summary.rows,
            shown=summary.shown.total(),
            group=_GROUP,
            when=_run_period(summary, axis),
            cards=(Markup(chunk) for chunk in iter(lambda: cards.read(_CHUNK), "")),
        )
    )


def _content_security_policy(style: str, script: str) -> str:
    """Return a content security policy that allows only this style, this script and local images."""
    return (
        f"default-src 'none'; img-src 'self' data: file:; style-src '{_digest(style)}'; "
        f"script-src '{_digest(script)}'; base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _run_period(summary: Summary, axis: BusyTimeAxis) -> str:
    """Return when the run began; a period for several runs, whose length is no running time."""
    moments = [*summary.sent_at, *summary.ended_at]
    if not moments:
        return ""
    if not axis.cuts:
        return moment(datetime.fromtimestamp(min(moments), UTC))
    return period(datetime.fromtimestamp(min(moments), UTC), datetime.fromtimestamp(max(moments), UTC))


def _links(folder: Path, row: ReportRow) -> Iterator[tuple[str, str]]:
    """Yield the links of each image and its thumbnail. An object in a store is shown by its thumbnail only."""
    for image in row.images:
        small = find_thumbnail(folder, image)
        if not is_in_store(image):
            yield _link(image), _link(small or image)
        elif small is not None:
            yield _link(small), _link(small)


def _link(image: str) -> str:
    """Return a path as a relative link, for file names with any characters."""
    return "./" + quote(image, errors="surrogateescape")


def _is_long(prompt: str) -> bool:
    return len(prompt) > _LONG_CHARS or prompt.count("\n") > 1


def _short_settings(row: ReportRow) -> list[str]:
    """Return the row's own key and the settings for the card; the large view shows all of them."""
    known = row.settings
    found = [] if row.key is None else [_start_of(row.key)]
    found += [_start_of(str(known[name])) for name in ("resolution", "aspect_ratio") if known.get(name)]
    references = known.get("images")
    if isinstance(references, (list, tuple)) and references:
        found.append(plural(len(references), "reference"))
    return found


def _start_of(word: str) -> str:
    return word if len(word) <= _MAX_WORD else f"{word[: _MAX_WORD - 1]}…"


def _script_data(row: ReportRow) -> dict[str, Any]:
    """Return the data of the page's script, for sorting and for the large view."""
    facts: dict[str, Any] = {"i": row.index}
    if row.credits is not None:
        facts["c"] = float(row.credits)
    if row.seconds is not None:
        facts["s"] = round(row.seconds, 3)
    if row.ended_at is not None:
        facts["e"] = round(row.ended_at.timestamp(), 3)
    details: list[tuple[str, Any]] = [
        ("row", row.number or None),
        ("key", row.key),
        ("job key", row.job_key),
        ("task id", row.task_id),
        ("account", row.account),
        *row.settings.items(),
    ]
    if row.credits is not None:
        details.append(("credits", number(row.credits)))
    if row.seconds is not None:
        details.append(("time", duration(row.seconds)))
    if row.sent_at is not None:
        details.append(("sent", moment(row.sent_at)))
    if row.images:
        details.append(("note", row.error))
        details.append(("object", [image for image in row.images if is_in_store(image)]))
    if row.metadata is not None:
        details.append(("metadata", row.metadata))
    known = [(name, value) for name, value in details if value not in (None, "", (), [])]
    facts["t"] = [[name.replace("_", " "), _detail(value)] for name, value in known]
    return facts


def _detail(value: object) -> str:
    if isinstance(value, (list, tuple)) and all(isinstance(inner, str) for inner in value):
        return "\n".join(value)
    return value if isinstance(value, str) else json.dumps(json_value(value), ensure_ascii=False)


def _escape_exactly(text: str) -> Markup:
    """Escape text so that the page's script reads it unchanged: HTML parsers convert \\r to \\n."""
    return Markup(str(escape(text)).replace("\r", "&#13;").replace("\0", "\N{SYMBOL FOR NULL}"))


def _escape_options(text: str) -> Markup:
    """Escape text whose command-line options are not broken at their hyphens."""
    words = (
        Markup('<span class="option">{}</span>').format(word) if word[:1] == "-" else word for word in text.split(" ")
    )
    return Markup(" ").join(words)


@cache
def _templates() -> Environment:
    environment = Environment(
        autoescape=True,
        loader=FunctionLoader(_text),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["exactly"] = _escape_exactly
    environment.filters["count"] = plural
    environment.filters["options"] = _escape_options
    return environment


@cache
def _text(name: str) -> str:
    return files("nanobanana_async.report").joinpath(name).read_text(encoding="utf-8")

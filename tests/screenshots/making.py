"""Makes the images of README and docs from real runs on the emulator: nothing in them is drawn by hand."""

import asyncio
import csv
import itertools
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from html import escape
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen
from playwright.async_api import Browser

from nanobanana_async.emulator import Emulator, Fixed, LogNormal
from tests.notebook.kernel import executed, html, kernel, nbformat
from tests.screenshots.pages import chromium, opened, shows_images, write_pngs
from tests.screenshots.terminal import Terminal, write_svg
from tests.support.lazy import lazy
from tests.web.servers import ROOT, running, studio

pygments = lazy("pygments")

COLUMNS = 100
SUBJECTS = ("a lighthouse", "an old library", "a greenhouse", "a night train", "a harbour", "a clock tower")
SHELVES = {"in fog": "A", "at first light": "A", "in autumn": "B", "in a summer storm": "B", "in snow": "B"}
RATIOS = ("16:9", "16:9", "1:1")
TYPED_IN_STUDIO = (
    "a lighthouse in fog",
    "a paper boat on a quiet river",
    "an old library at night",
    "a fox in snow",
    "a greenhouse in a summer storm",
    "a harbour under the northern lights",
    "a clock tower at first light",
    "a tea house in autumn",
)
NOTEBOOK = ROOT / "docs/notebook.ipynb"
POLLED_EARLY = (
    "import nanobanana_async.policy.poll_schedule as polls;"
    " polls.LEAST_GAP_IF_UNKNOWN_S, polls.LEAST_DELAY_S = 0.1, 0.05"
)
NOTEBOOK_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="color-scheme" content="light dark">
<style>
body {{ margin: 0; padding: 14px 18px; font: 14px/1.45 system-ui, "DejaVu Sans", sans-serif; }}
section {{ display: grid; grid-template-columns: 4.4em minmax(0, 1fr); row-gap: 6px; margin-bottom: 16px; }}
.number {{ font: 12px/1.9 "DejaVu Sans Mono", monospace; opacity: .6; }}
pre {{ margin: 0; font: 12.5px/1.5 "DejaVu Sans Mono", monospace; white-space: pre-wrap; }}
.source {{ padding: 7px 10px; border: 1px solid rgba(128, 128, 128, .35); border-radius: 4px; }}
{light}
@media (prefers-color-scheme: dark) {{ body {{ background: #16181c; color: #e6e6e6; }} {dark} }}
</style>
{cells}
</html>
"""


@frozen(kw_only=True)
class Making:
    """What the images are made with, and where they go."""

    browser: Browser
    out: Path
    room: Path
    """A folder for what the runs leave."""
    quick: bool = False
    """Whether jobs are short and images small, for a test."""

    def emulator(self, job_limit: int, duration: LogNormal, owned: int | None = None) -> Emulator:
        """Return the gateway of a run."""
        if self.quick:
            return Emulator(job_limit=job_limit, credits=owned, duration=Fixed(0.5), image_scale=0.1)
        return Emulator(job_limit=job_limit, credits=owned, duration=duration, image_scale=0.5)


async def demo(making: Making) -> None:
    """Show the whole output of `nanobanana demo`."""
    typed = "nanobanana demo --prompts 6" if making.quick else "nanobanana demo"
    screen = await Terminal(columns=COLUMNS, rows=31, folder=making.room).run(typed)
    write_svg(screen, making.out / "demo.svg", columns=COLUMNS, title="nanobanana demo")


async def batch(making: Making) -> None:
    """Show a batch on a terminal while it runs, and the page that it leaves."""
    table = making.room / "prompts.csv"
    with table.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["prompt", "aspect_ratio", "shelf"])
        ratios = itertools.cycle(RATIOS)
        for mood, subject in itertools.product(SHELVES, SUBJECTS):
            rows.writerow([f"{subject} {mood}", next(ratios), SHELVES[mood]])
    async with making.emulator(6, LogNormal(median_s=2.0, sigma=0.25), owned=1000) as emulator:
        terminal = Terminal(columns=COLUMNS, rows=6, folder=making.room, emulator=emulator)
        typed = "nanobanana batch prompts.csv -o spring --max-credits 400"
        wanted = range(1, 30) if making.quick else range(18, 25)
        screen = await terminal.run(typed, shows=lambda shown: any(f"{done}/30 rows" in shown for done in wanted))
    write_svg(screen, making.out / "batch.svg", columns=COLUMNS, title="nanobanana batch")
    page = (making.room / "spring/index.html").as_uri()
    async with opened(making.browser, page, width=1200, height=868) as gallery:
        await shows_images(gallery, 6)
        await write_pngs(gallery, making.out, "gallery")


async def studio_page(making: Making) -> None:
    """Show the studio, in which some images are there and others are being made."""
    emulator = making.emulator(3, LogNormal(median_s=2.5))
    async with (
        emulator,
        running(studio(making.room, emulator)) as server,
        opened(making.browser, server.url, width=1200, height=866) as page,
    ):
        for prompt in TYPED_IN_STUDIO:
            await page.get_by_label("What do you want to see?").fill(prompt)
            await page.keyboard.press("Enter")
            await page.locator(".card").filter(has_text=prompt).wait_for()
        await shows_images(page, len(TYPED_IN_STUDIO) - 3)
        await write_pngs(page, making.out, "studio")


async def notebook(making: Making) -> None:
    """Show two cells of the notebook with the HTML that they display."""
    tour: Any = nbformat.read(NOTEBOOK, as_version=4)
    shown = []
    with pytest.MonkeyPatch.context() as patch:
        async with kernel(tour, making.room, patch) as client:
            cells = [cell for cell in tour.cells if cell.cell_type == "code" and cell.source]
            if making.quick:
                await client.kc.execute(POLLED_EARLY, reply=True, store_history=False)
                cells = [cell for cell in cells if cell.id in ("emulator", "open", "one", "batch", "close")]
            for cell in cells:
                await executed(client, cell)
                if cell.id in ("one", "batch"):
                    shown.append(_cell(cell))
    light, dark = (
        pygments.formatters.HtmlFormatter(style=style, nobackground=True).get_style_defs(".source")
        for style in ("default", "github-dark")
    )
    page = making.room / "notebook.html"
    page.write_text(NOTEBOOK_PAGE.format(light=light, dark=dark, cells="".join(shown)), encoding="utf-8")
    async with opened(making.browser, page.as_uri(), width=1040, height=1290) as opened_page:
        await write_pngs(opened_page, making.out, "notebook")


def _cell(cell: Any) -> str:
    source = pygments.highlight(
        cell.source, pygments.lexers.PythonLexer(), pygments.formatters.HtmlFormatter(nowrap=True)
    )
    number = escape(f"[{cell.execution_count}]")
    return (
        f'<section><div class="number">{number}</div><pre class="source">{source}</pre>'
        f"<div></div><div>{html(cell)}</div></section>"
    )


MAKERS: Mapping[str, Callable[[Making], Awaitable[None]]] = {
    "demo": demo,
    "batch": batch,
    "studio": studio_page,
    "notebook": notebook,
}
FILES = (
    *("demo.svg", "batch.svg", "gallery-light.png", "gallery-dark.png"),
    *("studio-light.png", "studio-dark.png", "notebook-light.png", "notebook-dark.png"),
)
"""What all makers write."""


async def make(out: Path, names: tuple[str, ...] = tuple(MAKERS), *, quick: bool = False) -> None:
    """Write the images of these makers into a folder, one after another: the demo shows how long it took.

    With `quick` all are made at once, from short runs.
    """
    turns = asyncio.Semaphore(len(names) if quick else 1)

    async def made(name: str) -> None:
        async with turns:
            with tempfile.TemporaryDirectory(prefix="screenshots-") as room:
                await MAKERS[name](Making(browser=browser, out=out, room=Path(room), quick=quick))

    async with chromium() as browser, asyncio.TaskGroup() as group:
        for name in names:
            group.create_task(made(name))

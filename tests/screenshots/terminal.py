"""A command in a terminal of its own, and what its screen shows as an SVG."""

import asyncio
import fcntl
import io
import itertools
import os
import re
import shlex
import struct
import sys
import termios
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from attrs import frozen
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.style import Style
from rich.terminal_theme import MONOKAI
from rich.text import Text

from nanobanana_async.emulator import Emulator
from tests.support.command import environment
from tests.support.lazy import lazy

pyte = lazy("pyte")

_FONTS = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
_SIZE = 'viewBox="0 0 {width} {height}"'
SVG = _FONTS.replace("Fira Code, monospace", '"Fira Code", "DejaVu Sans Mono", Menlo, Consolas, monospace').replace(
    _SIZE, f'{_SIZE} width="{{width}}" height="{{height}}"'
)
"""rich's drawing of a terminal, with its size, and without the fonts that it loads from another host."""

QUIET_S = 0.03
"""A screen is read when nothing was written for so long: a display is drawn in several pieces."""

_NAMES = {"default": None, "brown": "yellow", "brightbrown": "bright_yellow"}


@frozen(kw_only=True)
class Terminal:
    """A terminal of this size, in which commands are typed in a folder."""

    columns: int
    rows: int
    folder: Path
    emulator: Emulator | None = None
    """The gateway of the environment."""

    async def run(self, typed: str, shows: Callable[[str], bool] | None = None) -> Text:
        """Run a command to its end; return the last screen, or the first one of which `shows` is true."""
        screen = pyte.Screen(self.columns, self.rows)
        stream = pyte.ByteStream(screen)
        stream.feed(f"$ {typed}\r\n".encode())
        ours, theirs = os.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", self.rows, self.columns, 0, 0))
        process = await asyncio.create_subprocess_exec(
            *shlex.split(typed), cwd=self.folder, env=self._environ(), stdin=theirs, stdout=theirs, stderr=theirs
        )
        os.close(theirs)
        found: Text | None = None
        try:
            async for written in _pieces(ours):
                stream.feed(written)
                if shows is not None and found is None and shows("\n".join(screen.display)):
                    found = _text(screen)
            code = await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            os.close(ours)
        last = "\n".join(screen.display)
        if code != 0 or (shows is not None and found is None):
            raise RuntimeError(f"`{typed}` ended with {code}, or never showed what was wanted:\n{last}")
        return found or _text(screen)

    def _environ(self) -> dict[str, str]:
        environ = environment(self.emulator, TERM="xterm-256color")
        environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environ['PATH']}"
        return {name: value for name, value in environ.items() if name not in ("COLUMNS", "LINES", "NANOBANANA_LEDGER")}


async def _pieces(terminal: int) -> AsyncIterator[bytes]:
    """Yield what is written to a terminal, each time up to a pause."""
    loop = asyncio.get_running_loop()
    written: asyncio.Queue[bytes] = asyncio.Queue()

    def read() -> None:
        try:
            written.put_nowait(os.read(terminal, 65536))
        except OSError:  # its last writer has closed it
            loop.remove_reader(terminal)
            written.put_nowait(b"")

    loop.add_reader(terminal, read)
    try:
        ended = False
        while not ended:
            piece = more = await written.get()
            while more:
                try:
                    more = await asyncio.wait_for(written.get(), QUIET_S)
                except TimeoutError:
                    break
                piece += more
            ended = not more
            yield piece
    finally:
        loop.remove_reader(terminal)


def _text(screen: Any) -> Text:
    """Return a screen with its colours, all lines of it."""
    text = Text()
    for row in range(screen.lines):
        cells = [screen.buffer[row][column] for column in range(screen.columns)]
        for style, run in itertools.groupby(cells, _style):
            text.append("".join(cell.data for cell in run), style)
        text.append("\n")
    return text


def _style(cell: Any) -> Style:
    return Style(color=_color(cell.fg), bgcolor=_color(cell.bg), bold=cell.bold, italic=cell.italics)


def _color(name: str) -> str | None:
    if re.fullmatch("[0-9a-f]{6}", name):
        return f"#{name}"
    return _NAMES.get(name, name.replace("bright", "bright_"))


def write_svg(screen: Text, path: Path, *, columns: int, title: str) -> None:
    """Draw a screen as a window."""
    console = Console(record=True, width=columns, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(screen, no_wrap=True, overflow="ignore", crop=False, end="")
    svg = console.export_svg(title=title, code_format=SVG, unique_id=path.stem, theme=MONOKAI)
    path.write_text(re.sub(r"[ \t]+$", "", svg, flags=re.MULTILINE), encoding="utf-8")

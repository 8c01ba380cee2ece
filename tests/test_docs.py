"""Checks README and docs: programs run, tests pass, other code compiles, links and tables are true."""

import asyncio
import inspect
import io
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
from attrs import frozen

from nanobanana_async import Session
from nanobanana_async.emulator import API_KEY, Emulator, Fixed
from nanobanana_async.engine.phases import PHASE_TRANSITIONS
from nanobanana_async.jobs import TRANSITIONS
from tests.support.early_polls import POLL_EARLY
from tests.support.rows import each_row

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / ".github/CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = (
    "python3 -m venv .venv && .venv/bin/pip install '.[cli]' && .venv/bin/nanobanana demo",
    "python3 -m venv .venv && .venv/bin/pip install -e '.[test]' && .venv/bin/pytest",
)
RECIPES = {path.read_text(encoding="utf-8"): path.name for path in (ROOT / "docs/examples/engines").glob("*.py")}
"""Programs that need more than the emulator: tests/engines runs them, and the page shows them as they are."""
NOT_INSTALLED = {"aiogram", "discord", "django"}
"""Packages that the tests do not have: a block that imports one of them is compiled, not run."""
_LINK = re.compile(r"(?:\]\(|\bsrc(?:set)?=\")([^)#:\s\"]+)(?:#[^)]*)?[)\"]")
_FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@frozen
class Block:
    """One block of Python in a page, named by page and line."""

    name: str
    code: str

    @property
    def arguments(self) -> list[str] | None:
        """The arguments of Python that run the block; None if it is only an excerpt."""
        if self.code in RECIPES or self.imported & NOT_INSTALLED:
            return None
        if "asyncio.run(" in self.code or "run_virtual(" in self.code:
            return ["-c", "import poll_early, runpy; runpy.run_path('block.py', run_name='__main__')"]
        if "def test_" in self.code:
            scope = "asyncio_default_fixture_loop_scope=function"
            fixtures = "nanobanana_async.emulator.fixtures"
            plugins = ["-p", "poll_early", "-p", "pytest_asyncio.plugin", "-p", fixtures]
            return ["-m", "pytest", "-q", *plugins, "-o", "asyncio_mode=auto", "-o", scope, "."]
        return None

    @property
    def changes_process(self) -> bool:
        """Whether it changes what all code of its process shares: it needs one of its own."""
        return re.search(r"^(?:import|from) (?:logging|opentelemetry)|def test_", self.code, re.MULTILINE) is not None

    @property
    def imported(self) -> set[str]:
        """The packages that it imports."""
        return set(re.findall(r"^(?:import|from) (\w+)", self.code, re.MULTILINE))

    @property
    def needs(self) -> set[str]:
        """The packages that it imports and that may be missing."""
        return self.imported & {"polars", "pyarrow", "pandas", "duckdb", "datasets"}


def blocks() -> list[Block]:
    """Return all blocks of Python of all pages."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in _FENCE.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            found.append(Block(f"{page.name}:{line}", match[1]))
    return found


BLOCKS = blocks()
RUNNABLE = [block for block in BLOCKS if block.arguments is not None]


@each_row("block", BLOCKS)
def test_block_compiles(block: Block) -> None:
    assert isinstance(compile(block.code, block.name, "exec"), CodeType)


@pytest.mark.slow
@pytest.mark.parametrize("block", RUNNABLE, ids=lambda block: block.name)
async def test_program_runs_against_the_emulator(block: Block, tmp_path: Path) -> None:
    for package in block.needs:
        pytest.importorskip(package, reason=f"{package} is missing: pip install {package}")
    async with Emulator(job_limit=5, duration=Fixed(0.1), image_scale=0.1) as emulator:
        await run(block, tmp_path, emulator)
        assert emulator.stats().double_charges == 0


def test_table_of_generate_many_has_its_parameters_and_defaults() -> None:
    text = (ROOT / "docs/batches.md").read_text(encoding="utf-8")
    shown = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", text, re.MULTILINE))
    taken = dict(inspect.signature(Session.generate_many).parameters)
    del taken["self"], taken["misspelt"]
    assert shown == {name: "-" if one.default is one.empty else str(one.default) for name, one in taken.items()}


def test_page_of_engines_has_the_recipes_as_they_are() -> None:
    shown = {RECIPES.get(block.code) for block in BLOCKS if block.name.startswith("engines.md")}
    assert shown == set(RECIPES.values())
    assert len(shown) == 3


@pytest.mark.slow
async def test_readme_program_buys_nothing_when_run_again(tmp_path: Path) -> None:
    (block,) = (each for each in RUNNABLE if each.name.startswith("README") and "generate_many" in each.code)
    async with Emulator(job_limit=5, duration=Fixed(0.1), image_scale=0.1) as emulator:
        outputs = [await run(block, tmp_path, emulator) for _ in range(2)]
        assert sorted(job.prompt for job in emulator.jobs()) == [
            "a harbour at dawn",
            "a lighthouse in fog",
            "a night train",
            "an old library",
        ]
    for output in outputs:
        assert {"images/harbour.png", "images/0001-a-lighthouse-in-fog.png"} < set(output.splitlines())
        assert [name for name in output.splitlines() if not (tmp_path / name).is_file()] == []


async def run(block: Block, folder: Path, emulator: Emulator) -> str:
    """Run a block against the emulator and return its output."""
    assert block.arguments is not None
    await asyncio.to_thread((folder / "test_block.py").write_text, block.code, "utf-8")
    await asyncio.to_thread((folder / "block.py").write_text, block.code, "utf-8")
    await asyncio.to_thread((folder / "poll_early.py").write_text, POLL_EARLY, "utf-8")
    environ = os.environ | {
        "NANOBANANA_GATEWAY": "apimall",
        "NANOBANANA_BASE_URL": emulator.url,
        "NANOBANANA_EXPECTED_JOB_S": "0.1",
        "APIMALL_API_KEY": API_KEY,
        "PYTHONWARNINGS": "error",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    if not block.changes_process:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "environ", environ)
            patch.setattr(sys, "stdout", printed := io.StringIO())
            patch.chdir(folder)
            await asyncio.to_thread(runpy.run_path, "block.py", run_name="__main__")
        return printed.getvalue()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *block.arguments,
        cwd=folder,
        env=environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(50):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, output.decode()
    return output.decode()


def test_pages_have_programs_to_run() -> None:
    assert len(RUNNABLE) >= 4


@pytest.mark.parametrize("command", COMMANDS)
def test_readme_has_each_command_in_its_own_block(command: str) -> None:
    assert f"\n```sh\n{command}\n```\n" in (ROOT / "README.md").read_text(encoding="utf-8")


@each_row("page", [*PAGES, ROOT / "CHANGELOG.md", ROOT / "docs/examples/studio/README.md"])
def test_links_lead_to_files(page: Path) -> None:
    links = _LINK.findall(page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.skipif(sys.platform != "linux", reason="releases are built on Linux, whose sed this is")
def test_release_makes_all_links_of_the_readme_absolute(tmp_path: Path) -> None:
    workflow = (ROOT / ".github/workflows/release.yml").read_text(encoding="utf-8")
    command = re.search(r"^ +run: \|\n((?: +.*\n)+?) +README\.md$", workflow, re.MULTILINE)
    assert command is not None
    readme = tmp_path / "README.md"
    readme.write_text((ROOT / "README.md").read_text(encoding="utf-8"), encoding="utf-8")
    environ = {"PATH": os.environ["PATH"], "TAG": "v1.2.3", "GITHUB_REPOSITORY": "studio/images"}
    subprocess.run(["bash", "-c", f"{command[1]} README.md"], cwd=tmp_path, env=environ, check=True, timeout=20)
    text = readme.read_text(encoding="utf-8")
    assert _LINK.findall(text) == []
    assert "](https://raw.githubusercontent.com/studio/images/v1.2.3/docs/images/demo.svg)" in text
    assert "](https://github.com/studio/images/blob/v1.2.3/docs/tutorial.md)" in text


def test_architecture_names_existing_files() -> None:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    names = set(re.findall(r"\b(?:\w+/)*\w+\.py\b", text))
    folders = [ROOT / folder for folder in ("nanobanana_async", "tests", "benchmarks")]
    paths = [f"/{path.relative_to(ROOT).as_posix()}" for folder in folders for path in folder.rglob("*.py")]
    assert len(names) > 40
    assert [name for name in sorted(names) if not any(path.endswith(f"/{name}") for path in paths)] == []


def test_architecture_has_the_transitions_of_the_code() -> None:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([A-Z_]+) \| [^|]+ \| ([A-Z_, ]+|-) \|$", text, re.MULTILINE)
    table = {state: set() if onward == "-" else set(onward.split(", ")) for state, onward in rows}
    tables: tuple[Mapping[Any, frozenset[Any]], ...] = (TRANSITIONS, PHASE_TRANSITIONS)
    assert table == {state.name: {each.name for each in onward} for moves in tables for state, onward in moves.items()}

"""The code blocks of README and docs are true: programs run, tests pass, the rest compiles."""

import asyncio
import os
import re
import sys
from pathlib import Path
from types import CodeType

import pytest
from attrs import frozen

from nanobanana_async.emulator import API_KEY, Emulator

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = (
    "python3 -m venv .venv && .venv/bin/pip install '.[cli]' && .venv/bin/nanobanana demo",
    "python3 -m venv .venv && .venv/bin/pip install -e '.[test]' && .venv/bin/pytest",
)
_FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@frozen
class Block:
    """One block of Python in a page."""

    name: str
    code: str

    @property
    def arguments(self) -> list[str] | None:
        """What Python is told to run it, or None when it is only an excerpt."""
        if "asyncio.run(" in self.code:
            return ["block.py"]
        if "def test_" in self.code:
            scope = "asyncio_default_fixture_loop_scope=function"
            fixtures = "nanobanana_async.emulator.fixtures"
            return ["-m", "pytest", "-q", "-p", fixtures, "-o", "asyncio_mode=auto", "-o", scope, "."]
        return None


def blocks() -> list[Block]:
    """Return every block of Python, named by its page and line."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in _FENCE.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            found.append(Block(f"{page.name}:{line}", match[1]))
    return found


BLOCKS = blocks()
RUNNABLE = [block for block in BLOCKS if block.arguments is not None]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)
def test_every_block_compiles(block: Block) -> None:
    assert isinstance(compile(block.code, block.name, "exec"), CodeType)


@pytest.mark.parametrize("block", RUNNABLE, ids=lambda block: block.name)
async def test_every_program_runs_against_the_emulator(block: Block, tmp_path: Path) -> None:
    assert block.arguments is not None
    await asyncio.to_thread((tmp_path / "test_block.py").write_text, block.code, "utf-8")
    await asyncio.to_thread((tmp_path / "block.py").write_text, block.code, "utf-8")
    async with Emulator(job_limit=5) as emulator:
        environ = os.environ | {
            "NANOBANANA_GATEWAY": "apimall",
            "NANOBANANA_BASE_URL": emulator.url,
            "NANOBANANA_EXPECTED_JOB_S": "0.5",
            "APIMALL_API_KEY": API_KEY,
            "PYTHONWARNINGS": "error",
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *block.arguments,
            cwd=tmp_path,
            env=environ,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        async with asyncio.timeout(30):
            output, _ = await process.communicate()
        assert process.returncode == 0, output.decode()
        assert emulator.stats().double_charges == 0


def test_the_readme_has_programs_to_run() -> None:
    assert len(RUNNABLE) >= 4


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_stands_alone_in_a_block_of_its_own(command: str) -> None:
    assert f"\n```sh\n{command}\n```\n" in (ROOT / "README.md").read_text(encoding="utf-8")

"""The matrix of README.md names tests and commands that exist."""

import importlib.util
import re
from pathlib import Path

from tests.faults.__main__ import COMMANDS

ROOT = Path(__file__).parents[2]
TEXT = (Path(__file__).parent / "README.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| (\w+) \|(.+)\|$", TEXT, re.MULTILINE)[1:])


def test_matrix_has_all_rows_in_order() -> None:
    assert list(ROWS) == [*map(str, range(1, 26)), "TLS", "mutations"]


def test_each_row_names_what_shows_it() -> None:
    assert [name for name, text in ROWS.items() if not re.search(r"::test_\w+|see tests/", text)] == []


def test_each_named_test_exists() -> None:
    named = re.findall(r"(tests/[\w/]+\.py)::(test_\w+)", TEXT)
    assert len(named) >= 50
    missing = []
    for path, test in named:
        file = ROOT / path
        if not file.is_file() or not re.search(rf"^(?:async )?def {test}\(", file.read_text("utf-8"), re.MULTILINE):
            missing.append(f"{path}::{test}")
    assert missing == []


def test_each_named_command_exists() -> None:
    named = re.findall(r"`python -m ([\w.]+)(?: (\w+))?", TEXT)
    assert {name for module, name in named if module == "tests.faults"} == set(COMMANDS)
    assert [module for module, _ in named if importlib.util.find_spec(module) is None] == []
    files = [ROOT / f"tests/faults/{module}.py" for module, _ in COMMANDS.values()]
    assert [file for file in files if not file.is_file()] == []

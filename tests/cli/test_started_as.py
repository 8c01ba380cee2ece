"""Commands that are printed to be typed again begin as this one was started."""

import os
import sys
from pathlib import Path

import pytest

from nanobanana_async.cli.started_as import program, same_command


def start(patch: pytest.MonkeyPatch, *argv: str, interpreter: str = "python") -> None:
    patch.setattr(sys, "argv", list(argv))
    patch.setattr(sys, "orig_argv", [interpreter, *argv])


def installed(folder: Path) -> Path:
    """Return a command that PATH could have."""
    folder.mkdir()
    script = folder / "nanobanana"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    return script


def test_a_command_of_path_is_named_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = installed(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(script.parent))
    start(monkeypatch, str(script), "demo")
    assert program() == "nanobanana"


@pytest.mark.parametrize("other", [False, True])
def test_a_command_outside_of_path_is_named_by_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: bool
) -> None:
    script = installed(tmp_path / "my env")
    found = [str(installed(tmp_path / "bin").parent)] if other else []
    monkeypatch.setenv("PATH", os.pathsep.join([*found, str(tmp_path / "empty")]))
    monkeypatch.chdir(tmp_path)
    start(monkeypatch, "my env/nanobanana", "demo")
    assert program() == "'my env/nanobanana'"
    script.unlink()
    assert program() == "'my env/nanobanana'"


@pytest.mark.parametrize("module", ["nanobanana_async/__main__.py", "nanobanana_async/cli/__main__.py"])
def test_a_module_is_named_by_its_interpreter(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    start(monkeypatch, f"/somewhere/{module}", "batch", "a b.txt", interpreter=".venv/bin/python")
    assert program() == ".venv/bin/python -m nanobanana_async"
    assert same_command("--again") == ".venv/bin/python -m nanobanana_async batch 'a b.txt' --again"


def test_an_option_is_added_once(monkeypatch: pytest.MonkeyPatch) -> None:
    start(monkeypatch, "/x/nanobanana_async/__main__.py", "batch", "a.txt", "--again")
    assert same_command("--again").count("--again") == 1


@pytest.mark.parametrize(
    "argv", [("/x/pytest/__main__.py", "tests"), ("run.py", "a.txt"), ("/x/nanobanana_async/__main__.py", "batch", "-")]
)
def test_a_call_from_python_and_a_pipe_have_no_command(monkeypatch: pytest.MonkeyPatch, argv: tuple[str, ...]) -> None:
    start(monkeypatch, *argv)
    assert same_command("--again") == ""


def test_a_call_from_python_is_named_as_the_installed_command(monkeypatch: pytest.MonkeyPatch) -> None:
    start(monkeypatch, "run.py")
    assert program() == "nanobanana"

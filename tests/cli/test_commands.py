"""Commands that are printed to be typed again begin as this one was started, and do nothing harmful in a shell."""

import ast
import io
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from cyclopts import CoercionError
from rich.console import Console

import nanobanana_async
from nanobanana_async import ConfigurationError, JobState
from nanobanana_async.accounts import account_advice
from nanobanana_async.candidates import Candidate
from nanobanana_async.cli import app as cli
from nanobanana_async.cli.batch.display import BatchDisplay
from nanobanana_async.cli.batch.folder import FolderOwner, check_owner
from nanobanana_async.cli.batch.output import BatchSummary
from nanobanana_async.cli.batch.results import Result
from nanobanana_async.cli.jobs.format import job_details, next_steps
from nanobanana_async.cli.options import fetch_command, fetch_options
from nanobanana_async.commands import command_line, jobs_command, program, quoted, same_command
from nanobanana_async.engine.doubt import candidates_hint
from nanobanana_async.report import ReportRow
from tests.support.ledger_contract import job
from tests.support.rows import each_row

NASTY = "a b;x  y|>'z'&$(id)*\n-\u202e"
KEYS = ("plain", "-x", "a|b;$(touch", "--as=not-bought", "'", "~", "$HOME")


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


# Every command can be pasted


def records(key: str) -> Iterator[Any]:
    now = datetime(2026, 3, 12, tzinfo=UTC)
    for state in JobState:
        yield evolve(job(key, state=state), created_at=now)


def messages(key: str, ledger: Path) -> Iterator[str]:
    """Yield what each place prints with a command about this job in it."""
    counts = Counter({JobState.PENDING: 1, JobState.RUNNING: 1, JobState.UNCERTAIN: 2})
    yield from next_steps(counts, counts, ledger)
    for record in records(key):
        yield job_details(record, ledger, followed=False, now=datetime.now(UTC))
    for old in ("apimall:a;b|c", "0" * 24):
        yield account_advice("apimall", old, "apimall:$(id)", ledger)
    options = fetch_options(ledger, "apimall", "https://a.example/?a&b")
    yield f"`{fetch_command([key], options, Path(NASTY), sidecar=True)}`"
    yield candidates_hint(evolve(job(key), candidates=(Candidate(task_id="t1", created_at=datetime.now(UTC)),)), ledger)
    yield f"`{jobs_command('show', ledger=ledger, names=[key])}`"
    for keys in ([key], [key, "other"]):
        summary = BatchSummary(Path(NASTY))
        for each in keys:
            summary.add(Result(row=ReportRow(index=0, number=1, job_key=each, status="uncertain", prompt="a fox")))
        display = BatchDisplay(1, Console(file=io.StringIO()), lambda: 0.0)
        yield from summary.ending(display, 0, interrupted=False, reported=False)


@pytest.mark.parametrize("ledger", [NASTY, "-x", "plain"], ids=["nasty", "option", "plain"])
def test_no_printed_command_has_an_operator_of_a_shell(ledger: str) -> None:
    texts = [text for key in KEYS for text in messages(key, Path(ledger))]
    found = [command for text in texts for command in re.findall("`(nanobanana [^`]*)`", text)]
    assert len(found) == 15 * len(KEYS)
    for command, words in zip(found, shell_words(found), strict=True):
        assert words[0] == "jobs", command
        assert not re.search(r"--as (?!DECISION)", command)
        assert {ledger, f"./{ledger}", f"{NASTY}/jobs.sqlite"} & set(words), command
        if "resolve" not in words:
            cli.app.parse_args(words, exit_on_error=False, print_error=False)
        else:
            with pytest.raises(CoercionError, match="DECISION"):
                cli.app.parse_args(words, exit_on_error=False, print_error=False)


def shell_words(commands: list[str]) -> list[list[str]]:
    """Return the words that a shell passes to each command; fails if it does anything else."""
    script = "\n".join(["nanobanana() { printf '%s\\0' \"$@\" $'\\x01'; }", *commands])
    said = subprocess.run(["bash", "-c", script], capture_output=True, check=True, cwd="/", timeout=20)
    assert said.stderr == b""
    return [words.split("\0")[:-1] for words in said.stdout.decode().split("\x01\0")[:-1]]


def test_a_decision_that_is_not_made_is_refused(tmp_path: Path, isolated: None) -> None:
    del isolated
    assert cli.run(["jobs", "resolve", "k", "--ledger", str(tmp_path / "jobs.sqlite"), "--as", "DECISION"]) == 2


@each_row("word", [NASTY, "", "plain", "a b", "é \u00a0 x", "\udcff"])
def test_a_quoted_word_is_one_word_on_one_line(word: str) -> None:
    assert quoted(word).isprintable()
    assert "  " not in quoted(word)
    said = subprocess.run(["bash", "-c", f"printf %s {quoted(word)}"], capture_output=True, check=True, timeout=20)
    assert said.stdout.decode(errors="surrogateescape") == word


def test_the_name_of_another_batch_is_quoted(tmp_path: Path) -> None:
    (tmp_path / ".nanobanana-batch").write_text(FolderOwner("a;b c", emulated=False).to_json())
    with pytest.raises(ConfigurationError, match="--name 'a;b c'"):
        check_owner(tmp_path, FolderOwner("other", emulated=False))


def test_advice_names_the_command_as_it_was_started(monkeypatch: pytest.MonkeyPatch) -> None:
    start(monkeypatch, "/x/nanobanana_async/__main__.py", "jobs", interpreter="/my venv/bin/python")
    begin = "`'/my venv/bin/python' -m nanobanana_async jobs "
    assert f"{begin}hand-over --from " in account_advice("apimall", "a" * 24, "b" * 24, Path("l"))
    assert f"{begin}resume --ledger l`" in "".join(next_steps(Counter(), Counter({JobState.RUNNING: 1}), Path("l")))
    assert command_line("demo") == "'/my venv/bin/python' -m nanobanana_async demo"


COMMAND = re.compile(r"nanobanana (?:batch|balance|demo|emulate|generate|jobs|webhooks)\b")
_PERHAPS = re.compile(r"nanobanana['\" ]|--[a-z]")
"""What the text of a file has that may name a command or an option: to parse all files takes a second."""
IDENTIFIERS = {"nanobanana demo", "nanobanana webhooks"}  # of the folder of a demo, and of a loop guard


def literals(tree: ast.Module) -> Iterator[ast.Constant]:
    """Yield each text of a file that is neither a docstring nor the help of the program."""
    skipped: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):
            skipped.add(id(node.value))
        if isinstance(node, ast.keyword) and node.arg in ("help", "usage"):
            skipped.add(id(node.value))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            yield node


@pytest.fixture(scope="module")
def literals_of_package() -> list[tuple[Path, ast.Constant]]:
    """All texts of the package, with their files."""
    package = Path(nanobanana_async.__file__).parent
    texts = [(file, file.read_text(encoding="utf-8")) for file in sorted(package.rglob("*.py"))]
    return [(file, node) for file, text in texts if _PERHAPS.search(text) for node in literals(ast.parse(text))]


def test_no_message_spells_out_a_command(literals_of_package: list[tuple[Path, ast.Constant]]) -> None:
    found = [
        f"{file}:{node.lineno}: {node.value!r}"
        for file, node in literals_of_package
        if COMMAND.search(str(node.value)) and node.value not in IDENTIFIERS
    ]
    assert not found, "commands.command_line names the program as it was started, and quotes"


def test_no_message_has_alternatives_in_an_option(literals_of_package: list[tuple[Path, ast.Constant]]) -> None:
    for file, node in literals_of_package:
        assert not re.search(r"--[a-z-]+ [\w-]+\|", str(node.value)), f"{file}:{node.lineno}"

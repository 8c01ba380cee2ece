"""Workers of pytest-xdist that are forked from one process report what real ones report."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.forked import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(180),  # on a busy machine
    pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux only"),
]

CONFTEST = """
from tests.support import collected, forked

forked.install()


def pytest_xdist_setupnodes(config):
    collected.prepare(config)


def pytest_xdist_getremotemodule():
    return collected.REMOTE
"""
TESTS = """
import os, sys, warnings
import pytest

warnings.warn("said while it was imported")

HERE = os.getpid()


@pytest.mark.parametrize("number", range(3))
def test_forked(number, tmp_path, capfd, worker_id):
    print("captured", worker_id)
    assert os.getpid() != HERE
    assert capfd.readouterr().out == f"captured {worker_id}\\n"
    assert tmp_path.parent.name == f"popen-{worker_id}"
    assert os.environ["PYTEST_XDIST_WORKER"] == worker_id


def test_failing():
    print("said on the way")
    assert 1 + 1 == 3


@pytest.mark.skip(reason="not now")
def test_skipped(): ...


@pytest.fixture
def closing():
    yield
    raise OSError("fails when it is closed")


def test_fails_at_its_end(closing): ...
"""


def run(folder: Path, *options: str) -> tuple[int, str]:
    """Run pytest on the files of a folder, with two workers; return its exit code and output."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    environ |= {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # they take a second to import
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "xdist", "-n2", "-rs", "--rootdir", str(folder), *options],
        cwd=folder,
        env=environ,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_results_of_all_workers_are_reported(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    for name in ("one", "two"):
        (tmp_path / f"test_{name}.py").write_text(TESTS)
    code, said = run(tmp_path)
    assert code == 1, said
    assert re.search(r"= 2 failed, 8 passed, 2 skipped, \d+ warnings?, 2 errors in", said), said
    assert "UserWarning: said while it was imported" in said
    assert "assert (1 + 1) == 3" in said
    assert said.count("Captured stdout call") == 2
    assert "not now" in said
    assert "fails when it is closed" in said


def test_file_that_can_not_be_imported_is_reported(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_one.py").write_text(TESTS)
    (tmp_path / "test_torn.py").write_text("import no_such_package")
    code, said = run(tmp_path)
    assert code != 0
    assert "No module named 'no_such_package'" in said


def test_wrong_argument_is_reported(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    code, said = run(tmp_path, "test_missing.py")
    assert code == pytest.ExitCode.USAGE_ERROR, said
    assert "test_missing.py" in said

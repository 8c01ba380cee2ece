"""Fixtures for the tests of the command."""

import os
import sys
from pathlib import Path

import pytest

from tests.cli.batches import Command


@pytest.fixture(autouse=True)
def _without_pydantic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide pydantic, as in the command's own process: cyclopts validates with it where other tests have imported it."""
    monkeypatch.delitem(sys.modules, "pydantic", raising=False)


@pytest.fixture
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the command's variables from the environment, and work in an empty folder."""
    for name in [name for name in os.environ if name.startswith(("APIMALL_", "DEFAPI_", "NANOBANANA_"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], isolated: None
) -> Command:
    del isolated
    return Command(tmp_path, monkeypatch, capsys)

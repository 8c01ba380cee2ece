"""Fixtures for the tests of the command."""

import os
from pathlib import Path

import pytest

from tests.cli.batches import Command


@pytest.fixture
def batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    for name in [name for name in os.environ if name.startswith(("APIMALL_", "DEFAPI_", "NANOBANANA_"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return Command(tmp_path, monkeypatch, capsys)

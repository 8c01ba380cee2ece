"""`nanobanana mcp`: what is refused before a client is served. What it serves: tests/mcp_server."""

import importlib.util
from pathlib import Path

import pytest

from tests.support.command import environment, nanobanana


async def refusal(folder: Path, *options: str) -> str:
    """Return the complaint about options with which nothing is served."""
    environ = environment(APIMALL_API_KEY="some-key")
    said = await nanobanana("mcp", "-o", str(folder / "images"), *options, environ=environ)
    assert said.code == 2
    assert said.out == ""
    return said.complaint


async def test_budget_is_required(tmp_path: Path) -> None:
    complaint = await refusal(tmp_path)
    assert "mcp needs --max-credits, what may be spent in all" in complaint
    assert "or a budget, such as --budget models=50/day" in complaint


async def test_wrong_settings_are_refused_before_anything_is_served(tmp_path: Path) -> None:
    budget = ("--max-credits", "100")
    assert "--max-credits must be" in await refusal(tmp_path, "--max-credits", "-1")
    assert "--batch must be a name" in await refusal(tmp_path, *budget, "--batch", " ")
    assert "--batch must be a name" in await refusal(tmp_path, "--budget", "models=50/day", "--batch", " ")
    assert "there is no such folder" in await refusal(tmp_path, *budget, "--allow-folder", str(tmp_path / "none"))
    (tmp_path / "images").rmdir()
    (tmp_path / "images").write_text("a file")
    assert "name another folder with -o" in await refusal(tmp_path, *budget)


async def test_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'nanobanana-async[mcp]'" in await refusal(tmp_path, "--max-credits", "100")


async def test_settings_file_may_have_folder_and_budget(tmp_path: Path) -> None:
    settings = tmp_path / "config.toml"
    settings.write_text(f'[mcp]\noutput = "{tmp_path / "images"}"\nmax_credits = 500\n')
    settings.chmod(0o600)
    environ = environment(APIMALL_API_KEY="some-key", NANOBANANA_CONFIG=str(settings))
    said = await nanobanana("mcp", "--allow-folder", str(tmp_path / "none"), environ=environ)
    assert "there is no such folder" in said.complaint
    assert (tmp_path / "images").is_dir()

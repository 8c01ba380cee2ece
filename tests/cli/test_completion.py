"""`--install-completion`: the scripts it writes, and what a real shell completes with them."""

import asyncio
import shutil
import sys
from pathlib import Path

import pytest

from tests.support.command import environment, nanobanana

PLACES = {
    "bash": ".local/share/bash-completion/completions/nanobanana",
    "zsh": ".zsh/completions/_cyclopts_nanobanana",
    "fish": ".config/fish/completions/nanobanana.fish",
}
TRY = """
source "$HOME/.bashrc"
try() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _nanobanana; echo "${COMPREPLY[*]}"; }
"""


@pytest.mark.parametrize("shell", PLACES)
async def test_script_of_each_shell_is_written_into_the_home_folder(
    shell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ZSH", "ZSH_CUSTOM"):
        monkeypatch.delenv(name, raising=False)
    said = await nanobanana("--install-completion", "--shell", shell, environ=environment(HOME=str(tmp_path)))
    script = tmp_path / PLACES[shell]
    assert (said.code, said.err) == (0, "")
    assert str(script) in said.out
    text = script.read_text(encoding="utf-8")
    for word in ("generate", "resolution", "profile", "reconcile"):
        assert word in text
    if (program := shutil.which(shell)) is not None:
        checked = await asyncio.create_subprocess_exec(program, "-n", str(script))
        assert await checked.wait() == 0


async def test_unknown_shell_is_refused() -> None:
    said = await nanobanana("--install-completion", "--shell", "tcsh")
    assert (said.code, said.out) == (2, "")
    assert "--shell must be one of zsh, bash, fish, powershell, not 'tcsh'" in said.complaint


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
async def test_bash_completes_commands_options_values_and_profiles(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "nanobanana"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m nanobanana_async "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    settings = tmp_path / "config.toml"
    settings.write_text("[profile.work]\nmax_jobs = 2\n[profile.home]\n", encoding="utf-8")
    environ = environment(HOME=str(tmp_path), NANOBANANA_CONFIG=str(settings), PYTHONPATH=str(Path.cwd()))
    environ["PATH"] = f"{tmp_path / 'bin'}:{environ['PATH']}"
    assert (await nanobanana("--install-completion", "--shell", "bash", environ=environ)).code == 0
    expected = {
        "gen": "generate",
        "generate --reso": "--resolution",
        "generate x --resolution ''": "1K 2K 4K",
        "batch rows.csv --gateway ''": "apimall defapi emulator",
        "jobs re": "resume reconcile resolve",
        "balance --profile ''": "work home",
    }
    script = TRY + "".join(f"try nanobanana {words}\n" for words in expected)
    shell = await asyncio.create_subprocess_exec("bash", "-c", script, env=environ, stdout=asyncio.subprocess.PIPE)
    out, _ = await shell.communicate()
    assert out.decode().splitlines() == list(expected.values())

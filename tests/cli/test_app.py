"""What `run` makes of the odd endings that no gateway can cause."""

import getpass
import io
import subprocess
import sys

import pytest

from nanobanana_async.cli import app as cli
from tests.cli.command import environment


class Terminal(io.StringIO):
    """Somebody sits in front of it."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Take our variables out of the environment."""
    for name in ("APIMALL_API_KEY", "DEFAPI_API_KEY", "NANOBANANA_GATEWAY", "NANOBANANA_BASE_URL", "NANOBANANA_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_on_a_terminal_a_missing_key_is_asked_for(bare: pytest.MonkeyPatch) -> None:
    questions: list[str] = []

    def typed(question: str, stream: object = None) -> str:
        questions.append(question)
        return "typed-key"

    bare.setattr(sys, "stdin", Terminal())
    bare.setattr(getpass, "getpass", typed)
    seller = cli._find_gateway("defapi", "https://gateway.example")
    assert (seller.name, seller.api_key.reveal(), seller.base_url) == ("defapi", "typed-key", "https://gateway.example")
    assert questions == ["API key of defapi: "]


def test_without_a_terminal_nobody_is_asked(bare: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    bare.setattr(sys, "stdin", io.StringIO())
    assert cli.run(["generate", "x", "--gateway", "apimall"]) == 2
    assert "APIMALL_API_KEY is not set" in capsys.readouterr().err


def test_a_bug_is_one_line_too(bare: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(*_: object) -> None:
        raise LookupError("oops")

    bare.setattr(cli, "_seller", broken)
    assert cli.run(["generate", "x"]) == 1
    assert capsys.readouterr().err == "nanobanana: a bug: LookupError: oops (NANOBANANA_DEBUG=1 shows where)\n"
    bare.setenv("NANOBANANA_DEBUG", "1")
    with pytest.raises(LookupError):
        cli.run(["generate", "x"])


def test_a_reader_that_goes_away_is_no_news() -> None:
    pipeline = f"{sys.executable} -m nanobanana_async.cli --help | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", pipeline], env=environment(), capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stderr == ""
    assert done.stdout.strip() in {"0", "1"}  # 0 when all was written before the reader went

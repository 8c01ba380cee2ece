"""How `run` reports errors that no gateway causes."""

import getpass
import io
import subprocess
import sys

import pytest

from nanobanana_async import ConfigurationError
from nanobanana_async.cli import app as cli
from nanobanana_async.cli.find_gateway import find_gateway
from nanobanana_async.config import gateway_from_env
from tests.support.command import TerminalStream, environment


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Remove our variables from the environment."""
    for name in ("APIMALL_API_KEY", "DEFAPI_API_KEY", "NANOBANANA_GATEWAY", "NANOBANANA_BASE_URL", "NANOBANANA_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize(("value", "state"), [(None, "not set"), ("", "empty"), (" ", "empty")])
@pytest.mark.parametrize("stderr", [TerminalStream, io.StringIO])
def test_a_missing_key_is_prompted_for_on_a_terminal(
    bare: pytest.MonkeyPatch, value: str | None, state: str, stderr: type[io.StringIO]
) -> None:
    questions: list[str] = []
    streams: list[object] = []
    if value is not None:
        bare.setenv("DEFAPI_API_KEY", value)

    def typed(question: str, stream: object = None) -> str:
        questions.append(question)
        streams.append(stream)
        return "typed-key"

    bare.setattr(sys, "stdin", TerminalStream())
    bare.setattr(sys, "stderr", stderr())
    bare.setattr(getpass, "getpass", typed)
    gateway = find_gateway("defapi", "https://gateway.example")
    assert (gateway.name, gateway.api_key.reveal(), gateway.base_url) == (
        "defapi",
        "typed-key",
        "https://gateway.example",
    )
    assert questions == [f"DEFAPI_API_KEY is {state}. Type the API key of defapi (it is not shown): "]
    assert streams == [sys.stderr if stderr is TerminalStream else None]  # None: the terminal itself


@pytest.mark.parametrize("typed", [None, "", "  "])
def test_nothing_typed_at_the_prompt_is_no_key(
    typed: str | None, bare: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(*_: object, **__: object) -> str:
        if typed is None:
            raise EOFError
        return typed

    bare.setattr(sys, "stdin", TerminalStream())
    bare.setattr(getpass, "getpass", answer)
    assert cli.run(["balance", "--gateway", "apimall"]) == 2
    assert capsys.readouterr().err == "nanobanana: no API key was typed: set APIMALL_API_KEY\n"


def test_no_gateway_names_the_options_that_select_one(
    bare: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bare.setattr(sys, "stdin", TerminalStream())
    for command in (["generate", "x"], ["balance"]):
        assert cli.run(command) == 2
        said = capsys.readouterr().err
        for way in (
            "--gateway apimall",
            "--gateway emulator",
            "`nanobanana demo`",
            "APIMALL_API_KEY or DEFAPI_API_KEY",
        ):
            assert said.count(way) == 1


@pytest.mark.parametrize("variable", ["APIMALL_KEY", "NANOBANANA_API_KEY", "DEFAPI_TOKEN"])
def test_no_gateway_names_a_variable_with_a_similar_name_and_not_its_value(
    variable: str, bare: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bare.setenv(variable, "sk-hidden")
    bare.setenv("NANOBANANA_SERVE_TOKEN", "sk-hidden")
    assert cli.run(["balance"]) == 2
    messages = [capsys.readouterr().err]
    with pytest.raises(ConfigurationError) as caught:
        gateway_from_env()
    messages.append(str(caught.value))
    for message in messages:
        assert f"no gateway: {variable} is set, but not read; pass " in message
        assert "hidden" not in message


def test_a_missing_key_is_an_error_without_a_terminal(
    bare: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bare.setattr(sys, "stdin", io.StringIO())
    assert cli.run(["generate", "x", "--gateway", "apimall"]) == 2
    assert "APIMALL_API_KEY is not set" in capsys.readouterr().err


def test_a_bug_is_one_line_on_stderr(bare: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(*_: object) -> None:
        raise LookupError("oops")

    bare.setattr("nanobanana_async.cli.find_gateway.gateway_from_env", broken)
    bare.setenv("APIMALL_API_KEY", "k")
    assert cli.run(["generate", "x"]) == 1
    assert capsys.readouterr().err == "nanobanana: a bug: LookupError: oops (NANOBANANA_DEBUG=1 shows where)\n"
    bare.setenv("NANOBANANA_DEBUG", "1")
    with pytest.raises(LookupError):
        cli.run(["generate", "x"])


@pytest.mark.slow
def test_a_closed_pipe_prints_no_error() -> None:
    pipeline = f"{sys.executable} -m nanobanana_async --help | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", pipeline], env=environment(), capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stderr == ""
    assert done.stdout.strip() in {"0", "1"}  # 0 if everything was written before the pipe was closed

"""Help, usage errors and missing extras."""

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nanobanana_async import __version__
from tests.support.command import environment, in_a_process, nanobanana


async def test_help_names_commands_and_key_variables() -> None:
    said = await nanobanana("--help")
    assert said.code == 0
    for word in ("demo", "generate", "emulate", "APIMALL_API_KEY", "DEFAPI_API_KEY"):
        assert word in said.out


async def test_help_names_environment_variables_of_options() -> None:
    said = await nanobanana("generate", "--help")
    for variable in ("NANOBANANA_GATEWAY", "NANOBANANA_BASE_URL"):
        assert variable in said.out
    assert "api-key" not in said.out


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("generate",), 'generate needs PROMPT, such as "a fox in snow"'),
        (("generate", "a fox", "-o", "x", "an owl"), "'an owl' is not expected there: write all prompts before"),
        (("demo", "x"), "'x' is not expected there"),
        (("budgets", "spring/jobs.sqlite"), "'spring/jobs.sqlite' is not expected there: --ledger names a ledger"),
        (("batch", "x.csv"), "batch needs --output, such as -o spring"),
        (("generate", "x", "--output-folder", "x"), "unknown option --output-folder: -o names the folder"),
        (("batch", "x.csv", "-o", "x", "--out", "x"), "unknown option --out: -o names the folder"),
        (("generate", "x", "--resolution", "3K"), "--resolution"),
        (("generate", "x", "--resolution", "3K"), "1K"),
        (("generate", "x", "--num-images", "9"), "--num-images must be a whole number from 1 to 6"),
        (("generate", "x", "--num-images", "two"), "--num-images must be a whole number, not 'two'"),
        (("generate", "x", "--gateway", "foo"), "--gateway must be one of apimall, defapi, emulator, not 'foo'"),
        (("generate", "x", "-o", ""), "the folder must be the path of a folder"),
        (("batch", "x.txt", "-o", ""), "the folder must be the path of a folder"),
        (("demo", "-o", " "), "the folder must be the path of a folder"),
        (
            ("generate", "x", "-o", "https://bucket/x"),
            "the path of a folder or the URL of an object store",
        ),
        (("batch", "x.txt", "-o", "r2://bucket/x"), "not a URL that begins with r2://"),
        (("batch", "x.txt", "-o", "s3://me:secret@bucket/x"), "credentials come from the environment"),
        (("demo", "-o", "s3://bucket/x"), "the folder must be the path of a folder on this machine"),
        (("jobs", "--ledger", "https://example.com/x"), "--ledger must be the path of a file on this machine"),
        (("batch", "x.txt", "-o", "x", "--max-credits", "abc"), "--max-credits must be a number, not 'abc'"),
        (
            ("batch", "x.txt", "-o", "x", "--max-credits", "nan"),
            "--max-credits must be a number of at least 0, not NaN",
        ),
        (("jobs", "--state", "foo"), "--state must be one of pending, submitting, running, succeeded"),
        (("jobs", "resolve", "k", "", "--as", "task-id"), "task_id must be printable text"),
        (("generate", " "), "prompt is empty"),
        (("generate", "x", "--api-key", "secret"), "--api-key"),
        (("generate", "x", "--timeout", "0"), "--timeout"),
        (("generate", "x", "--max-jobs", "0"), "--max-jobs must be a whole number of at least 1"),
        (
            ("generate", "x", "--max-requests-per-minute", "0"),
            "--max-requests-per-minute must be a whole number of at least 1",
        ),
        (("generate", "x", "--timeout", "soon"), "--timeout must be a number, not 'soon'"),
        (("generate", "x", "--gateway", "emulator"), "-o"),
        (("generate", "x"), "APIMALL_API_KEY"),
        (("generate", "x", "--gateway", "defapi"), "DEFAPI_API_KEY"),
        (("paint", "x"), "paint"),
        (("emulate", "--speed", "0"), "speed"),
        (("emulate", "--port", "99999"), "--port must be a number from 0 to 65535"),
        (("demo", "--prompts", "0"), "--prompts"),
    ],
)
async def test_wrong_usage_is_one_line_and_code_2(arguments: tuple[str, ...], word: str) -> None:
    said = await nanobanana(*arguments)
    assert (said.code, said.out) == (2, "")
    assert word in said.complaint


@pytest.mark.slow
async def test_wrong_usage_ends_the_process_with_code_2() -> None:
    said = await in_a_process("generate", "x", "--timeout", "0")
    assert (said.code, said.out) == (2, "")
    assert "--timeout" in said.complaint


async def test_environment_variables_are_validated_like_options() -> None:
    said = await nanobanana("generate", "x", environ=environment(APIMALL_API_KEY="k", NANOBANANA_BASE_URL="http://a.b"))
    assert said.code == 2
    assert "https" in said.complaint


@pytest.mark.parametrize("name", ["NANOBANANA_GATEWAY", "NANOBANANA_MAX_JOBS", "NANOBANANA_TIMEOUT"])
async def test_empty_environment_variables_are_unset(name: str) -> None:
    said = await nanobanana("generate", "x", environ=environment() | {name: " "})
    assert said.code == 2
    assert "set APIMALL_API_KEY or DEFAPI_API_KEY" in said.complaint


async def test_invalid_environment_variable_is_named() -> None:
    said = await nanobanana("generate", "x", environ=environment(NANOBANANA_GATEWAY="foo"))
    assert said.code == 2
    assert "NANOBANANA_GATEWAY must be one of apimall, defapi, emulator, not 'foo'" in said.complaint


async def test_placeholder_and_quoted_keys_are_named_before_any_request() -> None:
    for key, why in (
        ("your-api-key", "placeholder"),
        ('"sk-1a2b3c4d"', "quotation marks"),
        ("", "set APIMALL_API_KEY"),
    ):
        said = await nanobanana("generate", "x", environ=environment(APIMALL_API_KEY=key))
        assert (said.code, said.out) == (2, "")
        assert why in said.complaint
        assert "1a2b" not in said.err


@pytest.mark.parametrize(
    "command",
    [
        ("generate",),
        ("batch",),
        ("emulate",),
        ("demo",),
        ("jobs",),
        *(("jobs", name) for name in ("show", "fetch", "resume", "resolve", "hand-over", "prune")),
    ],
)
async def test_help_of_each_command_has_examples(command: tuple[str, ...]) -> None:
    said = await nanobanana(*command, "--help")
    assert said.code == 0
    assert f"nanobanana {' '.join(command)} " in said.out.partition("xample")[2].replace("\n", " ")


@pytest.mark.slow
def test_package_and_entry_point_are_the_command() -> None:
    done = [
        subprocess.run(
            [sys.executable, *arguments, "--version"],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
            env=environment(),
        ).stdout
        for arguments in (("-m", "nanobanana_async"), ("-c", "from nanobanana_async.cli import main; main()"))
    ]
    assert done == [f"{__version__}\n"] * 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "module",
    [
        "nanobanana_async.cli.streams",
        "cyclopts",
        "nanobanana_async.cli.app",
        "nanobanana_async.cli.find_gateway",
        "nanobanana_async.engine.lifecycle",
        "nanobanana_async.emulator",
    ],
)
def test_ctrl_c_during_the_imports_prints_one_line(module: str, tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from nanobanana_async.cli import main\n"
        "def interrupt(event, details):\n"
        f"    if event == 'import' and details[0] == {module!r}: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.addaudithook(interrupt); main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "generate", "x", "--gateway", "emulator", "-o", "out"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "nanobanana: interrupted\n")


@pytest.mark.slow
def test_ctrl_c_in_a_callback_of_the_imports_is_not_lost() -> None:
    program = (
        "import os, signal, sys; from nanobanana_async.cli import main\n"
        "class Released:\n"
        "    def __del__(self): os.kill(os.getpid(), signal.SIGINT); [None for _ in range(10)]\n"
        "class Finder:\n"
        "    def find_spec(self, *_): released = Released()\n"
        "sys.meta_path.insert(0, Finder()); main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "nanobanana: interrupted\n")


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["cyclopts", "rich", "PIL"])
def test_a_missing_extra_is_named_on_one_line(missing: str, tmp_path: Path) -> None:
    program = f"import sys; sys.modules[{missing!r}] = None; from nanobanana_async.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "demo", "--prompts", "1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2
    assert "pip install" in line
    assert missing in line or "Pillow" in line


@pytest.mark.slow
def test_an_import_error_of_our_own_is_not_a_missing_extra() -> None:
    program = "import sys; sys.modules['nanobanana_async.models'] = None; from nanobanana_async.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert "nanobanana_async.models" in done.stderr
    assert "pip install" not in done.stderr


@pytest.mark.parametrize(
    "given", [["--api-key", "sk-hidden"], ["--api-key=sk-hidden"], ["--key=sk-hidden"], ["--token"]]
)
@pytest.mark.parametrize("command", [["generate", "a fox"], ["batch", "rows.txt", "-o", "out"]])
async def test_key_as_an_argument_is_refused_with_its_variable(given: list[str], command: list[str]) -> None:
    said = await nanobanana(*command, *given)
    assert said.code == 2
    assert "set APIMALL_API_KEY or DEFAPI_API_KEY" in said.complaint
    assert "hidden" not in said.err


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (["--size", "1024x1024"], "--aspect-ratio and --resolution"),
        (["-n", "2"], "--num-images"),
        (["--max-credits", "8"], "--budget NAME=CREDITS"),
        (["--concurrency", "8"], "--max-jobs"),
        (["--quality", "hd"], "--resolution"),
        (["--proxy", "http://me:hidden@proxy.example:1"], "HTTPS_PROXY"),
        (["--proxy=http://me:hidden@proxy.example:1"], "HTTPS_PROXY"),
        (["--nothing=hidden"], "unknown option --nothing"),
        (["--aspectratio", "1:1"], "unknown option --aspectratio: did you mean --aspect-ratio?"),
        (["--aspect", "1:1"], "did you mean --aspect-ratio?"),
    ],
)
async def test_unknown_option_names_the_one_that_is_meant(given: list[str], meant: str) -> None:
    said = await nanobanana("generate", "a fox", *given)
    assert said.code == 2
    assert meant in said.complaint
    assert "hidden" not in said.err


COMMANDS = (
    *("demo", "generate", "emulate", "batch", "worker", "serve", "mcp", "balance", "budgets", "hosts", "doctor"),
    *("jobs", "jobs show", "jobs fetch", "jobs resume", "jobs reconcile", "jobs resolve", "ledger", "webhooks"),
)


@pytest.mark.parametrize("columns", [80, 120])
async def test_help_names_values_as_people_do(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    types = r"STOREURL|POSTGRESURL|DECIMAL|CHOICE\||(?:STR|PATH|CHOICE)\.\.\.|default: (?:False|None)"
    for command in COMMANDS:
        said = await nanobanana(*command.split(), "--help")
        assert (said.code, re.findall(types, said.out)) == (0, []), command


@pytest.mark.parametrize(
    ("command", "usage"),
    [
        (("generate",), "generate PROMPT... [OPTIONS]"),
        (("jobs", "fetch"), "jobs fetch KEY_OR_TASK_ID... [OPTIONS]"),
        (("worker",), "worker --batch NAME --output FOLDER|URL [OPTIONS]"),
    ],
)
async def test_usage_says_what_a_command_needs(command: tuple[str, ...], usage: str) -> None:
    assert (await nanobanana(*command, "--help")).out.startswith(f"Usage: nanobanana {usage}\n")


async def test_usage_of_batch_names_its_file() -> None:
    assert (await nanobanana("batch", "--help")).out.startswith("Usage: nanobanana batch [OPTIONS] [FILE]\n")


async def test_beginning_of_an_option_names_the_whole_one() -> None:
    said = await nanobanana("batch", "rows.txt", "-o", "out", "--retry")
    assert (said.code, said.complaint) == (2, "nanobanana: unknown option --retry: did you mean --retry-failed?")


async def test_forgotten_folder_is_asked_for() -> None:
    said = await nanobanana("batch", "rows.txt", "-o")
    assert (said.code, said.complaint) == (2, "nanobanana: -o needs a folder")


@pytest.mark.parametrize("more", [(), ("--help",)])
@pytest.mark.parametrize(
    ("command", "meant"),
    [
        (("balanse",), "there is no command 'balanse': did you mean balance?"),
        (("history",), "there is no command 'history': the commands are demo, "),
        (("ledger", "chek"), "ledger has no command 'chek': did you mean check?"),
        (("jobs", "resum"), "jobs has no command 'resum': did you mean resume?"),
        (("jobs", "a-1"), "jobs has no command 'a-1': `nanobanana jobs show a-1` shows the job with this key"),
        (("jobs", "spring/jobs.sqlite"), "--ledger names a ledger, as in --ledger spring/jobs.sqlite"),
    ],
)
async def test_unknown_command_names_what_is_meant_also_with_help(
    command: tuple[str, ...], more: tuple[str, ...], meant: str
) -> None:
    said = await nanobanana(*command, *more)
    assert (said.code, said.out) == (2, "")
    assert meant in said.complaint


@pytest.mark.parametrize("command", [("ledger", "check"), ("jobs",), ("doctor",)])
async def test_folder_in_the_place_of_an_option_names_the_ledger_in_it(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    await asyncio.to_thread((tmp_path / "spring").mkdir)
    said = await nanobanana(*command, "spring")
    assert said.code == 2
    assert said.complaint.endswith(": --ledger names a ledger, as in --ledger spring/jobs.sqlite")

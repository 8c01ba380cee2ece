"""The settings file: what it may say, what beats it, and what `nanobanana config` prints."""

import os
import stat
from pathlib import Path

import pytest

from nanobanana_async import Gateway
from nanobanana_async.cli.settings import file as settings_file
from nanobanana_async.config import gateway_from_env
from nanobanana_async.emulator import API_KEY, Emulator, Fixed
from tests.cli.batches import Command, emulated
from tests.support.command import environment, in_a_process, nanobanana

KEYS = {"APIMALL_API_KEY": "sk-mall-1", "DEFAPI_API_KEY": "sk-def-2"}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder of the test, whose settings file is the user's own, beside an empty working folder."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "home"


def own_file(home: Path, text: str) -> Path:
    path = home / "nanobanana" / "config.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def write(name: str, line: str) -> None:
    Path(name).write_text(f"{line}\n", encoding="utf-8")


def plant(name: str) -> None:
    """Write a file that sends the API key elsewhere into the working folder, under a name that a tool could read."""
    text = 'gateway = "apimall"\nbase_url = "https://thief.example"\n'
    for path in (Path(name), Path("nanobanana/config.toml")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + f"[tool.nanobanana]\n{text}", encoding="utf-8")


async def selected(patch: pytest.MonkeyPatch, *arguments: str, **variables: str) -> tuple[str, str, str, str]:
    """Run a command and return name, address, key and account of the gateway that it would use."""
    seen: list[Gateway] = []
    find = gateway_from_env

    def found(environ: dict[str, str]) -> Gateway:
        seen.append(find(environ))
        raise KeyboardInterrupt

    patch.setattr("nanobanana_async.cli.find_gateway.gateway_from_env", found)
    said = await nanobanana(*(arguments or ("balance",)), environ=environment() | variables)
    patch.setattr("nanobanana_async.cli.find_gateway.gateway_from_env", find)
    assert said.code == 130, said.err
    (gateway,) = seen
    account = gateway.account if ":" in gateway.account else ""
    return gateway.name, str(getattr(gateway, "base_url", "")), gateway.api_key.reveal(), account.partition(":")[2]


async def shown(*options: str, **variables: str) -> dict[str, tuple[str, str]]:
    """Return what `nanobanana config` prints: value and source of each setting."""
    said = await nanobanana("config", *options, environ=environment() | variables)
    assert (said.code, said.err) == (0, "")
    rows = [line.split("\t") for line in said.out.splitlines()]
    return {name: (value, source) for name, value, source in rows}


async def refused(text: str, home: Path, *command: str) -> str:
    path = own_file(home, text)
    said = await nanobanana(*(command or ("balance",)), environ=environment() | KEYS)
    assert (said.code, said.out) == (2, "")
    assert str(path) in said.complaint
    return said.complaint


async def test_user_file_selects_gateway_address_and_account(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_file(home, 'gateway = "defapi"\nbase_url = "https://relative.example"\naccount = "studio"\n')
    assert await selected(monkeypatch, **KEYS) == ("defapi", "https://relative.example", "sk-def-2", "studio")


async def test_command_line_beats_environment_beats_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_file(home, 'gateway = "apimall"\nbase_url = "https://file.example"\n')
    variables = KEYS | {"NANOBANANA_BASE_URL": "https://variable.example"}
    assert (await selected(monkeypatch, **KEYS))[1] == "https://file.example"
    assert (await selected(monkeypatch, **variables))[1] == "https://variable.example"
    typed = await selected(monkeypatch, "balance", "--base-url", "https://typed.example", **variables)
    assert typed[1] == "https://typed.example"


@pytest.mark.parametrize("where", ["--gateway", "NANOBANANA_GATEWAY"])
async def test_address_of_the_file_is_not_used_for_another_gateway(
    home: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    own_file(home, 'gateway = "apimall"\nbase_url = "https://file.example"\naccount = "mine"\n')
    options = ("balance", "--gateway", "defapi") if where == "--gateway" else ("balance",)
    variables = KEYS if where == "--gateway" else KEYS | {where: "defapi"}
    name, url, key, account = await selected(monkeypatch, *options, **variables)
    assert (name, key) == ("defapi", "sk-def-2")
    assert "file.example" not in url
    assert account != "mine"


async def test_profile_with_a_gateway_replaces_the_account_of_the_environment(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_file(
        home,
        'gateway = "apimall"\nbase_url = "https://file.example"\naccount = "mine"\n'
        '[profile.work]\ngateway = "defapi"\napi_key_variable = "WORK_KEY"\naccount = "work"\n',
    )
    variables = KEYS | {"WORK_KEY": "sk-work", "NANOBANANA_GATEWAY": "apimall", "NANOBANANA_ACCOUNT": "other"}
    variables |= {"NANOBANANA_BASE_URL": "https://variable.example"}
    name, url, key, account = await selected(monkeypatch, "balance", "--profile", "work", **variables)
    assert (name, key, account) == ("defapi", "sk-work", "work")
    assert "example" not in url
    by_variable = await selected(monkeypatch, **variables, NANOBANANA_PROFILE="work")
    assert by_variable == (name, url, key, account)
    typed = await selected(monkeypatch, "balance", "--profile", "work", "--gateway", "apimall", **variables)
    assert typed == ("apimall", "https://variable.example", "sk-mall-1", "other")


async def test_profile_beats_the_rest_of_the_file(home: Path) -> None:
    own_file(
        home,
        "max_jobs = 8\n[batch]\nmax_credits = 100\nmax_jobs = 4\n"
        "[profile.small]\nmax_jobs = 2\n[profile.small.batch]\nmax_credits = 12.5\n",
    )
    plain, small = await shown(), await shown("--profile", "small")
    assert [plain[name][0] for name in ("max_jobs", "batch.max_jobs", "batch.max_credits")] == ["8", "4", "100"]
    assert [small[name][0] for name in ("max_jobs", "batch.max_credits")] == ["2", "12.5"]
    assert "batch.max_jobs" not in small
    assert small["batch.max_credits"][1].endswith("[profile.small.batch]")


async def test_setting_of_one_command_is_ignored_by_the_others(home: Path) -> None:
    own_file(
        home, 'max_credits = 5\noutput = "images"\nsidecar = true\n[batch]\nnames = "{key}"\n[jobs]\ntimeout = 3\n'
    )
    for command in (("jobs",), ("jobs", "prune", "--older-than", "1d"), ("balance",)):
        said = await nanobanana(*command, environ=environment())
        assert "unknown" not in said.err
        assert "config.toml" not in said.err


async def test_batch_takes_cap_and_names_from_the_file(home: Path, batch: Command) -> None:
    own_file(home, '[batch]\nnames = "{row}"\nmax_credits = 100\nexpected_credits = 8\nsidecar = true\n')
    rows = batch.write("rows.txt", "a fox", "an owl")
    async with emulated(batch):
        assert (await batch(rows)).code == 0
        assert {"1.json", "2.json"} < set(os.listdir(batch.out / "images"))
        assert (await batch(rows, "--max-credits", "10", folder="other")).code == 3


async def test_one_folder_for_all_batches_is_refused(home: Path) -> None:
    assert "each batch needs a folder of its own: pass -o" in await refused('[batch]\noutput = "x"\n', home)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("max_job = 2", "unknown setting 'max_job': did you mean max_jobs?"),
        ("max-jobs = 2", "did you mean max_jobs?"),
        ("[batch]\nmax_credit = 2", "[batch]: unknown setting 'max_credit': did you mean max_credits?"),
        ("[profile.work]\nnamess = 'x'", "[profile.work]: unknown setting 'namess': did you mean names?"),
        ("[batches]\nnames = 'x'", "did you mean batch?"),
        ('max_jobs = "2"', "max_jobs must be a whole number, not '2'"),
        ("max_jobs = true", "max_jobs must be a whole number, not True"),
        ("max_jobs = 2.5", "max_jobs must be a whole number, not 2.5"),
        ("[generate]\nsidecar = 1", "[generate]: sidecar must be true or false, not 1"),
        ("output = 7", "output must be text in quotation marks, not 7"),
        ("batch = 7", "batch must be a table, not 7"),
        ("profile = 7", "profiles are tables"),
        ('allow_networks = "10.0.0.5/32"', "allow_networks must be a list"),
        ('allow_networks = ["0.0.0.0/0"]', "allow_networks must be a list of networks"),
        ('gateway = "foo"', "gateway must be one of apimall, defapi, not 'foo'"),
        ('gateway = "emulator"', "gateway must be one of apimall, defapi, not 'emulator'"),
        ('base_url = "https://a.example"', "base_url needs `gateway` beside it"),
        ('gateway = "apimall"\n[profile.work]\naccount = "x"', "[profile.work]: account needs `gateway` beside it"),
        ('gateway = "apimall"\nbase_url = "http://a.example"', "base_url must be https"),
        ('[generate]\ngateway = "apimall"', "gateway is for all commands"),
        ('api_key = "sk-hidden"', "api_key is no setting"),
        ('[profile.work]\napi_key = "sk-hidden"', "api_key is no setting"),
        ('proxy = "http://me:sk-hidden@proxy.example:1"', "proxy must hold no password: set HTTPS_PROXY"),
        ("[generate]\nbuy_again = true", "it decides about one run: pass --buy-again"),
        ("yes = true", "it decides about one run: pass --yes"),
        ('gateway = "apimall"\napi_key_variable = "sk-hidden"', "api_key_variable must be the name of a variable"),
        ('gateway = "apimall"\n[profile.x]\ngateway = "apimall"\naccount = "a\\u0000"', "account must hold no NUL"),
        ('ledger = "/a\\u0000b"', "ledger must hold no NUL"),
        ('ledger = "jobs.sqlite"', "ledger must be the whole path of a file"),
        ("max_jobs = ", "is not valid TOML"),
        ("max_jobs = 1\nmax_jobs = 2", "is not valid TOML"),
        ("a = " + "[" * 5000, "is not valid TOML"),
    ],
)
async def test_wrong_file_is_one_line_with_file_and_key(home: Path, text: str, why: str) -> None:
    complaint = await refused(text + "\n", home)
    assert why in complaint
    assert "hidden" not in complaint


@pytest.mark.parametrize(
    ("text", "command", "why"),
    [
        ('resolution = "3K"', ("generate", "x"), ": resolution must be one of 1K, 2K, 4K, not '3K'"),
        ("num_images = 9", ("generate", "x"), "--num-images must be a whole number from 1 to 6"),
        ("[batch]\nmax_jobs = 0", ("batch", "x.txt", "-o", "out"), "--max-jobs must be a whole number of at least 1"),
        ("max_credits = nan", ("batch", "x.txt", "-o", "out"), "--max-credits must be a number of at least 0"),
    ],
)
async def test_refused_value_of_the_file_is_traced_to_it(
    home: Path, text: str, command: tuple[str, ...], why: str
) -> None:
    assert why in await refused(text + "\n", home, *command)


@pytest.mark.parametrize(
    ("text", "command", "why"),
    [
        ('aspect_ratio = "16:9"', ("generate", "x"), "does not take aspect_ratio: pass --extra aspect_ratio=VALUE"),
        ("[generate]\nnum_images = 2", ("generate", "x"), "does not take num_images other than 1, not 2"),
        ("extra = { model = 1 }", ("generate", "x"), "not extra={'model': ...}"),
        (
            '[batch]\nresolution = "2K"',
            ("batch", "x.txt", "-o", "out"),
            "x.txt, line 1: defapi does not take resolution",
        ),
        ("expected_job_s = 0", ("balance",), "expected_job_s must be a number above 0"),
        ('proxy = "ftp://p.example"', ("balance",), "PROXY must be a URL"),
    ],
)
async def test_setting_that_the_gateway_refuses_is_traced_to_the_file(
    home: Path, text: str, command: tuple[str, ...], why: str
) -> None:
    name = text.partition("]\n")[2] or text
    path = own_file(home, f'gateway = "defapi"\n{text}\n')
    write("x.txt", "a fox")
    said = await nanobanana(*command, environ=environment() | KEYS)
    line = next(line for line in said.err.splitlines() if why in line)
    table = f" [{command[0]}]" if text.startswith("[") else ""
    assert said.code == 2
    assert line.endswith(f"set in {path}{table})")
    assert name.partition(" ")[0] in line


@pytest.mark.parametrize("options", [("x.jsonl",), ("x.txt", "--resolution", "1K")])
async def test_value_of_a_row_or_option_is_not_blamed_on_the_file(home: Path, options: tuple[str, ...]) -> None:
    own_file(home, 'gateway = "defapi"\nresolution = "2K"\n')
    write("x.jsonl", '{"prompt": "a fox", "resolution": "4K"}')
    write("x.txt", "a fox")
    said = await nanobanana("batch", *options, "-o", "out", environ=environment() | KEYS)
    assert said.code == 2
    assert "line 1: defapi does not take resolution\n" in said.err


async def test_value_of_the_command_line_is_not_blamed_on_the_file(home: Path) -> None:
    own_file(home, "num_images = 2\n")
    said = await nanobanana("generate", "x", "--num-images", "9", environ=environment() | KEYS)
    assert (said.code, "config.toml" in said.complaint) == (2, False)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "No such file"),
        ("folder", "it is a folder"),
        (b'output = "caf\xe9"\n', "is not UTF-8"),
        ("max_jobs = 2\n".encode("utf-16"), "is not UTF-8"),
        (b"#" * 1_000_001, "more than 1,000,000 bytes"),
    ],
)
async def test_file_that_cannot_be_read_is_named(home: Path, content: bytes | str | None, why: str) -> None:
    path = home.parent / "mine.toml"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        path.mkdir()
    said = await nanobanana("jobs", "--config", str(path), environ=environment())
    assert (said.code, said.out) == (2, "")
    assert why in said.complaint
    assert str(path) in said.complaint


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
async def test_pipe_in_place_of_a_file_is_refused_at_once(home: Path) -> None:
    os.mkfifo(pipe := home.parent / "pipe", 0o600)
    said = await nanobanana("jobs", "--config", str(pipe), environ=environment())
    assert (said.code, said.complaint.endswith(f"{pipe} can't be read: it is no regular file")) == (2, True)
    own_file(home, f'gateway = "apimall"\napi_key_file = "{pipe}"\n')
    said = await nanobanana("balance", environ=environment())
    assert (said.code, said.complaint.endswith(f"{pipe} can't be read: it is no regular file")) == (2, True)


async def test_null_device_is_an_empty_settings_file(home: Path) -> None:
    said = await nanobanana("jobs", "--config", os.devnull, "--ledger", "missing.sqlite", environ=environment())
    assert "ledger missing.sqlite: no such file" in said.complaint


async def test_byte_order_mark_and_empty_file_are_accepted(home: Path) -> None:
    for content in (b"\xef\xbb\xbfmax_jobs = 3\r\n", b""):
        path = home.parent / "mine.toml"
        path.write_bytes(content)
        rows = await shown("--config", str(path))
        assert rows["file"] == (str(path), "--config or NANOBANANA_CONFIG")
        assert rows.get("max_jobs", ("",))[0] == ("3" if content else "")


async def test_unknown_profile_is_refused_with_its_neighbour(home: Path) -> None:
    own_file(home, "[profile.work]\nmax_jobs = 2\n[profile.home]\n")
    for profile, why in (("wrok", "did you mean work?"), ("zzzzzz", "there are work, home")):
        said = await nanobanana("balance", "--profile", profile, environ=environment() | KEYS)
        assert said.code == 2
        assert why in said.complaint
    (home / "nanobanana" / "config.toml").unlink()
    said = await nanobanana("balance", environ=environment(NANOBANANA_PROFILE="work") | KEYS)
    own = home / "nanobanana" / "config.toml"
    why = f"there is no profile 'work' without a settings file: write it into {own}, or pass --config FILE"
    assert (said.code, why in said.complaint) == (2, True)


@pytest.mark.parametrize(
    "name",
    ["config.toml", ".nanobanana.toml", "nanobanana.toml", "pyproject.toml", ".config/nanobanana/config.toml", ".env"],
)
@pytest.mark.parametrize("folders", ["home", "relative"])
async def test_file_in_the_working_folder_is_ignored(
    home: Path, monkeypatch: pytest.MonkeyPatch, name: str, folders: str
) -> None:
    plant(name)
    if folders == "relative":
        monkeypatch.setenv("XDG_CONFIG_HOME", ".")
    assert (await selected(monkeypatch, **KEYS, NANOBANANA_GATEWAY="apimall"))[1] != "https://thief.example"


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX permissions")
async def test_file_that_everyone_can_write_is_refused(home: Path) -> None:
    path = own_file(home, "max_jobs = 2\n")
    path.chmod(0o666)
    said = await nanobanana("jobs", environ=environment())
    assert (said.code, "run `chmod o-w`" in said.complaint) == (2, True)


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX permissions")
async def test_key_file_must_be_private(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = home.parent / "key"
    key.write_text("sk-from-file\n", encoding="utf-8")
    own_file(home, f'gateway = "apimall"\napi_key_file = "{key}"\n')
    for mode in (0o644, 0o640, 0o604):
        key.chmod(mode)
        said = await nanobanana("balance", environ=environment())
        assert (said.code, "run `chmod 600`" in said.complaint) == (2, True)
        assert "from-file" not in said.err
    key.chmod(stat.S_IRUSR | stat.S_IWUSR)
    assert (await selected(monkeypatch))[2] == "sk-from-file"
    assert (await selected(monkeypatch, **KEYS))[2] == "sk-mall-1"
    key.write_text(" \n", encoding="utf-8")
    assert "is empty" in (await nanobanana("balance", environ=environment())).complaint
    key.unlink()
    assert "can't be read" in (await nanobanana("balance", environ=environment())).complaint


@pytest.mark.parametrize("named", ['api_key_file = "/k"', 'api_key_variable = "MINE"'])
async def test_key_of_the_environment_is_not_sent_to_the_address_of_another_key(home: Path, named: str) -> None:
    own_file(home, f'gateway = "apimall"\nbase_url = "https://file.example"\n{named}\n')
    said = await nanobanana("balance", environ=environment() | KEYS | {"MINE": "sk-mine"})
    assert (said.code, "names another API key for https://file.example" in said.complaint) == (2, True)


async def test_key_of_the_file_is_not_sent_to_the_address_of_the_environment(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_file(home, 'gateway = "apimall"\napi_key_variable = "MINE"\n')
    variables = {"MINE": "sk-mine", "NANOBANANA_BASE_URL": "https://variable.example"}
    said = await nanobanana("balance", environ=environment() | variables)
    assert (said.code, "set APIMALL_API_KEY too, or unset NANOBANANA_BASE_URL" in said.complaint) == (2, True)
    both = await selected(monkeypatch, **variables, **KEYS)
    assert both[1:3] == ("https://variable.example", "sk-mall-1")
    typed = await selected(monkeypatch, "balance", "--base-url", "https://typed.example", MINE="sk-mine")
    assert typed[1:3] == ("https://typed.example", "sk-mine")


async def test_missing_variable_of_a_key_is_named_and_no_other_key_is_used(home: Path) -> None:
    own_file(home, '[profile.work]\ngateway = "apimall"\napi_key_variable = "WORK_KEY"\n')
    said = await nanobanana("balance", "--profile", "work", environ=environment() | KEYS)
    assert (said.code, "WORK_KEY, which is not set" in said.complaint) == (2, True)


async def test_config_prints_values_with_sources_and_no_secret(home: Path) -> None:
    path = own_file(
        home,
        'gateway = "apimall"\napi_key_variable = "MALL"\nproxy = "http://p.example:1"\nsidecar = true\n'
        'allow_networks = ["10.0.0.5/32", "10.0.0.6/32"]\n[generate]\nextra = { seed = 7 }\noutput = "s3://me:hidden@b/x"\n',
    )
    rows = await shown(
        MALL="sk-hidden", DEFAPI_API_KEY="sk-hidden", NANOBANANA_BASE_URL="https://me:hidden@x.example", DEFAPI_X="1"
    )
    assert rows["file"] == (str(path), "your configuration folder")
    assert rows["gateway"] == ("apimall", str(path))
    assert rows["base_url"] == ("https://***@x.example", "NANOBANANA_BASE_URL")
    assert rows["API key of API Mall"] == ("api_key_variable MALL", str(path))
    assert rows["API key of defapi"] == ("set, not shown", "DEFAPI_API_KEY")
    assert rows["allow_networks"][0] == "10.0.0.5/32, 10.0.0.6/32"
    assert rows["generate.extra"] == ("seed=7", f"{path} [generate]")
    assert (rows["sidecar"][0], rows["proxy"][0]) == ("true", "http://p.example:1")
    assert "hidden" not in str(rows)


async def test_config_without_a_file_names_where_it_would_be(home: Path) -> None:
    rows = await shown()
    assert rows["file"][0] == f"{home / 'nanobanana' / 'config.toml'}, which does not exist"


async def test_environment_is_as_before_after_a_command(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_file(
        home,
        '[profile.work]\ngateway = "apimall"\naccount = "work"\napi_key_variable = "MALL"\nexpected_job_s = 2\n'
        'proxy = "http://p.example:1"\nallow_networks = ["10.0.0.5/32"]\n',
    )
    environ = environment(MALL="sk-1", NANOBANANA_GATEWAY="defapi", NANOBANANA_PROFILE="work")
    before = dict(environ)
    monkeypatch.setattr(
        "nanobanana_async.cli.find_gateway.gateway_from_env", lambda _: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    await nanobanana("balance", environ=environ)
    assert environ == before


async def test_settings_are_those_of_options_and_never_decisions_about_a_run() -> None:
    said = [await nanobanana(*command, "--help") for command in (("generate",), ("batch",), ("jobs", "fetch"))]
    text = " ".join(each.out for each in said)
    for name in settings_file.OPTIONS:
        assert f"--{name.replace('_', '-')} " in text
    assert not settings_file.PER_RUN & set(settings_file.OPTIONS)


def test_file_in_the_documentation_is_accepted(tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "command-line.md"
    path = tmp_path / "config.toml"
    path.write_text(page.read_text(encoding="utf-8").partition("```toml\n")[2].partition("```")[0], encoding="utf-8")
    connection = settings_file.read(path, "work").connection
    assert connection is not None
    assert connection.values["account"] == "studio"


async def test_broken_file_does_not_break_help(home: Path) -> None:
    own_file(home, "nonsense")
    for command in (("--help",), ("generate", "--help"), ("--version",)):
        assert (await nanobanana(*command, environ=environment())).code == 0


async def test_commands_in_messages_have_the_profile(home: Path) -> None:
    own_file(home, '[profile.work]\ngateway = "apimall"\n')
    said = await nanobanana("jobs", "k1", "--profile", "work", environ=environment())
    assert "nanobanana --profile work jobs show k1" in said.complaint


@pytest.mark.slow
async def test_precedence_in_a_process(home: Path) -> None:
    async with Emulator(duration=Fixed(0.05)) as emulator:
        # A value of the file that is beaten would be refused.
        own_file(
            home,
            f'gateway = "apimall"\nbase_url = "{emulator.url}"\noutput = "from-file"\nmax_jobs = 0\nnum_images = 9\n',
        )
        environ = environment(APIMALL_API_KEY=API_KEY, NANOBANANA_MAX_JOBS="2")
        said = await in_a_process("generate", "a fox", "--num-images", "1", environ=environ)
        assert said.code == 0
        assert "from-file" in said.out


@pytest.mark.parametrize("options", [("--profile", "work"), ("--profile=work",), ("--dry-run", "--profile", "work")])
async def test_profile_after_a_sweep_is_no_file(home: Path, options: tuple[str, ...]) -> None:
    own_file(home, '[profile.work]\ngateway = "defapi"\n')
    sweep = ("batch", "-o", "out", "--prompt", "a {pet}", "--vary", "pet=fox,owl")
    dry_run = () if "--dry-run" in options else ("--dry-run",)
    said = await nanobanana(*sweep, *options, *dry_run, environ=environment())
    assert (said.code, "rows\t2" in said.out) == (0, True), said.err
    assert "the estimate is for defapi" in said.err


async def test_mistyped_option_of_batch_is_no_file(home: Path) -> None:
    said = await nanobanana("batch", "-o", "out", "--dryrun", environ=environment())
    assert (said.code, "--dry-run" in said.complaint) == (2, True)


@pytest.mark.parametrize(
    "command",
    [("jobs",), ("jobs", "show", "k"), ("ledger", "check"), ("jobs", "prune", "--older-than", "30d", "--yes")],
)
async def test_ledger_of_the_file_is_that_of_the_commands(command: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(f'ledger = "{tmp_path}/missing.sqlite"\n', encoding="utf-8")
    said = await nanobanana(
        "--config", str(tmp_path / "config.toml"), *command, environ=environment(NANOBANANA_LEDGER="")
    )
    assert (said.code, f"ledger {tmp_path}/missing.sqlite: no such file" in said.complaint) == (2, True)

"""A profile of several accounts: which commands use it together, what they print, and what is refused."""

import json
from decimal import Decimal
from pathlib import Path

import pytest

from nanobanana_async import Session
from nanobanana_async.emulator import Emulator
from tests.cli.batches import Command, emulated
from tests.support.command import environment, nanobanana

ONE, TWO = "sk-one-0123456789", "sk-two-0123456789"


def profiles(folder: Path, url: str, more: str = "") -> Path:
    """Write a settings file with the profiles one, two, and both."""
    path = folder / "config.toml"
    text = "".join(
        f'[profile.{name}]\ngateway = "apimall"\nbase_url = "{url}"\naccount = "{name}"\n'
        f'api_key_variable = "{name.upper()}_KEY"\n'
        for name in ("one", "two")
    )
    path.write_text(f'{text}[profile.both]\naccounts = ["one", "two"]\n{more}', encoding="utf-8")
    path.chmod(0o600)
    return path


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    variables = {"ONE_KEY": ONE, "TWO_KEY": TWO, "NANOBANANA_EXPECTED_JOB_S": "0.05"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return variables


async def test_generate_goes_on_with_the_other_account_if_one_has_a_dead_key(
    tmp_path: Path, keys: dict[str, str]
) -> None:
    async with Emulator(api_keys=frozenset({TWO}), image_scale=0.05) as emulator:
        options = ("--config", str(profiles(tmp_path, emulator.url)), "--profile", "both")
        said = await nanobanana(
            *options, "generate", "a fox", "a hare", environ=environment(None, **keys), folder=tmp_path
        )
        assert emulator.stats().creates_accepted == 2
    assert said.code == 0, said.err
    assert len(said.out.splitlines()) == 2


async def test_batch_names_the_account_of_each_row_and_its_page_both(batch: Command, keys: dict[str, str]) -> None:
    file = batch.prompts(6)
    async with emulated(batch, api_keys=frozenset({TWO})) as emulator:
        options = ("--config", str(profiles(batch.folder, emulator.url)), "--profile", "both")
        batch.patch.setenv("NANOBANANA_CONFIG", options[1])
        batch.patch.setenv("NANOBANANA_PROFILE", "both")
        said = await batch(file)
        assert said.code == 0, said.err
        assert "nanobanana: account apimall:one: rests for" in said.err
        assert {line["account"] for line in batch.lines().values()} == {"apimall:two"}
        page = (batch.out / "index.html").read_text(encoding="utf-8")
        assert "apimall:one" in page
        assert "rests for" in page
        before = emulator.stats().creates_accepted
        again = await batch(file)
        assert (again.code, emulator.stats().creates_accepted) == (0, before)
        alone = batch.write("more.txt", *(f"a fox {n}" for n in range(6)))
        batch.patch.setenv("NANOBANANA_PROFILE", "two")
        assert (await batch(alone, "--name", "foxes", "--dry-run")).code == 0


async def test_balance_is_printed_for_each_account(tmp_path: Path, keys: dict[str, str]) -> None:
    async with Emulator(api_keys=frozenset({ONE, TWO}), credits=Decimal(12)) as emulator:
        options = ("--config", str(profiles(tmp_path, emulator.url)), "--profile", "both")
        plain = await nanobanana(*options, "balance", environ=environment(None, **keys))
        as_json = await nanobanana(*options, "balance", "--json", environ=environment(None, **keys))
    assert (plain.code, plain.out) == (0, "apimall:one\t12\napimall:two\t12\n")
    assert [json.loads(line)["account"] for line in as_json.out.splitlines()] == ["apimall:one", "apimall:two"]
    assert ONE not in plain.out + plain.err + as_json.out


async def test_account_whose_balance_can_not_be_read_hides_no_other(batch: Command, keys: dict[str, str]) -> None:
    file = batch.prompts(2)
    async with emulated(batch, api_keys=frozenset({TWO}), credits=Decimal(12)) as emulator:
        path = profiles(batch.folder, emulator.url)
        said = await nanobanana(
            "--config", str(path), "--profile", "both", "balance", environ=environment(None, **keys)
        )
        batch.patch.setenv("NANOBANANA_CONFIG", str(path))
        batch.patch.setenv("NANOBANANA_PROFILE", "both")
        dry = await batch(file, "--dry-run")
    assert (said.code, said.out) == (1, "apimall:two\t12\n")
    assert "account apimall:one: API key" in said.complaint
    assert "balance of apimall:two\t12\n" in dry.out
    assert "the balance of apimall:one is unknown" in dry.err


async def test_command_for_one_account_says_which_profiles_to_choose(tmp_path: Path, keys: dict[str, str]) -> None:
    options = ("--config", str(profiles(tmp_path, "http://127.0.0.1:9")), "--profile", "both")
    said = await nanobanana(*options, "jobs", "resume", environ=environment(None, **keys))
    assert said.code == 2
    assert "pass --profile one or --profile two" in said.complaint
    said = await nanobanana(*options, "generate", "a fox", "--gateway", "apimall", environ=environment(None, **keys))
    assert said.code == 2
    assert "does not go with the accounts of profile both" in said.complaint


async def test_config_prints_each_account_without_its_key(tmp_path: Path, keys: dict[str, str]) -> None:
    options = ("--config", str(profiles(tmp_path, "http://127.0.0.1:9")), "--profile", "both")
    said = await nanobanana(*options, "config", environ=environment(None, **keys))
    assert said.code == 0
    assert "account\tone\t" in said.out
    assert "api_key_variable\tTWO_KEY\t" in said.out
    assert ONE not in said.out


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ('[profile.x]\naccounts = ["one"]\n', "two or more other profiles"),
        ('[profile.x]\naccounts = ["one", "one"]\n', "two or more other profiles"),
        ('[profile.x]\naccounts = ["one", "tow"]\n', "did you mean two"),
        ('[profile.x]\naccounts = ["one", "both"]\n', "must name its gateway"),
        ('[profile.x]\naccounts = ["one", "two"]\naccount = "me"\ngateway = "apimall"\n', "belongs into the profiles"),
        (
            '[profile.y]\ngateway = "defapi"\napi_key_variable = "Y"\n[profile.x]\naccounts = ["one", "y"]\n',
            "same gateway",
        ),
        ('[profile.y]\ngateway = "apimall"\n[profile.x]\naccounts = ["one", "y"]\n', "its own API key"),
        ('[generate]\naccounts = ["one", "two"]\n', "belongs into a profile"),
    ],
)
async def test_accounts_that_can_not_work_are_refused(
    tmp_path: Path, keys: dict[str, str], more: str, why: str
) -> None:
    path = profiles(tmp_path, "http://127.0.0.1:9", more)
    said = await nanobanana("--config", str(path), "balance", environ=environment(None, **keys))
    assert said.code == 2
    assert why in said.complaint


@pytest.mark.parametrize("command", ["serve", "mcp"])
async def test_server_gets_all_accounts(
    tmp_path: Path, keys: dict[str, str], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    pytest.importorskip("starlette" if command == "serve" else "mcp")
    seen: list[tuple[str, ...]] = []

    def opened(self: Session, gateways: tuple, **_: object) -> None:  # type: ignore[type-arg]
        seen.append(tuple(gateway.account for gateway in gateways))
        raise KeyboardInterrupt

    monkeypatch.setattr(Session, "__init__", opened)
    monkeypatch.setattr(Session, "__del__", lambda self: None)
    options = ("--config", str(profiles(tmp_path, "http://127.0.0.1:9")), "--profile", "both")
    arguments = ("serve", "--port", "0") if command == "serve" else ("mcp", "-o", "images", "--max-credits", "5")
    await nanobanana(*options, *arguments, environ=environment(None, **keys), folder=tmp_path)
    assert seen == [("apimall:one", "apimall:two")]


async def test_shared_ledger_is_refused_before_anything_is_fed(batch: Command, keys: dict[str, str]) -> None:
    file = batch.prompts(1)
    batch.patch.setenv("NANOBANANA_CONFIG", str(profiles(batch.folder, "http://127.0.0.1:9")))
    batch.patch.setenv("NANOBANANA_PROFILE", "both")
    said = await batch(file, "--ledger", "postgresql://localhost/x", "--feed-only")
    assert said.code == 2
    assert "takes one account" in said.err


async def test_doctor_checks_each_account(tmp_path: Path, keys: dict[str, str]) -> None:
    ledger = tmp_path / "jobs.sqlite"
    async with Emulator(api_keys=frozenset({TWO})) as emulator:
        options = ("--config", str(profiles(tmp_path, emulator.url)), "--profile", "both")
        async with Session(emulator.apimall(api_key=TWO), ledger=ledger):
            pass
        command = ("doctor", "--json", "--ledger", str(ledger))
        said = await nanobanana(*options, *command, environ=environment(None, **keys), folder=tmp_path)
    found = [json.loads(line) for line in said.out.splitlines()]
    verdicts = [(each["text"].partition(": ")[0], each["verdict"]) for each in found if each["subject"] == "API key"]
    assert (said.code, verdicts) == (1, [("apimall:one", "problem"), ("apimall:two", "ok")])
    limits = [each["text"].partition(": ")[0] for each in found if each["subject"] == "limits"]
    assert limits == ["apimall:one", "apimall:two"]


async def test_doctor_says_which_account_has_no_key(tmp_path: Path) -> None:
    options = ("--config", str(profiles(tmp_path, "http://127.0.0.1:9")), "--profile", "both")
    said = await nanobanana(*options, "doctor", environ=environment(None, TWO_KEY=TWO), folder=tmp_path)
    (line,) = [line for line in said.out.splitlines() if line.startswith("problem")]
    assert (said.code, line.split()[1]) == (1, "settings")
    assert "[profile.one]: api_key_variable names ONE_KEY, which is not set" in line


async def test_doctor_takes_the_account_of_the_file(tmp_path: Path, keys: dict[str, str]) -> None:
    async with Emulator(api_keys=frozenset({TWO})) as emulator:
        options = ("--config", str(profiles(tmp_path, emulator.url)), "--profile", "two")
        said = await nanobanana(*options, "doctor", environ=environment(None, **keys), folder=tmp_path)
    assert said.code == 0, said.out
    assert "account apimall:two" in said.out

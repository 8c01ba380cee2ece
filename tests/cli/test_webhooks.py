"""`nanobanana webhooks`: what is listed and removed, against the emulator over loopback."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from attrs import frozen

from nanobanana_async import Session
from nanobanana_async.cli.app import run
from nanobanana_async.emulator import API_KEY, Emulator
from nanobanana_async.gateways.capabilities import MAX_WEBHOOKS_READ
from nanobanana_async.webhooks import CallbackReceiver
from tests.support.command import Said, TerminalStream, environment, nanobanana
from tests.support.loopback import until

URL = "http://127.0.0.1:9/hooks"


@frozen
class Account:
    """An emulated account with a webhook of an app, and one of a stranger."""

    emulator: Emulator
    environ: dict[str, str]

    async def __call__(self, *tokens: str, **variables: str) -> Said:
        return await nanobanana("webhooks", *tokens, environ=self.environ | variables)

    @property
    def ids(self) -> list[str]:
        """The id of the stranger's webhook, then that of the app's."""
        return list(self.emulator.simulator._state.webhooks)

    @property
    def urls(self) -> list[str]:
        state = self.emulator.simulator._state
        return [webhook.url for webhook in state.webhooks.values()]


@pytest.fixture
async def account(tmp_path: Path) -> AsyncIterator[Account]:
    async with Emulator() as emulator:
        environ = environment(emulator, NANOBANANA_LEDGER=str(tmp_path / "jobs.sqlite"))
        session = Session(emulator.apimall(), ledger=tmp_path / "jobs.sqlite")
        CallbackReceiver(session, public_url=URL)
        emulator.simulator._state.add_webhook(0.0, "https://other.example/\x1b[2J?t=1", ("job.failed",), None, None)
        async with session:
            await until(lambda: len(emulator.simulator._state.webhooks) == 2)
        yield Account(emulator, environ)


async def test_list_says_which_are_ours_and_hides_their_tokens(account: Account) -> None:
    said = await account()
    other, ours = account.ids
    assert said.code == 0
    assert said.out.splitlines() == [
        f"{other}\tactive\t0\t0\tno\thttps://other.example/\\x1b[2J?t=1\t",
        f"{ours}\tactive\t0\t0\tyes\t{URL}/callbacks/account/...\t",
    ]
    assert said.err.startswith("2 webhooks, 1 registered from ")


async def test_list_as_json_has_the_counts(account: Account) -> None:
    said = await account("--json")
    other, ours = (json.loads(line) for line in said.out.splitlines())
    assert (other["ours"], ours["ours"]) == (False, True)
    assert (ours["id"], ours["status"], ours["total_sent"], ours["total_failed"]) == (account.ids[1], "active", 0, 0)


async def test_terminal_shows_a_table(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = TerminalStream()
    monkeypatch.setattr("sys.stdout", screen)
    for name, value in (account.environ | {"TERM": "dumb", "LINES": "50"}).items():
        monkeypatch.setenv(name, value)
    await asyncio.to_thread(run, ["webhooks"])
    title, *rows = screen.getvalue().splitlines()
    assert title.split() == ["id", "status", "sent", "failed", "ours", "url", "last", "error"]
    assert [row.split()[:5] for row in rows] == [
        [account.ids[0], "active", "0", "0", "no"],
        [account.ids[1], "active", "0", "0", "yes"],
    ]
    assert "\x1b[2J" not in screen.getvalue()


async def test_without_the_ledger_none_is_ours(account: Account, tmp_path: Path) -> None:
    said = await account("--ledger", str(tmp_path / "other.sqlite"))
    assert [line.split("\t")[4] for line in said.out.splitlines()] == ["no", "no"]
    assert not (tmp_path / "other.sqlite").exists()


async def test_remove_all_of_ours_leaves_the_others(account: Account) -> None:
    _, ours = account.ids
    said = await account("remove", "--all-of-ours", "--yes")
    assert said.code == 0
    assert said.err.splitlines() == [
        f"1 webhook will be removed: {ours} ({URL}/callbacks/account/...).",
        "1 webhook removed",
    ]
    assert account.urls == ["https://other.example/\x1b[2J?t=1"]
    again = await account("remove", "--all-of-ours", "--yes")
    assert (again.code, again.err.startswith("no webhook of the account was registered from ")) == (0, True)


async def test_remove_by_id_says_if_it_is_not_ours(account: Account) -> None:
    said = await account("remove", account.ids[0], "--yes")
    assert said.code == 0
    assert "1 of them was not registered from" in said.err
    assert len(account.urls) == 1


@pytest.mark.parametrize(
    ("tokens", "complaint"),
    [
        (("remove",), "pass the ids of webhooks, or --all-of-ours"),
        (("remove", "OTHER", "--all-of-ours"), "pass the ids of webhooks, or --all-of-ours"),
        (("remove", "wh_7", "--yes"), "the account has no webhook 'wh_7'; it has OTHER, OURS"),
        (("remove", "OTHER"), "Not a terminal: pass --yes to confirm"),
        (("remove", "--all-of-ours", "--ledger", "missing.sqlite"), "ledger missing.sqlite: no such file"),
        (("OTHER",), "webhooks has no command 'OTHER'"),
    ],
)
async def test_wrong_use_is_explained_and_removes_nothing(
    account: Account, tokens: tuple[str, ...], complaint: str
) -> None:
    ids = dict(zip(("OTHER", "OURS"), account.ids, strict=True))

    def filled(text: str) -> str:
        return text.replace("OTHER", ids["OTHER"]).replace("OURS", ids["OURS"])

    said = await account(*map(filled, tokens))
    assert said.code == 2
    assert filled(complaint) in said.complaint
    assert len(account.urls) == 2


async def test_gateway_without_webhooks_is_named(account: Account) -> None:
    said = await account(NANOBANANA_GATEWAY="defapi", DEFAPI_API_KEY=API_KEY)
    assert said.code == 2
    assert "defapi has no webhooks of an account" in said.complaint


async def test_refusal_of_the_gateway_is_an_error(account: Account) -> None:
    said = await account(APIMALL_API_KEY="wrong-key-0123456789")
    assert said.code == 1
    assert said.complaint


HOSTILE = "https://other.example/\x1b]0;title\x07\x1b[31m\u202e\u2028\r\n\t[bold]x[/bold]\x9b2J"


async def test_hostile_urls_control_no_terminal(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    account.emulator.simulator._state.add_webhook(0.0, HOSTILE, ("job.failed",), None, None)
    said = await account()
    as_json = await account("--json")
    removed = await account("remove", account.ids[2], "--yes")
    for text in (said.out, as_json.out, removed.err):
        assert all(line.isprintable() for line in text.replace("\t", " ").splitlines())
    assert len(said.out.splitlines()) == len(as_json.out.splitlines()) == 3
    assert json.loads(as_json.out.splitlines()[2])["url"] == HOSTILE  # a program gets the exact URL
    assert r"\x1b]0;title\x07\x1b[31m\u202e\u2028\r\n\t[bold]x[/bold]\x9b2J" in said.out
    assert all(line.count("\t") == 6 for line in said.out.splitlines())
    assert len(account.urls) == 2


async def test_table_shows_hostile_urls_cut_and_without_markup(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    account.emulator.simulator._state.add_webhook(0.0, HOSTILE + "a" * 10_000, ("job.failed",), None, None)
    screen = TerminalStream()
    monkeypatch.setattr("sys.stdout", screen)
    for name, value in (account.environ | {"TERM": "dumb", "LINES": "50"}).items():
        monkeypatch.setenv(name, value)
    await asyncio.to_thread(run, ["webhooks"])
    shown = screen.getvalue()
    assert all(line.isprintable() for line in shown.splitlines())
    assert "[bold]x[/bold]" in shown.replace("\n", "").replace(" ", "")
    assert len(shown.splitlines()) < 15


async def test_thousands_of_webhooks_are_listed_to_a_bound(account: Account) -> None:
    for number in range(MAX_WEBHOOKS_READ + 100):
        account.emulator.simulator._state.add_webhook(
            0.0, f"https://other.example/{number}", ("job.failed",), None, None
        )
    said = await account()
    assert len(said.out.splitlines()) == MAX_WEBHOOKS_READ
    assert said.err.strip().endswith("; only so many are read")
    wrong = await account("remove", "wh_0" + "x" * 5000, "--yes")
    assert len(wrong.complaint) < 1000
    assert f" and {MAX_WEBHOOKS_READ - 10} more" in wrong.complaint


async def test_removal_of_many_names_the_first_and_counts_the_others(account: Account) -> None:
    added = [
        account.emulator.simulator._state.add_webhook(0.0, f"https://other.example/{n}", ("job.failed",), None, None).id
        for n in range(15)
    ]
    said = await account("remove", *added, "--yes")
    first, last = said.err.splitlines()
    assert first.startswith("15 webhooks will be removed: ")
    assert " and 5 more. 15 of them were not registered from " in first
    assert last == "15 webhooks removed"
    assert len(account.urls) == 2

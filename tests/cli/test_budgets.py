"""`--priority`, `--group` and `--budget` of the commands that buy, and `nanobanana budgets`."""

import io
import json
import re
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from rich.console import Console

from nanobanana_async import Budget, BudgetState, SqliteLedger
from nanobanana_async.cli.budgets import _table
from nanobanana_async.emulator import Emulator, Fixed
from nanobanana_async.jobs import JobRecord
from tests.cli.batches import Command, emulated
from tests.support.command import environment, nanobanana
from tests.support.rows import each_row

QUICK = Fixed(0.05)


async def records_in(path: Path) -> list[JobRecord]:
    """Return the jobs of a ledger, the newest first."""
    ledger = SqliteLedger(path, read_only=True)
    await ledger.open()
    try:
        return [record async for record in ledger.jobs()]
    finally:
        await ledger.aclose()


@pytest.mark.slow
async def test_runs_of_generate_share_a_budget_which_the_command_shows(tmp_path: Path) -> None:
    turn = ("--priority", "-5", "--group", "the team", "--budget", "ann=20/day")
    async with Emulator(duration=QUICK) as emulator:
        environ = environment(emulator)
        bought = [await nanobanana("generate", prompt, *turn, environ=environ) for prompt in ("a fox", "an owl")]
        refused = await nanobanana("generate", "a hen", *turn, environ=environ)
        raised = await nanobanana("generate", "a hen", "--budget=ann=40/day", environ=environ)
        other = await nanobanana("generate", "a crow", "a hen", "--budget", "ann=40", environ=environ)
        assert emulator.stats().creates_accepted == 3
    assert [said.code for said in (*bought, refused, raised, other)] == [0, 0, 1, 0, 2]
    assert "budget ann counts each day for itself in this ledger, not all that was ever spent" in other.complaint
    assert other.complaint.endswith(": write NAME=CREDITS/day, or use another name")
    assert "budget ann: its cap is 20, 16 are spent, and a job " in refused.err
    assert "; 4 are left; it counts from 0 again at " in refused.err
    assert "; raise it to buy more" in refused.err
    assert "max_credits" not in refused.err
    shown = await nanobanana("budgets", environ=environ)
    assert (shown.code, shown.out, shown.err) == (0, "ann\t16\t24\t0\t40\tday\n", "")
    records = await records_in(Path(environ["NANOBANANA_LEDGER"]))
    newest, *others = [record for record in records if record.credits]
    assert [(each.priority, each.group_name, each.budget) for each in others] == [(-5, "the team", "ann")] * 2
    assert (newest.budget, newest.priority, newest.group_name) == ("ann", 0, None)
    details = (await nanobanana("jobs", "show", others[0].key, environ=environ)).out
    for line in (r"budget +ann", r"group +the team", r"priority +-5"):
        assert re.search(f"^{line}$", details, re.MULTILINE), details


@pytest.mark.slow
async def test_batch_stops_at_its_budget_and_goes_on_with_a_larger_one(batch: Command) -> None:
    file, option = batch.prompts(4), "--budget"
    async with emulated(batch) as emulator:
        stopped = await batch(file, "--max-credits", "100", option, "spring=20", "--group", "ann")
        assert (stopped.code, emulator.stats().creates_accepted) == (3, 2)
        assert "budget spring: its cap is 20, 16 are spent" in stopped.err
        dry = await batch(file, "--dry-run", option, "spring=30")
        assert "budget\tspring has 14 of 30 left\n" in dry.out
        assert (await batch(file, option, "spring=40/day")).code == 2
        assert (await batch(file, option, "spring=40")).code == 0
        assert emulator.stats().creates_accepted == 4
    assert {record.group_name for record in await records_in(batch.out / "jobs.sqlite")} == {"ann"}  # the first stays


async def test_dry_run_shows_a_budget_that_nothing_was_bought_under(batch: Command) -> None:
    async with emulated(batch):
        said = await batch(batch.prompts(1), "--dry-run", "--budget", "ann=30/day")
    assert "budget\tann has 30 of 30 left of this day in UTC\n" in said.out


@each_row(
    ("options", "said"),
    [
        (("--priority", "101"), "--priority: priority must be a whole number from -100 to 100, higher ones first"),
        (("--priority", "high"), "--priority: it must be a whole number, not 'high'"),
        (("--group", ""), "--group: group must be printable text of 1 to 200 characters"),
        (("--budget", "500"), "NAME=CREDITS or NAME=CREDITS/day, such as alice=500/day, not '500'"),
        (("--budget", "ann=5/week"), "--budget: it must be NAME=CREDITS or NAME=CREDITS/day"),
        (("--budget", "ann=-5"), "--budget: max_credits must be a number of at least 0, not -5"),
    ],
)
async def test_wrong_value_is_refused_by_each_command_alike(options: tuple[str, str], said: str) -> None:
    environ = environment(APIMALL_API_KEY="some-key")
    for command in (("generate", "a fox"), ("batch", "rows.txt", "-o", "out"), ("mcp", "-o", "out")):
        answer = await nanobanana(*command, *options, environ=environ)
        assert (answer.code, answer.out) == (2, "")
        assert said in answer.complaint


async def test_help_of_each_command_explains_the_options() -> None:
    for command in ("generate", "batch", "mcp"):
        text = " ".join((await nanobanana(command, "--help")).out.replace("│", " ").split())
        for option in ("--priority", "--group", "--budget"):
            assert f"{option} " in text
        assert "NAME=CREDITS or NAME=CREDITS/day: what all commands with this name may spend" in text
        assert "TurnOptions" not in text
        assert "--turn" not in text


@pytest.mark.slow
async def test_settings_file_may_have_them(tmp_path: Path) -> None:
    settings = tmp_path / "config.toml"
    settings.write_text('group = "ann"\n[generate]\nbudget = "ann=8"\npriority = 7\n')
    settings.chmod(0o600)
    async with Emulator(duration=QUICK) as emulator:
        environ = environment(emulator, NANOBANANA_CONFIG=str(settings))
        assert (await nanobanana("generate", "a fox", environ=environ)).code == 0
        assert "budget ann: its cap is 8" in (await nanobanana("generate", "an owl", environ=environ)).err
    (record,) = [each for each in await records_in(Path(environ["NANOBANANA_LEDGER"])) if each.credits]
    assert (record.group_name, record.priority, record.budget) == ("ann", 7, "ann")
    settings.write_text('[generate]\nbudget = "ann"\n')
    complaint = (await nanobanana("generate", "a fox", environ=environ)).complaint
    assert f"{settings} [generate]" in complaint
    assert "NAME=CREDITS" in complaint


async def test_command_shows_all_budgets_of_a_ledger_in_each_form(tmp_path: Path) -> None:
    path, environ = tmp_path / "jobs.sqlite", environment()
    ledger = SqliteLedger(path)
    await ledger.open()
    await ledger.aclose()
    empty = await nanobanana("budgets", "--ledger", str(path), environ=environ)
    assert (empty.code, empty.out) == (0, "")
    assert "no budget in this ledger: --budget NAME=CREDITS" in empty.err
    await ledger.open()
    for budget in (Budget(name="ben\\ten", max_credits=0.5), Budget(name="ann", max_credits=1500, per="day")):
        await ledger.set_budget(budget)
    await ledger.aclose()
    said = await nanobanana("budgets", "--ledger", str(path), environ=environ)
    assert said.out.splitlines() == ["ann\t1500\t0\t0\t1500\tday", "ben\\ten\t0.5\t0\t0\t0.5\tall"]
    said = await nanobanana("budgets", "--ledger", str(path), "--json", environ=environ)
    ann, ben = map(json.loads, said.out.splitlines())
    assert ann["resets_at"].endswith("T00:00:00+00:00")
    assert (ann["name"], ann["left"], ann["per"]) == ("ann", 1500, "day")
    assert (ben["left"], ben["max_credits"], ben["resets_at"]) == (0.5, 0.5, None)
    missing = await nanobanana("budgets", "--ledger", str(tmp_path / "none.sqlite"), environ=environ)
    assert (missing.code, "no such file" in missing.complaint) == (2, True)


def test_table_names_what_is_left_and_until_when() -> None:
    facts = {"spent": Decimal(12), "reserved": Decimal(8), "max_credits": Decimal(1500)}
    midnight = datetime(2026, 3, 13, tzinfo=UTC)
    states = [BudgetState(name="ann", per="day", resets_at=midnight, **facts)]
    states += [BudgetState(name="b" * 100, per=None, resets_at=None, **facts)]
    console = Console(file=io.StringIO(), width=80, markup=False)
    console.print(_table(states))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert " ".join(lines[0].split()) == "budget left spent reserved of"
    assert " ".join(lines[1].split()) == "ann 1480 12 8 1500 a day, until 00:00 UTC"
    assert sum(line.count("b") for line in lines[2:]) == 100

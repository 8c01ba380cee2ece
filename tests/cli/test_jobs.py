"""`nanobanana jobs` on real ledger files, some of them used by other processes."""

import asyncio
import contextlib
import io
import json
import os
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from attrs import evolve

from nanobanana_async import ApiMall, DefApi, ImageRequest, JobState, JobUncertain, Session, SqliteLedger
from nanobanana_async.cli import app as cli
from nanobanana_async.emulator import API_KEY, Emulator, Fixed, Script
from nanobanana_async.emulator.faults import reset
from nanobanana_async.escaping import one_line
from nanobanana_async.failures import Failure
from nanobanana_async.jobs import JobRecord
from tests.ledger.child import at, line
from tests.support.command import Said, TerminalStream, ended, environment, started
from tests.support.ledger_contract import job, running
from tests.support.loopback import until

QUICK = Fixed(0.1)
EVIL = "\x1b]0;owned\x07\x1b[2J [red]fox[/red]\n\u202egnp :smile: \x9b31m\x7f"


class ClosedPipe(io.StringIO):
    """A pipe whose reader has closed it."""

    def write(self, _: str) -> int:
        raise BrokenPipeError

    def fileno(self) -> int:
        return os.open(os.devnull, os.O_WRONLY)


class Command:
    """Runs the command in this process; `answer` is typed on a terminal, None means no terminal."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.ledger = folder / "jobs.sqlite"
        self.patch = monkeypatch
        self._capsys = capsys

    async def __call__(self, *tokens: str, answer: str | None = None) -> Said:
        with self.patch.context() as patch:
            patch.setattr(sys, "stdin", io.StringIO() if answer is None else TerminalStream(f"{answer}\n"))
            self._capsys.readouterr()
            code = await asyncio.to_thread(cli.run, ["jobs", *tokens])
        said = self._capsys.readouterr()
        return Said(code, said.out, said.err)

    async def shown(self, *tokens: str, columns: int) -> str:
        """Return the output on a terminal without colours."""
        output = TerminalStream()
        with self.patch.context() as patch:
            for name, value in {"TERM": "dumb", "COLUMNS": str(columns), "LINES": "50"}.items():
                patch.setenv(name, value)
            patch.setattr(sys, "stdout", output)
            assert (await self(*tokens)).code == 0
        return output.getvalue()

    async def write(self, *records: JobRecord) -> None:
        """Store jobs in the ledger and release them."""
        async with opened(self.ledger) as ledger:
            for record in records:
                await ledger.claim(record)

    async def records(self) -> dict[str, JobRecord]:
        async with opened(self.ledger) as ledger:
            return {record.key: record async for record in ledger.jobs()}


@contextlib.asynccontextmanager
async def opened(path: Path) -> AsyncIterator[SqliteLedger]:
    ledger = SqliteLedger(path)
    await ledger.open()
    try:
        yield ledger
    finally:
        await ledger.aclose()


@pytest.fixture
def jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], isolated: None
) -> Command:
    del isolated
    monkeypatch.setenv("NANOBANANA_LEDGER", "jobs.sqlite")
    return Command(tmp_path, monkeypatch, capsys)


@pytest.fixture
async def emulator(jobs: Command) -> AsyncIterator[Emulator]:
    script = Script({"defapi.create": [reset(processed=True)]})
    async with Emulator(duration=QUICK, script=script) as emulator:
        for name, value in environment(emulator, DEFAPI_API_KEY=API_KEY, NANOBANANA_LEDGER="jobs.sqlite").items():
            jobs.patch.setenv(name, value)
        yield emulator


def unsent(key: str, gateway: ApiMall) -> JobRecord:
    request = ImageRequest(f"a fox {key}")
    return job(
        key, account=gateway.account, request=request, body=gateway.encode(request), created_at=datetime.now(UTC)
    )


def one_of_each() -> Iterable[JobRecord]:
    created_at = datetime.now(UTC) - timedelta(hours=3, minutes=1)
    for state in JobState:
        yield job(
            state.value, state=state, created_at=created_at, request=ImageRequest(f"{state.value} fox " + "x" * 80)
        )


def lines(text: str) -> list[list[str]]:
    return [row.split("\t") for row in text.splitlines()]


def keys(said: Said) -> list[str]:
    return [row[0] for row in lines(said.out)]


def printable(text: str) -> bool:
    return all(char.isprintable() or char in "\n\t" for char in text)


async def bought(jobs: Command, gateway: ApiMall, *names: str) -> None:
    """Buy jobs and close the session before they end."""
    async with Session(gateway, ledger=jobs.ledger) as session:
        for name in names:
            await (await session.submit("a fox", idempotency_key=name)).wait_for_task_id()


async def in_doubt(jobs: Command, gateway: DefApi) -> None:
    """Buy a job whose answer is lost, on a gateway without idempotency keys."""
    async with Session(gateway, ledger=jobs.ledger) as session:
        with pytest.raises(JobUncertain):
            await session.generate("a fox", idempotency_key="lost")


# Listing and showing


async def test_a_pipe_gets_tab_separated_lines_newest_first(jobs: Command) -> None:
    await jobs.write(*one_of_each())
    said = await jobs()
    assert said.code == 0
    assert keys(said) == [state.value for state in reversed(JobState)]
    assert lines(said.out)[0] == ["withdrawn", "withdrawn", "3h", "-", "-", "withdrawn fox " + "x" * 43 + "..."]
    assert said.err.startswith("8 jobs: 1 pending, 1 submitting, 1 running, 1 succeeded, 1 failed, 1 refused")
    for hint in ("2 jobs sent", "1 job never sent", "1 job perhaps bought"):
        assert hint in said.err
    for command in ("resume", "resume --buy", "resolve KEY --as DECISION"):
        assert f"`nanobanana jobs {command} --ledger jobs.sqlite" in said.err


async def test_jobs_are_filtered_by_state_and_limit(jobs: Command) -> None:
    await jobs.write(*one_of_each())
    said = await jobs("--state", "failed", "--state", "running", "--state", "failed")
    assert (keys(said), "shown" in said.err) == (["failed", "running"], False)
    said = await jobs("--limit", "3", "--ledger", str(jobs.ledger))
    assert (len(keys(said)), "3 of 8 jobs are shown" in said.err) == (3, True)


async def test_json_lines_have_the_whole_record_except_the_body(jobs: Command) -> None:
    why = Failure(kind="JobFailed", message=EVIL + "\ud800")
    await jobs.write(
        running("k", EVIL, body=b"12345", request=ImageRequest(EVIL), failure=why, credits_used=Decimal(8))
    )
    said = await jobs("--json")
    facts = json.loads(said.out)
    assert (facts["key"], facts["state"], facts["credits_used"], facts["body_bytes"]) == ("k", "running", "8", 5)
    assert (facts["task_id"], facts["request"]["prompt"], facts["failure"]["message"]) == (EVIL, EVIL, EVIL + "\ud800")
    assert "body" not in facts
    assert printable(said.out)


@pytest.mark.parametrize("columns", [60, 80, 140])
async def test_a_terminal_shows_whole_keys_on_one_line(jobs: Command, columns: int) -> None:
    await jobs.write(*one_of_each(), running("k" * 50, EVIL, request=ImageRequest(EVIL)))
    page = await jobs.shown(columns=columns)
    rows = page.splitlines()
    assert max(len(row) for row in rows if not row.startswith("kk")) <= columns
    assert [row.split()[0] for row in rows if row.startswith("kk")] == ["k" * 50]
    assert ("task id" in rows[0]) == (columns == 140)
    assert "pending" in page
    assert printable(page)


async def test_one_job_is_shown_in_full(jobs: Command) -> None:
    at_noon = datetime(2026, 3, 12, 12, tzinfo=UTC)
    why = Failure(kind="GatewayError", message=EVIL, status=500, code="E1", request_id="r1")
    await jobs.write(
        job(
            "k",
            state=JobState.FAILED,
            request=ImageRequest(f"a fox\n{EVIL}", resolution="2K", images=["https://a.example/1.png"]),
            **{"task_id": EVIL, "failure": why, "generation": 2, "attempts": 3, "ended_at": at_noon},
            **{"credits_used": Decimal(8), "credits_refunded": Decimal(6), "images": ("https://cdn.example/1.png", "")},
        )
    )
    said = await jobs("show", "k")
    facts = {row[:16].strip(): row[16:].strip() for row in said.out.splitlines()}
    wire_key = (await jobs.records())["k"].wire_key
    assert said.code == 0
    assert facts["state"] == "failed: the gateway says that the task failed"
    assert (facts["key"], facts["Idempotency-Key"], facts["task id"]) == ("k", wire_key, one_line(EVIL))
    assert facts["credits"] == "2 (8 less 6 refunded)"
    assert facts["failure"].endswith("[500, code E1, request r1]")
    assert facts["ended"].startswith(f"{at_noon.astimezone():%Y-%m-%d %H:%M:%S %z} (")
    assert facts["generation"] == "2, with 3 creates: it was requested again 1 time"
    assert (facts["resolution"], facts["images"]) == ("2K", "https://a.example/1.png")
    assert facts["body"] == "2 bytes, which the create sends"
    assert (facts["image 1"], facts["image 2"]) == (
        "https://cdn.example/1.png",
        "inline image, stored only at the gateway",
    )
    assert printable(said.out)


@pytest.mark.parametrize(("gateway", "key"), [("apimall", "k"), ("defapi", None)])
async def test_a_job_is_shown_with_the_key_that_its_creates_send(jobs: Command, gateway: str, key: str | None) -> None:
    await jobs.write(running("k", gateway=gateway))
    assert ("Idempotency-Key" in (await jobs("show", "k")).out) is (key is not None)
    facts = json.loads((await jobs("--json")).out)
    assert facts["idempotency_key"] == key
    assert "wire_key" not in facts


async def test_an_attached_task_has_no_prompt(jobs: Command) -> None:
    await jobs.write(running("k", request=None))
    assert "attached by its id" in (await jobs("show", "k")).out
    assert lines((await jobs()).out)[0][-1] == "-"


@pytest.mark.slow
async def test_a_job_of_another_process_can_be_shown_but_not_resolved(jobs: Command) -> None:
    async with at(jobs.ledger, "hold", "theirs") as process:
        assert await line(process) == "held"
        listed, shown = await jobs(), await jobs("show", "theirs")
        resolved = await jobs("resolve", "theirs", "--as", "not-bought", "--yes")
        assert (keys(listed), "without a session" in listed.err) == (["theirs"], False)
        assert "a running session" in shown.out
        assert resolved.code == 2
        assert "job theirs is running: a running session follows it" in resolved.complaint
    shown, resolved = await jobs("show", "theirs"), await jobs("resolve", "theirs", "--as", "not-bought", "--yes")
    assert "no session: `nanobanana jobs resume --ledger jobs.sqlite`" in shown.out
    assert "APIMALL_API_KEY" in resolved.complaint  # resolving checks whether the gateway knows the task


COMMANDS: tuple[tuple[str, ...], ...] = (
    (),
    ("show", "k"),
    ("resume",),
    ("resolve", "k", "--as", "not-bought", "--yes"),
    ("hand-over", "--yes"),
    ("prune", "--older-than", "1d", "--yes"),
)


@pytest.mark.parametrize("tokens", COMMANDS)
async def test_a_missing_or_foreign_ledger_is_an_error_and_unchanged(jobs: Command, tokens: tuple[str, ...]) -> None:
    jobs.patch.setenv("APIMALL_API_KEY", "k")
    said = await jobs(*tokens)
    assert (said.code, "no such file" in said.complaint) == (2, True)
    assert "rehearsals with --gateway emulator are not kept" in said.complaint
    assert list(jobs.ledger.parent.iterdir()) == []
    for content, why in ((b"", "is empty"), (b"not a database, but long enough to be read as one", "not a SQLite")):
        jobs.ledger.write_bytes(content)
        said = await jobs(*tokens)
        assert (said.code, said.out, why in said.complaint) == (2, "", True)
        assert jobs.ledger.read_bytes() == content


@pytest.mark.parametrize("tokens", COMMANDS)
async def test_a_newer_or_damaged_ledger_is_an_error(jobs: Command, tokens: tuple[str, ...]) -> None:
    jobs.patch.setenv("APIMALL_API_KEY", "k")
    await jobs.write(running("k"))
    with contextlib.closing(sqlite3.connect(jobs.ledger)) as database:
        database.execute("PRAGMA user_version = 99")
    said = await jobs(*tokens)
    assert (said.code, said.out, "upgrade the library" in said.complaint) == (2, "", True)
    whole = jobs.ledger.read_bytes()
    jobs.ledger.write_bytes(whole[:100] + bytes(len(whole) - 100))
    said = await jobs(*tokens)
    assert (said.code, said.out, "damaged" in said.complaint) == (2, "", True)


@pytest.mark.parametrize(
    ("tokens", "word"),
    [
        (("--limit", "0"), "--limit"),
        (("--state", "dead"), "--state"),
        (("paint",), "'paint'"),
        (("show", "nope"), "no job and no row 'nope'"),
        (("resolve", "pending"), "--as"),
        (("resolve", "pending", "--as", "not-bought"), "jobs resume"),
        (("resolve", "failed", "--as", "not-bought"), "nothing to resolve"),
        (("resolve", "uncertain", "--as", "task-id"), "ID"),
        (("resolve", "uncertain", "t1", "--as", "not-bought"), "ID"),
        (("resolve", "uncertain", "", "--as", "task-id"), "task_id must be printable text, and not empty"),
        (("resolve", "uncertain", "--as", "not-bought", "--yes"), "another account"),
        (("resolve", "uncertain", "--as", "not-bought", "--gateway", "defapi"), "DEFAPI_API_KEY"),
        (("prune",), "--older-than"),
        (("prune", "--older-than", "3w"), "'3w'"),
        (("prune", "--older-than", "-3d"), "--older-than"),
        (("prune", "--older-than", "9" * 12 + "d"), "--older-than"),
        (("prune", "--older-than", "9999999d"), "--older-than"),
        (("prune", "--older-than", "0d"), "--yes"),
        (("resume", "--buy"), "--yes"),
    ],
)
async def test_wrong_usage_is_one_line_and_code_2(jobs: Command, tokens: tuple[str, ...], word: str) -> None:
    jobs.patch.setenv("APIMALL_API_KEY", "k")
    await jobs.write(*one_of_each())
    before = await jobs.records()
    said = await jobs(*tokens)
    assert (said.code, said.out) == (2, "")
    assert word in said.complaint
    assert await jobs.records() == before


# Resuming


@pytest.mark.slow
async def test_running_jobs_are_followed_to_their_end(jobs: Command, emulator: Emulator) -> None:
    await bought(jobs, emulator.apimall(), "one", "two")
    said = await jobs("resume")
    assert said.code == 0
    assert {key: url.startswith(f"{emulator.url}/cdn/") for key, url in lines(said.out)} == {"one": True, "two": True}
    assert {record.state for record in (await jobs.records()).values()} == {JobState.SUCCEEDED}
    again = await jobs("resume")
    assert (again.code, again.out, again.err) == (0, "", "no jobs to resume\n")
    assert emulator.stats().creates_accepted == 2


@pytest.mark.slow
async def test_unsent_jobs_are_bought_only_with_buy_and_confirmation(jobs: Command, emulator: Emulator) -> None:
    gateway = emulator.apimall()
    await jobs.write(unsent("one", gateway), unsent("other", emulator.apimall(api_key="x")))
    said = await jobs("resume")
    assert said.code == 0
    assert "1 job never sent: `nanobanana jobs resume --buy --ledger jobs.sqlite` buys them" in said.err
    assert "1 job of other accounts left" in said.err
    said = await jobs("resume", "--buy", answer="")
    assert said.code == 1
    assert said.err.startswith("1 unsent job will be bought: their price is unknown")
    assert "nothing was done" in said.err
    assert emulator.stats().creates_received == 0
    said = await jobs("resume", "--buy", answer="y")
    assert (said.code, keys(said)) == (0, ["one"])
    await jobs.write(unsent("two", gateway), unsent("three", gateway))
    said = await jobs("resume", "--buy", "--yes")
    assert (said.code, sorted(keys(said))) == (0, ["three", "two"])
    assert "2 unsent jobs will be bought: about 16 credits" in said.err
    assert (emulator.stats().creates_accepted, emulator.stats().double_charges) == (3, 0)


@pytest.mark.slow
async def test_a_failed_job_is_named_and_exits_with_1(jobs: Command) -> None:
    async with Emulator(duration=QUICK, failure_probability=1.0) as emulator:
        for name, value in environment(emulator, NANOBANANA_LEDGER="jobs.sqlite").items():
            jobs.patch.setenv(name, value)
        await bought(jobs, emulator.apimall(), "one")
        said = await jobs("resume")
    assert (said.code, said.out) == (1, "")
    assert said.complaint.startswith("nanobanana: one: task ")


@pytest.mark.slow
async def test_a_closed_pipe_prints_no_bug(jobs: Command, emulator: Emulator) -> None:
    await bought(jobs, emulator.apimall(), "one", "two")
    jobs.patch.setattr(sys, "stdout", ClosedPipe())
    said = await jobs("resume")
    assert said.code == 1
    assert said.err.count("standard output can't be written") == 1
    assert {record.state for record in (await jobs.records()).values()} == {JobState.SUCCEEDED}


@pytest.mark.slow
@pytest.mark.usefixtures("real_processes")
async def test_jobs_can_be_resumed_after_ctrl_c(jobs: Command) -> None:
    async with Emulator(duration=Fixed(30)) as emulator:
        await bought(jobs, emulator.apimall(), "one")
        before = emulator.stats().polls
        environ = environment(emulator, NANOBANANA_LEDGER=str(jobs.ledger))
        async with started("jobs", "resume", environ=environ) as process:
            async with asyncio.timeout(20):
                while emulator.stats().polls == before:  # noqa: ASYNC110 - the emulator has no event for it
                    await asyncio.sleep(0.05)
            process.send_signal(signal.SIGINT)
            said = await ended(process)
    assert said.code == 130
    assert "jobs resume" in said.complaint
    assert (await jobs.records())["one"].state is JobState.RUNNING
    assert "1 job sent, unfinished, without a session" in (await jobs()).err


# Resolving


async def test_resolving_as_not_bought_ends_the_job(jobs: Command, emulator: Emulator) -> None:
    await in_doubt(jobs, emulator.defapi())
    jobs.patch.delenv("NANOBANANA_GATEWAY")
    again = await jobs("resolve", "lost", "--as", "buy-again", answer="n")
    assert (again.code, "Its price is unknown" in again.err) == (1, True)
    unconfirmed = await jobs("resolve", "lost", "--as", "not-bought")
    assert (unconfirmed.code, "Not a terminal: pass --yes" in unconfirmed.complaint) == (2, True)
    said = await jobs("resolve", "lost", "--as", "not-bought", answer="n")
    assert (said.code, (await jobs.records())["lost"].state) == (1, JobState.UNCERTAIN)
    said = await jobs("resolve", "lost", "--as", "not-bought", answer="yes")
    assert (said.code, said.out) == (0, "")
    assert "job lost is refused" in said.err
    assert (await jobs.records())["lost"].state is JobState.REFUSED
    assert emulator.stats().creates_received == 1


@pytest.mark.slow
async def test_resolving_as_a_task_id_follows_the_task(jobs: Command, emulator: Emulator) -> None:
    await in_doubt(jobs, emulator.defapi())
    (sold,) = emulator.jobs()
    said = await jobs("resolve", "lost", "--as", "task-id", sold.task_id, "--gateway", "defapi", "--yes")
    assert (said.code, said.out.startswith(f"{emulator.url}/cdn/")) == (0, True)
    assert (await jobs.records())["lost"].task_id == sold.task_id
    assert emulator.stats().creates_received == 1


async def test_an_unknown_task_id_changes_nothing_and_can_be_corrected(jobs: Command, emulator: Emulator) -> None:
    await in_doubt(jobs, emulator.defapi())
    (sold,) = emulator.jobs()
    async with opened(jobs.ledger) as ledger:
        record = await ledger.find("lost")
        assert record is not None
        long_ago = datetime.now(UTC) - timedelta(hours=1)
        await ledger.advance(record, before := evolve(record, revision=record.revision + 1, first_sent_at=long_ago))
    again = ("--gateway", "defapi", "--yes")
    said = await jobs("resolve", "lost", "--as", "task-id", f"{sold.task_id}0", *again)
    assert said.code != 0
    assert "the gateway knows no task" in said.err
    assert (await jobs.records())["lost"] == before
    await until(lambda: emulator.now() > sold.ends_at)  # the next poll of a job of this age is a minute later
    async with opened(jobs.ledger) as ledger:  # a wrong task id was recorded
        await ledger.advance(before, before.transition_to(JobState.RUNNING, task_id="wrong", running_since=long_ago))
    said = await jobs("resolve", "lost", "--as", "task-id", sold.task_id, *again)
    assert (said.code, said.out.startswith(f"{emulator.url}/cdn/")) == (0, True)
    assert emulator.stats().creates_received == 1


# Handing over


async def test_jobs_are_handed_over_to_the_account_in_the_environment(jobs: Command) -> None:
    for record in (
        job("a", account="0" * 24),
        job("b", account="0" * 24),
        job("c", account="0" * 24, gateway="defapi"),
    ):
        await jobs.write(record)
    jobs.patch.setenv("APIMALL_API_KEY", "sk-new")
    jobs.patch.setenv("NANOBANANA_ACCOUNT", "studio")
    declined = await jobs("hand-over", answer="n")
    assert (declined.code, "2 jobs of account 000000000000000000000000 go to" in declined.err) == (1, True)
    assert "account apimall:studio" in declined.err
    assert "Not a terminal: pass --yes" in (await jobs("hand-over")).complaint
    assert {record.account for record in (await jobs.records()).values()} == {"0" * 24}
    said = await jobs("hand-over", "--yes")
    assert (said.code, said.out, "2 jobs handed over to account apimall:studio" in said.err) == (0, "", True)
    accounts = {key: record.account for key, record in (await jobs.records()).items()}
    assert accounts == {"a": "apimall:studio", "b": "apimall:studio", "c": "0" * 24}
    assert "account          apimall:studio\n" in (await jobs("show", "a")).out
    assert "pass --from: other accounts of apimall in ledger jobs.sqlite: none" in (await jobs("hand-over")).complaint


async def test_hand_over_accepts_both_accounts(jobs: Command) -> None:
    jobs.patch.setenv("APIMALL_API_KEY", "sk-new")
    await jobs.write(job("a", account="0" * 24), job("b", account="apimall:attic"), job("c", account="1" * 24))
    unclear = await jobs("hand-over", "--yes")
    assert (unclear.code, "pass --from" in unclear.complaint) == (2, True)
    assert f"{'0' * 24} (1 job), {'1' * 24} (1 job), apimall:attic (1 job)" in unclear.complaint
    for tokens, why in (
        (("--from", "unknown"), "account apimall:unknown has no jobs"),
        (("--from", "attic", "--to", "attic"), "account apimall:attic has no jobs for apimall:attic"),
        (("--from", "attic", "--to", "two words"), "account must be"),
        (("--from", "attic", "--to", "sk-new"), "is the API key"),
        (("--from", "attic", "--to", ""), "name is empty"),
    ):
        said = await jobs("hand-over", *tokens, "--yes")
        assert (said.code, why in said.complaint) == (2, True), said.complaint
    for old, new in (("attic", "1" * 24), ("apimall:attic", "cellar"), ("0" * 24, "apimall:cellar")):
        await jobs("hand-over", "--from", old, "--to", new, "--yes")
    accounts = {key: record.account for key, record in (await jobs.records()).items()}
    assert accounts == {"a": "apimall:cellar", "b": "1" * 24, "c": "1" * 24}


@pytest.mark.slow
async def test_jobs_of_a_running_session_are_not_handed_over(jobs: Command) -> None:
    jobs.patch.setenv("APIMALL_API_KEY", "sk-new")
    async with at(jobs.ledger, "hold", "theirs") as process:
        assert await line(process) == "held"
        account = (await jobs.records())["theirs"].account
        said = await jobs("hand-over", "--from", account.removeprefix("apimall:"), "--yes")
        assert said.code != 0
        assert (await jobs.records())["theirs"].account == account


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--wait", "--no-wait"])
async def test_buy_again_shows_the_price_first(jobs: Command, emulator: Emulator, option: str) -> None:
    await in_doubt(jobs, emulator.defapi())
    async with Session(emulator.defapi(), ledger=jobs.ledger) as session:
        await session.generate("a wolf")
    again = ("resolve", "lost", "--as", "buy-again", "--gateway", "defapi", option)
    said = await jobs(*again, answer="n")
    assert (said.code, emulator.stats().creates_accepted) == (1, 2)
    assert "this is a second payment" in said.err
    assert "The last job of its class cost 0.5 credits." in said.err
    said = await jobs(*again, answer="y")
    assert (said.code, emulator.stats().creates_accepted) == (0, 3)
    record = (await jobs.records())["lost"]
    assert record.generation == 2
    if option == "--wait":
        assert (record.state, said.out.startswith(f"{emulator.url}/cdn/")) == (JobState.SUCCEEDED, True)
    else:
        assert (record.state, said.out) == (JobState.RUNNING, "")
        assert f"task {record.task_id}: `nanobanana jobs resume --ledger jobs.sqlite` follows it" in said.err


@pytest.mark.slow
async def test_a_failed_job_can_be_bought_again(jobs: Command, emulator: Emulator) -> None:
    gateway = emulator.apimall()
    await bought(jobs, gateway, "one")
    assert (await jobs("resume")).code == 0
    failed = running("two", account=gateway.account, attempts=1).transition_to(JobState.FAILED)
    await jobs.write(failed)
    said = await jobs("resolve", "two", "--as", "buy-again", "--yes")
    assert (said.code, said.out.startswith(f"{emulator.url}/cdn/")) == (0, True)
    assert "The last job of its class cost 8 credits." in said.err
    assert "second payment" not in said.err


# Pruning


async def test_only_old_ended_jobs_are_deleted_after_confirmation(jobs: Command) -> None:
    now = datetime.now(UTC)
    for number, age in enumerate((1, 50)):
        then = now - timedelta(days=age)
        await jobs.write(*(job(f"{s.value}-{number}", state=s, created_at=then, ended_at=then) for s in JobState))
    said = await jobs("prune", "--older-than", "60d", answer="y")
    assert (said.code, said.err.startswith("no job ended before")) == (0, True)
    said = await jobs("prune", "--older-than", "30d", answer="n")
    assert (said.code, len(await jobs.records())) == (1, 16)
    assert said.err.startswith("4 jobs that ended before")
    assert "a deleted job is bought again" in said.err
    said = await jobs("prune", "--older-than", "721h", "--yes")
    assert (said.code, said.err.splitlines()[-1]) == (0, "4 jobs deleted")
    left = {key for key in await jobs.records() if key.endswith("-1")}
    assert left == {"pending-1", "submitting-1", "running-1", "uncertain-1"}

"""`nanobanana batch --ledger postgresql://...` and `nanobanana worker`: several hosts buy one file."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from nanobanana_async.emulator import Emulator, Fixed
from tests.support.command import Said, ended, environment, in_a_process, nanobanana, says, started
from tests.support.held import HeldJobs
from tests.support.loopback import until
from tests.support.postgres import Server, new_schema

slow = pytest.mark.slow
pytestmark = pytest.mark.timeout(240)


class Hosts:
    """Runs the commands of several hosts in one folder, with one ledger."""

    def __init__(self, server: Server, emulator: Emulator, folder: Path) -> None:
        self.url = f"{server.url}&schema={new_schema()}"
        self.environ: Mapping[str, str] = {**environment(emulator), "NANOBANANA_LEDGER": self.url}
        self.folder = folder
        self.emulator = emulator

    def rows(self, count: int) -> str:
        """Write a file of rows; return its name."""
        lines = "".join(f"order-{number},a fox {number},shelf {number % 3}\n" for number in range(count))
        (self.folder / "spring.csv").write_text(f"key,prompt,shelf\n{lines}")
        return "spring.csv"

    async def __call__(self, *words: str) -> Said:
        return await nanobanana(*words, environ=dict(self.environ), folder=self.folder)

    async def worker(self, *words: str) -> Said:
        """Run a worker in a process of its own."""
        command = ("worker", "--batch", "spring", "-o", "out", *words)
        return await in_a_process(*command, environ=dict(self.environ), folder=self.folder)

    @property
    def bought(self) -> int:
        return self.emulator.stats().creates_accepted


@pytest.fixture
async def hosts(postgres: Server, tmp_path: Path) -> AsyncIterator[Hosts]:
    async with Emulator(duration=Fixed(0.2), image_scale=0.05) as emulator:
        yield Hosts(postgres, emulator, tmp_path)


def lines_of(*outputs: str) -> list[dict[str, Any]]:
    return [json.loads(line) for output in outputs for line in output.splitlines()]


@slow
async def test_two_workers_buy_a_file_that_was_fed(hosts: Hosts) -> None:
    fed = await hosts("batch", hosts.rows(20), "--feed-only", "--max-credits", "1000")
    assert (fed.code, fed.out) == (0, "")
    assert "fed 20 new rows; the batch has a cap of 1,000 credits" in fed.err
    assert "worker --ledger" in fed.err
    assert hosts.bought == 0
    async with asyncio.TaskGroup() as group:
        workers = [group.create_task(hosts.worker()) for _ in range(2)]
    one, two = (task.result() for task in workers)
    assert (one.code, two.code) == (0, 0), (one.err, two.err)
    lines = lines_of(one.out, two.out)
    assert sorted(line["key"] for line in lines) == sorted(f"order-{number}" for number in range(20))
    assert {line["status"] for line in lines} == {"succeeded"}
    assert hosts.bought == 20
    first = next(line for line in lines if line["key"] == "order-4")
    assert (first["number"], first["metadata"]) == (6, {"shelf": "shelf 1"})
    assert (hosts.folder / "out" / first["images"][0]).stat().st_size == first["bytes"][0]
    assert "160 credits spent on all hosts" in one.err + two.err
    again = await hosts.worker()
    assert (again.code, again.out) == (0, "")


@slow
async def test_batch_feeds_and_works_and_the_same_command_continues(hosts: Hosts) -> None:
    first = await hosts("batch", hosts.rows(5), "-o", "out", "--max-credits", "100")
    assert first.code == 0, first.err
    assert len(lines_of(first.out)) == 5
    grown = await hosts("batch", hosts.rows(7), "-o", "out")
    assert grown.code == 0
    assert "fed 2 new rows, 5 known; the batch has a cap of 100 credits" in grown.err
    assert sorted(line["key"] for line in lines_of(grown.out)) == ["order-5", "order-6"]
    assert hosts.bought == 7
    assert len(list((hosts.folder / "out").glob("order-*.*g"))) == 7


@slow
async def test_budget_of_a_feed_holds_for_its_workers_beside_other_commands(hosts: Hosts) -> None:
    turn = ("--budget", "ann=24/day", "--group", "ann", "--priority", "3")
    fed = await hosts("batch", hosts.rows(5), "--feed-only", *turn)
    assert fed.code == 0, fed.err
    assert (await hosts("generate", "a crow", "--budget", "ann=24/day")).code == 0
    stopped = await hosts.worker()
    assert (stopped.code, hosts.bought) == (3, 3), stopped.err
    assert "the buying stopped: budget ann: its cap is 24, 24 are spent" in stopped.err
    shown = await hosts("budgets")
    assert (shown.code, shown.out) == (0, "ann\t0\t24\t0\t24\tday\n")
    again = await hosts("batch", hosts.rows(5), "-o", "out", "--budget", "ann=48/day")
    assert (again.code, hosts.bought) == (0, 6), again.err


@slow
@pytest.mark.usefixtures("real_processes")
async def test_first_signal_drains_a_worker_and_another_one_goes_on(hosts: Hosts) -> None:
    await hosts("batch", hosts.rows(14), "--feed-only")
    command = ("worker", "--batch", "spring", "-o", "out", "--max-jobs", "2", "--results", "one.jsonl")
    async with started(*command, environ=dict(hosts.environ), folder=hosts.folder) as process:
        await until(lambda: hosts.bought >= 4, timeout_s=30)
        process.send_signal(signal.SIGTERM)
        drained = await ended(process)
    assert (drained.code, drained.out) == (0, "")
    assert "buying no more" in drained.err
    assert "those that are left wait in the ledger" in drained.err
    assert len(lines_of((hosts.folder / "one.jsonl").read_text())) == hosts.bought < 14
    rest = await hosts.worker("--results", "two.jsonl")
    assert rest.code == 0, rest.err
    lines = lines_of(*((hosts.folder / name).read_text() for name in ("one.jsonl", "two.jsonl")))
    assert sorted(line["key"] for line in lines) == sorted(f"order-{number}" for number in range(14))
    assert hosts.bought == 14


@slow
@pytest.mark.parametrize(("table", "signalled"), [("fed_rows", False), ("fed_rows", True), ("jobs", False)])
async def test_worker_whose_ledger_fails_ends(postgres: Server, tmp_path: Path, table: str, signalled: bool) -> None:
    held = HeldJobs(quick=4)
    async with Emulator(duration=held, image_scale=0.05) as emulator:
        await failed_worker(Hosts(postgres, emulator, tmp_path), postgres, held, table, signalled=signalled)


async def failed_worker(hosts: Hosts, postgres: Server, held: HeldJobs, table: str, *, signalled: bool) -> None:
    await hosts("batch", hosts.rows(30), "--feed-only")
    schema = hosts.url.rpartition("=")[2]
    command = ("worker", "--batch", "spring", "-o", "out", "--max-jobs", "2", "--results", "one.jsonl")
    async with started(*command, environ=dict(hosts.environ), folder=hosts.folder) as process:
        await until(lambda: hosts.bought >= 5, timeout_s=30)
        await asyncio.to_thread(postgres.execute, f"ALTER TABLE {table} RENAME TO hidden", schema=schema)
        if signalled:
            process.send_signal(signal.SIGTERM)
        held.release(hosts.emulator)
        failed = await ended(process)
    await asyncio.to_thread(postgres.execute, f"ALTER TABLE hidden RENAME TO {table}", schema=schema)
    assert failed.code == 3, failed.err
    assert "the buying stopped: " in failed.err
    assert f'relation "{table}" does not exist' in failed.err
    rest = await hosts.worker("--results", "two.jsonl")
    assert rest.code == 0, rest.err
    lines = lines_of(*((hosts.folder / name).read_text() for name in ("one.jsonl", "two.jsonl")))
    succeeded = {line["key"] for line in lines if line["status"] == "succeeded"}
    assert succeeded == {f"order-{number}" for number in range(30)}
    assert hosts.bought == 30


@slow
async def test_second_signal_ends_a_worker_at_once(postgres: Server, tmp_path: Path) -> None:
    async with Emulator(duration=Fixed(30.0)) as emulator:
        await stopped_at_once(Hosts(postgres, emulator, tmp_path))


async def stopped_at_once(hosts: Hosts) -> None:
    await hosts("batch", hosts.rows(3), "--feed-only")
    async with started(
        "worker", "--batch", "spring", "-o", "out", environ=dict(hosts.environ), folder=hosts.folder
    ) as process:
        await until(lambda: hosts.bought == 3, timeout_s=30)
        process.send_signal(signal.SIGINT)
        await says(process, "buying no more")
        process.send_signal(signal.SIGINT)
        stopped = await ended(process)
    assert stopped.code == 130
    assert "stopping at once" in stopped.err


@slow
async def test_cap_stops_the_workers_and_a_higher_one_goes_on(hosts: Hosts) -> None:
    await hosts("batch", hosts.rows(6), "--feed-only", "--max-credits", "24")
    stopped = await hosts.worker()
    assert stopped.code == 3
    assert "the buying stopped" in stopped.err
    assert hosts.bought == 3
    assert (await hosts("batch", hosts.rows(6), "-o", "out", "--max-credits", "80")).code == 0
    assert hosts.bought == 6


@slow
async def test_dry_run_counts_what_the_shared_ledger_has(hosts: Hosts) -> None:
    await hosts("batch", hosts.rows(3), "-o", "out")
    planned = await hosts("batch", hosts.rows(5), "-o", "out", "--dry-run")
    assert planned.code == 0
    assert "finished\t3" in planned.out
    assert "to buy\t2" in planned.out
    assert hosts.bought == 3


@slow
async def test_row_with_an_image_of_this_host_is_refused_before_anything_is_fed(hosts: Hosts) -> None:
    (hosts.folder / "fox.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(64))
    (hosts.folder / "spring.csv").write_text("prompt,image\na fox,\nan owl,fox.png\n")
    said = await hosts("batch", "spring.csv", "--feed-only")
    assert said.code == 2
    assert "spring.csv, row 3: its reference image is read by this host" in said.complaint
    assert "upload the image" in said.complaint
    missing = await hosts.worker()
    assert (missing.code, missing.out) == (2, "")
    assert "no batch 'spring' was fed" in missing.err


@slow
async def test_other_rows_under_the_same_name_are_refused(hosts: Hosts) -> None:
    (hosts.folder / "spring.txt").write_text("a fox\nan owl\n")
    await hosts("batch", "spring.txt", "--feed-only")
    (hosts.folder / "spring.txt").write_text("a hare\na fox\n")
    said = await hosts("batch", "spring.txt", "-o", "out")
    assert said.code == 2
    assert "row 1 is another one than the row that was fed at this place" in said.err
    assert hosts.bought == 0


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("batch", "a.txt", "--feed-only"), "--feed-only feeds a ledger that hosts share"),
        (("batch", "a.txt", "-o", "out", "--ledger", "jobs.sqlite"), "a batch keeps its ledger in its folder"),
        (("batch", "a.txt", "-o", "out", "--ledger", "postgresql://x/y", "--buy-changed"), "--buy-changed is for"),
        (
            ("batch", "a.txt", "-o", "out", "--ledger", "postgresql://x/y", "--gateway", "emulator"),
            "--gateway emulator",
        ),
        (("worker", "--batch", "spring", "-o", "out"), "worker needs a ledger that hosts share"),
        (("worker", "-o", "out", "--ledger", "postgresql://x/y"), "worker needs --batch"),
    ],
)
async def test_wrong_options_say_what_to_do(words: tuple[str, ...], why: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a fox\n")
    said = await nanobanana(*words, folder=tmp_path)
    assert said.code == 2
    assert why in said.complaint


@slow
async def test_folder_of_a_batch_with_its_own_ledger_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a fox\n")
    rehearsal = await in_a_process("batch", "a.txt", "-o", "out", "--gateway", "emulator", folder=tmp_path)
    assert rehearsal.code == 0
    for words in (("batch", "a.txt"), ("worker", "--batch", "a")):
        said = await nanobanana(*words, "-o", "out", "--ledger", "postgresql://x/y", folder=tmp_path)
        assert said.code == 2
        assert "out holds a batch whose ledger is out/jobs.sqlite" in said.complaint

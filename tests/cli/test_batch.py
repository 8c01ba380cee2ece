"""`nanobanana batch` against the emulator: what it buys, what it writes, and what the same command finds again."""

import asyncio
import json
import os
from decimal import Decimal
from pathlib import Path

import pytest

from nanobanana_async.cli import app as cli
from nanobanana_async.cli.batch.folder import BatchFolder, FolderOwner
from nanobanana_async.emulator import API_KEY, Script
from nanobanana_async.emulator.faults import error, reset
from tests.cli.batch_kills import kill_and_go_on, lines_of, pictures_of
from tests.cli.batches import Command, emulated, requests

NOWHERE = "http://127.0.0.1:9"
PRUNE = ["jobs", "prune", "--older-than", "0h", "--ledger", "out/jobs.sqlite", "--yes"]


async def test_a_file_becomes_pictures_results_a_report_and_a_ledger(batch: Command) -> None:
    file = batch.write(
        "animals.csv",
        "prompt,num_images,resolution,key,metadata.shelf",
        "a fox,2,2K,f1,7",
        "a lynx,,,,",
        "a stoat & <b>friends</b>,,,,8",
    )
    async with emulated(batch) as emulator:
        said = await batch(file)
        assert (said.code, emulator.stats().creates_accepted) == (0, 3)
    lines = batch.lines()
    fox = lines["a fox"]
    assert (fox["index"], fox["line"], fox["row_key"], fox["metadata"]) == (0, 2, "f1", {"shelf": "7"})
    assert (fox["settings"]["num_images"], fox["settings"]["resolution"], len(fox["images"])) == (2, "2K", 2)
    assert all(line[name] for line in lines.values() for name in ("task_id", "credits", "created_at", "ended_at"))
    assert len(pictures_of(batch.out)) == 4
    printed = {tuple(line.split("\t")) for line in said.out.splitlines()}
    assert printed == {(line["key"], "succeeded", f"out/{name}") for line in lines.values() for name in line["images"]}
    assert "a stoat &amp; &lt;b&gt;friends" in (batch.out / "index.html").read_text(encoding="utf-8")
    assert {path.name for path in batch.out.iterdir()} == {
        ".nanobanana-batch",
        "images",
        "index.html",
        "jobs.sqlite",
        "results.jsonl",
    }


async def test_the_same_command_again_costs_no_request_and_says_the_same(batch: Command) -> None:
    file = batch.prompts(6)
    async with emulated(batch) as emulator:
        first = await batch(file)
        before, lines, report = requests(emulator), batch.lines(), (batch.out / "index.html").stat().st_ino
        again = await batch(file)
        assert requests(emulator) == before
        assert (batch.out / "index.html").stat().st_ino == report  # it tells how the run went that bought something
    assert (again.code, sorted(again.out.splitlines())) == (0, sorted(first.out.splitlines()))
    assert "6 rows had ended before: 6 succeeded" in again.err
    assert batch.lines() == lines


async def test_inline_pictures_are_not_asked_for_again(batch: Command) -> None:
    file = batch.prompts(3)
    async with emulated(batch, "defapi", data_uris=True) as emulator:
        assert (await batch(file)).code == 0
        before = requests(emulator)
        assert (await batch(file)).code == 0
        assert requests(emulator) == before


async def test_more_rows_cost_only_themselves_and_those_that_left_are_told(batch: Command) -> None:
    batch.write("foxes.txt", "a fox", "a lynx")
    async with emulated(batch) as emulator:
        await batch("foxes.txt")
        said = await batch(batch.write("foxes.txt", "a stoat", "a lynx", "a stoat"))
        assert emulator.stats().creates_accepted == 4
    assert [(line["prompt"], line["index"], line["line"]) for line in lines_of(batch.out)[:1]] == [("a lynx", 1, 2)]
    assert len(lines_of(batch.out)) == 3
    assert "1 row of earlier runs left the file" in said.err
    assert len(list((batch.out / "images").glob("*.png"))) == 4


async def test_failed_rows_are_told_and_bought_again_only_when_asked(batch: Command) -> None:
    file = batch.prompts(4)
    async with emulated(batch, failure_probability=1.0, refund_on_failure=True) as emulator:
        said = await batch(file)
        assert (said.code, batch.statuses()) == (1, {"failed": 4})
        assert "line 1 failed: a fox 0: " in said.err
        before = requests(emulator)
        again = await batch(file)
        assert (again.code, requests(emulator)) == (1, before)
        assert "--retry-failed buys them again" in again.err
        await batch(file, "--retry-failed")
        assert (emulator.stats().creates_accepted, batch.statuses()) == (8, {"failed": 4})


async def test_a_blocked_prompt_is_not_sent_again_unless_asked(batch: Command) -> None:
    script = Script({"apimall.create": [error(451)]})
    async with emulated(batch, script=script) as emulator:
        said = await batch(batch.prompts(1))
        assert (said.code, batch.lines()["a fox 0"]["error_kind"]) == (1, "PromptBlocked")
        assert (await batch("foxes.txt")).code == 1
        assert emulator.stats().creates_received == 1
        assert (await batch("foxes.txt", "--retry-failed")).code == 0


async def test_an_uncertain_row_is_listed_and_never_sent_again(batch: Command) -> None:
    file = batch.prompts(2)
    async with emulated(batch, "defapi", script=Script({"defapi.create": [reset(processed=True)]})) as emulator:
        for options in ((), ("--retry-failed",)):
            said = await batch(file, "--max-jobs", "1", *options)
            assert (said.code, batch.statuses()) == (1, {"uncertain": 1, "succeeded": 1})
            assert "jobs settle KEY --ledger out/jobs.sqlite" in said.err
        assert emulator.stats().creates_received == 2


async def test_only_pictures_that_are_missing_or_broken_are_fetched_again(batch: Command) -> None:
    file = batch.prompts(6)
    async with emulated(batch) as emulator:
        await batch(file)
        names = [batch.lines()[f"a fox {number}"]["images"][0] for number in range(6)]
        gone, cut, changed = ((batch.out / name) for name in names[:3])
        gone.unlink()
        cut.write_bytes(cut.read_bytes()[:-7])
        changed.write_bytes(bytes([changed.read_bytes()[0] ^ 1]) + changed.read_bytes()[1:])
        os.utime(batch.out / names[3])  # touched, and still the same
        before = requests(emulator)
        said = await batch(file)
        assert requests(emulator) - before == {"cdn": 3}
    assert (said.code, len(pictures_of(batch.out))) == (0, 6)


@pytest.mark.parametrize("damage", ["lost", "torn", "doubled", "garbage"])
async def test_damaged_results_are_made_anew_without_a_request(damage: str, batch: Command) -> None:
    file, path = batch.prompts(4), batch.out / "results.jsonl"
    async with emulated(batch) as emulator:
        await batch(file)
        before, lines, content = requests(emulator), batch.lines(), path.read_bytes()
        match damage:
            case "lost":
                path.unlink()
            case "torn":
                path.write_bytes(content[:-40])
            case "doubled":
                path.write_bytes(content * 2)
            case _:
                path.write_bytes(b'[]\n{"key": 1}\n\xff\n\n' + content.replace(b"{", b"", 1))
        said = await batch(file)
        assert (said.code, requests(emulator)) == (0, before)
    for line in lines.values():
        line["saved_at"] = None
    assert {prompt: {**line, "saved_at": None} for prompt, line in batch.lines().items()} == lines
    assert len(pictures_of(batch.out)) == 4


async def test_a_pruned_ledger_buys_nothing_that_the_results_still_hold(batch: Command) -> None:
    file = batch.prompts(2)
    async with emulated(batch) as emulator:
        await batch(file)
        assert await asyncio.to_thread(cli.run, PRUNE) == 0
        assert (await batch(file)).code == 0
        assert emulator.stats().creates_accepted == 2


async def test_results_come_in_the_order_of_the_file_when_asked(batch: Command) -> None:
    file = batch.prompts(12)
    async with emulated(batch, job_limit=4) as emulator:
        await batch(batch.write("foxes.txt", "a fox 7"))
        said = await batch(batch.prompts(12), "--ordered")
        assert (said.code, emulator.stats().creates_accepted) == (0, 12)
    assert [line["index"] for line in lines_of(batch.out)] == list(range(12))
    assert file == "foxes.txt"


async def test_the_credit_limit_stops_early_and_counts_earlier_runs(batch: Command) -> None:
    file = batch.prompts(6)
    async with emulated(batch) as emulator:
        said = await batch(file, "--max-credits", "17")
        assert (said.code, batch.statuses()) == (3, {"succeeded": 2})
        assert "max_credits is 17" in said.err
        assert "4 rows left: the same command goes on" in said.err
        assert (await batch(file, "--max-credits", "17")).code == 3
        assert (await batch(file, "--max-credits", "48")).code == 0
        assert emulator.stats().credits_charged == 48


@pytest.mark.parametrize("rows", [1, 2])
async def test_a_price_above_its_estimate_passes_the_cap_by_one_job_and_the_command_says_so(
    batch: Command, rows: int
) -> None:
    async with emulated(batch, apimall_prices=dict.fromkeys(("1K", "2K", "4K"), Decimal(28))) as emulator:
        said = await batch(batch.prompts(rows), "--max-credits", "10")
        assert emulator.stats().credits_charged == 28
    assert said.code == 3
    assert "--max-credits was passed by 18" in said.err
    assert "cost 28, 8 were set aside: --expected-credits 28" in said.err
    assert ("the buying stopped" in said.err) is (rows > 1)


async def test_nothing_is_bought_whose_estimate_passes_the_cap_and_the_words_name_the_way_out(batch: Command) -> None:
    async with emulated(batch) as emulator:
        said = await batch(batch.prompts(2), "--max-credits", "7")
        assert (said.code, emulator.stats().creates_received) == (3, 0)
        assert "a job estimated at 8 would pass it" in said.err
        assert "expected_credits sets another estimate" in said.err
        assert (await batch(batch.prompts(2), "--max-credits", "7", "--expected-credits", "7")).code == 3
        assert emulator.stats().credits_charged == 8


async def test_a_wrong_key_stops_early_and_costs_nobody_a_row(batch: Command) -> None:
    file = batch.prompts(5)
    async with emulated(batch):
        batch.patch.setenv("APIMALL_API_KEY", "not-a-key-of-anybody")
        said = await batch(file)
    assert (said.code, lines_of(batch.out)) == (3, [])
    assert "5 rows left" in said.err
    assert "check the API key" in said.err


async def test_two_files_with_one_key_for_different_wishes_are_told(batch: Command) -> None:
    async with emulated(batch) as emulator:
        await batch(batch.write("a.jsonl", '{"prompt": "a fox", "key": "k"}'))
        said = await batch(batch.write("a.jsonl", '{"prompt": "a lynx", "key": "k"}'))
        assert emulator.stats().creates_accepted == 1
    assert (said.code, batch.lines()["a lynx"]["status"]) == (1, "invalid")


async def test_standard_input_is_a_prompt_a_line_unless_said_otherwise(batch: Command) -> None:
    async with emulated(batch) as emulator:
        assert (await batch("-", stdin=b"a fox\na lynx\n")).code == 0
        assert (await batch("-", "--format", "jsonl", stdin=b'{"prompt": "a fox"}')).code == 0
        assert emulator.stats().creates_accepted == 2


@pytest.mark.parametrize(
    ("name", "lines", "complaint"),
    [
        ("a.txt", [], "a.txt is empty"),
        ("a.csv", ["prompt,key"], "a.csv is empty"),
        ("a.jsonl", ['{"prompt": "a"}', '{"prompt": '], "a.jsonl, line 2: broken JSON at column 11"),
        ("a.csv", ["prompt,colour", "a fox,red"], "a.csv, line 1: unknown column 'colour'"),
        ("a.md", ["a fox"], "a.md: is it txt, jsonl, csv? Say it with --format"),
    ],
)
async def test_a_bad_file_is_one_clear_line_and_nothing_is_made(
    name: str, lines: list[str], complaint: str, batch: Command
) -> None:
    batch.patch.setenv("APIMALL_API_KEY", API_KEY)
    batch.patch.setenv("NANOBANANA_BASE_URL", NOWHERE)
    said = await batch(batch.write(name, *lines))
    assert (said.code, said.out) == (2, "")
    assert said.complaint.startswith(f"nanobanana: {complaint}")
    assert not batch.out.exists()


async def test_every_bad_row_is_told_up_to_a_screenful(batch: Command) -> None:
    batch.patch.setenv("APIMALL_API_KEY", API_KEY)
    said = await batch(batch.write("a.jsonl", '{"prompt": "a fox"}', *['{"prompt": ""}'] * 33))
    told = said.err.splitlines()
    assert (said.code, len(told)) == (2, 22)
    assert told[0] == "nanobanana: a.jsonl, line 2: prompt is empty"
    assert told[-2:] == [
        "nanobanana: ... and 13 more bad rows",
        "nanobanana: nothing was bought: 33 rows of 34 must be put right first",
    ]


async def test_a_missing_key_and_folders_that_cannot_be_written_are_told(batch: Command) -> None:
    file = batch.prompts(1)
    assert (await batch(file)).complaint.startswith("nanobanana: no gateway: pass one, or set APIMALL_API_KEY")
    batch.patch.setenv("APIMALL_API_KEY", API_KEY)
    batch.patch.setenv("NANOBANANA_BASE_URL", NOWHERE)
    for folder, why in (("foxes.txt", "File exists"), ("foxes.txt/out", "Not a directory")):
        said = await batch(file, folder=folder)
        advice = "move away what is in its place, or name another folder with -o"
        assert (said.code, said.complaint) == (2, f"nanobanana: {folder} can't be written: {why}: {advice}")
    (batch.folder / "odd").mkdir()
    (batch.folder / "odd" / ".nanobanana-batch").write_text('{"batch": "foxes", "emulated": false}')
    (batch.folder / "odd" / "jobs.sqlite").write_text("this is no database, but a letter to a friend of mine")
    said = await batch(file, folder="odd")
    assert (said.code, "jobs.sqlite: the file is no SQLite database" in said.complaint) == (2, True)


async def test_a_folder_belongs_to_one_batch(batch: Command) -> None:
    async with emulated(batch) as emulator:
        await batch(batch.write("cats.txt", "a cat"))
        said = await batch(batch.write("dogs.txt", "a dog"))
        assert (said.code, emulator.stats().creates_accepted) == (2, 1)
        assert "holds the batch 'cats', and this one is 'dogs'" in said.complaint
        assert (await batch("dogs.txt", "--name", "cats")).code == 0
        said = await batch("cats.txt", "--gateway", "emulator")
        assert (said.code, "out holds what a gateway sold" in said.complaint) == (2, True)
        said = await batch("out/results.jsonl")
        assert (said.code, "would be written over" in said.complaint) == (2, True)


async def test_the_built_in_emulator_needs_no_key(batch: Command) -> None:
    said = await batch(batch.prompts(1), "--gateway", "emulator")
    assert (said.code, len(pictures_of(batch.out))) == (0, 1)


async def test_a_second_run_in_the_folder_is_sent_away(batch: Command) -> None:
    file = batch.prompts(2)
    async with emulated(batch) as emulator:
        with BatchFolder(batch.out, FolderOwner("foxes", emulated=False)):
            said = await batch(file)
        assert (said.code, emulator.stats().creates_received) == (2, 0)
        assert said.complaint == "nanobanana: out: another `nanobanana batch` is at work in this folder"
        assert (await batch(file)).code == 0


async def test_a_dry_run_tells_and_touches_nothing(batch: Command) -> None:
    file = batch.prompts(4)
    async with emulated(batch) as emulator:
        said = await batch(file, "--dry-run")
        assert (said.code, said.out.splitlines()[:2], batch.out.exists()) == (0, ["rows\t4", "to buy\t4"], False)
        assert "credits\tunknown: " in said.out
        assert "credits\tabout 10" in (await batch(file, "--dry-run", "--expected-credits", "2.5")).out
        await batch(batch.write("foxes.txt", "a fox 1"))
        seen = {path: path.stat().st_mtime_ns for path in batch.out.rglob("*")}
        said = await batch(batch.prompts(4), "--dry-run")
        assert said.out.splitlines() == ["rows\t4", "finished\t1", "to buy\t3", "credits\tabout 24"]
        # SQLite puts its -wal and -shm beside what it reads.
        assert {path: at for path in batch.out.rglob("*") if (at := seen.get(path)) == path.stat().st_mtime_ns} == seen
        assert emulator.stats().creates_received == 1
    assert (await batch(batch.write("a.jsonl", "{"), "--dry-run", "--name", "foxes")).code == 2


async def test_pictures_that_cannot_be_fetched_are_left_for_the_next_run(batch: Command) -> None:
    file = batch.prompts(1)
    async with emulated(batch, script=Script({"cdn": [error(404)] * 2})) as emulator:
        said = await batch(file)
        assert (said.code, batch.statuses()) == (1, {"unfinished": 1})
        assert batch.lines()["a fox 0"]["error_kind"] == "DownloadError"
        assert (await batch(file)).code == 0
        assert (emulator.stats().creates_accepted, len(pictures_of(batch.out))) == (1, 1)


async def test_a_batch_that_is_killed_again_and_again_loses_and_doubles_nothing(tmp_path: Path) -> None:
    ordeal = await kill_and_go_on(tmp_path, rows=60, kills=2, job_s=0.4, job_limit=12)
    lines = lines_of(ordeal.folder)
    assert [said.code for said in ordeal.said] == [0, 0]
    assert (len(lines), len({line["key"] for line in lines}), len(pictures_of(ordeal.folder))) == (60, 60, 60)
    assert len(list((ordeal.folder / "images").glob("*.png"))) == 60
    assert (ordeal.stats.creates_accepted, ordeal.stats.double_charges) == (60, 0)
    assert ordeal.requests_of_one_more == 0
    assert 0 < ordeal.killed_at[0] < ordeal.killed_at[1] < 60
    assert json.loads((ordeal.folder / ".nanobanana-batch").read_text()) == {"batch": "prompts", "emulated": False}

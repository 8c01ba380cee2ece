"""`nanobanana batch` against the emulator: purchases, files, and repeated runs."""

import asyncio
import html
import json
import os
import re
from asyncio.subprocess import PIPE
from datetime import datetime
from decimal import Decimal
from pathlib import Path

import pytest

from nanobanana_async.cli import app as cli
from nanobanana_async.cli.batch.folder import BatchFolder, FolderOwner
from nanobanana_async.emulator import API_KEY, Emulator, Fixed, RandomFault, Script, field_note
from nanobanana_async.emulator.faults import error, reset
from nanobanana_async.policy import long_pause
from tests.cli.batch_kills import images_of, kill_and_rerun, lines_of
from tests.cli.batches import Command, emulated, requests
from tests.support.command import environment, in_a_process

pytestmark = pytest.mark.slow

NOWHERE = "http://127.0.0.1:9"
PRUNE = ["jobs", "prune", "--older-than", "0h", "--ledger", "out/jobs.sqlite", "--yes"]


async def test_a_batch_writes_images_results_report_and_ledger(batch: Command) -> None:
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
    assert (fox["index"], fox["number"], fox["key"], fox["metadata"]) == (0, 2, "f1", {"shelf": "7"})
    assert (fox["settings"]["num_images"], fox["settings"]["resolution"], len(fox["images"])) == (2, "2K", 2)
    assert all(line[name] for line in lines.values() for name in ("task_id", "credits", "created_at", "ended_at"))
    assert len(images_of(batch.out)) == 4
    printed = {tuple(line.split("\t")) for line in said.out.splitlines()}
    found = {(line["key"] or line["job_key"], name) for line in lines.values() for name in line["images"]}
    assert printed == {(key, "succeeded", f"out/{name}") for key, name in found}
    assert "a stoat &amp; &lt;b&gt;friends" in (batch.out / "index.html").read_text(encoding="utf-8")
    assert {path.name for path in batch.out.iterdir()} == {
        ".nanobanana-batch",
        "images",
        "index.html",
        "jobs.sqlite",
        "results.csv",
        "results.jsonl",
        "thumbnails",
    }


async def test_the_page_shows_thumbnails_and_what_to_do_about_failed_rows(batch: Command) -> None:
    file = batch.prompts(2)
    async with emulated(batch, script=Script({"apimall.create": [error(451)]})):
        assert (await batch(file)).code == 1
        page = (batch.out / "index.html").read_text(encoding="utf-8")
        (shown,) = re.findall(r'<img src="\./(thumbnails/[^"]+)"', page)
        assert (batch.out / shown).is_file()
        (advice,) = re.findall(r'class="advice"><p>(.*?)</p>', page)
        assert re.sub("<.*?>", "", advice) == "Change the row, or try it unchanged with --retry-failed."
        assert (await batch(file, "--retry-failed")).code == 0
    page = (batch.out / "index.html").read_text(encoding="utf-8")
    assert len(re.findall(r'<img src="\./thumbnails/', page)) == 2
    assert 'class="advice"' not in page


async def test_the_command_of_a_failed_card_buys_it_again(tmp_path: Path) -> None:
    (tmp_path / "two foxes.txt").write_text("a fox\na lynx\n")
    script = Script({"apimall.create": [error(451)]})
    async with Emulator(duration=Fixed(0.05), image_scale=0.05, script=script) as emulator:
        environ = environment(emulator)
        said = await in_a_process("batch", "two foxes.txt", "-o", "out", environ=environ, folder=tmp_path)
        assert said.code == 1, said.err
        page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
        (command,) = re.findall(r'<code title="(.*?)">', page)
        assert html.unescape(command).endswith("-m nanobanana_async batch 'two foxes.txt' -o out --retry-failed")
        process = await asyncio.create_subprocess_shell(html.unescape(command), cwd=tmp_path, env=environ, stderr=PIPE)
        _, err = await process.communicate()
        assert process.returncode == 0, err.decode()
        assert emulator.stats().creates_accepted == 2


async def test_a_second_run_makes_no_request_and_prints_the_same(batch: Command) -> None:
    file = batch.prompts(6)
    async with emulated(batch) as emulator:
        first = await batch(file)
        before, lines, report = requests(emulator), batch.lines(), (batch.out / "index.html").stat().st_ino
        again = await batch(file)
        assert requests(emulator) == before
        assert (batch.out / "index.html").stat().st_ino == report  # the page of the run that bought stays
    assert (again.code, sorted(again.out.splitlines())) == (0, sorted(first.out.splitlines()))
    assert "6 rows had ended before: 6 succeeded" in again.err
    assert "48 credits spent\n" in first.err
    assert "48 credits spent; none of them by this run\n" in again.err
    assert batch.lines() == lines


async def test_saved_inline_images_are_not_requested_again(batch: Command) -> None:
    file = batch.prompts(3)
    async with emulated(batch, "defapi", data_uris=True) as emulator:
        assert (await batch(file)).code == 0
        before = requests(emulator)
        assert (await batch(file)).code == 0
        assert requests(emulator) == before


async def test_only_new_rows_are_bought_and_removed_rows_are_reported(batch: Command) -> None:
    batch.write("foxes.txt", "a fox", "a lynx")
    async with emulated(batch) as emulator:
        await batch("foxes.txt")
        said = await batch(batch.write("foxes.txt", "a stoat", "a lynx", "a stoat"))
        assert emulator.stats().creates_accepted == 4
    assert [(line["prompt"], line["index"], line["number"]) for line in lines_of(batch.out)[:1]] == [("a lynx", 1, 2)]
    assert len(lines_of(batch.out)) == 3
    assert "1 row of earlier runs left the file" in said.err
    assert len(list((batch.out / "images").glob("*.png"))) == 4


async def test_failed_rows_are_bought_again_only_on_request(batch: Command) -> None:
    file = batch.prompts(4)
    async with emulated(batch, failure_probability=1.0, refund_on_failure=True) as emulator:
        said = await batch(file)
        assert (said.code, batch.statuses()) == (1, {"failed": 4})
        assert "line 1 failed: a fox 0: " in said.err
        before = requests(emulator)
        again = await batch(file)
        assert (again.code, requests(emulator)) == (1, before)
        assert "4 rows failed: --retry-failed buys them again" in again.err
        assert "moderation" not in again.err
        await batch(file, "--retry-failed")
        assert (emulator.stats().creates_accepted, batch.statuses()) == (8, {"failed": 4})


async def test_rows_that_moderation_stopped_are_named_apart(batch: Command) -> None:
    file = batch.prompts(3)
    batch.patch.setattr("nanobanana_async.engine.poller.LATE_IMAGES_S", 0.2)
    async with emulated(batch, seed=1, failure_probability=1.0):
        await batch(file)
    notes = [RandomFault(1.0, field_note("text instead of the image"), "apimall.query")]
    async with emulated(batch, random_faults=notes) as emulator:
        batch.write("foxes.txt", "a fox 0", "an owl", "a lynx")
        said = await batch(file)
        assert "1 row failed: --retry-failed buys it again" in said.err
        assert "2 rows stopped by moderation (lines 2 and 3): change them; --retry-failed does not buy them" in said.err
        page = (batch.out / "index.html").read_text(encoding="utf-8")
        advice = [re.sub("<.*?>", "", each) for each in re.findall(r'class="advice"><p>(.*?)</p>', page)]
        moderated = "Moderation stopped it: change the row. --retry-failed does not buy it again."
        assert advice == ["--retry-failed buys it again.", moderated, moderated]
        before = emulator.stats().creates_received
        again = await batch(file, "--retry-failed")
        assert emulator.stats().creates_received == before + 1
        assert "3 rows stopped by moderation (lines 1, 2 and 3)" in again.err
        assert "row failed" not in again.err


async def test_a_blocked_prompt_is_sent_again_only_on_request(batch: Command) -> None:
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
            (key,) = (line["job_key"] for line in batch.lines().values() if line["status"] == "uncertain")
            assert f"jobs resolve {key} --as DECISION --ledger out/jobs.sqlite`" in said.err
        assert emulator.stats().creates_received == 2


async def test_only_missing_or_damaged_images_are_downloaded_again(batch: Command) -> None:
    file = batch.prompts(6)
    async with emulated(batch) as emulator:
        await batch(file)
        names = [batch.lines()[f"a fox {number}"]["images"][0] for number in range(6)]
        missing, truncated, changed = ((batch.out / name) for name in names[:3])
        missing.unlink()
        truncated.write_bytes(truncated.read_bytes()[:-7])
        changed.write_bytes(bytes([changed.read_bytes()[0] ^ 1]) + changed.read_bytes()[1:])
        os.utime(batch.out / names[3])  # touched, with the same content
        before = requests(emulator)
        said = await batch(file)
        assert requests(emulator) - before == {"cdn": 3}
    assert (said.code, len(images_of(batch.out))) == (0, 6)


@pytest.mark.parametrize("damage", ["lost", "torn", "doubled", "garbage"])
async def test_damaged_results_are_rebuilt_without_a_request(damage: str, batch: Command) -> None:
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
        assert datetime.fromisoformat(line["saved_at"]).tzinfo is not None
        line["saved_at"] = None
    assert {prompt: {**line, "saved_at": None} for prompt, line in batch.lines().items()} == lines
    assert len(images_of(batch.out)) == 4


async def test_rows_in_the_results_are_not_bought_after_pruning(batch: Command) -> None:
    file = batch.prompts(2)
    async with emulated(batch) as emulator:
        await batch(file)
        assert await asyncio.to_thread(cli.run, PRUNE) == 0
        assert (await batch(file)).code == 0
        assert emulator.stats().creates_accepted == 2


async def test_ordered_results_have_the_order_of_the_file(batch: Command) -> None:
    file = batch.prompts(12)
    async with emulated(batch, job_limit=4) as emulator:
        await batch(batch.write("foxes.txt", "a fox 7"))
        said = await batch(batch.prompts(12), "--ordered")
        assert (said.code, emulator.stats().creates_accepted) == (0, 12)
    assert [line["index"] for line in lines_of(batch.out)] == list(range(12))
    assert file == "foxes.txt"


async def test_max_credits_counts_earlier_runs(batch: Command) -> None:
    file = batch.prompts(6)
    async with emulated(batch) as emulator:
        said = await batch(file, "--max-credits", "17")
        assert (said.code, batch.statuses()) == (3, {"succeeded": 2})
        assert "--max-credits is 17" in said.err
        assert "16 are spent" in said.err
        assert "4 rows left to buy, for about 32 credits: run the same command with --max-credits 48 to go" in said.err
        assert "6 rows: 2 succeeded, 4 left; 16 credits spent\n" in said.err
        assert (await batch(file, "--max-credits", "17")).code == 3
        assert (await batch(file, "--max-credits", "48")).code == 0
        assert emulator.stats().credits_charged == 48


@pytest.mark.parametrize("rows", [1, 2])
async def test_a_price_above_the_estimate_that_exceeds_the_cap_is_reported(batch: Command, rows: int) -> None:
    async with emulated(batch, apimall_prices=dict.fromkeys(("1K", "2K", "4K"), Decimal(28))) as emulator:
        said = await batch(batch.prompts(rows), "--max-credits", "10")
        assert emulator.stats().credits_charged == 28
    assert said.code == 3
    assert "the batch has cost 18 credits more than --max-credits" in said.err
    assert "cost 28, 8 were reserved: --expected-credits 28" in said.err
    assert ("the buying stopped" in said.err) is (rows > 1)


async def test_batch_above_its_cap_reports_it_in_each_run(batch: Command) -> None:
    async with emulated(batch, apimall_prices=dict.fromkeys(("1K", "2K", "4K"), Decimal(28))) as emulator:
        for _ in range(3):
            said = await batch(batch.prompts(1), "--max-credits", "10")
            assert said.code == 3
            assert "the batch has cost 18 credits more than --max-credits" in said.err
        assert (await batch(batch.prompts(1), "--max-credits", "28")).code == 0
        assert emulator.stats().credits_charged == 28


async def test_no_job_is_bought_whose_estimate_exceeds_the_cap(batch: Command) -> None:
    async with emulated(batch) as emulator:
        said = await batch(batch.prompts(2), "--max-credits", "7")
        assert (said.code, emulator.stats().creates_received) == (3, 0)
        assert "a job estimated at 8 would pass it" in said.err
        assert "--expected-credits sets another estimate" in said.err
        assert (await batch(batch.prompts(2), "--max-credits", "7", "--expected-credits", "7")).code == 3
        assert emulator.stats().credits_charged == 8


async def test_a_wrong_key_stops_the_batch_without_failing_rows(batch: Command) -> None:
    file = batch.prompts(5)
    async with emulated(batch):
        batch.patch.setenv("APIMALL_API_KEY", "a-wrong-key")
        said = await batch(file)
    assert (said.code, lines_of(batch.out)) == (3, [])
    assert "5 rows left" in said.err
    assert "check the API key" in said.err


async def test_a_key_reused_for_another_request_is_a_changed_row(batch: Command) -> None:
    async with emulated(batch) as emulator:
        await batch(batch.write("a.jsonl", '{"prompt": "a fox", "key": "k"}'))
        said = await batch(batch.write("a.jsonl", '{"prompt": "a lynx", "key": "k"}'))
        assert emulator.stats().creates_accepted == 1
    assert (said.code, [line["status"] for line in batch.lines().values()]) == (2, ["succeeded"])  # left as it was
    assert "the row with key k has changed since it was bought: prompt was 'a fox' and is 'a lynx'" in said.err


async def test_standard_input_has_a_prompt_per_line_by_default(batch: Command) -> None:
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
        ("a.csv", ["colour,key", "red,1"], "a.csv, row 1: column prompt is missing"),
        ("a.md", ["a fox"], "a.md: unknown format: pass --format with one of txt, jsonl, json, csv, xlsx"),
    ],
)
async def test_a_bad_file_is_named_and_creates_no_folder(
    name: str, lines: list[str], complaint: str, batch: Command
) -> None:
    batch.patch.setenv("APIMALL_API_KEY", API_KEY)
    batch.patch.setenv("NANOBANANA_BASE_URL", NOWHERE)
    said = await batch(batch.write(name, *lines))
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith(f"nanobanana: {complaint}")
    assert not batch.out.exists()


async def test_first_bad_rows_are_printed_and_the_others_numbered(batch: Command) -> None:
    batch.patch.setenv("APIMALL_API_KEY", API_KEY)
    said = await batch(batch.write("a.jsonl", '{"prompt": "a fox"}', *['{"prompt": ""}'] * 33))
    printed = said.err.splitlines()
    assert (said.code, len(printed)) == (2, 7)
    assert printed[0] == "nanobanana: a.jsonl, line 2: prompt is empty"
    assert printed[-2:] == [
        "nanobanana: 28 more bad rows: lines 7, 8, 9 and 25 more",
        "nanobanana: nothing was bought: correct 33 rows of 34 first",
    ]


async def test_a_missing_key_or_unwritable_folder_is_a_usage_error(batch: Command) -> None:
    file = batch.prompts(1)
    assert (await batch(file)).complaint.startswith("nanobanana: no gateway: pass --gateway apimall or ")
    batch.patch.setenv("APIMALL_API_KEY", API_KEY)
    batch.patch.setenv("NANOBANANA_BASE_URL", NOWHERE)
    for folder, why in (
        ("foxes.txt", "something else has this name"),
        ("foxes.txt/out", "a part of the path is a file"),
    ):
        said = await batch(file, folder=folder)
        advice = "move that away or name another folder with -o"
        assert (said.code, said.complaint) == (2, f"nanobanana: {folder} can't be written: {why}: {advice}")
    (batch.folder / "odd").mkdir()
    (batch.folder / "odd" / ".nanobanana-batch").write_text('{"batch": "foxes", "emulated": false}')
    (batch.folder / "odd" / "jobs.sqlite").write_text("this is not a database, but long enough to be read as one")
    said = await batch(file, folder="odd")
    assert (said.code, "jobs.sqlite: not a SQLite database" in said.complaint) == (2, True)


async def test_a_folder_belongs_to_one_batch(batch: Command) -> None:
    async with emulated(batch) as emulator:
        await batch(batch.write("cats.txt", "a cat"))
        said = await batch(batch.write("dogs.txt", "a dog"))
        assert (said.code, emulator.stats().creates_accepted) == (2, 1)
        assert "holds the batch 'cats', and this one is 'dogs'" in said.complaint
        assert (await batch("dogs.txt", "--name", "cats")).code == 0
        said = await batch("cats.txt", "--gateway", "emulator")
        assert (said.code, "out holds images from a gateway" in said.complaint) == (2, True)
        said = await batch("out/results.jsonl")
        assert (said.code, "would be overwritten" in said.complaint) == (2, True)


async def test_the_built_in_emulator_needs_no_key(batch: Command) -> None:
    said = await batch(batch.prompts(1), "--gateway", "emulator")
    assert (said.code, len(images_of(batch.out))) == (0, 1)


async def test_a_concurrent_run_in_the_folder_is_refused(batch: Command) -> None:
    file = batch.prompts(2)
    async with emulated(batch) as emulator:
        with BatchFolder(batch.out, FolderOwner("foxes", emulated=False)):
            said = await batch(file)
        assert (said.code, emulator.stats().creates_received) == (2, 0)
        assert said.complaint == "nanobanana: out: another batch is running in this folder"
        assert (await batch(file)).code == 0


async def test_a_dry_run_changes_nothing(batch: Command) -> None:
    file = batch.prompts(4)
    async with emulated(batch) as emulator:
        said = await batch(file, "--dry-run")
        assert (said.code, said.out.splitlines()[:2], batch.out.exists()) == (0, ["rows\t4", "to buy\t4"], False)
        assert "credits\tabout 32 (estimate)" in said.out
        assert "credits\tabout 10 (estimate)" in (await batch(file, "--dry-run", "--expected-credits", "2.5")).out
        await batch(batch.write("foxes.txt", "a fox 1"))
        seen = {path: path.stat().st_mtime_ns for path in batch.out.rglob("*")}
        said = await batch(batch.prompts(4), "--dry-run")
        assert said.out.splitlines()[:4] == ["rows\t4", "finished\t1", "to buy\t3", "credits\tabout 24"]
        # SQLite creates -wal and -shm files beside the ledger.
        assert {path: at for path in batch.out.rglob("*") if (at := seen.get(path)) == path.stat().st_mtime_ns} == seen
        assert emulator.stats().creates_received == 1
    assert (await batch(batch.write("a.jsonl", "{"), "--dry-run", "--name", "foxes")).code == 2


async def test_failed_downloads_are_repeated_by_the_next_run(batch: Command) -> None:
    file = batch.prompts(1)
    async with emulated(batch, script=Script({"cdn": [error(410)] * 2})) as emulator:
        said = await batch(file)
        assert (said.code, batch.statuses()) == (1, {"unfinished": 1})
        assert batch.lines()["a fox 0"]["error_kind"] == "DownloadError"
        assert (await batch(file)).code == 0
        assert (emulator.stats().creates_accepted, len(images_of(batch.out))) == (1, 1)


@pytest.mark.timeout(180)
async def test_a_repeatedly_killed_batch_buys_each_row_once(tmp_path: Path) -> None:
    killed = await kill_and_rerun(tmp_path, rows=60, kills=2, job_s=0.4, job_limit=12)
    lines = lines_of(killed.folder)
    assert [said.code for said in killed.said] == [0, 0]
    assert (len(lines), len({line["job_key"] for line in lines}), len(images_of(killed.folder))) == (60, 60, 60)
    assert len(list((killed.folder / "images").glob("*.png"))) == 60
    assert (killed.stats.creates_accepted, killed.stats.double_charges) == (60, 0)
    assert killed.requests_of_rerun == 0
    assert 0 < killed.killed_at[0] < killed.killed_at[1] < 60
    assert json.loads((killed.folder / ".nanobanana-batch").read_text()) == {"batch": "prompts", "emulated": False}


async def test_a_used_up_daily_budget_stops_the_batch_with_the_time_to_go_on(
    batch: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(long_pause, "MAX_RETRY_AFTER_S", 0.1)
    monkeypatch.setattr(long_pause, "MARGIN_S", 0.1)
    async with emulated(batch, requests_per_day=12, rate_window="clock", duration=Fixed(30)) as emulator:
        said = await batch(batch.prompts(30), "--max-budget-wait", "0")
    assert said.code == 3
    assert "the account's daily budget of requests is used up; goes on at " in said.err
    assert "the buying stopped: the account's daily budget of requests is used up until " in said.err
    left = 30 - batch.statuses()["succeeded"]
    assert f"{left} rows left, " in said.err
    assert "bought and not collected: run the same command to continue" in said.err
    assert emulator.stats().creates_accepted < 13

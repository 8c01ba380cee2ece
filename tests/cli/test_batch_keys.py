"""The user's own keys: rows that change under them, names of files, and finding a job by them."""

import csv
import json
import re
import sqlite3
from collections.abc import Collection
from contextlib import closing
from decimal import Decimal
from pathlib import Path

import pytest

from nanobanana_async.cli.batch.results import Result
from nanobanana_async.cli.batch.spreadsheet import write_spreadsheet
from nanobanana_async.emulator import Script
from nanobanana_async.emulator.faults import error
from nanobanana_async.report import ReportRow
from tests.cli.batch_kills import images_of, lines_of
from tests.cli.batches import Command, emulated, requests
from tests.support.command import environment, nanobanana

pytestmark = pytest.mark.slow


async def test_changed_row_is_bought_only_on_request_and_keeps_its_old_image(batch: Command) -> None:
    async with emulated(batch) as emulator:
        await batch(batch.write("a.csv", "key,prompt", "gate,a red gate", "cat,a cat"))
        said = await batch(batch.write("a.csv", "key,prompt", "gate,a RED gate", "cat,a cat"))
        assert (said.code, emulator.stats().creates_accepted) == (1, 2)
        line = batch.lines()["a red gate"]  # what was bought stays listed
        assert (line["status"], line["images"], line["changed"]) == ("succeeded", ["images/gate.png"], ["prompt"])
        assert (
            "the row with key gate has changed since it was bought: prompt was 'a red gate' and is 'a RED gate'."
            " --buy-changed buys it again and keeps the image of before" in line["error"]
        )
        assert line["error"] in said.err.replace("\n", " ")
        assert "idempotency_key" not in line["error"] + said.err
        dry = await batch("a.csv", "--dry-run")
        assert dry.out.splitlines()[:5] == ["rows\t2", "finished\t1", "changed\t1", "to buy\t0", "credits\t0"]
        assert "the row with key gate has changed since it was bought" in dry.err
        assert "to buy\t1" in (await batch("a.csv", "--dry-run", "--buy-changed")).out
        assert emulator.stats().creates_accepted == 2

        assert (await batch("a.csv", "--buy-changed")).code == 0
        assert emulator.stats().creates_accepted == 3
        line = batch.lines()["a RED gate"]
        assert (line["status"], line["images"]) == ("succeeded", ["images/gate-2.png"])
        assert line["earlier_images"] == ["images/gate.png"]
        before, lines = requests(emulator), batch.lines()
        for options in ((), ("--buy-changed",)):  # it is known now, with and without the option
            assert (await batch("a.csv", *options)).code == 0
        assert requests(emulator) == before
        assert batch.lines() == lines

        await batch(batch.write("a.csv", "key,prompt", "gate,a blue gate", "cat,a cat"), "--buy-changed")
        line = batch.lines()["a blue gate"]
        assert sorted(line["earlier_images"]) == ["images/gate-2.png", "images/gate.png"]
        assert (await batch(batch.write("a.csv", "key,prompt", "gate,a red gate", "cat,a cat"))).code == 0
        assert batch.lines()["a red gate"]["images"] == ["images/gate.png"]
        assert emulator.stats().creates_accepted == 4


async def test_refused_row_can_be_corrected_under_its_key(batch: Command) -> None:
    async with emulated(batch, script=Script({"apimall.create": [error(451)]})) as emulator:
        assert (await batch(batch.write("a.csv", "key,prompt", "k,bad words"))).code == 1
        assert (await batch(batch.write("a.csv", "key,prompt", "k,good words"))).code == 0
        assert emulator.stats().creates_accepted == 1


async def test_files_are_named_by_row_key_or_template_and_keep_their_names(batch: Command) -> None:
    rows = ["prompt;key;Motiv", "Leuchtturm im Nebel;;A", '"Nachtzug\nbei Regen";bild_002;B', "", "Uhrturm;;C"]
    async with emulated(batch) as emulator:
        assert (await batch(batch.write("a.csv", *rows))).code == 0
        names = {line["prompt"]: line["images"] for line in lines_of(batch.out)}
        assert names == {
            "Leuchtturm im Nebel": ["images/0002-leuchtturm-im-nebel.png"],
            "Nachtzug\nbei Regen": ["images/bild_002.png"],
            "Uhrturm": ["images/0005-uhrturm.png"],
        }
        before = requests(emulator)
        rows.insert(1, "neu;;D")
        said = await batch(batch.write("a.csv", *rows), "--names", "{row}-{metadata[Motiv]}")
        assert (said.code, (requests(emulator) - before)["cdn"]) == (0, 1)
        again = {line["prompt"]: line["images"] for line in lines_of(batch.out)}
        assert again == {**names, "neu": ["images/2-D.png"]}
        (batch.out / "results.jsonl").unlink()  # found again through the ledger and the list of images
        before = requests(emulator)
        assert (await batch("a.csv")).code == 0
        assert requests(emulator) == before
        assert {line["prompt"]: line["images"] for line in lines_of(batch.out)} == again
    listed = [json.loads(line) for line in (batch.out / "images" / "metadata.jsonl").read_text().splitlines()]
    assert sorted(f"images/{line['file_name']}" for line in listed) == sorted(images_of(batch.out))


async def test_names_are_remembered_by_the_folder_until_others_are_given(batch: Command) -> None:
    async with emulated(batch):
        first = await batch(batch.prompts(1), "--names", "{slug}")
        second = await batch(batch.prompts(2))
        planned = await batch(batch.prompts(3), "--dry-run", "--names", "{row}")
        third = await batch(batch.prompts(3))
        other = await batch(batch.prompts(4), "--names", "default")
        last = await batch(batch.prompts(5))
    said = [first, second, third, other, last]
    assert [each.code for each in (*said, planned)] == [0] * 6
    assert [line["images"][0].removeprefix("images/") for line in lines_of(batch.out)] == [
        *("a-fox-0.png", "a-fox-1.png", "a-fox-2.png", "0004-a-fox-3.png", "0005-a-fox-4.png")
    ]
    assert [("are named by" in each.err) for each in said] == [False, False, False, True, False]
    note = "new images are named by --names {row}, in later runs too; the earlier runs in out had --names {slug}"
    assert note in planned.err  # a dry run writes nothing: the third run still had the names of the first
    assert "--names default, in later runs too; the earlier runs in out had --names {slug}" in other.err


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        ("{prompt}", "nanobanana: --names has {prompt}: it takes {row}, {slug}, {key}, {metadata[NAME]}"),
        ("foo", "nanobanana: --names: 'foo' has no field, so that all images would have the same name: it takes {row}"),
        ("{metadata[x]}", "nanobanana: a.csv, row 2: --names has {metadata[x]}, and this row's metadata has no 'x'"),
    ],
)
async def test_wrong_names_are_refused_before_buying(names: str, complaint: str, batch: Command) -> None:
    async with emulated(batch) as emulator:
        said = await batch(batch.write("a.csv", "prompt", "a fox"), "--names", names)
        assert (said.code, emulator.stats().creates_received) == (2, 0)
    assert said.err.startswith(complaint)


async def test_job_of_a_row_is_shown_by_the_key_of_the_row(batch: Command) -> None:
    async with emulated(batch) as emulator:
        said = await batch(batch.write("a.csv", "key,prompt", "Motiv 1,a fox", "2,a lynx"))
        assert {line.split("\t")[0] for line in said.out.splitlines()} == {"Motiv 1", "2"}
        ledger = str(batch.out / "jobs.sqlite")
        shown = await nanobanana("jobs", "show", "Motiv 1", "--ledger", ledger)
        assert (shown.code, "a fox" in shown.out) == (0, True)
        facts = {line[:13].strip(): line[13:].strip() for line in shown.out.splitlines()}
        assert (facts["row key"], facts["batch"]) == ("Motiv 1", "a")
        assert facts["file 1"] == str(batch.out / "images" / "Motiv_1.png")
        by_job = await nanobanana("jobs", "show", facts["key"], "--ledger", ledger)
        ago = re.compile(r"\(\d+\w+ ago\)")  # a second may begin in between
        assert ago.sub("", by_job.out) == ago.sub("", shown.out)
        assert "-" not in facts.values()
        environ = environment(emulator)
        command = ("jobs", "fetch", "Motiv 1", "--ledger", ledger, "-o", "more")
        fetched = await nanobanana(*command, environ=environ, folder=batch.folder)
        assert fetched.out.strip() == "more/Motiv_1.png"
        missing = await nanobanana("jobs", "show", "Motiv 3", "--ledger", ledger)
        assert (missing.code, "no job and no row 'Motiv 3' in ledger" in missing.err) == (2, True)
        assert "lists the jobs, --ledger names another one" in missing.err


async def test_spreadsheet_has_the_rows_in_order_with_numbers(batch: Command) -> None:
    file = batch.write("a.csv", "prompt;key;num_images;Kampagne", "=1+1;k1;2;Frühling", "a lynx;;;-5")
    async with emulated(batch):
        assert (await batch(file)).code == 0
    with (batch.out / "results.csv").open(encoding="utf-8-sig", newline="") as table:
        first, second = csv.DictReader(table, delimiter=";")  # as the input
    assert (first["prompt"], first["credits"], first["row"], first["key"]) == ("'=1+1", "16", "2", "k1")
    assert first["images"].split() == ["images/k1-1.png", "images/k1-2.png"]
    assert (first["metadata.Kampagne"], second["metadata.Kampagne"]) == ("Frühling", "'-5")
    assert [line["credits"] for line in batch.lines().values()] in ([16, 8], [8, 16])


@pytest.mark.parametrize("text", ["=HYPERLINK(1)", "+1", "-1", "@x", "\t=1", "\r=1"])
def test_cells_that_begin_like_formulas_are_harmless(text: str, tmp_path: Path) -> None:
    row = ReportRow(
        index=0,
        key=text,
        job_key=text,
        status="failed",
        prompt=text,
        error=text,
        credits=Decimal("0.5"),
        metadata={text: text},
    )
    write_spreadsheet(tmp_path, lambda: [Result(row=row)], ",")
    with (tmp_path / "results.csv").open(encoding="utf-8-sig", newline="") as table:
        header, cells = csv.reader(table)
    assert not [cell for cell in (*header, *cells) if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
    assert cells[header.index("credits")] == "0.5"
    assert f"'{text}" in cells


@pytest.mark.parametrize("gateway", ["apimall", "defapi"])
@pytest.mark.parametrize("pruned", ["first", "all"])
async def test_row_bought_again_after_a_change_is_found_after_its_jobs_were_pruned(
    batch: Command, gateway: str, pruned: str
) -> None:
    async with emulated(batch, gateway) as emulator:
        await batch(batch.write("a.csv", "key,prompt", "gate,a red gate", "cat,a cat"))
        first = {batch.lines()["a red gate"]["job_key"]}
        await batch(batch.write("a.csv", "key,prompt", "gate,a blue gate", "cat,a cat"), "--buy-changed")
        before, lines = requests(emulator), batch.lines()
        prune(batch, first if pruned == "first" else None)
        assert (await batch("a.csv", "--dry-run")).out.splitlines()[:3] == ["rows\t2", "finished\t2", "to buy\t0"]
        for _ in range(2):
            said = await batch("a.csv")
            assert (said.code, requests(emulator)) == (0, before)
            assert "2 rows had ended before: 2 succeeded" in said.err
            assert "left the file" not in said.err
            assert batch.lines() == lines
        if pruned == "first":  # the ledger alone has it
            (batch.out / "results.jsonl").unlink()
            assert (await batch("a.csv")).code == 0
            assert requests(emulator) == before
            assert batch.lines()["a blue gate"]["images"] == ["images/gate-2.png"]


@pytest.mark.parametrize(("gateway", "setting"), [("apimall", "aspect_ratio"), ("defapi", "images")])
async def test_row_that_changed_after_its_job_was_pruned_is_bought_only_on_request(
    batch: Command, gateway: str, setting: str
) -> None:
    was, now = ("1:1", "3:4") if gateway == "apimall" else ("https://a.example/1.png", "https://a.example/2.png")
    async with emulated(batch, gateway) as emulator:
        await batch(batch.write("a.csv", f"key,prompt,{setting}", f"gate,a red gate,{was}", "cat,a cat,"))
        for edited, name in (f"gate,a red gate,{now}", setting), (f"gate,a blue gate,{now}", "prompt"):
            before, bought = requests(emulator), emulator.stats().creates_accepted
            prune(batch)
            batch.write("a.csv", f"key,prompt,{setting}", edited, "cat,a cat,")
            for _ in range(2):
                said = await batch("a.csv")
                assert (said.code, requests(emulator)) == (1, before)
                line = batch.lines()["a red gate"]  # what was bought
                assert (line["status"], line["changed"], bool(line["images"])) == ("succeeded", [name], True)
                assert line["error"].startswith("the row with key gate has changed since it was bought")
            assert "changed\t1" in (await batch("a.csv", "--dry-run")).out
            assert (await batch("a.csv", "--buy-changed")).code == 0
            assert emulator.stats().creates_accepted == bought + 1
            assert batch.statuses() == {"succeeded": 2}
        assert len(batch.lines()["a blue gate"]["earlier_images"]) == 2


def prune(batch: Command, keys: Collection[str] | None = None) -> None:
    """Delete the jobs with these keys, by default all, as `jobs prune` deletes what has ended."""
    with closing(sqlite3.connect(batch.out / "jobs.sqlite")) as ledger, ledger:
        for (key,) in ledger.execute("SELECT key FROM jobs").fetchall():
            if keys is None or key in keys:
                ledger.execute("DELETE FROM jobs WHERE key = ?", (key,))

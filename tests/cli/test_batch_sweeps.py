"""`nanobanana batch --prompt`: the rows are those of a sweep."""

import asyncio
import io
import json
import sys

import pytest

from nanobanana_async.cli import app as cli
from tests.cli.batches import Command, emulated
from tests.cli.test_batch_dry_run import facts
from tests.support.command import TerminalStream
from tests.support.lazy import lazy

openpyxl = lazy("openpyxl")

SHOP = ("--vary", "product=mug,lamp,chair,pot", "--vary", "style=oil,ink,wood", "--aspect-ratio", "1:1,16:9")
TEMPLATE = "--prompt=a {product} in {style}"


def prompts(batch: Command) -> list[str]:
    return sorted(batch.lines())


@pytest.mark.slow
async def test_sweep_of_3_by_4_by_2_is_24_rows_named_by_its_variables(batch: Command) -> None:
    async with emulated(batch) as emulator:
        seen = facts(await batch(TEMPLATE, *SHOP, "--dry-run"))
        assert (seen["rows"], seen["to buy"], seen["credits"]) == ("24", "24", "about 192 (estimate)")
        assert seen["aspect_ratio"].endswith("field aspect_ratio sets it in 24 of 24 rows: 1:1, 16:9")
        assert [*emulator.jobs()] == []
        said = await batch(TEMPLATE, *SHOP)
        assert said.code == 0
        assert "product (4) x style (3) x aspect_ratio (2): 24 rows" in said.err
        assert len([*emulator.jobs()]) == 24
    names = {path.stem for path in (batch.out / "images").glob("*.png")}
    assert names == {
        f"{product}-{style}-{ratio}"
        for product in ("mug", "lamp", "chair", "pot")
        for style in ("oil", "ink", "wood")
        for ratio in ("1_1", "16_9")
    }
    page = (batch.out / "index.html").read_text(encoding="utf-8")
    assert '<select class="filter" data-name="style"' in page
    assert "<h1><bdi>a {product} in {style}</bdi></h1>" in page


@pytest.mark.slow
async def test_only_rows_of_an_added_value_are_bought(batch: Command) -> None:
    async with emulated(batch) as emulator:
        await batch(TEMPLATE, "--vary", "product=mug,pot", "--vary", "style=oil,ink")
        more = await batch(TEMPLATE, "--vary", "product=mug,lamp,pot", "--vary", "style=oil,ink")
        assert (more.code, "48 credits spent; 32 of them before this run\n" in more.err) == (0, True)
        assert sorted(job.prompt for job in emulator.jobs()) == prompts(batch)
        assert len(prompts(batch)) == 6
        assert (await batch(TEMPLATE, "--vary", "product=mug,pot,lamp", "--vary", "style=ink,oil")).code == 0
        assert len([*emulator.jobs()]) == 6


@pytest.mark.slow
async def test_edited_template_needs_the_name_and_consent(batch: Command) -> None:
    vary = ("--vary", "product=mug", "--vary", "style=oil")
    async with emulated(batch) as emulator:
        await batch(TEMPLATE, *vary)
        other = "--prompt=one {product} in {style}"
        assert "holds the batch 'a-product-in-style-" in (await batch(other, *vary)).err
        name = json.loads((batch.out / ".nanobanana-batch").read_text(encoding="utf-8"))["batch"]
        said = await batch(other, *vary, "--name", name)
        assert said.code == 2
        assert "prompt was 'a mug in oil' and is 'one mug in oil'" in said.err
        assert (await batch(other, *vary, "--name", name, "--buy-changed")).code == 0
        assert [job.prompt for job in emulator.jobs()] == ["a mug in oil", "one mug in oil"]


@pytest.mark.slow
async def test_rows_of_a_table_go_together(batch: Command) -> None:
    batch.write("shop.csv", "Product;Num Images;Shelf;extra.seed", "mug;2;A;7", "", "lamp;;B;")
    async with emulated(batch, extra_fields=True) as emulator:
        said = await batch("--prompt=a {Product} in {style}", "--vary-file", "shop.csv", "--vary", "style=oil,ink")
        assert said.code == 0
        assert sorted(job.prompt for job in emulator.jobs()) == [
            "a lamp in ink",
            "a lamp in oil",
            "a mug in ink",
            "a mug in oil",
        ]
    line = batch.lines()["a mug in ink"]
    assert line["metadata"]["Shelf"] == "A"
    assert line["settings"]["extra"] == {"seed": 7}
    assert {prompt: len(found["images"]) for prompt, found in batch.lines().items()} == {
        "a mug in oil": 2,
        "a mug in ink": 2,
        "a lamp in oil": 1,
        "a lamp in ink": 1,
    }


async def test_reference_images_start_at_the_folder_of_the_table(batch: Command) -> None:
    pixel = b"\x89PNG\r\n\x1a\n" + b"0" * 64
    (batch.folder / "photos").mkdir()
    for name in ("mug", "lamp"):
        (batch.folder / "photos" / f"{name}.png").write_bytes(pixel + name.encode())
    sheet = openpyxl.Workbook()
    for row in (["image", "key"], ["mug.png", "M"], ["lamp.png", "L"]):
        sheet.active.append(row)
    sheet.save(batch.folder / "photos/shop.xlsx")
    found = facts(
        await batch("--prompt=in {style}", "--vary-file", "photos/shop.xlsx", "--vary", "style=oil", "--dry-run")
    )
    assert (found["rows"], found["local images"]) == ("2", "2")


async def test_values_with_commas_are_quoted_or_lines_of_a_file(batch: Command) -> None:
    batch.write("styles.txt", "oil, thick", "", "ink")
    async with emulated(batch):
        await batch("--prompt=a {pet} in {style}", "--vary", 'pet="a fox, red", owl', "--vary", "style=@styles.txt")
    assert prompts(batch) == sorted(
        f"a {pet} in {style}" for pet in ("a fox, red", "owl") for style in ("oil, thick", "ink")
    )


async def test_column_extra_of_a_table_is_json(batch: Command) -> None:
    batch.write("pets.csv", "pet,extra", 'fox,"{""seed"": 7}"')
    seen = facts(await batch("--prompt=a {pet}", "--vary-file", "pets.csv", "--dry-run"))
    assert seen["rows"] == "1"


async def test_order_of_the_lists_buys_nothing_again(batch: Command) -> None:
    lists = ("--vary", "product=mug", "--vary", "style=oil,ink")
    async with emulated(batch) as emulator:
        await batch(TEMPLATE, *lists)
        assert (await batch(TEMPLATE, *lists[2:], *lists[:2])).code == 0
        assert len([*emulator.jobs()]) == 2


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("foxes.txt", "--prompt", "a {x}"), "pass a FILE or --prompt, not both"),
        (("foxes.txt", "--vary", "x=a"), "--vary and --vary-file are for a sweep: pass --prompt"),
        (("foxes.txt", "--aspect-ratio", "1:1,16:9"), "--aspect-ratio 1:1,16:9: several values are for a sweep"),
        (("foxes.txt", "--resolution", "1K,2K"), "--resolution 1K,2K: several values are for a sweep"),
        (("--name=x",), "name a FILE of rows, or pass --prompt"),
        (("--prompt=a fox",), "nothing varies: pass --vary style=oil,ink"),
        (("--prompt=a {x}", "--vary", "x"), "write NAME=VALUE,VALUE"),
        (("--prompt=a {x}", "--vary", "x=a,"), "x, value 2: it is empty"),
        (("--prompt=a {x}", "--vary", 'x="a'), "quote a value with commas"),
        (("--prompt=a {x}", "--vary", "x=@gone.txt"), "gone.txt can't be read"),
        (("--prompt=a {x}", "--vary-file", "foxes.txt"), "name a table with a header"),
        (("--prompt=a {x}", "--vary-file", "prompts.csv"), "prompt can't vary"),
        (("--prompt=a {x}", "--vary-file", "twice.csv"), "two columns are x"),
        (("--prompt=a {x}", "--vary-file", "wide.csv"), "wide.csv, row 2: 2 cells, but the header has 1"),
        (("--prompt=a {x}", "--vary-file", "empty.csv"), "empty.csv is empty"),
        (("--prompt=a {x}", "--vary-file", "hidden.csv"), "hidden.csv: in a sweep the column metadata.num_images"),
        (("--prompt=a {x}", "--vary-file", "metadata.csv"), "metadata.csv: in a sweep the column metadata would"),
        (("--prompt=a {x}", "--vary-file", "extra.csv"), "extra.csv, row 2: extra must be a JSON object"),
        (("--prompt=a {x}", "--vary", "x=a", "--resolution", "2K,9K"), "resolution, value 2"),
        (("--prompt=a {x}", "--vary", "x=a", "--vary", "resolution=1K", "--resolution", "2K"), "in one of them"),
        (("--prompt=a {x}", "--vary", "x=a", "--format", "csv"), "--format is for a FILE"),
        (("--prompt=a {x}", "--vary", "x=a", "--name", " "), "--name is empty"),
    ],
)
async def test_wrong_sweep_buys_nothing(arguments: tuple[str, ...], why: str, batch: Command) -> None:
    batch.prompts(1)
    batch.write("prompts.csv", "x,prompt", "a,b")
    batch.write("twice.csv", "x,x", "a,b")
    batch.write("wide.csv", "x", "a,b")
    batch.write("empty.csv", "", "")
    batch.write("hidden.csv", "x,metadata.num_images", "a,6")
    batch.write("metadata.csv", "x,metadata", "a,b")
    batch.write("extra.csv", "x,extra", "a,[1")
    async with emulated(batch) as emulator:
        said = await batch(arguments[0], *arguments[1:])
        assert (said.code, [*emulator.jobs()]) == (2, [])
        assert why in said.complaint


@pytest.mark.slow
async def test_more_than_100_rows_need_consent(batch: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    many = ("--prompt=number {n}", "--vary", f"n={','.join(map(str, range(101)))}")
    async with emulated(batch, job_limit=100) as emulator:
        said = await batch(*many)
        assert said.code == 2
        assert "This sweep has 101 rows, about 808 credits (estimate); what was" in said.err
        assert "pass --yes" in said.err
        for answer in ("n\n", ""):
            monkeypatch.setattr(sys, "stdin", TerminalStream(answer))
            assert await asyncio.to_thread(cli.run, ["batch", *many, "-o", "out"]) == 2
        assert [*emulator.jobs()] == []
        assert facts(await batch(*many, "--dry-run"))["rows"] == "101"
        monkeypatch.setattr(sys, "stdin", TerminalStream("y\n"))
        assert await asyncio.to_thread(cli.run, ["batch", *many, "-o", "out"]) == 0
        monkeypatch.setattr(sys, "stdin", io.StringIO())
        assert (await batch(*many, "--yes")).code == 0
        assert len([*emulator.jobs()]) == 101


MANY = "--vary=product=" + ",".join(f"mug {number}" for number in range(101))


async def test_a_sweep_that_cannot_run_is_refused_without_a_question(batch: Command) -> None:
    (batch.folder / "fox.png").write_text("a file")
    async with emulated(batch):
        said = await batch("--prompt=a {product}", MANY, folder="fox.png", stdin=b"n\n", terminal=True)
        assert (said.code, "Continue?" in said.err) == (2, False)
        assert "fox.png can't be written: something else has this name" in said.err
        said = await batch("--prompt=a {product}", MANY, stdin=b"n\n", terminal=True)
        assert (said.code, "Continue?" in said.err, batch.out.exists()) == (2, True, False)

"""Rows without a key that were edited since they were bought: nothing is bought again without a word."""

import pytest

from tests.cli.batch_kills import lines_of
from tests.cli.batches import Command, emulated

pytestmark = pytest.mark.slow

SENTENCE = (
    "nanobanana: 5 rows were bought with other settings (aspect_ratio): --buy-changed buys them with the new ones,"
    " the old command leaves them as they are (lines 1, 2, 3 and 2 more)"
)


async def test_another_option_stops_before_rows_are_bought_again(batch: Command) -> None:
    async with emulated(batch) as emulator:
        file = batch.prompts(5)
        assert (await batch(file)).code == 0
        results, page = (batch.out / "results.jsonl").read_bytes(), (batch.out / "index.html").read_bytes()
        said = await batch(file, "--aspect-ratio", "16:9")
        assert (said.code, said.complaint) == (2, SENTENCE)
        dry = await batch(file, "--aspect-ratio", "16:9", "--dry-run")
        assert (dry.code, SENTENCE in dry.err) == (0, True)
        assert dry.out.splitlines()[:4] == ["rows\t5", "changed\t5", "to buy\t0", "credits\t0"]
        assert emulator.stats().creates_received == 5
        assert (batch.out / "results.jsonl").read_bytes() == results
        assert (batch.out / "index.html").read_bytes() == page

        consent = ("--aspect-ratio", "16:9", "--buy-changed")
        assert "to buy\t5" in (await batch(file, *consent, "--dry-run")).out
        assert (await batch(file, *consent)).code == 0
        assert (await batch(file, "--aspect-ratio", "16:9")).code == 0  # they are bought now
        assert (await batch(file)).code == 0  # and these still are
        assert emulator.stats().creates_accepted == 10


async def test_edited_setting_in_a_table_stops_and_names_the_row(batch: Command) -> None:
    async with emulated(batch) as emulator:
        await batch(batch.write("a.csv", "prompt,resolution,num_images", "a fox,1K,1", "a lynx,1K,1"))
        table = batch.write("a.csv", "prompt,resolution,num_images", "an owl,1K,1", "a fox,1K,1", "a lynx,2K,2")
        said = await batch(table)
        assert said.code == 2
        assert said.complaint == (
            "nanobanana: 1 row was bought with other settings (num_images, resolution): --buy-changed buys it with the"
            " new ones, the old command leaves it as it is (row 4)"
        )
        dry = await batch(table, "--dry-run")
        assert dry.out.splitlines()[:4] == ["rows\t3", "finished\t1", "changed\t1", "to buy\t1"]
        assert emulator.stats().creates_received == 2


async def test_keys_added_to_bought_rows_are_a_change(batch: Command) -> None:
    async with emulated(batch) as emulator:
        await batch(batch.write("a.csv", "prompt", "a fox", "a lynx"))
        said = await batch(batch.write("a.csv", "prompt,key", "a fox,1", "a lynx,2"))
        assert (said.code, "2 rows were bought with other settings (key)" in said.err) == (2, True)
        assert emulator.stats().creates_received == 2


async def test_row_with_another_key_is_another_row(batch: Command) -> None:
    async with emulated(batch) as emulator:
        await batch(batch.write("a.csv", "prompt,key", "a fox,1"))
        assert (await batch(batch.write("a.csv", "prompt,key", "a fox,2"))).code == 0
        assert emulator.stats().creates_accepted == 2


async def test_failed_row_may_be_edited(batch: Command) -> None:
    async with emulated(batch, failure_probability=1.0) as emulator:
        assert (await batch(batch.prompts(1))).code == 1
        await batch("foxes.txt", "--resolution", "2K")
        assert emulator.stats().creates_accepted == 2


async def test_edited_prompt_is_noted_before_it_is_bought(batch: Command) -> None:
    note = "foxes.txt: line 2 was 'a fox 1' when it was bought: it has another prompt now, and is a new row"
    async with emulated(batch):
        await batch(batch.prompts(3))
        file = batch.write("foxes.txt", "a fox 0", "a FOX 1", "a fox 2", "a fox 3")
        dry = await batch(file, "--dry-run")
        assert (note in dry.err, "to buy\t2" in dry.out) == (True, True)
        said = await batch(file)
        assert (said.code, said.err.splitlines()[0]) == (0, note)
        assert len(lines_of(batch.out)) == 4
        assert note not in (await batch(file)).err


async def test_rows_that_are_added_or_moved_are_not_noted(batch: Command) -> None:
    async with emulated(batch):
        await batch(batch.prompts(3))
        said = await batch(batch.write("foxes.txt", "a lynx", "a fox 2", "a fox 0", "a fox 1"))
        assert (said.code, "when it was bought" in said.err) == (0, False)


async def test_changed_rows_keep_their_images_in_results_and_page(batch: Command) -> None:
    async with emulated(batch) as emulator:
        rows = [f"k{number},a fox {number},1K" for number in range(3)]
        await batch(batch.write("a.csv", "key,prompt,resolution", *rows))
        before = batch.lines()
        rows[1:] = ["k1,a fox 1,2K", "k2,a FOX 2,1K"]
        said = await batch(batch.write("a.csv", "key,prompt,resolution", *rows))
        assert (said.code, emulator.stats().creates_received) == (1, 3)
        assert (
            "rows 3 and 4 have changed since they were bought (resolution, prompt): --buy-changed buys them again and"
            " keeps the images of before; to buy one as another row, give it another key\n" in said.err
        )
        lines = batch.lines()
        for name in ("status", "images", "sha256", "settings", "credits"):
            assert {prompt: line[name] for prompt, line in lines.items()} == {
                prompt: line[name] for prompt, line in before.items()
            }
        assert [lines[f"a fox {number}"]["changed"] for number in range(3)] == [[], ["resolution"], ["prompt"]]
        assert "k1 has changed since it was bought: resolution was '1K' and is '2K'" in lines["a fox 1"]["error"]
        assert "images/k1.png" in (batch.out / "results.csv").read_text(encoding="utf-8-sig")
        page = (batch.out / "index.html").read_text()
        assert page.count("buys the changed row") == 2
        assert ("images/k1.png" in page, "Correct the row" in page) == (True, False)

        assert (await batch(batch.write("a.csv", "key,prompt,resolution", *rows[:1]))).code == 0
        rows[1:] = ["k1,a fox 1,1K", "k2,a fox 2,1K"]  # as it was
        assert (await batch(batch.write("a.csv", "key,prompt,resolution", *rows))).code == 0
        assert {prompt: (line["images"], line["error"], line["changed"]) for prompt, line in batch.lines().items()} == {
            prompt: (line["images"], None, []) for prompt, line in before.items()
        }
        assert emulator.stats().creates_received == 3


async def test_batch_whose_rows_all_changed_is_refused_and_left_as_it_is(batch: Command) -> None:
    async with emulated(batch) as emulator:
        file = batch.write("a.csv", "key,prompt", *(f"k{number},a fox {number}" for number in range(11)))
        assert (await batch(file)).code == 0
        written = [(batch.out / name).read_bytes() for name in ("results.jsonl", "results.csv", "index.html")]
        said = await batch(file, "--resolution", "2K")
        assert (said.code, said.out) == (2, "")
        assert said.err.splitlines()[-1] == (
            "nanobanana: nothing to buy: rows 2, 3, 4 and 8 more have changed since they were bought (resolution):"
            " --buy-changed buys them again and keeps the images of before; to buy one as another row, give it another"
            " key"
        )
        assert "k7" not in said.err
        assert written == [(batch.out / name).read_bytes() for name in ("results.jsonl", "results.csv", "index.html")]
        assert emulator.stats().creates_received == 11


@pytest.mark.slow
async def test_changed_rows_are_refused_without_a_question(batch: Command) -> None:
    file = batch.write("a.txt", "# animals", "a fox")
    async with emulated(batch):
        assert (await batch(file, "--yes")).code == 0
        said = await batch(file, "--resolution", "4K", stdin=b"n\n", terminal=True)
        assert (said.code, "Continue?" in said.err) == (2, False)
        assert "were bought with other settings (resolution)" in said.err
        said = await batch(file, "--resolution", "4K", "--buy-changed", stdin=b"n\n", terminal=True)
        assert (said.code, "Continue?" in said.err) == (2, True)

"""The dry run says what a run would cost, whether the cap suffices, and with which settings."""

import sys

import pytest

from nanobanana_async.cli.batch import dry_run
from tests.cli.batches import Command, emulated
from tests.cli.test_batch_tables import dry
from tests.support.command import Said


def facts(said: Said) -> dict[str, str]:
    assert said.code == 0
    return dict(line.split("\t", 1) for line in said.out.splitlines())


@pytest.mark.parametrize(
    ("cap", "what"),
    [
        ("31", "31 buys about 3 of 4 rows; 32 would buy all"),
        ("32", "32 is enough"),
        ("7.5", "7.5 buys about 0 of 4 rows; 32 would buy all"),
        ("0", "0 buys about 0 of 4 rows; 32 would buy all"),
    ],
)
async def test_cap_is_compared_with_the_cost(cap: str, what: str, batch: Command) -> None:
    assert facts(await dry(batch, batch.prompts(4), "--max-credits", cap))["max_credits"] == what


async def test_cap_counts_what_earlier_runs_used(batch: Command) -> None:
    async with emulated(batch):
        await batch(batch.write("foxes.txt", "a fox 0", "a fox 1"))
        file = batch.prompts(4)
        short = facts(await batch(file, "--dry-run", "--max-credits", "24"))
        assert (short["finished"], short["to buy"], short["credits"]) == ("2", "2", "about 16")
        assert short["max_credits"] == "24 buys about 1 of 2 rows, since earlier runs used 16; 32 would buy all"
        enough = facts(await batch(file, "--dry-run", "--max-credits", "32"))["max_credits"]
        assert enough == "32 is enough, although earlier runs used 16"
        assert "max_credits" not in facts(await batch(file, "--dry-run"))
        assert (await batch(file, "--max-credits", "24")).code == 3
        assert (await batch(file, "--max-credits", "32")).code == 0  # as it said


async def test_settings_of_all_rows_are_shown(batch: Command) -> None:
    found = facts(await dry(batch, batch.prompts(2), "--aspect-ratio", "16:9", "--resolution", "2k"))
    assert {name: found[name] for name in ("model", "num_images", "aspect_ratio", "resolution", "output_format")} == {
        "model": "nano-banana-pro",
        "num_images": "1",
        "aspect_ratio": "16:9",
        "resolution": "2K",
        "output_format": "the gateway's default",
    }


async def test_columns_that_set_another_value_are_shown(batch: Command) -> None:
    rows = [
        "prompt,Aspect Ratio,images,num_images",
        *(f"fox {n},{n + 1}:9,https://x.example/{n},{n}" for n in (1, 2, 3, 4)),
    ]
    table = batch.write("a.csv", *rows, "an owl,,,")
    found = facts(await dry(batch, table, "--num-images", "6"))
    assert found["aspect_ratio"] == (
        "the gateway's default; column aspect_ratio sets it in 4 of 5 rows: 2:9, 3:9, 4:9, ..."
    )
    assert found["num_images"] == "6; column num_images sets it in 4 of 5 rows: 1, 2, 3, ..."
    assert found["images"] == "none; column images sets it in 4 of 5 rows"
    lines = batch.write("a.jsonl", '{"prompt": "a", "model": "other"}')
    assert facts(await dry(batch, lines))["model"] == "nano-banana-pro; field model sets it in 1 of 1 row: other"


async def test_extra_values_are_among_the_settings(batch: Command) -> None:
    table = batch.write("a.csv", "prompt,extra.seed,extra.quality", "a fox,7,", "an owl,,high", "a lynx,,")
    found = facts(await dry(batch, table, "--extra", "seed=1"))
    assert found["extra"] == '{"seed":1}; column extra sets it in 2 of 3 rows: {"seed":7}, {"quality":"high","seed":1}'


@pytest.mark.parametrize(
    ("options", "title", "cost"),
    [((), "API Mall", "about 16 (estimate)"), (("--gateway", "defapi"), "defapi", "about 1 (estimate)")],
)
async def test_dry_run_without_a_key_has_the_estimate(
    options: tuple[str, ...], title: str, cost: str, batch: Command
) -> None:
    said = await batch(batch.prompts(2), "--dry-run", *options)
    found = facts(said)
    assert (found["rows"], found["to buy"], found["credits"]) == ("2", "2", cost)
    assert "balance" not in found
    assert said.complaint == (f"nanobanana: no API key is set: the estimate is for {title}, and the balance is unknown")
    assert not batch.out.exists()


async def test_dry_run_without_a_key_reads_what_the_folder_has_bought(batch: Command) -> None:
    async with emulated(batch, "defapi"):
        assert (await batch(batch.write("foxes.txt", "a fox 0", "a fox 1"))).code == 0
    for name in ("APIMALL_API_KEY", "DEFAPI_API_KEY", "NANOBANANA_GATEWAY"):
        batch.patch.delenv(name)
    said = await batch(batch.prompts(3), "--dry-run")
    assert {name: facts(said)[name] for name in ("finished", "to buy")} == {"finished": "2", "to buy": "1"}
    assert "for defapi" in said.complaint
    assert (await batch(batch.prompts(3))).code == 2  # a run needs the key


@pytest.mark.parametrize(("terminal", "shown"), [(True, "num_images      1\n"), (False, "num_images\t1\n")])
def test_facts_are_columns_on_a_terminal(
    terminal: bool, shown: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    dry_run._show("num_images", 1)
    assert capsys.readouterr().out == shown

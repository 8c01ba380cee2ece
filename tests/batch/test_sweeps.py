"""A sweep: each value of a template with each other one, checked before anything is bought."""

import itertools
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from nanobanana_async import ConfigurationError, Session, SqliteLedger, sweep
from nanobanana_async.batch import sweep_values
from nanobanana_async.emulator import Emulator, Fixed
from tests.support.lazy import lazy
from tests.support.rows import each_row

pandas, polars = lazy("pandas"), lazy("polars")

any_sweep: Any = sweep  # also for arguments that its types refuse

STYLES, PRODUCTS = ["oil", "ink", "low-poly"], ["mug", "lamp", "chair", "tea pot"]


def test_last_list_varies_fastest() -> None:
    rows = [*sweep("a {product} in {style}", product=["mug", "lamp"], style=["oil", "ink"])]
    assert rows == [
        {
            "prompt": f"a {product} in {style}",
            "key": f"{product}-{style}",
            "metadata": {"product": product, "style": style},
        }
        for product, style in itertools.product(["mug", "lamp"], ["oil", "ink"])
    ]


def test_fields_are_crossed_and_stay_out_of_the_prompt() -> None:
    rows = [*sweep("a fox", aspect_ratio=["1:1", "16:09"], resolution=["2k"], **{"extra.seed": [1]})]
    assert [(row["prompt"], row["aspect_ratio"], row["resolution"], row["extra"]) for row in rows] == [
        ("a fox", "1:1", "2K", {"seed": 1}),
        ("a fox", "16:9", "2K", {"seed": 1}),
    ]
    assert [row["key"] for row in rows] == ["1:1-2K-1", "16:9-2K-1"]


def test_fields_stand_in_the_prompt_where_it_names_them() -> None:
    rows = sweep("{num_images} foxes, {aspect_ratio}", num_images=["2", 3.0], aspect_ratio=["1:1"])
    assert [(row["prompt"], row["num_images"]) for row in rows] == [("2 foxes, 1:1", 2), ("3 foxes, 1:1", 3)]


def test_rows_go_together_and_keep_what_the_prompt_does_not_name() -> None:
    products: list[dict[str, Any]] = [
        {"product": "mug", "image": "https://x.example/mug.png", "shelf": 7},
        {"product": "lamp", "image": None, "shelf": float("nan"), "key": "L-1"},
    ]
    found = [*sweep("{product}, {style}", products, style=["oil", "ink"])]
    assert [row["prompt"] for row in found] == ["mug, oil", "mug, ink", "lamp, oil", "lamp, ink"]
    assert [row["key"] for row in found] == ["mug-oil", "mug-ink", "L--1-oil", "L--1-ink"]
    assert found[0]["images"] == ("https://x.example/mug.png",)
    assert found[0]["metadata"] == {"product": "mug", "image": "mug", "shelf": 7, "style": "oil"}
    assert found[2]["metadata"] == {"product": "lamp", "style": "oil"}


def test_edited_field_of_a_named_row_keeps_its_key() -> None:
    (before,), (after,) = (sweep("{x}", [{"x": "mug", "resolution": size, "image": None}]) for size in (None, "2K"))
    assert (before["key"], after["key"]) == ("mug", "mug")
    fields = [{"resolution": "1K", "model": "a"}, {"resolution": "1K", "model": "b"}]
    assert [row["key"] for row in sweep("a fox", fields)] == ["1K-a", "1K-b"]
    images = [{"image": f"https://x.example/{name}.png?v=1"} for name in ("mug", "lamp")]
    assert [row["key"] for row in sweep("a photo", images)] == ["mug", "lamp"]


def test_values_of_many_kinds_become_text() -> None:
    values: list[Any] = ["a", 1, 2.5, Fraction(1, 4), *polars.Series([7]), *pandas.Series([8])]
    assert [row["prompt"] for row in sweep("{x}", x=iter(values))] == ["a", "1", "2.5", "0.25", "7", "8"]


def test_doubled_braces_are_braces() -> None:
    assert [row["prompt"] for row in sweep("{{x}} {x} }}", x=["a"])] == ["{x} a }"]


def test_different_values_have_different_keys() -> None:
    odd = ["a", "a-", "-a", "a--", "a b", "a\nb", "a" * 80, "a" * 81, "b-a", "~", "ä"]
    rows = [*sweep("{x}{y}{z}", x=odd, y=odd, z=odd)]
    assert len({row["key"] for row in rows}) == len(rows) == 11**3
    assert all(row["key"].isprintable() and len(row["key"]) <= 255 for row in rows)


def test_a_value_in_the_middle_moves_no_key() -> None:
    before = {row["key"]: row["prompt"] for row in sweep("{x} {y}", x=["a", "c"], y=["1"])}
    after = {row["key"]: row["prompt"] for row in sweep("{x} {y}", x=["a", "b", "c"], y=["0", "1"])}
    assert before.items() <= after.items()
    assert len(after) == 6


def test_order_of_lists_and_columns_moves_no_key() -> None:
    def found(*rows: Any, **values: Any) -> dict[str, str]:
        return {row["key"]: row["prompt"] for row in any_sweep("a {pet} in {style}", *rows, **values)}

    one = found(pet=["fox", "owl"], style=["oil"], resolution=["1K"], aspect_ratio=["1:1"])
    assert one == found(aspect_ratio=["1:1"], resolution=["1K"], style=["oil"], pet=["owl", "fox"])
    assert list(one) == ["fox-oil-1:1-1K", "owl-oil-1:1-1K"]
    assert found([{"style": "oil", "pet": "fox"}]) == found([{"pet": "fox", "style": "oil"}])
    with_key = [*any_sweep("a {pet} in {style}", style=["oil"], **{"extra.seed": [1]}, pet=["fox"])]
    assert [row["key"] for row in with_key] == ["fox-oil-1"]
    own = [*sweep("a {pet} in {style}", [{"style": "oil", "key": "K"}], pet=["fox"])]
    assert [row["key"] for row in own] == ["fox-K"]


def test_missing_image_is_a_part_of_the_key() -> None:
    images = [None, "https://x.example/c.png"]
    rows = [*sweep("{pet} {style}", pet=["mug", "mug-P"], image=images, style=["P-R", "R"])]
    assert len({row["key"] for row in rows}) == len(rows) == 8


def test_ten_million_rows_are_made_one_by_one() -> None:
    rows = sweep("{a}{b}{c}", a=range(1000), b=range(1000), c=range(10))
    assert len(rows) == 10_000_000
    assert [row["prompt"] for row in itertools.islice(rows, 2)] == ["000", "001"]
    assert repr(rows) == "<Sweep a (1000) x b (1000) x c (10)>"


@each_row("written", ["{x.__class__}", "{x[0]}", "{x!r}", "{x:>9}", "{}", "{0}", "{x", "x}"])
def test_only_plain_names_stand_in_braces(written: str) -> None:
    with pytest.raises(ConfigurationError, match="brace"):
        sweep(f"a {written}", x=["fox"])


@each_row(
    ("make", "why"),
    [
        (lambda: any_sweep("a {styl}", style=["oil"]), r"\{styl\}, which has no values: did you mean style\?"),
        (lambda: any_sweep("a {x} {y}"), "nothing varies"),
        (lambda: any_sweep("a {x} {y}", z=["a"]), r"\{x\}, \{y\}, which has no values: pass a list"),
        (
            lambda: any_sweep("a {x}", x=["a"], take=[1, 2]),
            "take is not in the template, .* bought again and again: write .take. into it, or .*num_images",
        ),
        (lambda: any_sweep("a {x}", x=["a"], aspect_ration=["1:1"]), r"did you mean aspect_ratio\?"),
        (lambda: any_sweep("a {x}", [{"y": 1, "z": 2}], x=["a"]), "y and z are not in the template"),
        (lambda: any_sweep("a {x}", x="oil"), r"x must be a list, not one text: pass \['oil'\]"),
        (lambda: any_sweep("a fox", resolution="2K"), r"resolution must be a list, .* pass \['2K'\]"),
        (lambda: any_sweep("a {x}", x=3), r"x must be a list, not 3: pass \[3\]"),
        (lambda: any_sweep("a {x}", x={"a": 1}), "x must be a list"),
        (lambda: any_sweep("a {x}", x={"a", "b"}), "a set has no order"),
        (lambda: any_sweep("a {x}", x=[]), "x is an empty list"),
        (lambda: any_sweep("a {x}", [], x=["a"]), "rows is an empty list"),
        (lambda: any_sweep("a {x}", x=["a", "b", "a"]), "x: values 1 and 3 are both 'a', and would be bought twice"),
        (lambda: any_sweep("a {x}", x=["1", 1]), "values 1 and 2 are both '1'"),
        (lambda: any_sweep("a", resolution=["2K", "2k"]), "resolution: values 1 and 2 are both '2K'"),
        (lambda: any_sweep("a", resolution=["1K", "3K"]), "resolution, value 2: resolution must be one of 1K, 2K, 4K"),
        (lambda: any_sweep("a", num_images=[True]), "num_images, value 1: .* whole number"),
        (lambda: any_sweep("a {x}", x=["a", " "]), "x, value 2: it is empty"),
        (lambda: any_sweep("a {x}", x=[None]), "x, value 1: it is empty"),
        (lambda: any_sweep("a {x}", x=[True]), "x, value 1: must be text or a number, not True"),
        (lambda: any_sweep("a {x}", x=[["a"]]), "must be text or a number"),
        (lambda: any_sweep("a {x}", x=[10**5000]), "x, value 1: the number has more than 100 digits"),
        (
            lambda: any_sweep("in {image}", image=[b"bytes"]),
            "image, value 1: image is in the template, and has no name",
        ),
        (lambda: any_sweep("in {image}", image=[None]), "image, value 1: image is in the template, and has no name"),
        (
            lambda: any_sweep("a", image=["https://x.example/a/x.png", "https://x.example/b/x.png"]),
            "image: values 1 and 2 are different and both named 'x', .* pass rows with a key",
        ),
        (lambda: any_sweep("a", **{"extra.seed": [1, "1"]}), "values 1 and 2 are different and both named '1'"),
        (
            lambda: any_sweep("{a}{b}{c}{d}", **{name: range(1000) for name in "abcd"}),
            "1,000,000,000,000 rows are more than",
        ),
        (lambda: any_sweep("a {x}", x=[float("inf")]), "must be text or a number"),
        (
            lambda: any_sweep("a {aspect_ratio}", aspect_ratio=[None]),
            "aspect_ratio is in the template, and has no value",
        ),
        (lambda: any_sweep("a {x}", ["mug"]), "row 1 must be a mapping"),
        (lambda: any_sweep("a {x}", {"x": "mug"}), "rows must be a list"),
        (lambda: any_sweep("a {x}", [{"x": 1}, {"x": None, "y": 1}]), "row 2 has no x"),
        (lambda: any_sweep("a {x}", [{"x": "a"}], x=["b"]), "x is given twice"),
        (
            lambda: any_sweep("{x}", [{"x": "a", "image": f"https://x.example/{n}"} for n in (1, 2)]),
            "give each row a key",
        ),
        (lambda: any_sweep("a", images=["https://x.example/1.png"]), "images, value 1: must be a list"),
        (lambda: any_sweep("a", image=["fox.png"]), "image, value 1: images.0. "),
        (lambda: any_sweep("a", image=[], images=[]), "image is an empty list"),
        (lambda: any_sweep("a", **{"extra.seed": [[1]]}), "extra.seed, value 1: must be text or a number"),
        (lambda: any_sweep("a {x}", x=["a"], prompt=["b"]), "prompt can't vary"),
        (lambda: any_sweep("a {x}", x=["a"], extra=[{"seed": 1}]), "such as extra.seed"),
        (lambda: any_sweep("a {x}", x=["a"], key=["b"]), "key can't vary alone"),
        (lambda: any_sweep(" ", x=["a"]), "the template must be text"),
        (lambda: any_sweep("{x}", pandas.DataFrame({"x": ["a"]})), r"\.to_dict\('records'\)"),
        (lambda: any_sweep("{x}", polars.DataFrame({"x": ["a"]})), r"\.to_dicts\(\)"),
    ],
)
def test_what_would_waste_money_is_refused(make: Callable[[], object], why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        make()


def test_endless_generator_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_values, "MOST_VALUES", 1000)
    assert len(sweep("a {x}", x=range(1000))) == 1000
    with pytest.raises(ConfigurationError, match="x has more than 1,000 values"):
        sweep("a {x}", x=itertools.count())


@pytest.mark.slow
async def test_sweep_of_3_by_4_by_2_is_24_rows_named_by_its_variables(tmp_path: Path) -> None:
    rows = sweep("a {product} in {style}", product=PRODUCTS, style=STYLES, aspect_ratio=["1:1", "16:9"])
    assert len(rows) == 24
    async with Emulator(duration=Fixed(0.05), image_scale=0.05) as emulator:
        for _ in range(2):  # the second time nothing is bought
            async with Session(emulator.apimall(), ledger=SqliteLedger(tmp_path / "jobs.sqlite")) as session:
                batch = session.generate_many(rows, batch="catalogue", save_to=tmp_path / "images")
                outcomes = [outcome async for outcome in batch]
            assert [outcome.error for outcome in outcomes if not outcome.ok] == []
        assert len([*emulator.jobs()]) == 24
    saved = {path.stem for path in (tmp_path / "images").glob("*.png")}
    assert saved == {
        f"{product.replace(' ', '_')}-{style.replace('-', '--')}-{ratio}"
        for product in PRODUCTS
        for style in STYLES
        for ratio in ("1_1", "16_9")
    }


@pytest.mark.slow
async def test_two_sweeps_with_equal_values_share_a_session(tmp_path: Path) -> None:
    async with Emulator(duration=Fixed(0.05), image_scale=0.05) as emulator, Session(emulator.apimall()) as session:
        for template in ("a {x}", "the {x}", "the {x}"):
            batch = session.generate_many(sweep(template, x=["fox", "owl"]), save_to=tmp_path / template)
            assert all([outcome.ok async for outcome in batch])
            assert {path.name for path in (tmp_path / template).glob("*.png")} >= {"fox.png", "owl.png"}
        assert len([*emulator.jobs()]) == 6

"""The gallery is filtered by the values that rows have in common."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanobanana_async.report import write_report
from nanobanana_async.report.filters import Filters
from tests.support.reports import paint_images, row

pytest.importorskip("playwright.sync_api", reason="Playwright is missing: pip install playwright")

from playwright.sync_api import Page, expect

from tests.support.browsing import Visit, shown
from tests.support.rows import each_row

HOSTILE = '"><script>window.pwned = 1</script>'
SWEEP = [
    row(
        number,
        prompt=f"a {product} in {style}",
        settings={"aspect_ratio": ratio},
        metadata={"product": product, "style": style, "aspect_ratio": ratio, "sku": f"S-{number}"},
    )
    for number, (product, style, ratio) in enumerate(
        itertools.product(("mug", "lamp", "chair", "pot"), ("oil", HOSTILE, "wood"), ("1:1", "16:9"))
    )
]


def offered(rows: list[object]) -> dict[str, list[str]]:
    filters = Filters()
    for number, metadata in enumerate(rows):
        filters.index_row(row(number, metadata=metadata, settings={}))
    return {each.name: each.distinct_values for each in filters.useful()}


def test_names_that_divide_the_rows_are_offered() -> None:
    rows: list[object] = [{"shelf": "AB"[n % 2], "id": n, "same": 1, "list": [n % 2], "n": n % 3} for n in range(6)]
    assert offered(rows) == {"shelf": ["A", "B"], "n": ["0", "1", "2"]}


@each_row("metadata", [None, "text", ["a"], {}, {"a": None}, {"a": " "}, {"a": "x" * 201}])
def test_other_metadata_is_no_filter(metadata: object) -> None:
    assert offered([metadata] * 3) == {}


def test_a_name_with_many_values_is_no_filter() -> None:
    assert list(offered([{"a": n % 40} for n in range(80)])) == ["a"]
    assert offered([{"a": n % 41} for n in range(82)]) == {}


def test_settings_are_filters_too() -> None:
    filters = Filters()
    for number, size in enumerate(("1K", "2K", "1K")):
        filters.index_row(row(number, settings={"resolution": size, "model": "m"}))
    assert [(each.name, each.distinct_values, each.row_counts) for each in filters.useful()] == [
        ("resolution", ["1K", "2K"], [2, 1])
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("sweep")
    paint_images(home, SWEEP, scale=0.05)
    write_report(home / "index.html", SWEEP, title="sweep")
    return home


@pytest.fixture
def visit(window: Visit, folder: Path) -> Iterator[Page]:
    window.open(folder / "index.html")
    yield window.page
    window.check_quiet(folder)


@pytest.mark.slow
def test_values_are_chosen_and_combined(visit: Page) -> None:
    assert visit.locator(".filter").evaluate_all("all => all.map(each => each.dataset.name)") == [
        "product",
        "style",
        "aspect_ratio",
    ]
    visit.get_by_label("product").select_option("product: lamp (6)")
    assert shown(visit) == [6, 7, 8, 9, 10, 11]
    visit.get_by_label("style").select_option(f"style: {HOSTILE} (8)")
    assert shown(visit) == [8, 9]
    visit.get_by_label("aspect_ratio").select_option("aspect ratio: 16:9 (12)")
    assert shown(visit) == [9]
    expect(visit.locator("#shown")).to_have_text("1 of 24 rows")
    visit.locator("#search").fill("mug")
    expect(visit.locator("#none")).to_be_visible()
    visit.locator("#search").fill("")
    visit.get_by_label("product").select_option("product: all")
    assert shown(visit) == [3, 9, 15, 21]


@pytest.mark.slow
def test_a_link_to_a_hidden_image_clears_the_filters(visit: Page) -> None:
    visit.get_by_label("product").select_option("product: lamp (6)")
    visit.evaluate("location.hash = '#row-1'")
    expect(visit.locator("dialog")).to_be_visible()
    assert len(shown(visit)) == 24
    expect(visit.get_by_label("product")).to_have_value("")


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390, 320])
def test_filters_fit_on_the_screen(visit: Page, width: int) -> None:
    visit.set_viewport_size({"width": width, "height": 844})
    assert visit.evaluate("document.documentElement.scrollWidth") <= width
    tallest = visit.evaluate("document.querySelector('.bar').getBoundingClientRect().height")
    assert tallest < 190

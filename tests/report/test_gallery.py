"""What a person does with the gallery in Chromium: find, select, enlarge, link, download."""

import re
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Literal

import pytest

from nanobanana_async.report import Advice, make_thumbnail, write_report
from tests.support.reports import made_rows, made_run, paint_images, row, without_image
from tests.support.rows import each_row

pytest.importorskip("playwright.sync_api", reason="Playwright is missing: pip install playwright")

from playwright.sync_api import Browser, Page, expect

from tests.support.browsing import Visit, opened, shown

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]  # on a busy machine, each step of the browser takes its time

ROWS = (
    row(0, prompt="Crème brûlée on a café table", metadata={"shelf": "Ærø"}),
    row(1, prompt="a harbour in fog", images=("images/summer-à-la-mer.jpg",)),
    row(2, prompt="four fjords", images=tuple(f"images/four-{part}.png" for part in range(4)), metadata="blue shelf"),
    without_image(3, "failed", "The model is sad today.", prompt="a sad lighthouse"),
    row(4, prompt="a bed of roses", job_key="abed0000", key="p05", images=("images/roses.png",)),
    without_image(5, "unfinished", prompt="a night train", sent_at=None, ended_at=None),
)
COMMAND = "nanobanana batch 'my prompts.csv' -o spring --retry-failed"
# The lowest contrast between a text and what is behind it; transparent backgrounds count as their parents'.
CONTRAST = """() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((part) => part / 255)
    .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
    .reduce((sum, part, at) => sum + part * [0.2126, 0.7152, 0.0722][at], 0);
  const behind = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const colour = rgb(getComputedStyle(one).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const text = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!text || element.closest("script, svg, .skip") || !element.checkVisibility()) continue;
    const [one, other] = [light(rgb(getComputedStyle(element).color)), light(behind(element))].sort((a, b) => b - a);
    found.push([(one + 0.05) / (other + 0.05), element.className || element.tagName]);
  }
  return found.sort((a, b) => a[0] - b[0])[0];
}"""


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves the files of a folder and logs nothing."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the base class
        """Log nothing."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with its images, two of which have thumbnails."""
    home = tmp_path_factory.mktemp("gallery")
    paint_images(home, list(ROWS), scale=0.8)
    for image in (*ROWS[0].images, *ROWS[1].images):
        assert make_thumbnail(home, image)
    write_report(
        home / "index.html",
        ROWS,
        title="spring / summer",
        run=made_run(list(made_rows(40))),
        advice=lambda row: Advice(f"{row.status}: buy it again with --retry-failed", COMMAND),
    )
    return home


@pytest.fixture
def visit(window: Visit, folder: Path) -> Iterator[Page]:
    """The report, opened from disk; checked for errors and requests after the test."""
    window.page.goto("about:blank")  # forget the address of the last test
    window.open(folder / "index.html")
    yield window.page
    window.check_quiet(folder)


@each_row(
    ("words", "found"),
    [
        ("creme BRULEE", [0]),
        ("crème brûlée", [0]),
        ("aero", [0]),
        ("blue shelf", [2]),
        ("#3", [2]),
        ("6", [5]),
        ("summer-a", [1]),
        ("SUMMER-À-LA-MER.jpg", [1]),
        ("four-3.png", [2]),
        ("mer", [1]),
        ("bed", [4]),
        ("abed", [4]),
        ("ed000", []),
    ],
)
def test_search_finds_rows_metadata_and_names_without_accents(visit: Page, words: str, found: list[int]) -> None:
    visit.locator("#search").fill("")
    expect(visit.locator("#shown")).to_have_text("6 rows")
    visit.locator("#search").fill(words)
    expect(visit.locator("#shown")).to_have_text(f"{len(found)} of 6 rows")
    assert shown(visit) == found


def test_cards_show_thumbnails_and_the_large_view_the_image(visit: Page) -> None:
    image = visit.locator("#row-2 img")
    assert image.get_attribute("src") == "./thumbnails/images/summer-%C3%A0-la-mer.jpg.webp"
    visit.wait_for_function("document.querySelector('#row-2 img').naturalWidth > 0")
    assert image.evaluate("image => image.naturalWidth") == 512
    visit.locator("#row-2 .frame a").click()
    visit.wait_for_function("document.querySelector('#large-image').naturalWidth > 512")


def test_an_image_whose_thumbnail_is_gone_shows_itself(browser: Browser, folder: Path) -> None:
    image = ROWS[4].images[0]
    assert make_thumbnail(folder, image)
    page = opened(browser, folder, [ROWS[4]])
    thumbnail = folder / "thumbnails" / f"{image}.webp"
    thumbnail.unlink()
    page.reload()
    page.wait_for_function("document.querySelector('.frame img').naturalWidth > 512")
    expect(page.locator(".frame a")).not_to_have_class(re.compile("missing"))
    page.context.close()


def test_the_charts_are_folded_until_their_link_is_used(visit: Page) -> None:
    expect(visit.locator(".plot >> nth=0")).to_be_hidden()
    visit.get_by_role("link", name="Charts of the run").click()
    expect(visit.locator(".plot >> nth=0")).to_be_in_viewport()


def test_the_large_view_has_file_name_and_download(visit: Page) -> None:
    visit.locator("#row-2 .frame a").click()
    expect(visit.locator(".file")).to_have_text("summer-à-la-mer.jpg")
    save = visit.get_by_role("link", name="Download")
    expect(save).to_have_attribute("download", "summer-à-la-mer.jpg")
    expect(save).to_have_attribute("href", re.compile(r"^file://.*/images/summer-%C3%A0-la-mer\.jpg$"))


def test_a_served_page_downloads_an_image_under_its_name(browser: Browser, folder: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=folder)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        page = browser.new_context().new_page()
        page.goto(f"http://127.0.0.1:{server.server_port}/index.html#row-2")
        with page.expect_download() as download:
            page.get_by_role("link", name="Download").click()
        assert download.value.suggested_filename == "summer-à-la-mer.jpg"
        assert Path(download.value.path()).read_bytes() == (folder / ROWS[1].images[0]).read_bytes()
        page.context.close()
        server.shutdown()


def test_each_image_has_an_address_for_back_and_forward(visit: Page) -> None:
    dialog = visit.locator("dialog")
    visit.locator("#row-3 .frame a >> nth=1").click()
    expect(visit).to_have_url(re.compile(r"index\.html#row-3-2$"))
    visit.get_by_role("button", name="Copy link").click()
    assert visit.evaluate("navigator.clipboard.readText()") == visit.url
    visit.keyboard.press("ArrowLeft")
    expect(visit).to_have_url(re.compile(r"index\.html#row-3$"))
    visit.go_back()
    expect(dialog).to_be_hidden()
    expect(visit).to_have_url(re.compile(r"index\.html$"))
    visit.go_forward()
    expect(visit.locator(".place")).to_have_text("3 of 7 · row 3 · image 1 of 4")
    visit.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(visit).to_have_url(re.compile(r"index\.html$"))


def test_a_link_opens_its_image_also_when_it_was_filtered_out(visit: Page, folder: Path) -> None:
    visit.locator("#search").fill("harbour")
    expect(visit.locator("#shown")).to_have_text("1 of 6 rows")
    visit.evaluate("location.hash = '#row-3-4'")
    expect(visit.locator(".place")).to_have_text("6 of 7 · row 3 · image 4 of 4")
    expect(visit.locator("#shown")).to_have_text("6 rows")
    visit.goto("about:blank")
    visit.goto(f"{(folder / 'index.html').as_uri()}#row-5")
    expect(visit.locator(".file")).to_have_text("roses.png")
    visit.get_by_role("button", name="Close").click()
    expect(visit).to_have_url(re.compile(r"index\.html$"))
    visit.evaluate("location.hash = '#row-99'")
    expect(visit.locator("dialog")).to_be_hidden()


def test_zoom_enlarges_and_arrows_move_the_image(visit: Page) -> None:
    visit.locator("#row-1 .frame a").click()
    visit.wait_for_function("document.querySelector('#large-image').naturalWidth > 0")
    width = "document.querySelector('#large-image').getBoundingClientRect().width"
    stage, before = visit.locator(".stage"), visit.evaluate(width)
    visit.get_by_role("button", name="Zoom").click()
    expect(visit.get_by_role("button", name="Zoom")).to_have_attribute("aria-pressed", "true")
    assert visit.evaluate(width) > before
    visit.keyboard.press("ArrowRight")
    at = stage.evaluate("stage => stage.scrollLeft")
    visit.keyboard.press("ArrowLeft")
    assert stage.evaluate("stage => stage.scrollLeft") < at
    expect(visit.locator(".place")).to_have_text("1 of 7 · row 1")
    visit.keyboard.press("z")
    assert visit.evaluate(width) == before
    stage.click()
    assert visit.evaluate(width) > before
    stage.click()
    visit.keyboard.press("ArrowRight")
    expect(visit.locator(".place")).to_have_text("2 of 7 · row 2")


def test_selected_keys_are_copied_and_downloaded_in_row_order(visit: Page) -> None:
    bar = visit.get_by_role("group", name="Selection")
    expect(bar).to_be_hidden()
    visit.locator("#sort").select_option("Last finished first")
    visit.get_by_role("checkbox", name="Select row 5").check()
    visit.get_by_role("checkbox", name="Select row 3").click(modifiers=["Shift"])
    expect(bar).to_contain_text("3 selected")
    keys = [ROWS[2].job_key, ROWS[3].job_key, "p05"]  # the row's own key where it has one
    bar.get_by_role("button", name="Copy keys").click()
    expect(bar.get_by_role("button", name="Copied")).to_be_visible()
    assert visit.evaluate("navigator.clipboard.readText()") == "\n".join(keys)
    with visit.expect_download() as download:
        bar.get_by_role("button", name="Download keys").click()
    assert download.value.suggested_filename == "spring-summer-keys.txt"
    assert Path(download.value.path()).read_text(encoding="utf-8") == "".join(f"{key}\n" for key in keys)
    bar.get_by_role("button", name="Clear").click()
    expect(bar).to_be_hidden()
    assert visit.locator(".pick input:checked").count() == 0


@pytest.mark.parametrize("width", [1280, 390])
def test_a_selection_moves_no_card(visit: Page, width: int) -> None:
    visit.set_viewport_size({"width": width, "height": 900})
    top = "document.querySelector('#row-1').getBoundingClientRect().top"
    before = visit.evaluate(top)
    visit.get_by_role("checkbox", name="Select row 1").check()
    expect(visit.get_by_role("group", name="Selection")).to_be_in_viewport(ratio=1)
    assert visit.evaluate(top) == before


def test_the_selection_survives_a_filter(visit: Page) -> None:
    visit.get_by_role("checkbox", name="Select row 1").check()
    visit.get_by_role("button", name="Failed 1").click()
    visit.get_by_role("button", name="Select these").click()
    visit.get_by_role("button", name="All 6").click()
    expect(visit.get_by_role("group", name="Selection")).to_contain_text("2 selected")
    visit.locator("#search").fill("lighthouse")
    expect(visit.get_by_role("group", name="Selection")).to_contain_text("2 selected, 1 shown")
    visit.locator("#search").fill("")
    expect(visit.locator(".picked b")).to_have_text("2 selected")
    assert visit.locator(".card.on").evaluate_all("all => all.map(card => card.id)") == ["row-1", "row-4"]


def test_failed_rows_say_how_to_buy_them_again(visit: Page) -> None:
    expect(visit.locator("#row-4 .advice p").first).to_have_text("failed: buy it again with --retry-failed")
    expect(visit.locator("#row-1 .advice")).to_have_count(0)
    visit.get_by_role("button", name="Copy the command for row 4").click()
    assert visit.evaluate("navigator.clipboard.readText()") == COMMAND
    visit.locator("#row-4 .more").click()
    expect(visit.locator("#row-4 .command code")).to_have_text(COMMAND)


def test_rows_are_called_by_their_number_in_the_file(browser: Browser, tmp_path: Path) -> None:
    rows = [row(0, number=2), row(1, number=3), without_image(2, "failed", "no", number=4)]
    paint_images(tmp_path, rows, scale=0.05)
    page = opened(browser, tmp_path, rows)
    page.locator("#search").fill("#3")
    expect(page.locator("#shown")).to_have_text("1 of 3 rows")
    page.locator("#row-3 .frame a").click()
    expect(page.locator(".place")).to_have_text("1 of 1 · row 3")
    page.context.close()


@pytest.mark.parametrize("width", [1280, 768, 390])
def test_borders_of_cards_are_inside_of_what_clips_them(visit: Page, width: int) -> None:
    visit.set_viewport_size({"width": width, "height": 900})
    room = "all => Math.min(...all.map(card => card.parentElement.getBoundingClientRect().right"
    assert visit.locator(".card").evaluate_all(f"{room} - card.getBoundingClientRect().right))") >= 1


@pytest.mark.parametrize("width", [1280, 768, 390])
def test_a_card_shows_a_long_key_and_all_filters_whole(browser: Browser, tmp_path: Path, width: int) -> None:
    keys = ["mug-oil-wooden-16:9", "a very long product-oil on canvas-marble-1:1", "x" * 59, "y" * 70]
    shape = {"aspect_ratio": "16:9", "resolution": "4K"}
    names = ("product", "style", "ground", "light")
    rows = [
        row(index, key=key, settings=shape, metadata={name: f"{name} {index}" for name in names})
        for index, key in enumerate(keys)
    ]
    page = opened(browser, tmp_path, rows)
    page.set_viewport_size({"width": width, "height": 900})
    cut = """all => all.filter(one => {
      const inner = one.getBoundingClientRect();
      const outer = (one.closest(".card") ?? document.body).getBoundingClientRect();
      return inner.width === 0 || inner.left < outer.left || inner.right > outer.right || inner.bottom > outer.bottom;
    }).length"""
    assert page.locator(".set > *, .filter").evaluate_all(cut) == 0
    found = page.locator(".set").all_inner_texts()
    assert " ".join(found[1].split()).startswith(f"{keys[1]} 4K 16:9 ")
    assert keys[2] in found[2]
    assert f"{'y' * 59}…" in found[3]
    page.context.close()


def test_the_phone_layout_shows_facts_and_copy_whole(visit: Page) -> None:
    visit.set_viewport_size({"width": 390, "height": 844})
    cut = "all => all.filter(one => one.scrollWidth > one.clientWidth).length"
    assert visit.locator(".set, .facts dd, .facts dt").evaluate_all(cut) == 0
    top = "one => one.getBoundingClientRect().top + one.getBoundingClientRect().height / 2"
    row_1 = visit.locator("#row-1")
    assert abs(row_1.locator(".copy").evaluate(top) - row_1.locator(".pick").evaluate(top)) < 3
    visit.evaluate("document.querySelector('#run').open = true")
    assert visit.locator(".chart").evaluate_all("all => all.every(one => one.getBoundingClientRect().right <= 390)")


def test_cards_of_failures_are_no_taller_than_their_text(visit: Page) -> None:
    visit.locator("#sort").select_option("Slowest first")
    visit.get_by_role("button", name="Failed 1").click()
    height = visit.locator("#row-4 .bare").evaluate("one => one.getBoundingClientRect().height")
    assert height < visit.locator("#row-4 .bare").evaluate("one => one.getBoundingClientRect().width") * 0.6


def test_results_of_a_search_begin_at_the_top(browser: Browser, tmp_path: Path) -> None:
    page = opened(browser, tmp_path, list(made_rows(200)))
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    page.locator("#search").fill("fog")
    expect(page.locator("#shown")).to_have_text(re.compile(r"^\d+ of 200 rows$"))
    expect(page.locator(".card").first).to_be_in_viewport()
    page.context.close()


def test_the_phone_layout_shows_row_numbers(visit: Page) -> None:
    visit.set_viewport_size({"width": 390, "height": 844})
    expect(visit.locator("#row-2 .no")).to_be_visible()
    expect(visit.locator("#row-2 .no")).to_have_text("2")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_enough_contrast(visit: Page, scheme: Literal["light", "dark"]) -> None:
    visit.emulate_media(color_scheme=scheme)
    visit.get_by_role("checkbox", name="Select row 1").check()
    visit.evaluate("document.querySelector('#run').open = true")
    lowest, where = visit.evaluate(CONTRAST)
    assert lowest >= 4.5, where
    visit.locator("#row-1 .frame a").click()
    lowest, where = visit.evaluate(CONTRAST)
    assert lowest >= 4.5, where


def test_a_page_of_two_thousand_rows_lays_out_and_loads_what_is_near(browser: Browser, tmp_path: Path) -> None:
    rows = list(made_rows(2000))
    paint_images(tmp_path, rows[:100], scale=0.02)
    write_report(tmp_path / "index.html", rows, title="many")
    page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    page.goto((tmp_path / "index.html").as_uri())
    page.wait_for_function("document.querySelector('.frame img').naturalWidth > 0")
    laid_out = "all => all.filter(one => one.checkVisibility({ contentVisibilityAuto: true })).length"
    assert 0 < page.locator(".frame").evaluate_all(laid_out) < 120
    assert len(requested) < 200
    page.locator("#search").fill("#1999")
    expect(page.locator("#shown")).to_have_text("1 of 2,000 rows")
    assert shown(page) == [1998]
    page.locator("#search").fill("")
    expect(page.locator("#shown")).to_have_text("2,000 rows")
    assert shown(page) == list(range(2000))
    page.context.close()

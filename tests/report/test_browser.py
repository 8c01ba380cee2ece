"""The report page in Chromium, opened from disk.

Skipped where Playwright or Chromium is missing, see `conftest.py`.
"""

import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from nanobanana_async.report import write_report
from tests.support.reports import made_rows, made_run, paint_images, row, without_image
from tests.support.rows import each_row

pytest.importorskip("playwright.sync_api", reason="Playwright is missing: pip install playwright")

from playwright.sync_api import Browser, Page, expect

from tests.support.browsing import Visit, opened, shown

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]  # on a busy machine, each step of the browser takes its time

HOSTILE = "<script>window.pwned = 1</script></script><img src=x onerror=\"window.pwned = 1\"> & 'x' {{ 7 * 7 }}"
REORDERING = "abc \N{RIGHT-TO-LEFT OVERRIDE}gnp.exe \N{HEBREW LETTER ALEF} and on"
LINES = "first\r\nsecond\rthird\n\tfourth\x07\x1b[31m"
ENDLESS = "x" * 10_000

ROWS = (
    *(row(number, prompt=f"a harbour in fog, number {number}") for number in range(6)),
    row(6, prompt="a lighthouse, four times", images=tuple(f"images/four-{part}.png" for part in range(4))),
    row(
        7,
        prompt=HOSTILE,
        images=("images/<b>\"&'%23?#.png",),
        key=HOSTILE,
        job_key=HOSTILE,
        metadata={HOSTILE: HOSTILE},
    ),
    row(8, prompt=REORDERING, settings={"resolution": REORDERING}),
    row(9, prompt=LINES),
    row(10, prompt=ENDLESS),
    row(11, prompt="gone from disk", images=("images/gone.png",)),
    without_image(12, "failed", "The model is sad today.", error_kind="JobFailed", prompt="a sad lighthouse"),
    without_image(13, "refused", HOSTILE, error_kind=HOSTILE, prompt="a blocked one"),
    without_image(14, "uncertain", ENDLESS, prompt="perhaps a harbour"),
    without_image(15, "invalid", "prompt is empty", prompt="", sent_at=None, ended_at=None),
)
INTRUDER = """async (port) => {
  const script = document.createElement("script");
  script.textContent = "window.pwned = 1";
  document.body.append(script);
  document.body.insertAdjacentHTML("beforeend", "<img src=x onerror='window.pwned = 1'>");
  new Image().src = `http://127.0.0.1:${port}/image.png`;
  await fetch(`http://127.0.0.1:${port}/`).catch(() => {});
}"""
IMAGE_COUNT = sum(len(one.images) for one in ROWS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with its images, one of them missing."""
    home = tmp_path_factory.mktemp("report")
    paint_images(home, list(ROWS), scale=0.05)
    (home / "images/gone.png").unlink()
    write_report(home / "index.html", ROWS, title=f"spring {HOSTILE}", run=made_run(list(made_rows(40))))
    return home


@pytest.fixture
def visit(window: Visit, folder: Path) -> Iterator[Page]:
    """The report, opened from disk; checked for errors and requests after the test."""
    window.open(folder / "index.html")
    yield window.page
    window.check_quiet(folder)


def test_images_are_loaded_lazily_from_disk(visit: Page) -> None:
    expect(visit.locator(".card")).to_have_count(len(ROWS))
    visit.wait_for_function("document.querySelector('.frame img').naturalWidth > 0")
    assert visit.locator(".frame img[loading=lazy]").count() == IMAGE_COUNT
    visit.keyboard.press("End")
    image = visit.locator("[aria-label^='Row 8,'] img")
    image.scroll_into_view_if_needed()
    visit.wait_for_function("image => image.naturalWidth > 0", arg=image.element_handle())


def test_a_missing_image_is_marked(visit: Page) -> None:
    link = visit.locator("[aria-label^='Row 12,'] .frame a")
    link.scroll_into_view_if_needed()
    expect(link).to_have_class(re.compile("missing"))


def test_chips_filter_by_status(visit: Page) -> None:
    expect(visit.locator("#shown")).to_have_text("16 rows")
    visit.get_by_role("button", name="Failed 1").click()
    assert shown(visit) == [12]
    expect(visit.locator("#shown")).to_have_text("1 of 16 rows")
    expect(visit.get_by_role("button", name="Failed 1")).to_have_attribute("aria-pressed", "true")
    expect(visit.get_by_text("The model is sad today.")).to_be_visible()
    visit.get_by_role("button", name="Uncertain 1").click()
    assert shown(visit) == [14]
    visit.get_by_role("button", name="All 16").click()
    assert len(shown(visit)) == 16


@each_row(
    ("words", "found"),
    [
        ("HARBOUR", [0, 1, 2, 3, 4, 5, 14]),
        ("number harbour 3", [2, 3]),
        ("#3 harbour", [2]),
        ("sad", [12]),
        ("task_000004", [4]),
        ("5f1c0ffee0000002", [2]),
        ("<script>", [7, 13]),
        ("fog [", []),
    ],
)
def test_search_finds_every_word_in_prompts_and_errors(visit: Page, words: str, found: list[int]) -> None:
    visit.locator("#search").fill("")
    expect(visit.locator("#shown")).to_have_text("16 rows")
    visit.locator("#search").fill(words)
    expect(visit.locator("#shown")).to_have_text(f"{len(found)} of 16 rows")
    assert shown(visit) == found
    assert visit.locator("#none").is_visible() == (not found)


def test_search_and_status_combine(visit: Page) -> None:
    visit.keyboard.press("/")
    visit.keyboard.type("harbour")
    visit.get_by_role("button", name="Succeeded 12").click()
    assert shown(visit) == [0, 1, 2, 3, 4, 5]


def test_cards_are_sorted(browser: Browser, folder: Path) -> None:
    rows = [row(0, credits=None, ended_at=None), row(1), row(2), without_image(3, "failed", "no")]
    page = opened(browser, folder, rows)
    page.locator("#sort").select_option("Last finished first")
    assert shown(page) == [3, 2, 1, 0]
    page.locator("#sort").select_option("Most credits first")
    assert shown(page) == [1, 2, 0, 3]
    page.locator("#sort").select_option("Input order")
    assert shown(page) == [0, 1, 2, 3]
    page.context.close()


@each_row("index", [7, 8, 9, 10])
def test_a_prompt_is_copied_unchanged(visit: Page, index: int) -> None:
    prompt = ROWS[index].prompt
    card = visit.locator(f"[aria-label^='Row {index + 1},']")
    assert card.locator(".prompt").evaluate("part => part.textContent") == prompt
    card.get_by_role("button", name="Copy the prompt").click()
    expect(card.locator(".copy")).to_have_text("Copied")
    copied = visit.evaluate("navigator.clipboard.readText()")
    assert copied.replace("\r\n", "\n") == prompt.replace("\r\n", "\n")


def test_a_prompt_is_copied_without_a_clipboard_api(visit: Page) -> None:
    visit.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    visit.evaluate("document.addEventListener('copy', () => { window.taken = String(document.getSelection()); })")
    visit.locator(".copy >> nth=2").click()
    expect(visit.locator(".copy >> nth=2")).to_have_text("Copied")
    assert visit.evaluate("window.taken") == ROWS[2].prompt
    visit.locator(".frame a >> nth=3").click()
    visit.get_by_role("button", name="Copy prompt").click()
    expect(visit.locator(".act.copy")).to_have_text("Copied")
    assert visit.evaluate("window.taken") == ROWS[3].prompt


def test_hostile_text_stays_text(visit: Page) -> None:
    assert visit.locator("script").count() == 1
    assert visit.locator("h1").text_content() == f"spring {HOSTILE}"
    assert visit.title() == f"spring {HOSTILE}"
    assert visit.locator("[aria-label^='Row 14,'] .error").text_content() == HOSTILE
    visit.locator("[aria-label^='Row 8,'] .frame a").click()
    assert visit.locator("dialog .prompt").text_content() == HOSTILE
    assert HOSTILE in visit.locator("dialog dd").all_text_contents()
    assert visit.locator("img:not(.frame img, #large-image)").count() == 0


def test_long_prompts_and_errors_open_and_close(visit: Page) -> None:
    for index in (10, 14):
        card = visit.locator(f"[aria-label^='Row {index + 1},']")
        more = card.locator(".more")
        before = card.evaluate("card => card.scrollHeight")
        more.click()
        expect(more).to_have_attribute("aria-expanded", "true")
        assert card.evaluate("card => card.scrollHeight") > before + 500
        more.click()
        expect(more).to_have_text("More")
    expect(visit.locator("[aria-label^='Row 1,'] .more")).to_have_count(0)


def test_the_large_view_works_with_the_keyboard(visit: Page) -> None:
    place = visit.locator(".place")
    visit.locator(".frame a >> nth=0").focus()
    visit.keyboard.press("Enter")
    expect(place).to_have_text(f"1 of {IMAGE_COUNT} · row 1")
    visit.wait_for_function("document.querySelector('#large-image').naturalWidth > 0")
    for key, text in (
        ("ArrowRight", f"2 of {IMAGE_COUNT} · row 2"),
        ("ArrowLeft", f"1 of {IMAGE_COUNT} · row 1"),
        ("ArrowLeft", f"{IMAGE_COUNT} of {IMAGE_COUNT} · row 12"),
        ("Home", f"1 of {IMAGE_COUNT} · row 1"),
        ("End", f"{IMAGE_COUNT} of {IMAGE_COUNT} · row 12"),
        ("ArrowRight", f"1 of {IMAGE_COUNT} · row 1"),
        ("ArrowRight", f"2 of {IMAGE_COUNT} · row 2"),
    ):
        visit.keyboard.press(key)
        expect(place).to_have_text(text)
    visit.keyboard.press("Escape")
    expect(visit.locator("dialog")).to_be_hidden()
    expect(visit.locator(".frame a >> nth=1")).to_be_focused()


def test_the_large_view_shows_filtered_images_only(visit: Page) -> None:
    visit.locator("#search").fill("lighthouse")
    expect(visit.locator("#shown")).to_have_text("2 of 16 rows")
    visit.locator(".card:not([hidden]) .frame a >> nth=2").click()
    expect(visit.locator(".place")).to_have_text("3 of 4 · row 7 · image 3 of 4")
    expect(visit.locator(".full")).to_have_attribute("href", re.compile(r"^file://.*/images/four-2\.png$"))
    visit.get_by_role("button", name="Next image").click()
    visit.get_by_role("button", name="Next image").click()
    expect(visit.locator(".place")).to_have_text("1 of 4 · row 7 · image 1 of 4")
    visit.get_by_role("button", name="Close").click()
    expect(visit.locator("dialog")).to_be_hidden()


def test_all_controls_are_reached_by_tab_with_visible_focus(visit: Page) -> None:
    visit.keyboard.press("Tab")
    expect(visit.get_by_text("Skip to the gallery")).to_be_focused()
    reached = set()
    for _ in range(14):
        visit.keyboard.press("Tab")
        name, outline = visit.evaluate(
            "[document.activeElement.className || document.activeElement.id || document.activeElement.tagName,"
            " getComputedStyle(document.activeElement).outlineStyle]"
        )
        reached.add(name.split()[0])
        assert outline != "none"
    assert {"chip", "search", "sort", "A", "quiet"} <= reached


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1366, 390, 320])
def test_no_element_is_wider_than_the_screen(visit: Page, scheme: Literal["light", "dark"], width: int) -> None:
    page, dark = visit, scheme == "dark"
    page.set_viewport_size({"width": width, "height": 844})
    page.emulate_media(color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    light, shade = page.evaluate(
        "['color', 'backgroundColor'].map(name => "
        "getComputedStyle(document.documentElement)[name].match(/\\d+/g).slice(0, 3).reduce((a, b) => a + +b, 0))"
    )
    assert (light > shade) == dark
    assert abs(light - shade) > 500
    page.locator("[aria-label^='Row 11,'] .more").click()
    page.locator(".frame a >> nth=0").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.querySelector('.side').scrollWidth <= document.querySelector('.side').clientWidth")


def test_loading_an_image_does_not_resize_its_card(visit: Page) -> None:
    height = "document.querySelector('.card').getBoundingClientRect().height"
    visit.wait_for_function("document.querySelector('.frame img').naturalWidth > 0")
    before = visit.evaluate(height)
    visit.evaluate("document.querySelector('.frame img').removeAttribute('src')")
    assert visit.evaluate(height) == before


def test_an_injected_script_neither_runs_nor_sends(browser: Browser, folder: Path) -> None:
    page = opened(browser, folder, [row()])
    with socket.create_server(("127.0.0.1", 0)) as server:
        page.evaluate(INTRUDER, server.getsockname()[1])
        server.settimeout(0.3)
        with pytest.raises(TimeoutError):
            server.accept()
    assert page.evaluate("window.pwned") is None
    page.context.close()


@pytest.mark.parametrize("count", [0, 1])
def test_pages_with_few_rows_work(browser: Browser, folder: Path, count: int) -> None:
    page = opened(browser, folder, [row(number) for number in range(count)])
    assert page.locator(".bar").is_visible() == bool(count)
    assert page.locator("#none").is_visible() == (not count)
    page.context.close()


def test_a_thousand_rows_are_filtered_quickly(browser: Browser, folder: Path) -> None:
    page = opened(browser, folder, list(made_rows(1000)))
    milliseconds = page.evaluate(
        """async () => {
          let least = Infinity;  // to exclude the load of other processes
          for (let clicks = 0; clicks < 5; clicks += 1) {  // each shows fewer rows, or all again
            const began = performance.now();
            document.querySelector(".chip.failed").click();
            await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
            least = Math.min(least, performance.now() - began);
          }
          return least;
        }"""
    )
    assert milliseconds < 2000
    assert set(shown(page)) == {made.index for made in made_rows(1000) if made.status == "failed"}
    page.context.close()

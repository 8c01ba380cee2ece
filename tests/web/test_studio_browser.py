"""The studio in a real Chromium: orders, images that arrive, and a server that is killed.

Skipped where Playwright or Chromium is missing; `NANOBANANA_TEST_CHROMIUM` names another browser than `chromium`.
"""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from nanobanana_async.emulator import Emulator, EmulatorStats, Fixed, faults
from tests.support.chromium import FLAGS, MISSING, find_chromium
from tests.support.held import HeldJobs
from tests.web.servers import Server, running, studio

pytest.importorskip("playwright.async_api", reason="Playwright is missing: pip install playwright")

from playwright.async_api import Browser, Locator, Page, Route, async_playwright, expect

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

HOSTILE = "<script>window.pwned = 1</script><img src=x onerror=\"window.pwned = 1\"> & 'x' {{ 7 * 7 }}"
# What Chromium says of a server that is away, and nothing else.
AWAY = re.compile(r"net::ERR_(CONNECTION_REFUSED|CONNECTION_RESET|INCOMPLETE_CHUNKED_ENCODING|EMPTY_RESPONSE)")


class Visit:
    """The page, and what it complained of."""

    def __init__(self, page: Page, server: Server) -> None:
        self.page = page
        self.server = server
        self.complaints: list[str] = []
        self.foreign_urls: list[str] = []
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        page.on("request", lambda request: self._asked(request.url))

    def _asked(self, url: str) -> None:
        if not url.startswith(f"{self.server.url}/"):
            self.foreign_urls.append(url)

    @property
    def cards(self) -> Locator:
        """All cards, the newest first."""
        return self.page.locator(".card")

    async def order(self, prompt: str) -> None:
        """Say what is wanted, and send it with Enter."""
        await self.page.get_by_label("What do you want to see?").fill(prompt)
        await self.page.keyboard.press("Enter")

    async def sees(self, prompt: str) -> None:
        """Wait until the image of a prompt has loaded."""
        card = self.cards.filter(has_text=prompt)
        await expect(card).to_have_count(1)
        await expect(card).to_have_attribute("data-state", "succeeded", timeout=15_000)
        image = await card.locator("img").element_handle()
        assert image is not None
        await self.page.wait_for_function("image => image.complete && image.naturalWidth > 0", arg=image)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    """One browser for the module: each test has a window of its own."""
    executable = find_chromium()
    if executable is None:
        pytest.skip(MISSING)
    expect.set_options(timeout=20_000)  # only a failed test waits so long
    async with async_playwright() as playwright:
        launched = await playwright.chromium.launch(executable_path=executable, args=FLAGS)
        yield launched
        await launched.close()


@asynccontextmanager
async def visiting(browser: Browser, server: Server) -> AsyncIterator[Visit]:
    """Open the page in a window; check at the end that it requested no other host and ran no foreign script."""
    context = await browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(10_000)
    visit = Visit(await context.new_page(), server)
    await visit.page.goto(server.url)
    await expect(visit.page.locator("#line")).to_have_text("Live")
    yield visit
    assert await visit.page.evaluate("window.pwned") is None
    await context.close()
    assert visit.foreign_urls == []


def paid(stats: EmulatorStats, times: int) -> bool:
    """Return whether exactly so many jobs were bought, none of them twice."""
    return (stats.creates_accepted, stats.double_charges) == (times, 0)


async def test_typed_prompt_shows_its_image(tmp_path: Path, browser: Browser) -> None:
    held = HeldJobs()
    async with (
        Emulator(duration=held, image_scale=0.1) as emulator,
        running(studio(tmp_path, emulator)) as server,
    ):
        async with visiting(browser, server) as visit:
            page = visit.page
            await expect(page.get_by_text("No images yet")).to_be_visible()
            await visit.order("a lighthouse in fog")
            await expect(page.locator(".card.busy")).to_have_count(1)
            await expect(page.get_by_label("What do you want to see?")).to_be_empty()
            held.release(emulator)
            await visit.sees("a lighthouse in fog")
            await expect(page.get_by_text("No images yet")).to_be_hidden()
            await expect(page.get_by_role("status")).to_have_text("Done: a lighthouse in fog")

            await page.keyboard.press("Tab")  # from the prompt on, with the keyboard alone
            for _ in range(3):
                await page.keyboard.press("Tab")
            await page.keyboard.press("Enter")
            await expect(page.get_by_role("dialog")).to_be_visible()
            await page.keyboard.press("Escape")
            await expect(page.get_by_role("dialog")).to_be_hidden()

            await page.reload()
            await visit.sees("a lighthouse in fog")
        assert visit.complaints == []
        assert paid(emulator.stats(), 1)


async def test_running_job_has_a_bar_that_rises_and_goes(tmp_path: Path, browser: Browser) -> None:
    held = HeldJobs()
    async with (
        Emulator(duration=held, image_scale=0.1) as emulator,
        running(studio(tmp_path, emulator)) as server,
        visiting(browser, server) as visit,
    ):
        await visit.order("a lighthouse in fog")
        bar = visit.page.get_by_role("progressbar")
        await expect(bar).to_be_visible()
        first = await bar.evaluate("bar => bar.value")
        await visit.page.wait_for_function(
            "([first]) => document.querySelector('#jobs .bar').value > first", arg=[first]
        )
        assert 0 <= first < await bar.evaluate("bar => bar.value") < 1
        held.release(emulator)
        await visit.sees("a lighthouse in fog")
        await expect(bar).to_be_hidden()
        assert visit.complaints == []


async def test_image_arrives_after_the_server_was_killed(tmp_path: Path, browser: Browser) -> None:
    held = HeldJobs()
    async with Emulator(duration=held, image_scale=0.1) as emulator:
        async with running(studio(tmp_path, emulator)) as server, visiting(browser, server) as visit:
            line = visit.page.locator("#line")
            await visit.order("a harbour before the crash")
            await expect(visit.cards).to_have_attribute("data-state", "running")
            await server.kill()
            await expect(line).to_have_text("Reconnecting …")
            await visit.order("ordered while it was away")  # it is tried again until the server is back
            await expect(visit.page.get_by_role("alert")).to_contain_text("Trying again")
            held.release(emulator)
            await server.start()
            await expect(line).to_have_text("Live", timeout=15_000)
            await visit.sees("a harbour before the crash")
            await visit.sees("ordered while it was away")
        assert [said for said in visit.complaints if not AWAY.search(said)] == []
        assert paid(emulator.stats(), 2)


async def test_double_click_and_lost_answer_buy_once(tmp_path: Path, browser: Browser) -> None:
    async with (
        Emulator(duration=Fixed(0.2), image_scale=0.1) as emulator,
        running(studio(tmp_path, emulator)) as server,
    ):
        async with visiting(browser, server) as visit:
            page = visit.page
            await page.get_by_label("What do you want to see?").fill("clicked twice")
            await page.get_by_role("button", name="Generate").dblclick()
            await visit.sees("clicked twice")
            await expect(page.get_by_role("alert")).to_be_empty()

            # The order arrives and its answer is lost: the page sends it again, under the same key.
            keys: list[str] = []

            async def lose_the_first_answer(route: Route) -> None:
                keys.append(route.request.headers["idempotency-key"])
                if len(keys) == 1:
                    await route.fetch()
                    await route.abort("connectionreset")
                else:
                    await route.continue_()

            await page.route("**/api/jobs", lose_the_first_answer)
            await visit.order("answered once")
            await visit.sees("answered once")
            await expect(page.get_by_role("alert")).to_be_empty()
            assert len(keys) == 2
            assert len(set(keys)) == 1
            await expect(visit.cards).to_have_count(2)
        assert [said for said in visit.complaints if not AWAY.search(said)] == []
        assert paid(emulator.stats(), 2)


async def test_order_typed_while_another_is_sent_follows_it(tmp_path: Path, browser: Browser) -> None:
    async with (
        Emulator(duration=Fixed(0.2), image_scale=0.1) as emulator,
        running(studio(tmp_path, emulator)) as server,
        visiting(browser, server) as visit,
    ):
        typed = asyncio.Event()

        async def hold_the_answer(route: Route) -> None:
            answer = await route.fetch()
            await typed.wait()
            await route.fulfill(response=answer)

        await visit.page.route("**/api/jobs", hold_the_answer)
        await visit.order("the first")
        await expect(visit.cards).to_have_count(1)  # by the event stream, while the answer is still out
        await visit.page.keyboard.press("Enter")  # the same order once more
        await visit.order("the second")
        await visit.page.keyboard.press("Enter")
        typed.set()
        await visit.sees("the first")
        await visit.sees("the second")
        await expect(visit.page.get_by_label("What do you want to see?")).to_be_empty()
        await expect(visit.cards).to_have_count(2)

        typed.clear()
        await visit.order("the third")
        await visit.sees("the third")
        await visit.page.get_by_label("What do you want to see?").fill("not sent yet")
        typed.set()
        await expect(visit.page.get_by_role("button", name="Generate")).to_have_attribute("aria-disabled", "false")
        await expect(visit.page.get_by_label("What do you want to see?")).to_have_value("not sent yet")
        assert visit.complaints == []
        assert paid(emulator.stats(), 3)


async def test_message_names_the_order_that_an_unreachable_server_may_lack(tmp_path: Path, browser: Browser) -> None:
    async with (
        Emulator(duration=Fixed(0.2), image_scale=0.1) as emulator,
        running(studio(tmp_path, emulator)) as server,
        visiting(browser, server) as visit,
    ):
        page, alert = visit.page, visit.page.get_by_role("alert")
        await page.clock.install()
        await page.route("**/api/jobs", lambda route: route.abort("connectionrefused"))

        async def attempts_end() -> None:
            for _ in range(4):
                await expect(alert).to_contain_text("Trying again")
                await page.clock.fast_forward(4000)
            await expect(alert).not_to_contain_text("Trying again")

        await visit.order("the first")
        await attempts_end()
        await expect(alert).to_contain_text("Your order is kept")

        await page.keyboard.press("Enter")
        await expect(alert).to_contain_text("Trying again")
        await visit.order("the second")
        await page.keyboard.press("Enter")
        await expect(alert).to_contain_text("It may not have “the first”")
        await expect(page.get_by_label("What do you want to see?")).to_have_value("the second")
        assert paid(emulator.stats(), 0)


async def test_late_answer_leaves_the_newer_card(tmp_path: Path, browser: Browser) -> None:
    async with Emulator(duration=Fixed(0.2), image_scale=0.1) as emulator:
        server = studio(tmp_path, emulator, gateway="defapi")
        async with running(server), visiting(browser, server) as visit:
            state = visit.page.locator(".card .state")

            async def hold_the_answer(route: Route) -> None:
                answer = await route.fetch()
                assert (await answer.json())["state"] == "pending"
                await expect(state).to_have_text("Refused, not bought")  # by the event stream
                await route.fulfill(response=answer)

            await visit.page.route("**/api/jobs", hold_the_answer)
            await visit.order("[blocked] this one")
            await expect(visit.page.get_by_label("What do you want to see?")).to_be_empty()
            await expect(state).to_have_text("Refused, not bought")
        assert visit.complaints == []
        assert paid(emulator.stats(), 0)


async def test_errors_are_shown_and_hostile_text_stays_text(tmp_path: Path, browser: Browser) -> None:
    async with Emulator(duration=Fixed(0.2), image_scale=0.1) as emulator:
        server = studio(tmp_path, emulator, gateway="defapi")
        async with running(server), visiting(browser, server) as visit:
            await visit.order("   ")
            await expect(visit.page.get_by_role("alert")).to_have_text("Say what you want to see first.")
            await visit.order("[blocked] this one")
            refused = visit.cards.filter(has_text="[blocked]")
            await expect(refused.locator(".state")).to_have_text("Refused, not bought")
            await expect(refused.locator(".why")).to_contain_text("moderation")
            await refused.get_by_role("button", name="Use prompt again").click()
            await expect(visit.page.get_by_label("What do you want to see?")).to_have_value("[blocked] this one")

            emulator.queue_faults("defapi.create", faults.reset(processed=True))
            await visit.order("its answer is lost")
            doubtful = visit.cards.filter(has_text="its answer is lost")
            await expect(doubtful.locator(".state")).to_have_text("Perhaps bought")

            await visit.order(HOSTILE)
            await visit.sees("<script>")
            assert await visit.cards.first.locator(".prompt").text_content() == HOSTILE
            assert await visit.page.locator("script").count() == 1
        assert visit.complaints == []
        assert paid(emulator.stats(), 2)

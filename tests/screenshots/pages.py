"""Pages in Chromium, light and dark, as PNG files. Importing this needs Playwright."""

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

from PIL import Image
from playwright.async_api import Browser, Page, async_playwright

from tests.support.chromium import FLAGS, MISSING, find_chromium

SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")

IN_WINDOW = """() => {
  const all = [...document.images].filter(image => image.src && image.getBoundingClientRect().top < innerHeight);
  const loaded = all.filter(image => image.complete && image.naturalWidth > 0);
  return [loaded.length, all.length - loaded.length];
}"""


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """Start the browser."""
    executable = find_chromium()
    if executable is None:
        raise RuntimeError(MISSING)
    async with async_playwright() as playwright:
        launched = await playwright.chromium.launch(executable_path=executable, args=FLAGS)
        try:
            yield launched
        finally:
            await launched.close()


@asynccontextmanager
async def opened(browser: Browser, url: str, *, width: int, height: int) -> AsyncIterator[Page]:
    """Open a page in a window of this size."""
    context = await browser.new_context(viewport={"width": width, "height": height}, reduced_motion="reduce")
    context.set_default_timeout(30_000)
    page = await context.new_page()
    await page.goto(url)
    yield page
    await context.close()


async def shows_images(page: Page, count: int) -> None:
    """Wait until so many images have loaded, and none of the window is missing."""
    loaded, waits = await page.evaluate(IN_WINDOW)
    async with asyncio.timeout(30):
        while waits or loaded < count:
            await asyncio.sleep(0.05)  # a function that waits in the page would need its policy to allow eval
            loaded, waits = await page.evaluate(IN_WINDOW)


async def write_pngs(page: Page, folder: Path, name: str) -> None:
    """Write what the window shows in both schemes, `NAME-light.png` and `NAME-dark.png`."""
    shots: list[tuple[str, bytes]] = []
    for scheme in SCHEMES:
        await page.emulate_media(color_scheme=scheme)
        shots.append((scheme, await page.screenshot(animations="disabled", caret="hide")))
    for shown, shot in shots:
        image = Image.open(io.BytesIO(shot)).convert("RGB")
        # Dithered, which needs a palette that is there already: a sky of 256 colours would have bands.
        few = image.quantize(palette=image.quantize(256), dither=Image.Dither.FLOYDSTEINBERG)
        few.save(folder / f"{name}-{shown}.png", optimize=True)

"""Pages in Chromium, light and dark, as PNG files. Importing this needs Playwright."""

import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

from PIL import Image
from playwright.async_api import Browser, Page, async_playwright

from tests.support.chromium import FLAGS, MISSING, find_chromium

SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")


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


async def write_pngs(page: Page, folder: Path, name: str) -> None:
    """Write what the window shows in both schemes, `NAME-light.png` and `NAME-dark.png`."""
    shots: dict[str, bytes] = {}
    for scheme in SCHEMES:
        await page.emulate_media(color_scheme=scheme)
        shots[scheme] = await page.screenshot(animations="disabled", caret="hide")
    for scheme, shot in shots.items():
        image = Image.open(io.BytesIO(shot)).convert("RGB")
        image.quantize(256, dither=Image.Dither.FLOYDSTEINBERG).save(folder / f"{name}-{scheme}.png", optimize=True)

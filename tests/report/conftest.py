"""One browser for each module of tests.

Its tests are skipped where Playwright or Chromium is missing; `NANOBANANA_TEST_CHROMIUM` names another browser than
`chromium`.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.support.chromium import FLAGS, MISSING, find_chromium

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from tests.support.browsing import Visit


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """One browser for the module."""
    pytest.importorskip("playwright.sync_api", reason="Playwright is missing: pip install playwright")
    from playwright.sync_api import expect, sync_playwright

    executable = find_chromium()
    if executable is None:
        pytest.skip(MISSING)
    expect.set_options(timeout=20_000)  # only a failed test waits so long
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def window(browser: "Browser") -> "Visit":
    """One window for the module: a new one for each test takes longer than most of them."""
    from tests.support.browsing import Visit

    return Visit(browser)

"""One browser for each module of tests.

Its tests are skipped where Playwright or Chromium is missing; `NANOBANANA_TEST_CHROMIUM` names another browser than
`chromium`.
"""

import os
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from tests.support.browsing import Visit


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """One browser for the module."""
    pytest.importorskip("playwright.sync_api", reason="Playwright is missing: pip install playwright")
    from playwright.sync_api import sync_playwright

    from tests.support.browsing import FLAGS

    named = os.environ.get("NANOBANANA_TEST_CHROMIUM")
    executable = named or shutil.which("chromium") or shutil.which("chromium-browser")
    if executable is None:
        pytest.skip("Chromium is missing: apt-get install chromium, or name it in NANOBANANA_TEST_CHROMIUM")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def window(browser: "Browser") -> "Visit":
    """One window for the module: a new one for each test takes longer than most of them."""
    from tests.support.browsing import Visit

    return Visit(browser)

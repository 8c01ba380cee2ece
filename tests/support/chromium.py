"""The browser of the tests: `NANOBANANA_TEST_CHROMIUM` names another one than `chromium`."""

import os
import shutil

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
MISSING = "Chromium is missing: apt-get install chromium, or name it in NANOBANANA_TEST_CHROMIUM"


def find_chromium() -> str | None:
    """Return the path of the browser; None if there is none."""
    named = os.environ.get("NANOBANANA_TEST_CHROMIUM")
    return named or shutil.which("chromium") or shutil.which("chromium-browser")

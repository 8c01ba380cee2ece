"""Report pages in Chromium, opened from disk. Importing this needs Playwright."""

from pathlib import Path

from playwright.sync_api import Browser, Page

from nanobanana_async.report import ReportRow, write_report


class Visit:
    """A browser page with its requests and console errors."""

    def __init__(self, browser: Browser) -> None:
        context = browser.new_context()
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        context.set_default_timeout(10_000)
        self.page = context.new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))

    def open(self, file: Path) -> None:
        """Open a report on a desktop with the light scheme."""
        self.requests.clear()
        self.complaints.clear()
        self.page.set_viewport_size({"width": 1280, "height": 900})
        self.page.emulate_media(color_scheme="light")
        self.page.goto(file.as_uri())

    def check_quiet(self, folder: Path) -> None:
        """Fail on script errors, and on requests for anything but the report."""
        assert self.page.evaluate("window.pwned") is None
        complaints = [message for message in self.complaints if "ERR_FILE_NOT_FOUND" not in message]
        assert complaints == []
        home = folder.as_uri()
        assert [url for url in self.requests if not url.startswith((f"{home}/", "data:,"))] == []


def opened(browser: Browser, folder: Path, rows: list[ReportRow]) -> Page:
    """Return a page of other rows; close its context."""
    write_report(folder / "other.html", rows, title="other")
    page = browser.new_context().new_page()
    page.goto((folder / "other.html").as_uri())
    return page


def shown(page: Page) -> list[int]:
    """Return the visible rows, in order."""
    cards = page.locator(".card:not([hidden])").evaluate_all("all => all.map(card => JSON.parse(card.dataset.row).i)")
    return [int(index) for index in cards]

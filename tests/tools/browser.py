"""A Chromium that is installed already, and pages in it; nothing leaves the machine."""

import os
import shutil

import pytest

from tests.tools.space import tiny_space

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
]
ARGUMENTS += ["--disable-component-update", "--disable-sync"]
WAIT = int(os.environ.get("TEXTIR_TEST_WAIT", 30_000))  # more where others use the machine
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


def open_page(browser, width: int, height: int, query: str = "", **options):
    """A loaded page, with the addresses that it asked for and the errors of its console."""
    page = browser.new_page(viewport={"width": width, "height": height}, **options)
    page.set_default_timeout(WAIT)
    page.asked, page.errors = [], []
    page.on("request", lambda request: page.asked.append(request.url))
    page.on(
        "console",
        lambda message: page.errors.append(message.text) if message.type == "error" else None,
    )
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.goto(tiny_space()[0] + query)
    button(page, "Restore").wait_for()
    return page


def button(page, name: str):
    return page.get_by_role("button", name=name, exact=True)


def choose_example(page, name: str) -> None:
    """Press the thumbnail of an example, and wait for its photo and its result."""
    page.locator("#examples button", has=page.get_by_alt_text(name, exact=True)).click()
    file = name.lower().replace(" ", "-")
    # A canvas may soon stand in the place of the photo.
    page.wait_for_selector(f"#photo img[src$='/{file}.jpg']", state="attached")
    page.locator("#summary", has_text="Example").wait_for()

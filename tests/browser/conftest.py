"""A real Chromium without a window. Playwright drives the system's: its own cannot be downloaded
everywhere.
"""

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Playwright, expect, sync_playwright

from tests.support.patience import PATIENCE_S

NAMES = ("chromium", "chromium-browser", "google-chrome")


def launch(playwright: Playwright) -> Browser:
    """The distribution's browser, running. Raises `FileNotFoundError` where it has none."""
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    if path is None:
        raise FileNotFoundError(f"no {', '.join(NAMES)} is installed: apt-get install chromium")
    # A container has no user namespaces for the sandbox; the pages are our own.
    return playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=1000 * PATIENCE_S)
    with sync_playwright() as playwright:
        browser = launch(playwright)
        yield browser
        browser.close()

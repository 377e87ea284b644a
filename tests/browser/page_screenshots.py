"""Takes the documentation's pictures of the proxy's page from a demo that stays."""

import re
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from playwright.sync_api import Browser, Page, sync_playwright

from tests.browser.conftest import launch
from tests.support.paths import ROOT
from tests.support.patience import PATIENCE_S
from tests.support.proxy.live import line_with

_PICTURES: Final = ROOT / "docs" / "images"
_MOST_BYTES: Final = 300_000
# The demo's first question with this seed: a breach, and a bifurcation before it.
_SEED: Final = "5"
_IN_RUNS: Final = "What is 15 plus 83"


def main() -> None:
    """Run the demo and photograph its page."""
    with TemporaryDirectory() as folder:
        command = [str(Path(sys.executable).parent / "motab"), "demo", "--serve"]
        command += ["--output", folder]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            found = re.search(r"http://\S+", line_with(process.stdout, "to watch"))
            assert found is not None
            try:
                with sync_playwright() as playwright:
                    photograph(launch(playwright), found[0])
            finally:
                process.send_signal(signal.SIGINT)
                process.wait(PATIENCE_S)


def photograph(browser: Browser, url: str) -> None:
    """Take a picture of each view, and of the first on a phone in the dark."""
    page = _opened(browser, url, width=1280, height=1110)
    page.click("nav a[href='#fleet']")
    page.wait_for_selector("html[data-fleet=ready]")
    phone = _opened(browser, url, width=390, height=844, color_scheme="dark")
    # The lines need some looks before anybody can read them.
    while not re.search(r"last 3\d seconds", page.inner_text("#fleet-state")):
        _watch(phone)
    _keep(page, "fleet.png")
    page.click("nav a[href='#watch']")
    _watch(page)
    _keep(page, "watch.png")
    page.click("nav a[href='#runs']")
    page.wait_for_selector("html[data-runs=ready]")
    page.select_option("#filter", "breach")
    page.locator(".row", has_text=_IN_RUNS).click()
    page.wait_for_selector("#trajectory .fork")
    page.click("#run-again summary")
    page.fill("#run-again-base", "0.15")
    page.evaluate("document.activeElement.blur()")
    _keep(page, "runs.png")
    phone.evaluate("document.querySelector('.fork').scrollIntoView({ block: 'center' })")
    _keep(phone, "watch-phone.png")
    browser.close()


def _opened(browser: Browser, url: str, *, width: int, height: int, **how: Any) -> Page:
    context = browser.new_context(
        viewport={"width": width, "height": height},
        device_scale_factor=1.25,
        reduced_motion="reduce",
        **how,
    )
    page = context.new_page()
    page.goto(url)
    page.wait_for_selector("html[data-page=ready]")
    return page


def _watch(page: Page) -> None:
    page.evaluate("document.getElementById('parameters').open = true")
    page.fill("#option-seed", _SEED)
    page.click("#start")
    page.wait_for_selector("html[data-watch=done]")
    page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")


def _keep(page: Page, name: str) -> None:
    picture = page.screenshot()
    if len(picture) > _MOST_BYTES:
        sys.exit(f"{name} would have {len(picture)} bytes; at most {_MOST_BYTES} are wanted")
    (_PICTURES / name).write_bytes(picture)


if __name__ == "__main__":
    main()

"""Takes the README's picture of the trajectory viewer from a run of the demo."""

import asyncio
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from playwright.sync_api import Page, expect, sync_playwright
from rich.console import Console

from motab.demo import DemoPair, demo
from synth_client.files.record_file import read_records
from tests.browser.conftest import launch
from tests.support.paths import ROOT
from trajectory_records.record import Record

PICTURE: Final = ROOT / "docs" / "images" / "trajectory.png"
_WIDTH, _MARGIN = 1040, 16
_TALLEST: Final = 2000
_MOST_BYTES: Final = 300_000
# A slip of arithmetic after two safe steps, and a short correction.
_SHOWN: Final = "demo-14"


def main() -> None:
    """Run the demo and photograph one of its breached trajectories."""
    with TemporaryDirectory() as folder:
        output = Path(folder)
        asyncio.run(demo(DemoPair.TINY, output, None, Console(stderr=True, quiet=True)))
        shown = next(one for one in read_records(output / "records.jsonl") if one.id == _SHOWN)
        with sync_playwright() as playwright:
            browser = launch(playwright)
            context = browser.new_context(
                viewport={"width": _WIDTH, "height": _TALLEST},
                device_scale_factor=1.35,
                color_scheme="light",
                offline=True,
            )
            page = context.new_page()
            page.goto((output / "report.html").as_uri())
            page.wait_for_selector("html[data-viewer=ready]")
            picture = photograph(page, shown)
            browser.close()
    if len(picture) > _MOST_BYTES:
        sys.exit(f"the picture has {len(picture)} bytes; at most {_MOST_BYTES} are wanted")
    PICTURE.write_bytes(picture)


def photograph(page: Page, record: Record) -> bytes:
    """Return the list and the whole trajectory of `record`, as a PNG."""
    page.select_option("#filter", "breach")
    page.fill("#search", record.question)
    expect(page.locator("#trajectory h3")).to_have_text(record.id)
    page.fill("#search", "")
    expect(page.locator("#trajectory h3")).to_have_text(record.id)
    height = page.locator("#trajectory").evaluate(
        """one => {
          const last = one.lastElementChild.getBoundingClientRect();
          return last.bottom - one.getBoundingClientRect().top;
        }"""
    )
    viewer = page.locator(".viewer")
    viewer.evaluate("(one, height) => { one.style.height = `${height}px`; }", height + _MARGIN)
    # The focused field would wear a ring.
    page.evaluate("document.activeElement.blur()")
    return viewer.screenshot()


if __name__ == "__main__":
    main()

"""The view Runs judges a finished trajectory under other thresholds, as the view Watch does."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from proxy.core.boundary import boundary
from proxy.core.params import Params
from tests.browser.page import Watched, opened, serious, served, straying_service
from tests.support.records import VALUES, breached, record_of, unbroken
from tests.support.synth_client.exports import written
from tests.support.synth_client.reports import EVIL, hostile

OWN = boundary(0.5, Params(base_threshold=0.2), 0)
UNFIT: dict[str, dict[str, Any]] = {
    "judge": {"scoring": "judge_sample"},
    "scorer": {"scoring": "http"},
    "relayed": {"method": "skd"},
    "unnumbered": {"params": {"base_threshold": EVIL, "entropy_scale": EVIL}},
    "unnamed": {"params": {}},
}


def evil_texts() -> dict[str, Any]:
    """A record with hostile texts and sound numbers."""
    fields = hostile()
    return fields | {"method": "motab", "params": breached()["params"]}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("runs")
    static = {"base_threshold": 0.2, "entropy_scale": 1.0, "boundary": "static"}
    records = [
        breached(),
        unbroken(id="unbroken"),
        evil_texts(),
        breached() | {"id": "static", "params": static},
        *(breached() | {"id": name} | fields for name, fields in UNFIT.items()),
    ]
    written(folder / "run.jsonl", map(record_of, records))
    with served(straying_service(page={"runs": str(folder)})) as address:
        yield address


def to_runs(one: Watched) -> Page:
    one.page.click("nav a[href='#runs']")
    one.page.wait_for_selector("html[data-runs=ready]")
    return one.page


def choose(page: Page, place: int, name: str) -> None:
    page.locator(".row").nth(place).click()
    expect(page.locator("#trajectory h3")).to_have_text(name)


def expect_limits(page: Page, *limits: float) -> None:
    """Wait until the marks of the chart say these boundaries."""
    said = [re.compile(rf"ε {re.escape(f'{limit:.3f}')},") for limit in limits]
    expect(page.locator("#trajectory .values .mark title")).to_have_text(said)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_sliders_judge_the_stored_steps_by_the_keyboard_alone(
    browser: Browser, url: str, width: int, scheme: str
) -> None:
    with opened(browser, url, width=width, scheme=scheme) as one:
        page = to_runs(one)
        expect(page.locator("#trajectory h3")).to_have_text("apples")
        page.locator("#run-again summary").focus()
        page.keyboard.press("Enter")
        said = page.locator("#run-again .said")
        back = f"Breach at step 3 (V {VALUES[3]:.3f}); the teacher would go back to t* = 2."
        expect(said).to_have_text(back)
        expect_limits(page, *[OWN] * 4)
        page.keyboard.press("Tab")
        expect(page.locator("#run-again-base")).to_be_focused()
        page.keyboard.press("Home")
        expect(said).to_contain_text("No breach in these steps. What the student would have")
        expect_limits(page, *[0.0] * 4)
        assert page.locator("#trajectory .values .note-turn").count() == 0
        page.keyboard.press("End")
        page.keyboard.press("Tab")
        page.keyboard.press("Home")
        expect(said).to_contain_text("Breach at step 0")
        expect(page.locator("#run-again output").all()[1]).to_have_text("0")
        expect_limits(page, *[1.0] * 4)
        page.locator("#run-again-base").focus()
        page.keyboard.press("j")
        expect(page.locator("#trajectory h3")).to_have_text("apples")
        page.locator("#run-again summary").focus()
        page.keyboard.press("Enter")
        expect_limits(page, *[OWN] * 4)
        page.keyboard.press("Enter")
        expect_limits(page, *[1.0] * 4)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert serious(page) == []
        page.locator("#rows").focus()
        page.keyboard.press("j")
        expect(page.locator("#trajectory h3")).to_have_text("unbroken")
        expect_limits(page, OWN, OWN)
        assert one.complaints == []


def test_hostile_texts_are_judged_and_stay_text(browser: Browser, url: str) -> None:
    with opened(browser, url) as one:
        page = to_runs(one)
        choose(page, 2, EVIL)
        page.click("#run-again summary")
        page.locator("#run-again-base").fill("0.6")
        expect(page.locator("#run-again .said")).to_contain_text("Breach at step 2")
        expect_limits(page, *[boundary(0.5, Params(base_threshold=0.6), 0)] * 4)
        assert page.locator("main img, main script, main style, main iframe").count() == 0
        assert one.complaints == []


def test_a_static_boundary_has_one_slider(browser: Browser, url: str) -> None:
    with opened(browser, url) as one:
        page = to_runs(one)
        choose(page, 3, "static")
        page.click("#run-again summary")
        assert page.locator("#run-again input").count() == 1
        expect_limits(page, *[0.2] * 4)


def test_values_that_thresholds_do_not_fit_have_no_slider(browser: Browser, url: str) -> None:
    with opened(browser, url) as one:
        page = to_runs(one)
        for place, name in enumerate(UNFIT, 4):
            choose(page, place, name)
            assert page.locator("#run-again").count() == 0, name
        choose(page, 0, "apples")
        assert page.locator("#run-again").count() == 1
        assert one.complaints == []


def test_both_views_have_sliders_of_their_own(browser: Browser, url: str) -> None:
    with opened(browser, url) as one:
        one.run()
        page = to_runs(one)
        ids = page.evaluate("[...document.querySelectorAll('[id]')].map((one) => one.id)")
        assert sorted({i for i in ids if ids.count(i) > 1}) == []
        page.click("#run-again summary")
        page.locator("#run-again-base").fill("0")
        page.click("nav a[href='#watch']")
        page.click("#again summary")
        expect(page.locator("#again .said")).to_contain_text("Breach at step 2")

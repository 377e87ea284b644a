"""Several corrections in the viewer, and live."""

from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from motab.answers import JudgedAnswers
from tests.browser.page import STEPS, opened, serious, served
from tests.browser.test_several_breaches import SHAPES, texts, viewing
from tests.support.proxy.api import service_of
from tests.support.records import breached, several
from tests.support.scripted import ScriptedBackend, says, values

HOSTILE = "<img src=x onerror=alert(1)>"
CHOSEN = {"index": 2, "by": "majority", "answers": [HOSTILE, None, "7", None], "lost": [1]}
SHOWN = [f"0 {HOSTILE}", "1 lost: its server failed", "2 7", "3 no answer found"]

KEEP_STATES = """() => {
  window.said = [];
  const state = document.getElementById("pair-state");
  const observer = new MutationObserver(() => window.said.push(state.textContent));
  observer.observe(state, { childList: true });
}"""
"""Keeps in `said` what the page says of the pair, one text after the other."""


def answers(page: Page, place: str) -> list[str]:
    shown = page.locator(f"{place} .choice li").all_inner_texts()
    return [" ".join(one.split()) for one in shown]


def test_the_viewer_shows_which_correction_was_kept_and_every_answer(
    browser: Browser, tmp_path: Path
) -> None:
    plain = breached() | {"id": "plain"}
    with viewing(browser, tmp_path, breached() | {"chosen": CHOSEN}, plain) as one:
        page = one.page
        expect(page.locator("#trajectory .choice .note")).to_have_text(
            "correction 2 (of 0 to 3) is kept, by the majority"
        )
        assert answers(page, "#trajectory") == SHOWN
        expect(page.locator("#trajectory .choice .kept")).to_have_text("27")
        assert page.locator("#trajectory img").count() == 0
        assert serious(page) == []
        page.keyboard.press("j")
        expect(page.locator("#trajectory h3")).to_have_text("plain")
        expect(page.locator("#trajectory .choice")).to_have_count(0)
        assert one.complaints == []


@pytest.mark.parametrize("tail", [0, 2])
def test_of_several_rounds_the_last_one_has_the_choice(
    browser: Browser, tmp_path: Path, tail: int
) -> None:
    chosen = {"index": 0, "by": "reference", "answers": ["7", "5"]}
    fields = several(*SHAPES, tail=tail, id="rounds") | {"chosen": chosen}
    with viewing(browser, tmp_path, fields) as one:
        pairs = one.page.locator("#trajectory .pair")
        expect(pairs).to_have_count(3)
        assert [pair.locator(".choice").count() for pair in pairs.all()] == [0, 0, 1]
        assert answers(one.page, "#trajectory") == ["0 7", "1 5"]
        assert one.complaints == []


def answers_html(record: dict[str, str]) -> tuple[str, bool]:
    """A rule whose answer is the text's last line, be it HTML."""
    last = record["output"].rsplit("\n", 1)[-1]
    return last, last == record.get("answer")


@pytest.mark.parametrize("stitch", ["flawed", "clean"])
def test_the_choice_of_a_real_proxy_is_watched(browser: Browser, stitch: str) -> None:
    first, second, third = STEPS
    written: Any = iter([says("Five."), says(HOSTILE), says(HOSTILE)])
    judge = values({first: 0.9, second: 0.3, third: 0.1}, entropy=0.25)
    teacher = ScriptedBackend(lambda _sampling: next(written), judge)
    defaults = {"corrections": 3, "stitch": stitch}
    service = service_of(ScriptedBackend(says(*STEPS)), teacher, defaults, page={})
    with (
        JudgedAnswers(f"{__name__}:answers_html") as service.reader,
        served(service) as url,
        opened(browser, url) as one,
    ):
        page = one.page
        page.uncheck("#alone")
        page.evaluate(KEEP_STATES)
        one.run()
        said = "correction 1 (of 0 to 2) is kept, by the majority"
        assert said in page.evaluate("window.said")
        expect(page.locator("#pair .choice .note")).to_have_text(said)
        assert answers(page, "#pair") == ["0 Five.", f"1 {HOSTILE}", f"2 {HOSTILE}"]
        assert texts(page.locator("#pair .pair > div").nth(1))[-1] == HOSTILE
        assert page.locator("#pair img").count() == 0
        assert serious(page) == []
        assert one.complaints == []

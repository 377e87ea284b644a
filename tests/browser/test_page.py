"""The proxy's page: every view at every width, by mouse and by keyboard, with hostile text."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from playwright.sync_api import Browser, expect

from proxy.core.boundary import boundary
from proxy.core.credit import bifurcation
from proxy.core.params import Params
from tests.browser.page import (
    CORRECTION,
    STEPS,
    opened,
    serious,
    served,
    straying_pair,
    straying_service,
)
from tests.support.proxy.api import service_of
from tests.support.records import breached, record_of, unbroken
from tests.support.synth_client.exports import written
from tests.support.synth_client.reports import EVIL, hostile

VIEWS = ("watch", "fleet", "runs")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    records = [breached(), hostile(), *(unbroken(id=f"plain-{n}") for n in range(150))]
    written(folder / "some run.jsonl", map(record_of, records))
    return folder


@pytest.fixture(scope="module")
def url(runs: Path) -> Iterator[str]:
    page = {
        "runs": str(runs),
        "questions": ["How much is 2 + 2 + 1?", EVIL],
        "prices": {"student": 1.0},
    }
    with served(straying_service(page=page)) as address:
        yield address


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_every_view_fits_is_usable_and_asks_this_server_only(
    browser: Browser, url: str, width: int, scheme: str
) -> None:
    with opened(browser, url, width=width, scheme=scheme) as one:
        page = one.page
        assert serious(page) == []
        one.run(f"{EVIL}{'a' * 300}")
        for details in ("parameters", "copying", "again"):
            page.evaluate(f"document.getElementById('{details}').open = true")
        page.click("[data-copy=curl]")
        for view in VIEWS:
            page.click(f"nav a[href='#{view}']")
            if view != "watch":
                page.wait_for_selector(f"html[data-{view}=ready]")
            if view == "runs":
                for place in (0, 1):
                    page.locator(".row").nth(place).click()
            assert page.evaluate("document.documentElement.scrollWidth") == width, view
            assert serious(page) == [], view
        assert all(asked.startswith(url) for asked in one.requests)
        assert one.complaints == []


def test_a_breach_a_way_back_and_a_correction_are_seen_next_to_each_model_alone(
    browser: Browser, url: str
) -> None:
    with opened(browser, url) as one:
        one.run()
        page = one.page
        expect(page.locator("#pair-state")).to_have_text("breach at step 2, back to t* = 1")
        attempt, correction = page.locator("#pair .pair > div").all()
        assert [text.strip() for text in attempt.locator(".text").all_inner_texts()] == [
            step.strip() for step in STEPS[1:]
        ]
        assert correction.locator(".text").all_inner_texts() == ["However,", CORRECTION]
        labels = [one.get_attribute("aria-label") for one in page.locator("#pair .meter").all()]
        assert labels == [f"value {value}, boundary 0.156" for value in ("0.900", "0.300", "0.100")]
        expect(page.locator("#student-text")).to_have_text("".join(STEPS).strip())
        expect(page.locator("#teacher-text")).to_have_text(CORRECTION)


def test_the_texts_come_while_they_are_written(browser: Browser) -> None:
    service = straying_service()
    with served(service) as url, opened(browser, url) as one:
        page = one.page
        page.evaluate(
            """() => {
              window.seen = [];
              new MutationObserver(() => {
                const states = document.getElementById("pair-state").textContent;
                if (window.seen.at(-1) !== states) window.seen.push(states);
              }).observe(document.getElementById("pair-state"), { childList: true });
            }"""
        )
        one.run()
        assert page.evaluate("window.seen") == [
            "the student writes",
            "1 step judged",
            "2 steps judged",
            "step 2: V is below ε",
            "breach at step 2",
            "back past step 2",
            "back to t* = 1",
            "the teacher continues",
            "breach at step 2, back to t* = 1",
        ]


def test_the_keyboard_alone_asks_and_changes_views(browser: Browser, url: str) -> None:
    with opened(browser, url) as one:
        page = one.page
        page.keyboard.press("Tab")
        expect(page.get_by_text("Skip to the content")).to_be_focused()
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        expect(page.locator("#question")).to_be_focused()
        page.keyboard.press("Control+a")
        page.keyboard.type("How much?")
        page.keyboard.press("Control+Enter")
        page.wait_for_selector("html[data-watch=done]")
        page.locator("#again summary").focus()
        page.keyboard.press("Enter")
        slider = page.locator("#again-base")
        slider.focus()
        page.keyboard.press("Home")
        expect(page.locator(".said")).to_contain_text("No breach in these steps")
        link = page.locator("nav a[href='#runs']")
        link.focus()
        page.keyboard.press("Enter")
        expect(page.locator("#trajectory h3")).to_have_text("apples")
        page.keyboard.press("j")
        expect(page.locator("#trajectory h3")).to_have_text(EVIL)
        page.keyboard.press("/")
        page.keyboard.type("plain-149")
        expect(page.locator("#trajectory h3")).to_have_text("plain-149")
        expect(page.locator("#count")).to_have_text("1 of 152")


def test_hostile_text_is_text_wherever_it_comes_from(browser: Browser) -> None:
    steps = (f"{EVIL}.\n\n", f"2 {EVIL}.\n\n", f"3 {EVIL}.\n\n")
    service = straying_service(*steps, page={"questions": [EVIL]})
    service.models[EVIL] = service.models["motab/small+large"]  # type: ignore[index]
    with served(service) as url, opened(browser, url) as one:
        page = one.page
        page.select_option("#model", EVIL)
        one.run(EVIL)
        expect(page.locator("#student-text")).to_contain_text(EVIL)
        expect(page.locator("#pair")).to_contain_text(f"3 {EVIL}.")
        page.click("nav a[href='#fleet']")
        expect(page.locator("#models")).to_contain_text(EVIL)
        assert page.locator("main img, main script, main style, main iframe").count() == 0
        assert one.complaints == []


def test_other_thresholds_are_judged_as_the_algorithm_does(browser: Browser, url: str) -> None:
    cases = [
        ([0.9, 0.3, 0.1], [0.25, 0.25, 0.25], 0.2, 1.0),
        ([0.9, 0.3, 0.1], [0.25, 0.0, 2.0], 0.35, 1.5),
        ([0.5, 0.5, 0.4, 0.4, 0.1], [0.0] * 5, 0.45, 0.0),
        ([0.2, 0.9, 0.8, 0.9, 0.3], [0.1, 0.2, 0.3, 0.4, 0.0], 0.5, 3.0),
        ([0.9, 0.8], [0.0, 0.0], 0.1, 1.0),
        ([0.75, 0.5, 0.25], [0.0] * 3, 0.3, 0.0),
        ([0.05], [0.0], 0.2, 1.0),
    ]
    with opened(browser, url) as one:
        for found, entropies, base, scale in cases:
            steps = [["", "", "", v, 0, h] for v, h in zip(found, entropies, strict=True)]
            seen = one.page.evaluate(
                "([steps, base, scale]) => rethreshold.outcome(steps, base, scale, true)",
                [steps, base, scale],
            )
            params = Params(base_threshold=base, entropy_scale=scale)
            limits = [boundary(entropy, params, t) for t, entropy in enumerate(entropies)]
            below = [i for i, (v, e) in enumerate(zip(found, limits, strict=True)) if v < e]
            assert seen["limits"] == pytest.approx(limits)
            assert seen["breach"] == (below[0] if below else None)
            if below:
                cut = bifurcation(found[: below[0] + 1], limits)
                assert seen["bifurcation"] == cut


def test_a_boundary_by_step_is_shown_and_can_be_left(browser: Browser) -> None:
    own = {"boundary": "quantile", "boundary_values": [0.9, 0.1, 0.15]}
    service = service_of(*straying_pair(), own, page={"questions": ["Q?"]})
    with served(service) as url, opened(browser, url) as one:
        page = one.page
        one.run()
        labels = [meter.get_attribute("aria-label") for meter in page.locator("#pair .meter").all()]
        assert labels == [
            "value 0.900, boundary 0.900",
            "value 0.300, boundary 0.100",
            "value 0.100, boundary 0.150",
        ]
        expect(page.locator("#again")).to_be_hidden()
        expect(page.locator("#option-boundary")).to_have_value("quantile")
        page.select_option("#option-boundary", "static")
        one.run()
        expect(page.locator("#again")).to_be_visible()
        page.evaluate("document.getElementById('copying').open = true")
        page.click("[data-copy=yaml]")
        written = yaml.safe_load(page.locator("#snippet").text_content() or "")
        assert written["models"]["motab/small+large"]["params"] == {"boundary": "static"}
        assert one.complaints == []


def test_a_request_is_copied_for_a_shell_for_python_and_for_yaml(
    browser: Browser, url: str, tmp_path: Path
) -> None:
    question = "It's \"$HOME\" `id` \\ \n{{x}} 'ü\U0001f34e'"
    with opened(browser, url) as one:
        page = one.page
        page.fill("#question", question)
        page.fill("#option-seed", "5")
        page.fill("#option-revise", "Wait: 'no',")
        page.evaluate("document.getElementById('copying').open = true")
        written = {}
        for name in ("curl", "python", "yaml"):
            page.click(f"[data-copy={name}]")
            written[name] = page.locator("#snippet").text_content() or ""
    told = subprocess.run(
        ["sh", "-c", 'curl() { printf "%s\\0" "$@"; }\n' + written["curl"]],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout.split("\0")
    assert told[0] == f"{url}v1/motab/chat/completions"
    body = json.loads(told[told.index("-d") + 1])
    assert body == {
        "model": "motab/small+large",
        "messages": [{"role": "user", "content": question}],
        "seed": 5,
        "motab": {"revise": "Wait: 'no',"},
    }
    asked: dict[str, Any] = {}
    script = re.sub(r"^from openai .*$", "", written["python"], flags=re.MULTILINE)
    exec(compile(script, "copied", "exec"), {"OpenAI": client_that_keeps(asked)})
    extra = {"motab": {**body.pop("motab"), "trace": "full"}}
    assert asked == {"base_url": f"{url}v1", **body, "extra_body": extra}
    model = yaml.safe_load(written["yaml"])["models"]["motab/small+large"]
    assert model["params"] == {"revise": "Wait: 'no',"}


def client_that_keeps(asked: dict[str, Any]) -> Any:
    class Client:
        def __init__(self, base_url: str, api_key: str) -> None:
            asked["base_url"] = base_url
            self.chat = self.completions = self.message = self
            self.choices = [self]
            self.content = self.motab = ""

        def create(self, **fields: Any) -> Any:
            asked.update(fields)
            return self

    return Client


def test_a_server_with_keys_shows_nothing_until_it_gets_one(browser: Browser) -> None:
    service = straying_service(api_keys=["k-3141"], page={"questions": ["Secret?"]})
    with served(service) as url, opened(browser, url, wait=False) as one:
        page = one.page
        expect(page.locator("#key")).to_be_focused()
        assert serious(page) == []
        assert "Secret?" not in page.content()
        page.keyboard.type("wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#login-fault")).to_have_text("The server does not know this key.")
        page.keyboard.type("k-3141")
        page.keyboard.press("Enter")
        one.run()
        expect(page.locator("#pair-state")).to_have_text("breach at step 2, back to t* = 1")
        page.reload()
        page.wait_for_selector("html[data-page=ready]")
        assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
        assert "k-3141" not in page.content()
        page.click("#forget")
        expect(page.locator("#key")).to_be_focused()
        assert page.evaluate("sessionStorage.length") == 0


def test_a_fault_is_said_where_it_happened(browser: Browser, url: str) -> None:
    with opened(browser, url) as one:
        one.page.fill("#option-revise", "")
        one.page.evaluate("document.getElementById('option-revise').maxLength = 9999")
        one.page.fill("#option-revise", "x" * 1001)
        one.run()
        expect(one.page.locator("#pair-state")).to_contain_text("revise must have at most 1000")


def test_a_field_that_cannot_be_sent_comes_into_sight(browser: Browser, url: str) -> None:
    with opened(browser, url, width=390) as one:
        page = one.page
        page.fill("#question", "How much?")
        page.evaluate("document.getElementById('option-seed').value = ''")
        expect(page.locator("#option-seed")).to_be_hidden()
        page.click("#start")
        expect(page.locator("#option-seed")).to_be_focused()
        assert one.complaints == []


def test_the_fleet_shows_the_server_s_own_metrics(browser: Browser) -> None:
    service = straying_service(page={"prices": {"student": 1_000_000}})
    with served(service) as url, opened(browser, url) as one:
        page = one.page
        one.run()
        page.click("nav a[href='#fleet']")
        page.wait_for_selector("html[data-fleet=ready]")
        tiles = dict(
            zip(
                page.locator("#tiles dt").all_inner_texts(),
                page.locator("#tiles dd").all_inner_texts(),
                strict=True,
            )
        )
        assert tiles["Breach rate"].startswith("100%\n1 of 1 that a teacher judged; 0 failed")
        assert tiles["Scoring calls"].endswith("so far")
        written = 2 * len(STEPS)  # a piece is a token
        assert tiles["Student writes"].endswith(f"{written} tokens so far")
        assert tiles["Cost"].startswith(f"{written:.2f}")
        rows = page.locator("#models tbody tr").all_inner_texts()
        assert rows == ["motab/small+large\t3\t100%\t0"]
        page.click("nav a[href='#watch']")
        before = sum("metrics" in asked for asked in one.requests)
        page.wait_for_timeout(4500)
        assert sum("metrics" in asked for asked in one.requests) == before


def test_a_question_that_replaces_another_shows_only_itself(browser: Browser) -> None:
    service = straying_service()
    with served(service) as url, opened(browser, url) as one:
        page = one.page
        page.emulate_media(reduced_motion="no-preference")
        page.fill("#question", "The first?")
        page.click("#start")
        expect(page.locator("#pair-state")).to_have_text("breach at step 2")
        page.emulate_media(reduced_motion="reduce")
        one.page.evaluate("document.documentElement.dataset.watch = ''")
        one.run("The second?")
        page.wait_for_timeout(1200)  # as long as the first would have waited at its breach
        expect(page.locator("#pair-state")).to_have_text("breach at step 2, back to t* = 1")
        assert page.locator("#pair [data-step]").count() == 3
        page.emulate_media(reduced_motion="no-preference")
        page.click("#start")
        page.wait_for_selector(".step.struck")
        page.click("#stop")
        expect(page.locator("#pair-state")).to_have_text("stopped")
        assert one.complaints == []

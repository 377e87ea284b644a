import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest
from playwright.sync_api import Browser, Page, expect
from typer.testing import CliRunner

from motab.cli import app
from tests.support.patience import PATIENCE_S
from tests.support.records import (
    FLAWED,
    REVISE,
    SAFE,
    breached,
    left_out,
    spans_of,
    steps_of,
    unbroken,
)
from tests.support.synth_client.reports import EVIL, hostile, with_tokens

NUM_PLAIN = 300


@dataclass
class Opened:
    """A page, and what it did that it must not do."""

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


Open = Callable[..., Opened]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    records = [
        with_tokens(breached()),
        left_out() | {"id": "clean", "sample": 1},
        hostile(),
        unbreakable(),
        *(unbroken(id=f"plain-{number:03}", predicted=str(number)) for number in range(NUM_PLAIN)),
    ]
    return made(folder, records, "report")


def unbreakable() -> dict[str, Any]:
    """A record of words that no line can hold."""
    word = "a" * 1000
    return unbroken(
        id=word,
        messages=[{"role": "user", "content": word}],
        output=word * 2,
        spans=spans_of([("student", word * 2)]),
        steps=steps_of([word], [0.9]),
        models={"student": word, "teacher": word},
        predicted=word,
    )


def made(folder: Path, records: list[dict[str, Any]], command: str, *options: str) -> Path:
    source, page = folder / "records.jsonl", folder / f"{command}.html"
    source.write_bytes(b"".join(orjson.dumps(fields) + b"\n" for fields in records))
    arguments = [command, str(source), "--output", str(page), *options]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return page


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    contexts = []

    def opened(path: Path, *, width: int = 1280, scheme: Any = "light") -> Opened:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True
        )
        context.set_default_timeout(1000 * PATIENCE_S)
        contexts.append(context)
        one = Opened(context.new_page())
        one.page.on("request", lambda request: one.requests.append(request.url))
        one.page.on("console", lambda message: one.complaints.append(message.text))
        one.page.on("pageerror", lambda error: one.complaints.append(str(error)))
        one.page.on("dialog", lambda dialog: one.complaints.append(dialog.message))
        one.page.goto(path.as_uri())
        one.page.wait_for_selector("html[data-plots=ready]")
        if one.page.query_selector("#viewer"):
            one.page.wait_for_selector("html[data-viewer=ready]")
            expect(one.page.locator("#trajectory h3")).to_be_visible()
        return one

    yield opened
    for context in contexts:
        context.close()


def shown(page: Page) -> Any:
    return page.locator("#trajectory h3")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_opens_offline_without_a_complaint_and_fits(
    report: Path, open_page: Open, width: int, scheme: str
) -> None:
    opened = open_page(report, width=width, scheme=scheme)
    page = opened.page
    expect(page.locator("[data-plot] svg.main-svg").first).to_be_visible()
    assert page.locator("[data-plot]").count() == page.locator("[data-plot].js-plotly-plot").count()
    for name in ("apples", "clean sample 1", EVIL, "a" * 1000, "plain-000"):
        expect(shown(page)).to_have_text(name)
        page.keyboard.press("b")
        assert page.evaluate("document.documentElement.scrollWidth") == width
        overflow = "one => one.scrollWidth - one.clientWidth"
        assert page.locator("#trajectory").evaluate(overflow) == 0
        page.keyboard.press("j")
    assert opened.requests == [report.as_uri()]
    assert opened.complaints == []


def test_the_best_example_stands_above_the_plots(tmp_path: Path, open_page: Open) -> None:
    page = open_page(made(tmp_path, [unbroken(), breached()], "report")).page
    example = page.locator("#example-trajectory")
    expect(example.locator("h3")).to_have_text("apples")
    expect(example.locator(".pair > div")).to_have_count(2)
    expect(example.locator(".fork")).to_contain_text("t* = 2")
    above, below = example.bounding_box(), page.locator("#plots").bounding_box()
    assert above
    assert below
    assert above["y"] + above["height"] < below["y"]
    example.locator(".mark").last.click()
    expect(example.locator('[data-step="3"]')).to_be_in_viewport()


def test_the_policy_stops_what_would_reach_the_network(report: Path, open_page: Open) -> None:
    opened = open_page(report)
    failed = opened.page.evaluate(
        "fetch('http://127.0.0.1:9/').then(() => 'came through', () => 'stopped')"
    )
    assert failed == "stopped"
    assert any("Content Security Policy" in complaint for complaint in opened.complaints)


def test_the_keyboard_goes_through_trajectories_and_steps(report: Path, open_page: Open) -> None:
    page = open_page(report).page
    expect(shown(page)).to_have_text("apples")
    page.keyboard.press("n")
    expect(page.locator(".step.current")).to_contain_text(SAFE[0].strip())
    page.keyboard.press("n")
    page.keyboard.press("p")
    expect(page.locator(".step.current")).to_have_attribute("data-step", "0")
    page.keyboard.press("b")
    expect(page.locator(".step.current")).to_have_attribute("data-step", "2")
    page.keyboard.press("j")
    expect(shown(page)).to_have_text("clean sample 1")
    page.keyboard.press("k")
    expect(shown(page)).to_have_text("apples")
    page.keyboard.press("G")
    expect(shown(page)).to_have_text(f"plain-{NUM_PLAIN - 1}")
    expect(page.locator('.row[aria-selected="true"]')).to_be_in_viewport()
    page.keyboard.press("g")
    expect(shown(page)).to_have_text("apples")
    page.keyboard.press("?")
    expect(page.locator("#keys dl")).to_be_visible()


def test_search_and_filter_pick_trajectories(report: Path, open_page: Open) -> None:
    page = open_page(report).page
    page.keyboard.press("/")
    page.keyboard.type("PLAIN-1 apples")
    expect(page.locator("#count")).to_have_text(f"100 of {NUM_PLAIN + 4}")
    page.keyboard.press("Enter")
    page.keyboard.press("j")
    expect(shown(page)).to_have_text("plain-101")
    page.locator(".row").nth(4).click()
    expect(shown(page)).to_have_text("plain-104")
    page.keyboard.press("/")
    page.locator("#search").fill("no such thing")
    expect(page.locator("#trajectory")).to_have_text("No trajectory matches.")
    page.locator("#search").fill("")
    page.locator("#filter").select_option("breach")
    expect(page.locator("#count")).to_have_text(f"3 of {NUM_PLAIN + 4}")
    expect(shown(page)).to_have_text("apples")


def test_only_rows_in_sight_are_in_the_document(report: Path, open_page: Open) -> None:
    assert open_page(report).page.locator(".row").count() < 40


def test_a_corrected_trajectory_shows_attempt_and_correction_side_by_side(
    report: Path, open_page: Open
) -> None:
    page = open_page(report).page
    attempt, correction = page.locator("#viewer .pair > div").all()
    assert re.findall(r"So he has|That makes 15", attempt.inner_text()) == [
        "So he has",
        "That makes 15",
    ]
    assert REVISE.strip() in correction.inner_text()
    assert "The answer is 36" in correction.inner_text()
    left, right = attempt.bounding_box(), correction.bounding_box()
    assert left
    assert right
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] <= right["x"]
    fork = page.locator("#viewer .fork").inner_text()
    assert fork.startswith("t* = 2")
    assert "the value fell by 0.430, from 0.740 to 0.310" in fork
    assert "Breach at step 3, 1 step back" in fork
    chosen = page.locator("#viewer .chosen")
    assert chosen.inner_text().split() == ["\u03b4", "\u22120.430"]


def test_each_step_has_its_value_against_its_boundary(report: Path, open_page: Open) -> None:
    page = open_page(report).page
    meters = page.locator("#viewer .meter")
    labels = [meter.get_attribute("aria-label") for meter in meters.all()]
    assert labels == [
        f"value {value}, boundary 0.121" for value in ("0.810", "0.740", "0.310", "0.050")
    ]
    widths = page.evaluate(
        "[...document.querySelectorAll('#viewer .meter')].map(one => {"
        " const fill = one.querySelector('i').getBoundingClientRect().width;"
        " return fill / one.getBoundingClientRect().width; })"
    )
    assert widths == pytest.approx([0.81, 0.74, 0.31, 0.05], abs=0.01)
    roles = [step.get_attribute("class") for step in page.locator("#viewer [data-step]").all()]
    assert roles == ["step student", "step student", "step flawed", "step flawed"]


def test_both_models_are_followed_through_a_trajectory_with_token_logprobs(
    report: Path, open_page: Open
) -> None:
    page = open_page(report).page
    name = "Log-probability of a token along the output"
    trace = page.locator("#viewer").get_by_role("img", name=name)
    expect(trace.locator(".scatterlayer .trace")).to_have_count(2)
    expect(trace.locator(".shapelayer path")).to_have_count(3)
    page.keyboard.press("j")
    expect(shown(page)).to_have_text("clean sample 1")
    expect(trace).to_have_count(0)


def test_steps_left_out_stand_in_the_attempt(report: Path, open_page: Open) -> None:
    page = open_page(report).page
    page.keyboard.press("j")
    expect(shown(page)).to_have_text("clean sample 1")
    attempt = page.locator("#viewer .pair > div").first
    expect(attempt).to_contain_text(FLAWED[1].strip())
    assert attempt.inner_text().count("left out") == 2


def test_hostile_records_are_text(report: Path, open_page: Open) -> None:
    opened = open_page(report)
    opened.page.locator(".row").nth(2).click()
    expect(shown(opened.page)).to_contain_text("<script>alert(1)</script>")
    assert opened.page.locator("#viewer script, #viewer img").count() == 0
    assert opened.complaints == []
    assert len(opened.requests) == 1


def test_colours_follow_the_scheme_while_the_page_is_open(report: Path, open_page: Open) -> None:
    page = open_page(report).page
    bar = page.locator('[data-plot="depth"] .bars path').first
    before = bar.evaluate("one => getComputedStyle(one).fill")
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(
        "before => getComputedStyle(document.querySelector("
        "'[data-plot=\"depth\"] .bars path')).fill !== before",
        arg=before,
    )
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(19, 21, 23)"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_the_contrast_that_wcag_asks_for(
    report: Path, open_page: Open, scheme: str
) -> None:
    ratios = open_page(report, scheme=scheme).page.evaluate(
        """() => {
        const linear = (part) => part <= .04045 ? part / 12.92 : ((part + .055) / 1.055) ** 2.4;
        const light = (name) => {
            const element = document.createElement("i");
            element.style.color = `var(--${name})`;
            document.body.append(element);
            const parts = getComputedStyle(element).color.match(/\\d+/g);
            const [r, g, b] = parts.map((part) => linear(part / 255));
            element.remove();
            return .2126 * r + .7152 * g + .0722 * b;
        };
        const pairs = ["ink", "soft", "student", "flawed", "teacher", "focus"].map((name) => {
            const [low, high] = [light(name), light("card")].sort((a, b) => a - b);
            return [name, (high + .05) / (low + .05)];
        });
        return Object.fromEntries(pairs);
        }"""
    )
    assert all(ratio >= 4.5 for ratio in ratios.values()), ratios


@pytest.mark.parametrize("width", [1280, 390])
def test_a_rescored_page_opens_offline_and_fits(
    tmp_path: Path, open_page: Open, width: int
) -> None:
    options = ("--base-threshold", "0.05", "--base-threshold", "0.2", "--calibrate", "0.5")
    path = made(tmp_path, [breached(), unbroken()], "rescore", *options)
    opened = open_page(path, width=width)
    expect(opened.page.locator("[data-plot] svg.main-svg").first).to_be_visible()
    assert opened.page.evaluate("document.documentElement.scrollWidth") == width
    assert opened.requests == [path.as_uri()]
    assert opened.complaints == []


def test_ten_thousand_records_open(tmp_path: Path, open_page: Open) -> None:
    records = [unbroken(id=f"many-{number}") for number in range(10_000)]
    opened = open_page(made(tmp_path, records, "report"))
    opened.page.keyboard.press("G")
    expect(shown(opened.page)).to_have_text("many-9999")
    assert opened.complaints == []

"""Trajectories of several rounds in the viewer, and live."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from playwright.sync_api import Browser, Page, Route, expect

from tests.browser.page import Watched, opened, served, straying_service
from tests.integration.proxy.api.test_rounds import straying_twice
from tests.support.proxy.api import service_of
from tests.support.records import record_of, several
from trajectory_records.record import Record

SHAPES = ((2, 2), (0, 1), (1, 3))
TURNS = ((3, 2), (4, 4), (8, 6))


def texts(place: Any) -> list[str]:
    return [text.strip() for text in place.locator(".text").all_inner_texts()]


def flawed(record: Record, number: int) -> list[str]:
    breach = record.all_breaches[number]
    steps = range(breach.bifurcation, breach.breach + 1)
    return [(record.step_text(index) or "").strip() for index in steps]


def check_course(page: Page, place: str, record: Record, num: int) -> None:
    """The course of each round is shown: its fork, its attempt and its correction."""
    forks = page.locator(f"{place} .fork").all_inner_texts()
    assert [fork.split(" ")[2] for fork in forks] == [str(turn) for _, turn in TURNS[:num]]
    for number, (breach, turn) in enumerate(TURNS[:num]):
        back = breach - turn
        assert (
            f"Breach at step {breach}, {back} step{'' if back == 1 else 's'} back" in forks[number]
        )
        attempt, correction = page.locator(f"{place} .pair").nth(number).locator("> div").all()
        assert texts(attempt) == flawed(record, number)
        is_clean = record.params["stitch"] == "clean"
        assert texts(correction) == [*([] if is_clean else ["However,"]), f"teacher {number}."]
    shown = page.locator(f"{place} [data-step]")
    assert [one.get_attribute("data-step") for one in shown.all()] == [
        str(index) for index in range(len(record.steps))
    ]
    assert texts(page.locator(place)).count("teacher 0.") == min(num, 1)


@contextmanager
def viewing(browser: Browser, folder: Path, *records: dict[str, Any]) -> Iterator[Watched]:
    lines = b"".join(orjson.dumps(fields) + b"\n" for fields in records)
    (folder / "records.jsonl").write_bytes(lines)
    with served(straying_service(page={"runs": str(folder)})) as url, opened(browser, url) as one:
        one.page.click("nav a[href='#runs']")
        one.page.wait_for_selector("html[data-runs=ready]")
        yield one


def test_the_viewer_shows_every_round(browser: Browser, tmp_path: Path) -> None:
    kinds = [(num, clean) for clean in (False, True) for num in (0, 1, 2, 3)]
    records = [
        several(*SHAPES[:num], tail=2, clean=clean, id=f"{num} {clean}") for num, clean in kinds
    ]
    ended = several(*SHAPES, id="ended")
    with viewing(browser, tmp_path, *records, ended) as one:
        page = one.page
        states = page.locator("#rows .row").all_inner_texts()
        assert "2 steps" in states[0]
        assert "breach 3 → 2\n" in states[1]
        assert "breach 3 → 2 and 1 more" in states[2]
        assert "breach 3 → 2 and 2 more" in states[3]
        for (num, _), fields in zip([*kinds, (3, False)], [*records, ended], strict=True):
            expect(page.locator("#trajectory h3")).to_have_text(fields["id"])
            check_course(page, "#trajectory", record_of(fields), num)
            badges = page.locator("#trajectory .badges").inner_text()
            assert badges.count("breach at step") == num
            expect(page.locator("#trajectory .note-turn")).to_have_count(num)
            page.keyboard.press("j")
        page.select_option("#filter", "clean")
        expect(page.locator("#count")).to_have_text("2 of 9")
        assert one.complaints == []


def test_keys_and_marks_lead_to_the_steps_behind_a_correction(
    browser: Browser, tmp_path: Path
) -> None:
    never, later = several((1, 1), (2, 1), tail=1, id="never"), several((1, 1), (0, 2), id="later")
    with viewing(browser, tmp_path, several(*SHAPES, tail=2, id="three"), never, later) as one:
        page, current = one.page, one.page.locator("#trajectory .step.current")
        page.locator("#rows").focus()
        for turn in (2, 4, 6, 2):
            page.keyboard.press("b")
            expect(current).to_have_attribute("data-step", str(turn))
        page.locator("#trajectory .mark").nth(9).click()
        expect(current).to_have_attribute("data-step", "9")
        page.select_option("#filter", "early")
        expect(page.locator("#count")).to_have_text("2 of 3")
        names = [row.split("\n")[0] for row in page.locator("#rows .row").all_inner_texts()]
        assert names == ["three", "later"]


def events_of(record: Record) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the events of this trajectory as the proxy streams them, step by step."""

    def text(piece: str) -> tuple[str, dict[str, Any]]:
        delta = {"index": 0, "delta": {"content": piece}, "finish_reason": None}
        return "", {"choices": [delta]}

    fields = json.loads(record.to_json_line())
    corrections = iter(record.corrections())
    is_clean = record.params["stitch"] == "clean"
    for index, step in enumerate(fields["steps"]):
        piece = record.step_text(index)
        assert piece is not None
        if not is_clean:
            yield text(piece)
        event = {name: value for name, value in step.items() if name not in {"start", "end"}}
        yield "motab.step", {"index": 0, "step": index, **event, "text": piece}
        for one in record.all_breaches:
            if one.breach == index:
                yield "motab.breach", {"index": 0, **one.model_dump()}
                for written in next(corrections):
                    yield text(written.text)
        if is_clean and step["start"] is not None:
            yield text(piece)
    names = ("method", "scoring", "breach", "bifurcation", "breaches", "spans", "steps", "params")
    trace = {name: fields[name] for name in names if name in fields}
    yield "", {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "motab": trace}]}


def streamed(record: Record, num_events: int | None = None) -> str:
    events = [*events_of(record)][:num_events]
    names = (f"event: {name}\n" if name else "" for name, _ in events)
    data = (f"data: {json.dumps(body)}\n\n" for _, body in events)
    return "".join(map("".join, zip(names, data, strict=True)))


@contextmanager
def watching(browser: Browser, record: Record, num_events: int | None = None) -> Iterator[Watched]:
    """Open the page on a pair that writes this trajectory, and watch it to its end."""

    def answer(route: Route) -> None:
        route.fulfill(body=streamed(record, num_events), content_type="text/event-stream")

    with served(straying_service()) as url, opened(browser, url) as one:
        one.page.route("**/v1/chat/completions", answer)
        one.page.uncheck("#alone")
        one.page.select_option("#option-stitch", str(record.params["stitch"]))
        one.run()
        yield one


@pytest.mark.parametrize("clean", [False, True])
@pytest.mark.parametrize("num", [0, 1, 2, 3])
def test_every_round_is_watched(browser: Browser, num: int, clean: bool) -> None:
    record = record_of(several(*SHAPES[:num], tail=2, clean=clean))
    with watching(browser, record) as one:
        page = one.page
        said = "; ".join(
            f"breach at step {breach}, back to t* = {turn}" for breach, turn in TURNS[:num]
        )
        expect(page.locator("#pair-state")).to_have_text(said or "no breach")
        check_course(page, "#pair", record, num)
        page.evaluate("document.getElementById('again').open = true")
        is_first_only = "Only the steps before the first correction are judged again"
        assert (is_first_only in page.locator(".said").inner_text()) == bool(num)
        shown = TURNS[0][0] + 1 if num else 2
        page.locator("#again-base").fill("0.5")
        expect(page.locator("#pair-chart .mark")).to_have_count(shown)
        assert one.complaints == []


@pytest.mark.parametrize("clean", [False, True])
def test_a_correction_ends_where_the_student_writes_again(browser: Browser, clean: bool) -> None:
    record = record_of(several(*SHAPES, tail=2, clean=clean))
    events = [*events_of(record)]
    judged = [place for place, (name, _) in enumerate(events) if name == "motab.step"]
    cut = judged[9] + 1  # the first step after the last correction has its verdict
    with watching(browser, record, cut) as one:
        page = one.page
        expect(page.locator("#pair-state")).to_have_text("the stream ended before the text did")
        for number in range(3):
            attempt, correction = page.locator("#pair .pair").nth(number).locator("> div").all()
            assert texts(attempt) == flawed(record, number)
            assert texts(correction) == [*([] if clean else ["However,"]), f"teacher {number}."]
        assert page.locator("#pair [data-step]").count() == 10
        assert one.complaints == []


@pytest.mark.parametrize("stitch", ["flawed", "clean"])
def test_the_rounds_of_a_real_proxy_are_watched(browser: Browser, stitch: str) -> None:
    defaults = {"rounds": 2, "base_threshold": 0.1, "stitch": stitch}
    service = service_of(*straying_twice(), defaults, page={})
    with served(service) as url, opened(browser, url) as one:
        one.page.uncheck("#alone")
        one.run()
        said = "breach at step 1, back to t* = 1; breach at step 3, back to t* = 3"
        expect(one.page.locator("#pair-state")).to_have_text(said)
        first, second = one.page.locator("#pair .pair").all()
        revise = ["However,"] if stitch == "flawed" else []
        assert texts(first) == ["B b.", *revise, "C c."]
        assert texts(second) == ["E e.", *revise, "Right."]
        assert one.complaints == []

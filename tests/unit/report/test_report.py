import hashlib
import math
import random
import re
from base64 import b64encode
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from synth_client.errors import OutputError
from synth_client.report import page
from synth_client.report.likelihood import Likelihoods
from synth_client.report.likelihood_plots import likelihood_plots_of
from synth_client.report.page import PageError
from synth_client.report.plots import plots_of
from synth_client.report.report import report, write_report
from tests.support.pages import data_of, without_data
from tests.support.records import (
    CORRECTION,
    FLAWED,
    REVISE,
    SAFE,
    breached,
    record_of,
    spans_of,
    steps_of,
    unbroken,
)
from tests.support.synth_client.reports import EVIL, hostile, statistics_of, with_tokens
from trajectory_records.record import Record
from trajectory_records.viewer.palette import PALETTE

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Reads the page as a browser would: its tags, its texts by class, what it would load."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        named = dict(attrs)
        self.loads += [value or "" for name, value in attrs if name in {"src", "href", "srcset"}]
        assert not [name for name in named if name.startswith("on")]
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in {"script", "style"}:
            self.texts.append((self._open[-1], data))

    @property
    def text(self) -> str:
        return " ".join("".join(text for _, text in self.texts).split())


def html_of(*records: dict[str, Any], **options: Any) -> str:
    return "".join(report(map(record_of, records), **options))


def test_the_page_loads_nothing() -> None:
    html = without_data(html_of(breached()))
    parsed = Page(html)
    assert all(load.startswith("#") for load in parsed.loads)
    assert not {"link", "img", "iframe", "object", "base", "form"} & set(parsed.tags)
    assert not re.search(r"@import|url\(|https?:|fetch\(|XMLHttpRequest|WebSocket", html)


def test_only_the_scripts_of_the_page_may_run_and_the_network_is_forbidden() -> None:
    html = html_of(breached())
    found = re.search(r'Content-Security-Policy" content="([^"]*)"', html)
    assert found
    policy = found[1].replace("&#39;", "'")
    scripts = [*re.findall(r"<script>(.*?)</script>", html, re.DOTALL), data_of(html)["plotly"]]
    hashes = [
        f"'sha256-{b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in scripts
    ]
    assert len(scripts) == 3
    assert policy == (
        f"default-src 'none'; script-src {' '.join(hashes)}; style-src 'unsafe-inline';"
        " base-uri 'none'; form-action 'none'"
    )


def test_the_page_follows_the_colour_scheme_and_the_width_of_the_device() -> None:
    html = html_of(breached())
    assert "prefers-color-scheme: dark" in html
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in html


def test_hostile_text_stays_text_wherever_it_stands() -> None:
    html = html_of(hostile())
    parsed = Page(without_data(html))
    assert parsed.tags.count("script") == 2
    assert "img" not in parsed.tags
    # Student, teacher, method, base threshold and version in the summary, the rest as data.
    assert parsed.text.count(EVIL) == 5
    assert without_data(html).count("<script>alert") == 0
    data = data_of(html)
    assert data["index"][0][0] == EVIL
    assert data["chunk-0"][0]["steps"][0][0] == EVIL


def test_no_two_colours_of_plots_are_alike_in_the_light() -> None:
    lights = [colour.light for colour in PALETTE.values()]
    assert len(set(lights)) == len(lights)


def test_every_colour_of_a_plot_is_in_the_palette() -> None:
    known = {colour.light for colour in PALETTE.values()}
    likelihoods = Likelihoods()
    for method in ("motab", "teacher", "student", "skd", "imitkd", "prefix", "plain"):
        likelihoods.add(record_of(with_tokens(breached() | {"method": method})))
    groups = plots_of(statistics_of(breached(), unbroken()))
    for group in (*groups, *likelihood_plots_of(likelihoods)):
        for plot in group.plots:
            text = plot.figure.to_json()
            used = set(re.findall(r'"(#[0-9a-fA-F]{3,8}|rgba?\([^"]*\))"', text))
            assert used <= known, plot.name


def test_the_page_has_a_plot_for_each_question_asked_of_a_run() -> None:
    data = data_of(html_of(breached(), unbroken()))
    assert set(data["plots"]) == {
        "unsafe-absolute",
        "unsafe-relative",
        "depth",
        "values",
        "entropies",
        "margin-without",
        "margin-with",
        "margin-breach",
        "margin-distribution",
        "tokens",
    }
    (bars,) = data["plots"]["unsafe-absolute"]["data"]
    assert (bars["x"], bars["y"]) == ([3], [1])
    (bars,) = data["plots"]["depth"]["data"]
    assert (bars["x"], bars["y"]) == ([1], [1])
    (bars,) = data["plots"]["tokens"]["data"]
    assert bars["x"] == [40, 72, 8, 64, 40]


def test_records_with_token_logprobs_have_plots_of_them() -> None:
    html = html_of(with_tokens(breached()), with_tokens(unbroken()))
    plots = data_of(html)["plots"]
    assert {
        "confidence",
        "confidence-student",
        "confidence-teacher",
        "divergence",
        "divergence-sum",
        "along-student",
        "along-teacher",
        "along-handover",
    } <= set(plots)
    student, teacher = plots["confidence"]["data"]
    # Student-written text, and the correction after it.
    assert student["y"] == pytest.approx([math.exp(-0.6)] * 2)
    assert teacher["y"] == pytest.approx([math.exp(-0.4)] * 2)
    *_, line, _, _, _ = plots["divergence"]["data"]
    assert line["name"] == "student-written"
    assert line["y"][:2] == pytest.approx([0.1 - 0.2] * 2)
    *_, line, _, _, _ = plots["divergence-sum"]["data"]
    assert (line["x"][:2], line["y"][:2]) == ([25, 50], pytest.approx([-2.5, -5.0]))
    assert "motab score" not in without_data(html)


def test_both_models_are_drawn_along_the_trajectory_to_one_scale() -> None:
    plots = data_of(html_of(with_tokens(breached()), with_tokens(unbroken())))["plots"]
    student, teacher = (
        plots[name]["layout"]["yaxis"]["range"] for name in ("along-student", "along-teacher")
    )
    assert student == teacher == pytest.approx([-0.63, 0])


def test_a_trajectory_in_the_viewer_has_its_log_probabilities_in_windows() -> None:
    fields = with_tokens(breached())
    (view,) = data_of(html_of(fields))["chunk-0"]
    logprobs = view["logprobs"]
    draft = len("".join(SAFE + FLAWED))
    start = len("".join(SAFE))
    assert logprobs["width"] == 8
    assert len(logprobs["student"]) == -(-len(fields["output"]) // 8)
    assert set(logprobs["student"]) == {-0.6}
    assert logprobs["parts"] == [
        ["student", 0, start],
        ["flawed", start, draft],
        ["revise", draft, draft + len(REVISE)],
        ["teacher", draft + len(REVISE), draft + len(REVISE) + len(CORRECTION)],
    ]
    (view,) = data_of(html_of(breached()))["chunk-0"]
    assert view["logprobs"] is None


def test_a_long_trajectory_in_the_viewer_has_so_many_windows_only() -> None:
    text = "a" * 50_000
    fields = with_tokens(unbroken(output=text, spans=spans_of([("student", text)]), steps=[]))
    (view,) = data_of(html_of(fields))["chunk-0"]
    assert (view["logprobs"]["width"], len(view["logprobs"]["teacher"])) == (417, 120)


def test_a_window_in_which_no_token_ends_has_no_log_probability() -> None:
    text = "a" * 24
    one = {"ends": [20, 24], "logprobs": [-2.0, -1.0]}
    fields = unbroken(output=text, spans=spans_of([("student", text)]), steps=[])
    (view,) = data_of(html_of(fields | {"token_logprobs": {"student": one, "teacher": one}}))[
        "chunk-0"
    ]
    assert view["logprobs"]["student"] == [None, None, -1.5]


def test_records_without_token_logprobs_say_what_adds_them() -> None:
    text = Page(without_data(html_of(breached()))).text
    assert "The records hold no token log-probabilities: motab score adds them" in text
    text = Page(without_data(html_of(breached(), with_tokens(unbroken())))).text
    assert "cover 1 of 2 records; motab score adds the missing ones" in text


def test_both_margins_are_drawn_to_one_scale() -> None:
    plots = data_of(html_of(breached(), unbroken()))["plots"]
    without, with_breach = (
        plots[name]["layout"]["yaxis"]["range"] for name in ("margin-without", "margin-with")
    )
    assert without == with_breach


def test_a_run_that_nobody_scored_has_no_plots_of_values() -> None:
    data = data_of(
        html_of(
            unbroken(steps=steps_of(["a"], [None]), output="a", spans=spans_of([("student", "a")]))
        )
    )
    assert set(data["plots"]) == {"tokens"}


def costs_of(html: str) -> list[list[str]]:
    (table,) = re.findall(r'<table class="cost">(.*?)</table>', html, re.DOTALL)
    rows = re.findall(r"<tr>(<td>.*?)</tr>", table, re.DOTALL)
    return [re.findall(r"<td[^>]*>([^<]*)</td>", row) for row in rows]


def test_tokens_cost_what_their_prices_say() -> None:
    html = without_data(html_of(*[breached()] * 1000, prices={"student": 0.5, "teacher": 2.0}))
    assert costs_of(html) == [
        ["questions", "20,000", "\u2013", "\u2013"],
        ["written by the student", "40,000", "0.50", "0.0200"],
        ["scored by the teacher", "32,000", "\u2013", "\u2013"],
        ["written by the teacher", "20,000", "2.00", "0.0400"],
        ["total", "", "", "0.0600"],
        ["per trajectory", "", "", "0.000060"],
    ]
    assert "Prices were not given" not in html


def test_without_prices_there_is_no_cost() -> None:
    text = Page(without_data(html_of(breached()))).text
    assert "Prices were not given" in text
    assert "together" not in text


def test_a_page_about_no_records_says_so() -> None:
    parsed = Page(without_data(html_of()))
    assert "There are no records" in parsed.text
    assert "trajectories" not in parsed.text


def test_a_sample_is_said_to_be_one() -> None:
    records = [unbroken(sample=sample) for sample in range(30)]
    html = html_of(*records, max_trajectories=7)
    text = Page(without_data(html)).text
    assert "7 of 30, drawn at random" in text
    assert len(data_of(html)["index"]) == 7
    assert "drawn at random" not in Page(without_data(html_of(*records))).text


def test_a_page_that_would_be_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "MAX_DATA_BYTES", 2**20)
    text = random.Random(0).randbytes(500_000).hex()
    with pytest.raises(PageError, match=r"2 MB, but only 1 MB open well: .*--max-trajectories"):
        html_of(unbroken(output=text, spans=spans_of([("student", text)]), steps=[]))


def test_the_page_is_written_where_it_was_asked_for_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "report.html"
    records = [record_of(breached())]
    write_report(records, path)
    assert path.read_text(encoding="utf-8") == "".join(report(records))
    assert list(path.parent.iterdir()) == [path]


def test_a_page_that_cannot_be_put_in_place_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")

    def fail(source: object, target: object) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OutputError, match="the disk is gone"):
        write_report([record_of(breached())], path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_bad_record_on_the_way_leaves_the_old_page(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")

    def records() -> Any:
        yield record_of(breached())
        raise ValueError("line 2 is broken")

    with pytest.raises(ValueError, match="line 2 is broken"):
        write_report(records(), path)
    assert path.read_text() == "old"


def test_a_page_is_readable_for_whom_the_umask_allows(tmp_path: Path) -> None:
    path, other = tmp_path / "report.html", tmp_path / "other"
    write_report(list[Record](), path)
    other.write_text("")
    assert path.stat().st_mode == other.stat().st_mode

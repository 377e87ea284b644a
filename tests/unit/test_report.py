import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from synth_client.record import Record
from synth_client.report import render_report, summarise, write_report
from tests.unit.test_record import (
    CORRECTION,
    FLAWED,
    REVISE,
    SAFE,
    breached,
    left_out,
    record_of,
    spans_of,
    steps_of,
    unbroken,
)

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """What a browser would make of the page: its tags, its texts by class, what it would load."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[tuple[str, str]] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        named = dict(attrs)
        self.loads += [value or "" for name, value in attrs if name in {"src", "href", "srcset"}]
        assert not [name for name in named if name.startswith("on")]
        if tag not in VOID:
            self._open.append((tag, named.get("class") or ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts.append((self._open[-1][1], data))

    @property
    def text(self) -> str:
        return " ".join("".join(text for _, text in self.texts).split())

    def in_class(self, name: str) -> list[str]:
        return [text for classes, text in self.texts if name in classes.split()]


def page_of(*records: dict[str, Any]) -> Page:
    return Page(render_report(map(record_of, records)))


def svgs_of(*records: dict[str, Any]) -> list[ET.Element]:
    html = render_report(map(record_of, records))
    return [ET.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL)]


def facts_of(*records: dict[str, Any]) -> dict[str, str]:
    summary = summarise([record_of(fields) for fields in records])
    facts = (*summary.headline, *summary.setting, *summary.cost)
    return {fact.label: fact.value for fact in facts}


def test_the_page_loads_nothing_and_runs_nothing() -> None:
    html = render_report([record_of(breached())])
    page = Page(html)
    assert page.loads == []
    assert not {"script", "link", "img", "iframe", "object", "base"} & set(page.tags)
    assert not re.search(r"@import|url\(|https?:", html)
    assert "default-src 'none'" in html


def test_the_page_follows_the_colour_scheme_and_the_width_of_the_device() -> None:
    html = render_report([record_of(breached())])
    assert "prefers-color-scheme: dark" in html
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in html


def test_hostile_text_stays_text_wherever_it_stands() -> None:
    evil = "</style></p><script>alert(1)</script><img src=x onerror=alert(2)>\" ' & {{ 7 * 7 }}"
    fields = breached()
    fields |= {
        "id": evil,
        "method": evil,
        "messages": [{"role": "user", "content": evil}],
        "models": {"student": evil, "teacher": evil},
        "params": {"base_threshold": evil},
        "output": evil,
        "spans": spans_of([("teacher", evil)]),
        "answer": evil,
        "predicted": evil,
        "motab_version": evil,
    }
    for step in fields["steps"]:
        step |= {"start": None, "end": None, "text": evil}
    page = page_of(fields)
    assert not {"script", "img"} & set(page.tags)
    # Heading, question, output, prediction, answer, 5 facts and 4 steps.
    assert page.text.count(evil) == 14


def test_the_output_is_cut_into_its_roles_and_joins_to_itself() -> None:
    html = render_report([record_of(breached())])
    spans = re.findall(r'<span class="(\w+)" title="[^"]*">([^<]*)</span>', html)
    assert spans == [
        ("student", "".join(SAFE)),
        ("flawed", "".join(FLAWED)),
        ("revise", REVISE),
        ("teacher", CORRECTION),
    ]


def test_no_blank_lines_trail_the_output() -> None:
    text = "Done.\n\n"
    fields = unbroken(output=text, spans=spans_of([("student", text)]), steps=[])
    html = render_report([record_of(fields)])
    assert '<span class="student" title="student, safe">Done.</span></p>' in html


def test_the_legend_names_every_role_in_its_colour() -> None:
    page = page_of(breached())
    assert page.in_class("student")[0] == "student, safe"
    assert page.in_class("flawed")[0] == "student, flawed"
    assert page.in_class("revise")[0] == "revise token"
    assert page.in_class("teacher")[0] == "teacher"


@pytest.mark.parametrize(
    ("fields", "badges"),
    [
        (breached(), ["breach at step 3", "back to step 2", "right"]),
        (unbroken(), ["no breach", "wrong"]),
        (unbroken(answer=None, correct=None), ["no breach", "answer unknown"]),
        (unbroken(finish_reason="length"), ["no breach", "wrong", "cut at the token limit"]),
    ],
)
def test_each_trajectory_says_how_it_went(fields: dict[str, Any], badges: list[str]) -> None:
    assert page_of(fields).in_class("badge") == badges


def test_the_steps_are_listed_with_their_numbers_and_marks() -> None:
    html = render_report([record_of(breached())])
    rows = re.findall(r"<tr><td.*?</tr>", html, re.DOTALL)
    cells = [
        [" ".join(re.sub(r"<[^>]*>", "", cell).split()) for cell in re.findall(r"<td.*?</td>", row)]
        for row in rows
    ]
    assert cells == [
        ["0", "0.810", "0.121", "0.500", "\u2013", "safe", SAFE[0].strip()],
        ["1", "0.740", "0.121", "0.500", "-0.070", "safe", SAFE[1].strip()],
        ["2", "0.310", "0.121", "0.500", "-0.430", "safe t*", FLAWED[0].strip()],
        ["3", "0.050", "0.121", "0.500", "-0.260", "breach", FLAWED[1].strip()],
    ]


def test_a_step_left_out_of_the_output_is_shown_whole() -> None:
    fields = left_out()
    fields["steps"][3]["text"] = "lost " * 100 + "end"
    page = page_of(fields)
    assert page.text.count("left out") == 2
    assert "lost " * 100 + "end" in page.text


def test_a_long_step_is_shortened_in_the_table_for_it_stands_in_the_output() -> None:
    text = "word " * 100 + "end"
    fields = unbroken(
        output=text, spans=spans_of([("student", text)]), steps=steps_of([text], [0.9])
    )
    assert page_of(fields).text.count("end") == 1


def test_the_chart_draws_each_value_to_scale_and_the_breach_as_one() -> None:
    (svg,) = svgs_of(breached())
    bars = svg.findall(".//rect")
    heights = [float(bar.attrib["height"]) for bar in bars]
    assert [round(height / heights[0], 3) for height in heights] == [1.0, 0.914, 0.383, 0.062]
    assert [bar.attrib["class"] for bar in bars] == ["bar safe"] * 3 + ["bar breach"]


def test_the_chart_draws_the_boundary_above_the_value_of_the_breach_only() -> None:
    (svg,) = svgs_of(breached())
    tops = [float(bar.attrib["y"]) for bar in svg.findall(".//rect")]
    limits = [float(line.attrib["y1"]) for line in svg.findall(".//line[@class='limit']")]
    assert [limit < top for limit, top in zip(limits, tops, strict=True)] == [False] * 3 + [True]


def test_the_chart_marks_bifurcation_and_breach_over_their_bars() -> None:
    (svg,) = svgs_of(breached())
    groups = svg.findall("g")
    marks = [group.findtext("text[@class='mark']") for group in groups]
    assert marks == [None, None, "t*", "✗"]
    assert groups[3].findtext("title") == "step 3: value 0.050, boundary 0.121, breach"


def test_a_chart_of_many_steps_stays_within_its_frame() -> None:
    texts = ["a"] * 300
    fields = unbroken(
        output="a" * 300,
        spans=spans_of([("student", "a" * 300)]),
        steps=steps_of(texts, [1.0] + [0.5] * 298 + [0.0]),
    )
    (svg,) = svgs_of(fields)
    width, height = (float(number) for number in svg.attrib["viewBox"].split()[2:])
    for bar in svg.findall(".//rect"):
        assert float(bar.attrib["x"]) >= 0
        assert float(bar.attrib["x"]) + float(bar.attrib["width"]) <= width
        assert float(bar.attrib["y"]) >= 0
        assert float(bar.attrib["y"]) + float(bar.attrib["height"]) <= height
    assert len(svg.findall("g/text")) <= 16


def test_a_trajectory_nobody_scored_has_no_chart() -> None:
    fields = unbroken(steps=steps_of(SAFE, [None, None]))
    assert svgs_of(fields) == []
    assert "The teacher scored no step." in page_of(fields).text


def test_the_summary_counts_trajectories_questions_breaches_and_right_answers() -> None:
    facts = facts_of(
        breached(), unbroken(), unbroken(sample=1), unbroken(sample=2, answer=None, correct=None)
    )
    assert facts["trajectories"] == "4"
    assert facts["questions"] == "2"
    assert facts["with a breach"] == "1 of 4 (25%)"
    assert facts["right, of those checked"] == "1 of 3 (33%)"


def test_the_summary_gives_no_rate_where_nothing_was_checked() -> None:
    assert facts_of(unbroken(answer=None, correct=None))["right, of those checked"] == "none"


def test_the_summary_adds_up_the_tokens_of_either_model() -> None:
    facts = facts_of(*[unbroken(sample=sample) for sample in range(30)])
    assert facts["written by the student"] == "1,200"
    assert facts["of the student, discarded"] == "120"
    assert facts["scored by the teacher"] == "960"
    assert facts["context from its cache"] == "480"
    assert facts["written by the teacher"] == "600"
    assert facts["calls to score"] == "120"


def test_a_cache_that_was_not_reported_is_not_an_empty_cache() -> None:
    silent = unbroken()
    silent["usage"]["motab"]["teacher_cached_tokens"] = None
    assert facts_of(silent)["context from its cache"] == "not reported"
    assert facts_of(silent, breached())["context from its cache"] == "at least 16"


def test_the_summary_names_models_methods_and_thresholds_that_occur() -> None:
    models = {"student": "smol", "teacher": None}
    other = unbroken(method="student", params={"base_threshold": 0.3}, models=models)
    facts = facts_of(breached(), other)
    assert facts["student"] == "smol"
    assert facts["teacher"] == "big, none"
    assert facts["method"] == "motab, student"
    assert facts["base threshold (eps_0)"] == "0.2, 0.3"
    assert facts["entropy scale (theta)"] == "1.0, not recorded"


def test_the_page_shows_the_summary() -> None:
    page = page_of(breached())
    for label, value in facts_of(breached()).items():
        assert label in page.text
        assert value in page.text


def test_a_page_about_no_records_says_so() -> None:
    page = page_of()
    assert "There are no records" in page.text
    assert "trajectories" not in page.text


def test_the_page_is_written_where_it_was_asked_for_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "report.html"
    records = [record_of(breached())]
    write_report(records, path)
    assert path.read_text(encoding="utf-8") == render_report(records)
    assert list(path.parent.iterdir()) == [path]


def test_a_page_that_cannot_be_put_in_place_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")

    def fail(source: object, target: object) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="the disk is gone"):
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

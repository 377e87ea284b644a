import hashlib
import re
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

import pytest
from plotly.offline import get_plotlyjs_version

from synth_client.report.plots import plots_of
from synth_client.report.report import report
from synth_client.report.statistics import Outcomes
from synth_client.report.story import Baseline, BaselineError, Rate, Story
from tests.support.pages import data_of, without_data
from tests.support.records import breached, record_of, unbroken
from tests.support.synth_client.reports import EVIL, hostile, statistics_of

NPM_SHA256 = "99784e3abfb07b142a15e521a439e6d9addceadb3f79553fd24c72774f0649ba"
"""The digest of plotly-basic.min.js in npm's plotly.js-basic-dist-min 4.1.1."""


def alone(**changes: Any) -> dict[str, Any]:
    """Make the student's own record of the question of `breached`."""
    return unbroken(**({"id": "apples", "method": "student"} | changes))


def baseline_of(*records: dict[str, Any]) -> Baseline:
    return Baseline(map(record_of, records))


def story_of(*records: dict[str, Any], baseline: Baseline | None = None) -> Story:
    story = Story(baseline)
    for fields in records:
        story.add(record_of(fields))
    return story


def rate(writer: str, num_right: int, num_checked: int) -> Rate:
    return Rate(writer, Outcomes(num_checked, num_right))


def html_of(*records: dict[str, Any], **options: Any) -> str:
    if "baseline" in options:
        options["baseline"] = [record_of(fields) for fields in options["baseline"]]
    return "".join(report(map(record_of, records), **options))


def strayed_at(breach: int) -> dict[str, Any]:
    """A record that breached at this step, from which the teacher continued."""
    fields = breached() | {"breach": breach, "bifurcation": breach}
    fields["steps"] = [
        step | {"safe": index < breach} for index, step in enumerate(fields["steps"][: breach + 1])
    ]
    start, end = fields["steps"][breach]["start"], fields["steps"][breach]["end"]
    ends = {"student": start, "flawed": end, "teacher": len(fields["output"])}
    begins = {"student": 0, "flawed": start, "teacher": end}
    fields["spans"] = [
        {"role": role, "start": begins[role], "end": ends[role]}
        for role in ends
        if begins[role] < ends[role]
    ]
    return fields


def text_of(html: str) -> str:
    body = without_data(html).split("<body>")[1].split("<script>")[0]
    return " ".join(re.sub(r"<[^>]+>", "", body).split())


def example_of(*records: dict[str, Any]) -> tuple[str, str]:
    story = story_of(*records)
    assert story.example is not None
    return story.example.id, story.rule


def test_the_baseline_stands_next_to_the_run_about_the_same_questions() -> None:
    baseline = baseline_of(alone(), alone(sample=1, correct=True), alone(id="other"))
    run = (breached(), breached() | {"sample": 1}, breached() | {"id": "unasked"})
    story = story_of(*run, baseline=baseline)
    assert story.rates() == [rate("by the student alone", 1, 2), rate("with motab", 2, 2)]
    assert story.matched == {"apples"}


def test_answers_that_were_not_checked_have_no_rate() -> None:
    unchecked = {"correct": None, "answer": None}
    story = story_of(breached(), baseline=baseline_of(alone(**unchecked)))
    assert story.rates() == [rate("with motab", 1, 1)]
    assert story_of(breached() | unchecked).rates() == []


def test_without_a_baseline_methods_are_compared_only_where_the_run_has_several() -> None:
    assert story_of(breached(), unbroken()).rates() == [rate("", 1, 2)]
    run = (breached(), alone(), unbroken(method="teacher", correct=True), unbroken(method="skd"))
    assert story_of(*run).rates() == [
        rate("with motab", 1, 1),
        rate("with skd", 0, 1),
        rate("by the student alone", 0, 1),
        rate("by the teacher alone", 1, 1),
    ]


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([breached()], r"apples is of the method motab: .* \(method student\)"),
        ([alone(), alone()], "holds sample 0 of apples twice"),
        (
            [alone(), alone(sample=1, messages=[{"role": "user", "content": "Else?"}])],
            "apples asks another question than another record of the baseline",
        ),
    ],
)
def test_records_that_are_no_baseline_are_refused(
    records: Sequence[dict[str, Any]], message: str
) -> None:
    with pytest.raises(BaselineError, match=message):
        baseline_of(*records)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"messages": [{"role": "user", "content": "Else?"}]},
            "apples asks another question than the baseline's record of that id",
        ),
        (
            {"models": {"student": "other", "teacher": None}},
            "apples has the student smol, but the baseline's record of that id has other",
        ),
    ],
)
def test_a_baseline_of_another_question_or_student_is_refused(
    changes: Mapping[str, Any], message: str
) -> None:
    with pytest.raises(BaselineError, match=message):
        story_of(breached(), baseline=baseline_of(alone(**changes)))


def test_a_baseline_of_other_ids_is_refused() -> None:
    story = story_of(breached(), baseline=baseline_of(alone(id="other")))
    with pytest.raises(BaselineError, match=r"no question of the run: .* the same id"):
        story.rates()


WENT_BACK = breached() | {"id": "went-back"}
AT_ONCE = breached() | {"id": "later", "bifurcation": 3}
UNKNOWN = breached() | {"id": "unknown", "correct": None}
WRONG = breached() | {"id": "wrong", "correct": False}
RIGHT = unbroken(id="right", correct=True)


@pytest.mark.parametrize(
    ("records", "chosen", "rule"),
    [
        ([WRONG, AT_ONCE, WENT_BACK, RIGHT], "went-back", "strayed, went back before the breach"),
        ([WRONG, RIGHT, AT_ONCE], "later", "strayed after a safe step and end in the right"),
        ([RIGHT, WRONG, UNKNOWN], "unknown", "strayed (no answer of a trajectory that strayed is"),
        ([RIGHT, WRONG], "wrong", "strayed (all their answers are wrong)"),
        ([unbroken(), RIGHT], "right", "end in the right answer (none strayed)"),
        ([unbroken(correct=None)], "bags", "were written (none strayed, and no answer is known"),
    ],
)
def test_the_example_is_the_best_that_the_run_has(
    records: Sequence[dict[str, Any]], chosen: str, rule: str
) -> None:
    found, why = example_of(*records)
    assert found == chosen
    assert why.startswith(f"The shortest of the trajectories that {rule}")


def test_a_breach_at_the_first_step_is_a_poorer_example_than_a_later_one() -> None:
    first = strayed_at(0) | {"id": "first"}
    assert example_of(first, AT_ONCE)[0] == "later"
    assert example_of(first)[1].startswith("The shortest of the trajectories that strayed at the")


def test_of_equally_good_examples_the_shortest_is_shown_and_then_the_first() -> None:
    longer = breached() | {"id": "longer", "output": breached()["output"] + "!"}
    longer["spans"] = [*longer["spans"][:-1], longer["spans"][-1] | {"end": len(longer["output"])}]
    again = breached() | {"id": "again"}
    assert example_of(longer, breached(), again)[0] == "apples"


def test_the_page_begins_with_dataset_models_date_and_right_answers() -> None:
    html = html_of(
        *(breached(), unbroken()), name="sums.jsonl", made=date(2026, 3, 1), baseline=[alone()]
    )
    assert "<title>motab report: sums.jsonl, 2026-03-01</title>" in html
    text = text_of(html)
    assert text.startswith("sums.jsonl student smol \u00b7 teacher big \u00b7 2026-03-01 Example")
    assert "0 of 1 right by the student alone, 1 of 1 right with motab." in text
    assert "own answers are there for 1 of 2 questions, matched by id" in text
    places = [text.index(part) for part in ("right with", "How one trajectory", "Where traj")]
    assert places == sorted(places)


def test_nothing_is_said_of_a_baseline_that_is_not_there() -> None:
    text = text_of(html_of(breached(), unbroken()))
    assert "1 of 2 right. " in text
    assert "alone" not in text
    unchecked = breached() | {"correct": None, "answer": None}
    assert "No answer was checked." in text_of(html_of(unchecked))


def test_a_hostile_name_and_baseline_stay_text() -> None:
    mine = hostile() | {"method": "motab"}
    evil = hostile() | {"method": "student"}
    html = without_data(html_of(mine, evil, name=EVIL, baseline=[evil]))
    assert html.count("<script>alert") == 0
    assert "<img" not in html


def test_the_example_is_in_the_page_unless_no_trajectory_is_wanted() -> None:
    html = html_of(unbroken(), breached())
    row, view = data_of(html)["example"]
    assert (row[0], len(view["steps"])) == ("apples", 4)
    assert 'id="example-trajectory"' in html
    without = html_of(unbroken(), breached(), max_trajectories=0)
    assert "example" not in data_of(without)
    assert 'id="example-trajectory"' not in without
    assert "#example" not in without_data(without).split("<script>")[0]
    assert "One trajectory" in text_of(html_of(unbroken()))


def test_the_letters_are_explained_in_words_and_no_tile_needs_them() -> None:
    html = html_of(breached())
    text = text_of(html)
    for word in ("The value of a step", "The boundary:", "The entropy:", "The bifurcation:"):
        assert word in text
    (tiles,) = re.findall(r'<dl class="headline">(.*?)</dl>', html, re.DOTALL)
    assert not re.search(r"t\*|breach|eps|\bV\b", tiles)


def test_a_cost_table_without_prices_takes_no_room() -> None:
    assert '<table class="cost">' not in html_of(breached())
    assert '<table class="cost">' in html_of(breached(), prices={"student": 1.0})


def written_under(name: str, *records: dict[str, Any]) -> tuple[list[tuple[int, str]], str]:
    """The numbers under the steps of a plot, and its caption."""
    groups = plots_of(statistics_of(*records))
    (plot,) = [plot for group in groups for plot in group.plots if plot.name == name]
    notes = plot.to_json()["layout"].get("annotations", [])
    return [(note["x"], note["text"]) for note in notes if note["yref"] == "paper"], plot.caption


def test_medians_of_few_trajectories_have_their_number_under_them() -> None:
    records = [breached()] * 3 + [unbroken()] * 7
    for name in ("values", "entropies", "margin-with"):
        counts, caption = written_under(name, *records)
        assert counts == ([(0, "n = 3")] if name == "margin-with" else [(2, "n = 3")])
        assert "fewer than 10" in caption
    assert written_under("margin-breach", *records)[0] == [(-3, "n = 3")]


def test_medians_of_many_trajectories_have_none() -> None:
    counts, caption = written_under("values", *[breached()] * 10)
    assert counts == []
    assert "fewer than" not in caption


def test_a_number_that_grew_to_many_is_written_once_more() -> None:
    counts, _ = written_under("margin-breach", breached(), *[strayed_at(1)] * 10)
    assert counts == [(-3, "n = 1"), (-1, "11")]


def test_the_page_about_twenty_four_records_is_below_600_kb() -> None:
    records = [breached() | {"id": f"apples-{number}"} for number in range(24)]
    assert len(html_of(*records).encode()) < 600_000


def test_plotly_s_script_is_npm_s_and_of_the_version_that_plotly_for_python_has() -> None:
    script = data_of(html_of(breached()))["plotly"]
    assert hashlib.sha256(script.encode()).hexdigest() == NPM_SHA256
    found = re.search(r"plotly\.js \(basic - minified\) v([\d.]+)", script)
    assert found
    assert found[1].split(".")[0] == get_plotlyjs_version().split(".")[0]

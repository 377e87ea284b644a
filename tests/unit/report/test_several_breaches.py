"""The report, the terminal and rescoring, about records with no breach, one and several."""

from pathlib import Path
from typing import Any

import pytest

from synth_client.report.likelihood import Likelihoods
from synth_client.report.plots import plots_of
from synth_client.report.rescore import (
    Calibrator,
    outcome_of,
    rescore,
    scored_steps,
    sentence_of_rounds,
    thresholds,
)
from synth_client.report.story import Story
from tests.support.records import breached, record_of, several, unbroken
from tests.support.synth_client.reports import statistics_of, with_tokens
from tests.unit.report.test_report_cli import run, written
from tests.unit.report.test_statistics import facts_of
from tests.unit.report.test_terminal import row_of, text_of
from trajectory_records.viewer.view import entry_of, view_of

SHAPES = ((2, 2), (0, 1), (1, 3))
"""Of each round, its safe and its flawed steps. The values are 0.8, 0.3 and, at a breach, 0.05."""
NONE, ONE, TWO, THREE = (several(*SHAPES[:num], tail=2) for num in range(4))
CLEAN = several(*SHAPES, clean=True)


def captions_of(*records: dict[str, Any]) -> dict[str, str]:
    groups = plots_of(statistics_of(*records))
    return {plot.name: plot.caption for group in groups for plot in group.plots}


def test_every_breach_counts_where_it_is_and_how_far_the_teacher_went_back() -> None:
    run = statistics_of(NONE, ONE, TWO, THREE)
    assert (run.num_breached, run.num_breaches, run.num_backtracked) == (3, 6, 3)
    assert run.unsafe_points == {3: 3, 4: 2, 8: 1}
    assert run.depths == {1: 3, 0: 2, 2: 1}


@pytest.mark.parametrize("clean", [False, True])
def test_a_breach_lies_in_the_text_of_both_models(clean: bool) -> None:
    fields = several(*SHAPES, clean=clean)
    run = statistics_of(fields)
    sizes = [len("student 0.0\U0001f34e.\n\n")] * 2 + [len("flawed 0.0\U0001f34e.\n\n")] * 2
    correction = len("teacher 0.\n\n")
    ends = [sum(sizes)]  # 58
    ends.append(ends[0] + correction + sizes[2])
    ends.append(ends[1] + correction + sizes[0] + 3 * sizes[2])
    whole = ends[2] + correction
    assert run.relative_points == {20 * end // whole: 1 for end in ends}
    assert (run.num_unplaced, len(run.relative_points)) == (0, 3)


def test_a_trajectory_whose_left_out_text_was_not_kept_is_not_placed() -> None:
    fields = several(*SHAPES, clean=True)
    fields["steps"][7]["text"] = None
    run = statistics_of(fields)
    assert (run.num_unplaced, run.relative_points) == (1, {})


def test_margins_are_aligned_at_the_breach_of_their_own_round() -> None:
    run = statistics_of(THREE)
    # Steps 0 to 3, 4, 5 to 8; the two steps of the tail lead to no breach.
    assert {key: spread.num for key, spread in run.margins_to_breach.items()} == {
        0: 3,
        -1: 2,
        -2: 2,
        -3: 2,
    }
    assert (run.margins[True].of_all.num, run.margins[False].of_all.num) == (11, 0)


def test_the_summary_names_the_breaches_only_where_a_trajectory_has_several() -> None:
    assert "breaches of these" not in facts_of(NONE, ONE, breached())
    facts = facts_of(NONE, ONE, THREE)
    assert facts["strayed"] == "67% 2 of 3"
    assert facts["breaches of these"] == "2.00 4 in 2"
    assert facts["of these, corrected from an earlier step"] == "100% 2 of 2"


def test_the_summary_names_the_rounds_only_where_there_may_be_several() -> None:
    one = breached()
    one["params"] = one["params"] | {"rounds": 1, "correction_steps": 1}
    assert not {"rounds", "correction steps"} & set(facts_of(one, unbroken()))
    three = several(*SHAPES)
    three["params"] = one["params"] | {"rounds": 3, "correction_steps": 2}
    facts = facts_of(three, unbroken())
    assert (facts["rounds"], facts["correction steps"]) == ("1, 3", "1, 2")


def test_plots_count_trajectories_and_of_several_rounds_breaches() -> None:
    assert captions_of(ONE, NONE)["unsafe-absolute"] == (
        "The index of the breach, over the 1 trajectories that have one (mean 3.00)."
    )
    captions = captions_of(ONE, THREE, NONE)
    assert captions["unsafe-absolute"] == (
        "The index of each breach, over the 4 breaches of 2 trajectories (mean 4.50)."
    )
    assert captions["margin-breach"].startswith("The rounds of these trajectories, aligned")
    figures = [plots_of(statistics_of(one))[0].plots[0].to_json() for one in (ONE, THREE)]
    titles = [figure["layout"]["yaxis"]["title"]["text"] for figure in figures]
    assert titles == ["trajectories", "breaches"]


def test_an_example_that_went_back_in_a_later_round_went_back() -> None:
    later = several((1, 1), (1, 2)) | {"id": "later"}
    never = several((1, 1), (1, 1)) | {"id": "never"}
    story = Story()
    for fields in (never, later):
        story.add(record_of(fields))
    assert story.example is not None
    assert story.example.id == "later"
    assert "strayed, went back before the breach" in story.rule


@pytest.mark.parametrize("clean", [False, True])
def test_the_table_of_the_terminal_marks_every_breach_and_every_turn(clean: bool) -> None:
    fields = several(*SHAPES, tail=2, clean=clean)
    marks = [row_of(fields, index)[5:8] for index in range(11)]
    assert [index for index, mark in enumerate(marks) if mark[0] == "breach"] == [3, 4, 8]
    assert [index for index, mark in enumerate(marks) if "t*" in mark] == [2, 4, 6]


@pytest.mark.parametrize(
    ("fields", "verdict"),
    [
        (NONE, "No breach."),
        (ONE, "Breach at step 3, went back to step 2."),
        (
            TWO,
            "Breach at step 3, went back to step 2. Breach at step 4, went back to step 4.",
        ),
    ],
)
def test_the_last_line_of_the_terminal_names_every_breach(
    fields: dict[str, Any], verdict: str
) -> None:
    shown = " ".join(text_of(fields).splitlines()[-2:])
    assert " ".join(shown.split()).endswith(f"{verdict} Answer 36: right.")


def test_the_models_own_texts_are_told_apart_by_round() -> None:
    likelihoods = Likelihoods()
    for fields in (NONE, ONE, THREE, CLEAN):
        likelihoods.add(record_of(with_tokens(fields)))
    assert likelihoods.num_scored == 4


def test_the_viewer_gets_each_correction_and_lists_only_of_several_breaches() -> None:
    rows = [entry_of(record_of(one))[5:7] for one in (NONE, ONE, TWO, CLEAN)]
    assert rows == [(None, None), (3, 2), ([3, 4], [2, 4]), ([3, 4, 8], [2, 4, 6])]
    revise = ("revise", "However,\n\n")
    corrections = [[revise, ("teacher", f"teacher {number}.\n\n")] for number in range(3)]
    for num, fields in enumerate((NONE, ONE, TWO, THREE)):
        view = view_of(record_of(fields))
        assert (view["corrections"], view["rest"]) == (corrections[:num], [])
    view = view_of(record_of(CLEAN))
    assert view["corrections"] == [[("teacher", "teacher 0.\n\n")], [("teacher", "teacher 1.\n\n")]]
    assert view["rest"] == [("teacher", "teacher 2.\n\n")]
    ended = view_of(record_of(several(*SHAPES)))
    assert (ended["corrections"], ended["rest"]) == (corrections[:2], corrections[2])


def test_only_the_first_round_is_judged_again() -> None:
    found = [*scored_steps(map(record_of, (NONE, ONE, TWO, THREE)), with_entropy=True)]
    assert [one.values for one in found] == [(0.7, 0.7)] + [(0.8, 0.8, 0.3, 0.05)] * 3
    assert [one.is_open for one in found] == [False, True, True, True]
    assert [one.is_continued for one in found] == [False, True, True, True]
    own, loose = (
        outcome_of(found[3], thresholds(0.2, 1.0)),
        outcome_of(found[3], thresholds(0.01, 0)),
    )
    assert (own.breach, own.bifurcation, own.is_open) == (3, 2, False)
    assert (loose.breach, loose.bifurcation, loose.is_open) == (None, None, True)
    (row,) = rescore(found, [(0.2, 1.0)])
    assert (row.num_breached, row.student_tokens, row.num_continued) == (3, 9 * (2 + 3 * 4), 3)
    assert sentence_of_rounds(row).startswith("3 of 4 trajectories have several rounds, of which")


def test_steps_of_later_rounds_need_no_entropy_to_rescore_the_first() -> None:
    fields = several(*SHAPES)
    fields["steps"][5]["entropy"] = None
    (found,) = scored_steps([record_of(fields)], with_entropy=True)
    assert len(found.values) == 4


def test_calibration_is_about_first_breaches() -> None:
    calibrator = Calibrator(0.0)
    for scored in scored_steps(map(record_of, (NONE, ONE, TWO, THREE)), with_entropy=False):
        calibrator.add(scored)
    assert (calibrator.settled, calibrator.opened) == ([0.7], [0.05] * 3)


def test_rescore_says_that_later_rounds_are_left_out(tmp_path: Path) -> None:
    sentence = "of which only the first is judged again: what follows a correction depends on it"
    for name, fields, is_said in (("one", breached(), False), ("three", THREE, True)):
        records, page = written(tmp_path / f"{name}.jsonl", fields), tmp_path / f"{name}.html"
        result = run("rescore", records, "--output", page)
        assert result.exit_code == 0, result.output
        assert (sentence in " ".join(result.output.split())) == is_said
        assert (sentence in page.read_text(encoding="utf-8")) == is_said


def test_a_report_of_any_number_of_breaches_is_written(tmp_path: Path) -> None:
    records = written(tmp_path / "records.jsonl", NONE, ONE, TWO, THREE, CLEAN, breached())
    result = run("report", records, "--output", tmp_path / "report.html")
    assert result.exit_code == 0, result.output

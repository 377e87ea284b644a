import itertools
from typing import Any

import pytest

from synth_client.report.statistics import (
    NUM_STEPS_SHOWN,
    Quantiles,
    Spread,
    quantiles_by_step,
    summarise,
)
from tests.support.records import (
    CORRECTION,
    FLAWED,
    SAFE,
    VALUES,
    breached,
    left_out,
    spans_of,
    steps_of,
    unbroken,
)
from tests.support.synth_client.reports import statistics_of


def facts_of(*records: dict[str, Any]) -> dict[str, str]:
    summary = summarise(statistics_of(*records))
    facts = (*summary.models, *summary.headline, *summary.setting, *summary.cost)
    return {fact.label: f"{fact.value} {fact.detail}".strip() for fact in facts}


def test_quantiles_are_the_numbers_at_their_ranks() -> None:
    spread = Spread()
    for tenths in [7, 1, 9, 3, 10, 5, 2, 8, 4, 6]:
        spread.add(tenths / 10)
    assert spread.num == 10
    assert spread.quantiles() == Quantiles(0.1, 0.5, 0.9)


def test_the_quantiles_of_one_number_are_that_number() -> None:
    spread = Spread()
    spread.add(0.35)
    assert spread.quantiles() == Quantiles(0.35, 0.35, 0.35)


def test_a_number_on_the_edge_of_a_bin_belongs_to_the_bin_above() -> None:
    spread = Spread()
    for number in (-0.05, 0.0, 0.049, 0.05, 0.15):
        spread.add(number)
    assert spread.binned(0.05) == {-1: 1, 0: 1, 1: 2, 3: 1}


def test_unsafe_points_and_depths_are_counted() -> None:
    run = statistics_of(breached(), breached(), unbroken())
    assert run.unsafe_points == {3: 2}
    assert run.depths == {1: 2}
    assert (run.num_records, run.num_breached, run.num_backtracked) == (3, 2, 2)


def test_a_correction_from_the_breach_itself_is_no_backtracking() -> None:
    run = statistics_of(breached() | {"bifurcation": 3})
    assert run.depths == {0: 1}
    assert run.num_backtracked == 0


@pytest.mark.parametrize("fields", [breached(), left_out()])
def test_the_relative_unsafe_point_is_the_share_of_the_draft(fields: dict[str, Any]) -> None:
    draft = len("".join(SAFE + FLAWED))
    share = draft / (draft + len(CORRECTION))
    assert statistics_of(fields).relative_points == {int(share * 20): 1}


def test_a_correction_that_wrote_nothing_puts_the_unsafe_point_into_the_last_bin() -> None:
    fields = breached()
    text = "".join(SAFE + FLAWED)
    fields |= {"output": text, "spans": spans_of([("flawed", text)])}
    assert statistics_of(fields).relative_points == {19: 1}


def test_without_the_text_of_its_steps_a_breach_has_no_relative_point() -> None:
    fields = left_out()
    del fields["steps"][2]["text"]
    run = statistics_of(fields)
    assert run.relative_points == {}
    assert run.num_unplaced == 1


def test_values_are_kept_by_step_with_margins_by_whether_there_was_a_breach() -> None:
    run = statistics_of(breached(), unbroken())
    assert [index for index, _ in quantiles_by_step(run.values)] == [0, 1, 2, 3]
    assert [run.values[index].num for index in range(4)] == [2, 2, 1, 1]
    assert run.values[2].quantiles().median == pytest.approx(VALUES[2])
    assert run.margins[True].of_all.num == 4
    assert run.margins[False].of_all.num == 2
    assert sorted(run.margins[False].over_steps) == [0, 1]
    assert run.margins[True].over_steps[3].quantiles().median == pytest.approx(-0.07, abs=0.0026)


def test_margins_are_lined_up_at_the_breach() -> None:
    run = statistics_of(breached())
    assert sorted(run.margins_to_breach) == [-3, -2, -1, 0]
    assert run.margins_to_breach[0].quantiles().median == pytest.approx(-0.07, abs=0.0026)


def test_steps_far_out_are_counted_but_not_kept() -> None:
    texts = ["a"] * (NUM_STEPS_SHOWN + 5)
    text = "".join(texts)
    fields = unbroken(
        output=text,
        spans=spans_of([("student", text)]),
        steps=steps_of(texts, itertools.repeat(0.9, len(texts))),
    )
    run = statistics_of(fields)
    assert max(run.values) == NUM_STEPS_SHOWN - 1
    assert run.num_long == 1
    assert run.margins[False].of_all.num == len(texts)


def test_margins_far_before_the_breach_are_not_kept() -> None:
    texts = ["a"] * (NUM_STEPS_SHOWN + 5)
    text = "".join(texts)
    fields = breached() | {
        "output": text,
        "spans": spans_of([("flawed", text)]),
        "steps": steps_of(texts, [*itertools.repeat(0.9, len(texts) - 1), 0.01]),
        "breach": len(texts) - 1,
        "bifurcation": len(texts) - 1,
    }
    run = statistics_of(fields)
    assert min(run.margins_to_breach) == 1 - NUM_STEPS_SHOWN


def test_steps_without_scores_take_no_part() -> None:
    run = statistics_of(unbroken(steps=steps_of(SAFE, [None, None])))
    assert run.num_scored == 0
    assert not run.values


def test_the_summary_counts_trajectories_questions_breaches_and_right_answers() -> None:
    facts = facts_of(
        breached(), unbroken(), unbroken(sample=1), unbroken(sample=2, answer=None, correct=None)
    )
    assert facts.items() >= {
        ("trajectories", "4"),
        ("questions", "2"),
        ("strayed", "25% 1 of 4"),
        ("of these, corrected from an earlier step", "100% 1 of 1"),
        ("right answers, of those checked", "33% 1 of 3"),
    }


def test_the_summary_gives_no_share_of_nothing() -> None:
    facts = facts_of(unbroken(answer=None, correct=None))
    assert facts["right answers, of those checked"] == "none"
    assert facts["of these, corrected from an earlier step"] == "none"


def test_the_summary_adds_up_the_tokens_of_either_model() -> None:
    facts = facts_of(*[unbroken(sample=sample) for sample in range(30)])
    student = ("written by the student", "of the student, discarded")
    teacher = ("scored by the teacher", "context from its cache", "written by the teacher")
    assert [facts[name] for name in student] == ["1,200", "120"]
    assert [facts[name] for name in teacher] == ["960", "480", "600"]
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


def test_the_summary_names_only_the_first_of_many_values() -> None:
    many = [unbroken(params={"base_threshold": number / 10}) for number in range(9)]
    assert facts_of(*many)["base threshold (eps_0)"] == "0.0, 0.1, 0.2, 0.3, 0.4, 0.5 and 3 more"


def test_failed_attempts_cost_tokens_as_well_and_are_shown_apart() -> None:
    wasted = breached()["usage"]
    run = statistics_of(breached() | {"wasted": wasted}, breached())
    assert run.priced == {"prompt": 60, "student": 120, "scored": 96, "teacher": 60}
    facts = facts_of(breached() | {"wasted": wasted}, breached())
    assert facts["written by the student"] == "80"
    assert facts["failed attempts: written by the student"] == "40"
    assert not any(label.startswith("failed attempts") for label in facts_of(breached()))


def test_the_steps_that_another_judge_marked_are_counted() -> None:
    judged = breached() | {"scoring_fallbacks": {"judge_sample": [1, 3]}}
    assert facts_of(judged, judged)["steps marked by judge_sample"] == "4"
    assert not any(label.startswith("steps marked") for label in facts_of(breached()))


def test_the_texts_that_a_models_limit_ended_are_counted() -> None:
    limit = {"model": "teacher", "limit": "context_tokens", "tokens": 4096}
    cut = breached() | {"limited_by": limit, "finish_reason": "length"}
    assert facts_of(cut, cut, breached())["texts cut at the teacher's context_tokens"] == "2"
    assert not any(label.startswith("texts cut") for label in facts_of(breached()))


def test_the_summary_counts_what_decided_among_several_corrections() -> None:
    labels = {f"corrections {how}" for how in ("kept by reference", "kept by majority")}
    assert not labels & set(facts_of(breached(), unbroken()))
    right = {"index": 1, "by": "reference", "answers": ["5", "7", None], "lost": [2]}
    voted = {"index": 0, "by": "majority", "answers": ["5", "5", "6"]}
    records = [breached() | {"chosen": chosen} for chosen in (right, right, voted)]
    facts = facts_of(*records, breached(), unbroken())
    assert facts["corrections kept by reference"] == "67% 2 of 3"
    assert facts["corrections kept by majority"] == "33% 1 of 3"
    assert facts["corrections lost to failures"] == "22% 2 of 9"

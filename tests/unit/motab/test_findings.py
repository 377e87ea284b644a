"""Tests what is said about a probe and a trial, and which settings are suggested."""

from typing import Any

import pytest

from motab.draft import Draft, Section, Setting, pair_name
from motab.findings import breach_rate, of_probe, of_rate, of_settings, of_trial, wants_pilot
from motab.found import amend
from motab.trial import Trial, trial_questions
from proxy.backends.limits import ModelLimits
from proxy.config import Config
from proxy.core.types import Scoring
from proxy.probe.identify import ServerSettings
from proxy.probe.report import (
    Check,
    PairReport,
    Report,
    UpstreamChecks,
    UpstreamReport,
    WayChecks,
    no,
    not_applicable,
    ok,
)
from synth_client.judging.rules import PLAIN_RULES
from tests.support.records import SAFE, record_of, several, steps_of, unbroken
from trajectory_records.record import Record

FINE = ok("")
NAME = "pair"


def config(**params: Any) -> Config:
    upstream = {"kind": "vllm", "base_url": "http://h", "model": "m"}
    return Config.model_validate(
        {
            "upstreams": {"s": upstream, "t": {**upstream, "max_concurrent": 8}},
            "models": {NAME: {"student": "s", "teacher": "t", "params": params}},
        }
    )


def report(
    *,
    window: int | None = None,
    scoring: Scoring | None = "prompt_logprobs",
    reasons: tuple[str, ...] = (),
    reasoning: Check = FINE,
    top_k: Check = FINE,
    kind: str = "vllm",
) -> Report:
    lacking = no("it needs --enable-scale-out")
    ways: dict[Scoring, WayChecks] = {
        "cached_logprobs": WayChecks(lacking, lacking, lacking, lacking, lacking)
    }
    if scoring is not None:
        ways[scoring] = WayChecks(FINE, FINE, top_k, FINE, not_applicable(""))
    checks = UpstreamChecks(FINE, FINE, FINE, FINE, FINE, FINE, FINE, FINE, ways, reasoning)
    one = UpstreamReport(kind, None, "m", checks, ModelLimits(window))
    pair = PairReport("s", "t", "motab", scoring, reasons, ())
    return Report({"s": one, "t": one, "student": one, "teacher": one}, {NAME: pair})


def said(findings: Any) -> list[tuple[str, str]]:
    return [(finding.level, finding.text) for finding in findings]


def scored(*values: float, breach: int | None = None, **changes: Any) -> Record:
    """A record with these values, under a static boundary of 0.2."""
    params = {"base_threshold": 0.2, "entropy_scale": 1.0, "boundary": "static"}
    steps = steps_of(SAFE[: len(values)], values)
    cut = {"breach": breach, "bifurcation": breach, "steps": steps, "params": params}
    return record_of(unbroken(**cut, **changes))


def test_a_pair_that_cannot_work_is_a_fault() -> None:
    found = said(of_probe(NAME, config(), report(scoring=None, reasons=("no way",))))
    assert ("fault", "it cannot work: no way") in found


def test_the_way_of_scoring_is_named_with_what_a_better_one_needs() -> None:
    found = said(of_probe(NAME, config(), report()))
    assert found[0] == ("ok", "steps are scored by prompt_logprobs")
    assert found[1][0] == "advice"
    assert "--enable-scale-out" in found[1][1]


def test_texts_longer_than_the_window_are_advised_against() -> None:
    (found,) = [f for f in said(of_probe(NAME, config(), report(window=8192))) if "window" in f[1]]
    assert found[0] == "advice"
    assert "max_total_tokens is 32768 and the window of 's' 8192" in found[1]
    fitting = said(of_probe(NAME, config(max_total_tokens=8192), report(window=8192)))
    assert not any("window" in text for _, text in fitting)


def test_thoughts_that_auto_does_not_see_are_named_with_the_key() -> None:
    hidden = no("the text begins with <think>: set reasoning: think", kind="think")
    found = said(of_probe(NAME, config(), report(reasoning=hidden)))
    assert ("advice", f"upstreams.s: {hidden.detail}") in found


def test_more_requests_than_a_server_runs_at_once_are_advised_against() -> None:
    four, eight = ServerSettings(4), ServerSettings(8)
    found = said(of_settings(config(), {"s": [four], "t": [eight]}))
    assert len(found) == 1
    replicas = {"s": [ServerSettings(60), four], "t": [four, ServerSettings()]}
    assert said(of_settings(config(), replicas)) == []
    assert "upstreams.s.max_concurrent is 64, and its servers run 4" in found[0][1]


def test_failed_questions_are_faults_and_equal_ones_are_counted() -> None:
    found = said(of_trial(Trial((), ("q: down", "q: down", "r: late"), 1.0), {}))
    assert found == [
        ("fault", "a question failed: q: down (2 times)"),
        ("fault", "a question failed: r: late"),
    ]


def test_answers_that_are_all_cut_are_a_fault_and_some_are_advice() -> None:
    cut, whole = scored(0.9, finish_reason="length"), scored(0.9)
    levels = {
        num: [level for level, text in said(of_trial(trial, {})) if "were cut" in text]
        for num, trial in {
            0: Trial((whole, whole), (), 1.0),
            1: Trial((cut, whole), (), 1.0),
            2: Trial((cut, cut), (), 1.0),
        }.items()
    }
    assert levels == {0: [], 1: ["advice"], 2: ["fault"]}


def test_a_thought_that_is_left_open_is_named_with_the_cure() -> None:
    open_ = scored(0.9, quality=("thought_left_open",))
    found = said(of_trial(Trial((open_,), (), 1.0), {}))
    assert any("1 of 1: the text ends inside a thought" in text for _, text in found)


def test_tokens_time_and_cost_of_a_question_are_means() -> None:
    (text,) = [
        text
        for _, text in said(of_trial(Trial((scored(0.9), scored(0.9)), (), 1.0), {"student": 1e6}))
        if text.startswith("a question took")
    ]
    cost = scored(0.9).usage.motab.student_tokens
    assert f"it cost {cost:g} at the given prices" in text
    (without,) = [t for _, t in said(of_trial(Trial((scored(0.9),), (), 1.0), {})) if "took" in t]
    assert without.endswith("no cost without --price")


def test_a_rate_between_none_and_all_needs_no_other_threshold() -> None:
    records = [scored(0.9), scored(0.9, 0.1, breach=1)]
    assert breach_rate(records) == 0.5
    assert said(of_rate(records, records)) == [("ok", "1 of 2 trajectories strayed")]


def test_a_rate_of_none_or_all_gets_a_threshold_that_the_values_show() -> None:
    quiet = [scored(value) for value in (0.9, 0.8, 0.7, 0.6, 0.5)]
    ((level, text),) = said(of_rate(quiet, quiet))
    assert level == "advice"
    # Two of five values are below it.
    assert "0 of 5 trajectories strayed, at base_threshold 0.2: with base_threshold 0.65" in text
    strict = [scored(0.1, breach=0)] * 5
    ((level, text),) = said(of_rate(strict, quiet))
    assert text.startswith("5 of 5 trajectories strayed, at base_threshold 0.2: with base_thre")


def test_a_pair_with_a_boundary_by_step_is_to_learn_it_again() -> None:
    params = {"boundary": "quantile", "boundary_values": [0.5], "base_threshold": 0.2}
    records = [scored(0.9).model_copy(update={"params": params})] * 5
    ((level, text),) = said(of_rate(records, records))
    assert level == "advice"
    assert text.startswith("0 of 5 trajectories strayed, each step at a boundary of its own: learn")


@pytest.mark.parametrize(
    ("record", "params", "wanted"),
    [
        (scored(0.1, breach=0), {}, True),
        (scored(0.9), {}, False),
        (scored(0.1, breach=0, scoring="judge_sample"), {}, False),
        (scored(0.1, breach=0), {"boundary": "quantile", "boundary_values": [0.5]}, False),
    ],
)
def test_a_second_trial_is_for_thresholds_that_all_trajectories_fell_below(
    record: Record, params: dict[str, Any], wanted: bool
) -> None:
    records = [record.model_copy(update={"params": {**record.params, **params}})] * 5
    assert wants_pilot(records) is wanted
    assert not wants_pilot([*records, scored(0.9)])
    assert not wants_pilot([])


def test_values_that_no_threshold_divides_are_said_to_be_so() -> None:
    sure = [scored(1.0)] * 5
    ((_, text),) = said(of_rate(sure, sure))
    assert "no threshold can be suggested, because" in text


def test_marks_of_a_judge_are_not_rescored() -> None:
    marks = [scored(0.7, 0.9, scoring="judge_sample")] * 5
    ((_, text),) = said(of_rate(marks, marks))
    assert "the judge's marks lie between 0.7 and 0.9" in text


def test_the_bundled_questions_are_five_with_answers() -> None:
    questions = trial_questions(None)
    assert len({question.id for question in questions}) == 5
    judge = PLAIN_RULES["number"]
    for question in questions:
        assert judge(f"The answer is {question.answer}.", question.answer).correct


# Drafts.


def test_a_pair_s_name_is_made_of_its_models_own_names() -> None:
    assert pair_name("Qwen/Qwen3-4B", "/models/Gemma 3.Q4.gguf") == "motab/qwen3-4b+gemma-3.q4"
    assert pair_name("///", "\u6771") == "motab/model+model"


@pytest.mark.parametrize(
    ("most", "params"), [(5, {"entropy_top_k": 5}), (0, {"boundary": "static"})]
)
def test_candidates_decide_about_the_boundary(most: int, params: dict[str, Any]) -> None:
    found = report(top_k=no("few", most=most), window=100_000)
    draft = Draft({"student": Section([], {}), "teacher": Section([], {})}, NAME)
    amend(draft, found)
    assert {name: one.value for name, one in draft.params.items() if not one.is_open} == params


def test_a_note_that_is_too_long_for_its_line_stands_above_it() -> None:
    section = Section([], {"model": Setting("m" * 60, "a note " * 10)})
    lines = Draft({"student": section}, NAME).text().splitlines()
    (at,) = [i for i, line in enumerate(lines) if line.startswith("    model: ")]
    assert lines[at - 1].startswith("    # a note a note")
    assert "#" not in lines[at]


def test_a_trajectory_of_several_rounds_strayed_once() -> None:
    records = [record_of(several(*[(1, 1)] * num, tail=1)) for num in range(4)]
    assert breach_rate(records) == 0.75
    (strayed,) = of_rate(records, records)
    assert strayed.text == "3 of 4 trajectories strayed"
    (advice,) = of_rate(records[1:], records[1:])
    assert advice.text.startswith("3 of 3 trajectories strayed, at base_threshold 0.2: ")

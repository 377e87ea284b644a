import math
from typing import Any

import pytest

from proxy.core.params import Params
from synth_client.report.rescore import (
    Calibrator,
    RescoredOutcome,
    RescoreError,
    Scored,
    outcome_of,
    own_thresholds,
    rescore,
    scored_steps,
)
from tests.support.records import breached, record_of, steps_of, unbroken

# Golden numbers of the algorithm: V = .60 .55 .30 .28 .05 with t* = 2, here 10 tokens a step.
VALUES = (0.60, 0.55, 0.30, 0.28, 0.05)


def scored(
    values: tuple[float, ...] = VALUES,
    entropies: tuple[float, ...] | None = None,
    *,
    is_open: bool = False,
    backtracks: bool = True,
) -> Scored:
    return Scored(
        values=values,
        entropies=(0.0,) * len(values) if entropies is None else entropies,
        tokens=(10,) * len(values),
        is_open=is_open,
        backtracks=backtracks,
    )


def under(base_threshold: float, entropy_scale: float = 0.0) -> Params:
    return Params(base_threshold=base_threshold, entropy_scale=entropy_scale)


@pytest.mark.parametrize(
    ("base_threshold", "outcome"),
    [
        (0.05, RescoredOutcome(None, None, is_open=False, accepted_tokens=50)),
        (0.1, RescoredOutcome(4, 2, is_open=False, accepted_tokens=20)),
        (0.29, RescoredOutcome(3, 2, is_open=False, accepted_tokens=20)),
        (0.56, RescoredOutcome(1, 1, is_open=False, accepted_tokens=10)),
        (0.7, RescoredOutcome(0, 0, is_open=False, accepted_tokens=0)),
    ],
)
def test_a_trajectory_is_judged_by_the_papers_rules(
    base_threshold: float, outcome: RescoredOutcome
) -> None:
    assert outcome_of(scored(), under(base_threshold)) == outcome


def test_without_backtracking_the_breach_is_its_own_bifurcation() -> None:
    outcome = outcome_of(scored(backtracks=False), under(0.1))
    assert (outcome.breach, outcome.bifurcation, outcome.accepted_tokens) == (4, 4, 40)


@pytest.mark.parametrize(
    ("values", "breach"),
    [((0.0,), None), ((0.1,), 4), ((0.6, 0.5, 0.3, 0.1), 4), ((0.6, 0.5, 0.31), 2)],
)
def test_a_boundary_by_step_judges_each_step_by_its_own(
    values: tuple[float, ...], breach: int | None
) -> None:
    params = Params(boundary="quantile", boundary_values=values)
    assert outcome_of(scored(entropies=(9.0,) * 5), params).breach == breach


def test_entropy_loosens_the_boundary() -> None:
    uncertain = scored(entropies=(0.0, 0.0, 0.0, 0.0, 1.0))
    assert outcome_of(uncertain, under(0.1, 0.5)).breach == 4
    assert outcome_of(uncertain, under(0.1, 0.7)).breach is None


def test_a_cut_trajectory_that_passes_all_its_steps_is_open_from_its_steepest_fall() -> None:
    outcome = outcome_of(scored(is_open=True), under(0.05))
    assert outcome == RescoredOutcome(None, None, is_open=True, accepted_tokens=20)
    outcome = outcome_of(scored(is_open=True, backtracks=False), under(0.05))
    assert outcome == RescoredOutcome(None, None, is_open=True, accepted_tokens=50)


def test_an_open_trajectory_of_one_step_keeps_at_least_that() -> None:
    outcome = outcome_of(scored((0.3,), is_open=True), under(0.2))
    assert outcome == RescoredOutcome(None, None, is_open=True, accepted_tokens=10)


def test_a_cut_trajectory_that_breaches_no_later_is_exact() -> None:
    assert outcome_of(scored(is_open=True), under(0.1)) == outcome_of(scored(), under(0.1))


def test_a_row_adds_trajectories_up_and_bounds_what_is_open() -> None:
    steps = [scored(), scored(is_open=True), scored((0.9, 0.8))]
    loose, tight = rescore(steps, [(0.05, 0.0), (0.1, 0.0)])
    assert (loose.num_breached, loose.num_open) == (0, 1)
    assert (loose.lowest_rate, loose.highest_rate) == (0.0, 1 / 3)
    assert loose.mean_depth is None
    assert loose.accepted_tokens == 50 + 20 + 20
    assert (tight.num_breached, tight.num_open) == (2, 0)
    assert tight.lowest_rate == tight.highest_rate == 2 / 3
    assert tight.mean_depth == 2.0
    assert tight.accepted_tokens == 20 + 20 + 20
    assert tight.accepted_share == 0.5


def test_the_stored_decision_comes_out_again_under_the_stored_thresholds() -> None:
    record = record_of(breached())
    (row,) = rescore(scored_steps([record], with_entropy=True), [own_thresholds(record)])
    assert (row.num_breached, row.num_open, row.mean_depth) == (1, 0, 1.0)
    assert row.accepted_tokens == 18


def test_a_static_boundary_is_one_without_entropy() -> None:
    fields = breached()
    fields["params"]["boundary"] = "static"
    assert own_thresholds(record_of(fields)) == (0.2, 0.0)


def without_entropy() -> dict[str, Any]:
    fields = unbroken()
    fields["steps"][1]["entropy"] = None
    return fields


def test_entropies_may_be_missing_where_none_is_needed() -> None:
    steps = list(scored_steps([record_of(without_entropy())], with_entropy=False))
    (row,) = rescore(steps, [(0.75, 0.0)])
    assert row.num_breached == 1
    made = Calibrator(0.0)
    made.add(steps[0])
    assert made.threshold(1.0).low == 0.74


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            unbroken(method="student"),
            "record bags is of method student, which has no MOTAB thresholds",
        ),
        (unbroken(method="skd"), "record bags is of method skd, which has no MOTAB thresholds"),
        (
            unbroken(
                steps=steps_of(["a"], [None]),
                output="a",
                spans=[{"role": "student", "start": 0, "end": 1}],
            ),
            "record bags: not all of its steps have a value",
        ),
        (without_entropy(), "record bags: step 1 has no entropy, so it can only be rescored with"),
        (
            unbroken(scoring="judge_logprob"),
            "record bags was scored by judge_logprob: a judge's marks are not probabilities",
        ),
        (
            unbroken(scoring="http"),
            "record bags was scored by http: a scorer's values are not probabilities",
        ),
    ],
)
def test_records_without_scores_are_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RescoreError, match=message):
        list(scored_steps([record_of(fields)], with_entropy=True))


@pytest.mark.parametrize("name", ["delimiter", "entropy_top_k", "backtrack", "boundary"])
def test_records_that_do_not_share_what_steps_are_stand_in_no_table(name: str) -> None:
    other = unbroken(params=breached()["params"] | {name: "other"})
    with pytest.raises(RescoreError, match=f"records apples and bags differ in {name} "):
        list(scored_steps([record_of(breached()), record_of(other)], with_entropy=True))


def test_records_of_different_models_stand_in_no_table() -> None:
    other = unbroken(models={"student": "smol", "teacher": "bigger"})
    with pytest.raises(RescoreError, match="smol and big; smol and bigger"):
        list(scored_steps([record_of(breached()), record_of(other)], with_entropy=True))


def test_records_without_their_thresholds_have_no_own() -> None:
    with pytest.raises(RescoreError, match="record bags: its params do not hold entropy_scale"):
        own_thresholds(record_of(unbroken(params={"base_threshold": 0.2})))


def test_nothing_can_be_rescored_where_there_is_nothing() -> None:
    with pytest.raises(RescoreError, match="there are no records to rescore"):
        rescore([], [(0.1, 0.0)])


def calibrator(*trajectories: Scored, entropy_scale: float = 0.0) -> Calibrator:
    made = Calibrator(entropy_scale)
    for one in trajectories:
        made.add(one)
    return made


def with_lowest(*values: float, is_open: bool = False) -> list[Scored]:
    return [scored((0.95, value), is_open=is_open) for value in values]


@pytest.mark.parametrize(
    ("rate", "low", "base_threshold"),
    [(0.25, 0.1, 0.15), (0.5, 0.2, 0.3), (0.75, 0.4, 0.7), (1.0, 0.9, 0.95)],
)
def test_calibration_finds_a_short_number_between_two_trajectories(
    rate: float, low: float, base_threshold: float
) -> None:
    made = calibrator(*with_lowest(0.4, 0.1, 0.9, 0.2)).threshold(rate)
    assert (made.low, made.base_threshold, made.exact) == (low, base_threshold, True)


def test_calibration_takes_the_entropy_into_account() -> None:
    uncertain = [scored((0.1,), (1.0,)), scored((0.1,), (0.0,))]
    made = calibrator(*uncertain, entropy_scale=1.0).threshold(0.5)
    assert 0.1 < made.base_threshold < 0.1 * math.e
    assert made.exact


def test_a_boundary_too_small_for_a_number_is_never_crossed() -> None:
    made = calibrator(scored((0.1,), (5.0,)), scored((0.1,), (0.0,)), entropy_scale=1000.0)
    assert made.settled == [math.inf, 0.1]


def test_calibration_takes_the_rate_that_is_closest_where_trajectories_are_alike() -> None:
    made = calibrator(*with_lowest(0.3, 0.3, 0.3, 0.8)).threshold(0.5)
    assert 0.3 < made.base_threshold < 0.8


def test_calibration_below_stored_breaches_gives_bounds() -> None:
    trajectories = [*with_lowest(0.15, is_open=True), *with_lowest(0.1, 0.4, 0.5)]
    made = calibrator(*trajectories).threshold(0.25)
    # 0.1 is known to breach above 0.1; the open one may breach at any threshold.
    assert (made.low, made.exact) == (0.0, False)
    assert 0.1 < made.base_threshold < 0.15
    above = calibrator(*trajectories).threshold(0.5)
    assert above.exact
    assert 0.15 < above.base_threshold < 0.4


def test_calibration_says_what_rate_can_be_had() -> None:
    with pytest.raises(RescoreError, match=r"at base_threshold 1, .* 50.0% breach, so 100.0%"):
        calibrator(*with_lowest(0.4), scored((1.0, 1.0))).threshold(1.0)


def test_calibration_to_less_than_half_a_trajectory_wants_more_records() -> None:
    with pytest.raises(RescoreError, match=r"0\.1 is less than half of one of 4 trajectories"):
        calibrator(*with_lowest(0.4, 0.1, 0.9, 0.2)).threshold(0.1)


def test_calibration_prefers_no_breach_to_far_too_many() -> None:
    made = calibrator(*with_lowest(0.3, 0.3, 0.3, is_open=True)).threshold(1 / 3)
    assert (made.base_threshold, made.exact) == (0.0, True)


def test_the_bounds_of_a_calibration_count_what_is_settled() -> None:
    trajectories = [*with_lowest(0.35, is_open=True), *with_lowest(0.1, 0.2, 0.4)]
    made = calibrator(*trajectories).threshold(0.5)
    # If the open one breaches, one of the settled is enough: that is so above 0.1.
    assert (made.low, made.base_threshold, made.exact) == (0.1, 0.3, False)

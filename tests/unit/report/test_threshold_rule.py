"""The thresholds that the rule learns from right and wrong parts."""

import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synth_client.report.rescore import RescoreError
from synth_client.report.threshold_rule import SCALES, Labelled, choose, labelled_groups
from tests.support.records import breached, record_of, unbroken


def right(value: float, entropy: float | None = 0.0) -> Labelled:
    return Labelled((value,), (entropy,), is_wrong=False)


def wrong(value: float, entropy: float | None = 0.0) -> Labelled:
    return Labelled((value,), (entropy,), is_wrong=True)


def test_the_rule_takes_the_gap_with_the_largest_difference_of_shares() -> None:
    # Above 0.3: 2 of 3 wrong and none of 4 right; above 0.6: all wrong and 2 of 4 right.
    groups = [wrong(0.1), wrong(0.3), wrong(0.6)]
    groups += [right(0.4), right(0.5), right(0.8), right(0.9)]
    found = choose(groups, scales=(0.0,))
    assert 0.3 < found.base_threshold <= 0.4
    assert (found.caught, found.falsely_caught) == (2 / 3, 0.0)
    assert (found.num_wrong, found.num_right) == (3, 4)


def test_a_larger_gain_is_worth_some_false_catches() -> None:
    # Above 0.6: 3/3 - 1/4, more than 1/3 - 0 above 0.1.
    groups = [wrong(0.1), wrong(0.5), wrong(0.6)]
    groups += [right(0.3), right(0.7), right(0.8), right(0.9)]
    found = choose(groups, scales=(0.0,))
    assert 0.6 < found.base_threshold <= 0.7
    assert (found.caught, found.falsely_caught) == (1.0, 0.25)


def test_theta_spares_right_steps_where_the_teacher_is_unsure() -> None:
    # V exp(theta H): the right steps are at 0.2, 0.2 e^(theta); the wrong step stays at 0.3.
    groups = [right(0.2, 1.0), wrong(0.3, 0.0)]
    found = choose(groups)
    # Of the thetas that part them it takes the smallest: 0.2 e^0.5 = 0.33, 0.2 e^0.25 = 0.26.
    assert found.entropy_scale == 0.5
    assert 0.3 < found.base_threshold <= 0.2 * math.exp(0.5)
    with pytest.raises(RescoreError, match="do not tell them apart"):
        choose(groups, scales=(0.0,))


def test_among_equals_it_prefers_fewer_false_catches_then_the_smaller_theta() -> None:
    # 1/2 - 0 above 0.1, and 2/2 - 1/2 above 0.5.
    found = choose([wrong(0.1), right(0.3), wrong(0.5), right(0.9)])
    assert 0.1 < found.base_threshold <= 0.3
    assert found.entropy_scale == 0.0
    # With theta 0 it is 2/2 - 1/2 above 0.5, with theta 1/4 1/2 - 0 above 0.3, where the others are
    # at 0.33 and 0.82.
    found = choose([wrong(0.3), wrong(0.5, 2.0), right(0.2, 2.0), right(0.9)])
    assert 0.3 < found.base_threshold <= 0.2 * math.exp(0.5)
    assert (found.entropy_scale, found.num_falsely_caught) == (0.25, 0)


def test_a_trajectory_is_caught_when_any_of_its_steps_is() -> None:
    groups = [
        Labelled((0.9, 0.2, 0.8), (0.0, 0.0, 0.0), is_wrong=True),
        Labelled((0.4, 0.9), (0.0, 0.0), is_wrong=False),
    ]
    found = choose(groups, scales=(0.0,))
    assert 0.2 < found.base_threshold <= 0.4


def test_a_threshold_catches_between_neighbouring_numbers_too() -> None:
    low = 0.5
    found = choose([wrong(low), right(math.nextafter(low, 1.0))], scales=(0.0,))
    assert low < found.base_threshold <= math.nextafter(low, 1.0)


def test_values_of_0_and_1_are_at_the_ends() -> None:
    found = choose([wrong(0.0), right(1.0)], scales=(0.0,))
    assert (found.base_threshold, found.caught, found.falsely_caught) == (0.5, 1.0, 0.0)


@pytest.mark.parametrize(
    ("groups", "lacking"),
    [([right(0.5), right(0.6)], "wrong"), ([wrong(0.5)], "right"), ([], "right")],
)
def test_one_kind_alone_teaches_nothing(groups: list[Labelled], lacking: str) -> None:
    with pytest.raises(RescoreError, match=rf"\({len(groups)}\) none is {lacking}"):
        choose(groups)


def test_values_that_fall_for_right_steps_alone_give_no_threshold() -> None:
    with pytest.raises(RescoreError, match="no thresholds catch a larger share"):
        choose([right(0.1), wrong(0.9)])


def test_an_entropy_that_is_missing_is_an_error_where_a_theta_needs_it() -> None:
    groups = [wrong(0.1, None), right(0.9, None)]
    assert choose(groups, scales=(0.0,)).caught == 1.0
    with pytest.raises(ValueError, match="an entropy must be there"):
        choose(groups)


PARTS = st.builds(
    Labelled,
    st.tuples(st.sampled_from([0.0, 0.2, 0.4, 0.5, 0.7, 1.0])),
    st.tuples(st.sampled_from([0.0, 0.5, 1.0, 2.0])),
    st.booleans(),
)


@given(st.lists(PARTS, min_size=1, max_size=12))
def test_no_threshold_of_a_fine_grid_is_better(groups: list[Labelled]) -> None:
    num_wrong = sum(group.is_wrong for group in groups)

    def shares(eps: float, theta: float) -> tuple[float, float]:
        caught = [
            group.is_wrong
            for group in groups
            if group.values[0] < eps * math.exp(-theta * (group.entropies[0] or 0.0))
        ]
        return sum(caught) / num_wrong, (len(caught) - sum(caught)) / (len(groups) - num_wrong)

    if not 0 < num_wrong < len(groups):
        with pytest.raises(RescoreError):
            choose(groups)
        return
    grid = [shares(number / 500, theta) for theta in SCALES for number in range(501)]
    best = max(caught - falsely for caught, falsely in grid)
    if best <= 0:
        with pytest.raises(RescoreError):
            choose(groups)
        return
    found = choose(groups)
    # Its numbers are those of its thresholds, and no thresholds have a larger difference.
    assert shares(found.base_threshold, found.entropy_scale) == (
        found.caught,
        found.falsely_caught,
    )
    assert found.caught - found.falsely_caught == pytest.approx(best)


def trial(name: str, *, correct: bool | None, right_steps: float | None = None) -> dict[str, Any]:
    scores = {} if right_steps is None else {"right_steps": right_steps}
    verification = {"rule": "mine", "fault": None, "scores": scores}
    return unbroken(id=name, correct=correct, verification=verification)


def groups_of(*records: dict[str, Any]) -> tuple[list[Labelled], Counter[str]]:
    left_out: Counter[str] = Counter()
    made = labelled_groups(map(record_of, records), with_entropy=True, left_out=left_out)
    return list(made), left_out


def test_the_verdict_on_the_answer_labels_the_whole_trajectory() -> None:
    groups, left_out = groups_of(
        trial("a", correct=True), trial("b", correct=False), trial("c", correct=None)
    )
    assert groups == [
        Labelled((0.81, 0.74), (0.5, 0.5), is_wrong=False),
        Labelled((0.81, 0.74), (0.5, 0.5), is_wrong=True),
    ]
    assert left_out == {"without a verdict": 1}


def test_a_rule_that_knows_the_steps_labels_them_up_to_the_first_wrong_one() -> None:
    groups, left_out = groups_of(
        trial("a", correct=True, right_steps=2),
        trial("b", correct=None, right_steps=1),
        trial("c", correct=False, right_steps=0),
    )
    assert groups == [
        *(right(0.81, 0.5), right(0.74, 0.5)),
        *(right(0.81, 0.5), wrong(0.74, 0.5)),
        wrong(0.81, 0.5),
    ]
    assert not left_out


@pytest.mark.parametrize("number", [3, -1, 0.5])
def test_a_number_of_right_steps_that_cannot_be_is_refused(number: float) -> None:
    with pytest.raises(RescoreError, match=r"record a: the score right_steps is .* 0 to its 2"):
        groups_of(trial("a", correct=True, right_steps=number))


def test_labels_of_both_kinds_are_refused() -> None:
    with pytest.raises(RescoreError, match="records a and b only one has the score right_steps"):
        groups_of(trial("a", correct=True, right_steps=2), trial("b", correct=True))


def test_a_corrected_answer_labels_nothing() -> None:
    with pytest.raises(RescoreError, match="breached, so its answer is the teacher's"):
        groups_of(breached())

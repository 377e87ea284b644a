"""The boundary for each step that right and wrong parts teach."""

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import pytest

from proxy.core.params import Params
from synth_client.report.calibrate import Calibrated, Wanted
from synth_client.report.rescore import RescoreError, thresholds
from synth_client.report.step_boundary import (
    by_step,
    learn_by_step,
    own_boundary,
    parse_boundary,
    unlabelled_groups,
)
from synth_client.report.threshold_rule import Labelled, Placed, placed_groups
from tests.support.records import breached, record_of, unbroken

TWENTY = tuple(number / 20 for number in range(1, 21))


def group(*values: float, first: int = 0, is_wrong: bool = False) -> Placed:
    return Placed(first, Labelled(values, (None,) * len(values), is_wrong))


def at(index: int, values: Sequence[float]) -> list[Placed]:
    """Right steps at one index."""
    return [group(value, first=index) for value in values]


@pytest.mark.parametrize(
    ("share", "value"),
    [("0", 0.05), ("0.04", 0.05), ("0.05", 0.1), ("0.1", 0.15), ("0.5", 0.55), ("1", 1.0)],
)
def test_a_quantile_is_the_largest_value_with_that_share_below(share: str, value: float) -> None:
    found = learn_by_step(at(0, TWENTY), Fraction(share))
    assert found.values == (value,)
    below = sum(one < value for one in TWENTY)
    assert (found.num_falsely_caught, found.num_right) == (below, 20)
    assert below <= Fraction(share) * 20


def test_a_share_that_no_binary_number_is_counts_exactly() -> None:
    # 0.29 * 100 is 28.999999999999996.
    found = learn_by_step(at(0, [number / 100 for number in range(100)]), Fraction("0.29"))
    assert found.values == (0.29,)
    assert found.num_falsely_caught == 29


def test_equal_values_lie_below_together_or_not_at_all() -> None:
    found = learn_by_step(at(0, [0.2] * 10 + [0.6] * 10), Fraction("0.25"))
    assert (found.values, found.num_falsely_caught) == ((0.2,), 0)
    found = learn_by_step(at(0, [0.2] * 10 + [0.6] * 10), Fraction("0.5"))
    assert (found.values, found.num_falsely_caught) == ((0.6,), 10)


def test_a_boundary_is_rounded_down_so_that_it_catches_nothing_more() -> None:
    found = learn_by_step(at(0, [0.12349] * 20), Fraction(0))
    assert (found.values, found.num_falsely_caught) == ((0.1234,), 0)
    assert learn_by_step(at(0, [0.00009] * 20), Fraction(0)).values == (0.0,)


def test_indices_are_pooled_until_they_have_values_enough() -> None:
    placed = at(0, [0.5] * 20) + at(1, [0.4] * 12) + at(2, [0.3] * 8) + at(3, [0.6] * 20)
    assert learn_by_step(placed, Fraction(0)).values == (0.5, 0.3, 0.3, 0.6)
    # 12 of the 20 values at the indices 1 and 2 are 0.4.
    assert learn_by_step(placed, Fraction("0.4")).values == (0.5, 0.4, 0.4, 0.6)


def test_what_is_left_at_the_end_joins_the_last_pool() -> None:
    placed = at(0, [0.5] * 20) + at(1, [0.4] * 20) + at(2, [0.3] * 12) + at(3, [0.2] * 7)
    assert learn_by_step(placed, Fraction(0)).values == (0.5, 0.2)
    assert learn_by_step(placed + at(4, [0.6]), Fraction(0)).values == (0.5, 0.4, 0.2)


def test_an_index_that_no_right_step_has_is_pooled_with_its_neighbours() -> None:
    placed = at(0, [0.5] * 20) + at(2, [0.3] * 20)
    assert learn_by_step(placed, Fraction(0)).values == (0.5, 0.3)


def test_few_values_make_one_boundary_and_fewer_than_twenty_none() -> None:
    placed = [group(0.9, 0.8, 0.7, 0.6) for _ in range(5)]
    assert learn_by_step(placed, Fraction("0.25")).values == (0.7,)
    with pytest.raises(RescoreError, match=r"have 16 values, .* takes at least 20"):
        learn_by_step(placed[1:], Fraction("0.25"))
    with pytest.raises(RescoreError, match="right parts have 0 values"):
        learn_by_step([group(0.1, is_wrong=True)], Fraction(0))
    with pytest.raises(RescoreError, match="right parts have 0 values"):
        learn_by_step([], Fraction(0))


def test_one_long_trajectory_is_enough() -> None:
    assert learn_by_step([group(*TWENTY)], Fraction("0.1")).values == (0.15,)


def test_all_steps_from_the_last_value_on_share_it() -> None:
    long = [group(*([0.5] * 63), *([0.4] * 7)) for _ in range(20)]
    assert learn_by_step(long, Fraction(0)).values == (*([0.5] * 63), 0.4)


def test_each_step_is_caught_where_it_stands() -> None:
    # No one threshold parts 0.3 of the first step from the right 0.2 of the second.
    placed = [group(0.5, 0.2) for _ in range(20)]
    placed += [group(0.3, 0.9, is_wrong=True), group(0.9, 0.1, is_wrong=True)]
    found = learn_by_step(placed)
    assert (found.values, found.share) == ((0.5, 0.2), Fraction(0))
    assert (found.caught, found.falsely_caught) == (1.0, 0.0)


def test_the_rule_takes_the_share_with_the_largest_gain() -> None:
    # Nothing wrong lies below 0.1; a twentieth of the right parts frees 0.5.
    placed = at(0, [0.1] + [0.5] * 19) + [group(0.4, is_wrong=True)] * 3
    found = learn_by_step(placed)
    assert (found.values, found.share) == ((0.5,), Fraction(1, 20))
    assert (found.num_caught, found.num_falsely_caught) == (3, 1)


def test_of_equal_gains_the_rule_takes_fewer_false_catches() -> None:
    # Below 0.3 lie 1 of 2 wrong and none of the right; below 0.6 both, and half of the right.
    placed = at(0, [0.3] * 10 + [0.6] * 10)
    placed += [group(0.2, is_wrong=True), group(0.5, is_wrong=True)]
    found = learn_by_step(placed)
    assert (found.values, found.num_falsely_caught) == ((0.3,), 0)


def test_a_trajectory_is_caught_when_any_of_its_steps_is() -> None:
    placed = [group(0.9, value) for value in TWENTY]
    found = learn_by_step(placed, Fraction("0.1"))
    assert (found.values, found.num_falsely_caught) == ((0.9, 0.15), 2)
    found = learn_by_step([*placed, group(is_wrong=True)], Fraction("0.1"))
    assert (found.num_caught, found.num_wrong) == (0, 1)


def test_a_share_without_wrong_parts_can_be_asked_for_but_not_learned() -> None:
    with pytest.raises(RescoreError, match=r"\(20\) none is wrong"):
        learn_by_step(at(0, TWENTY))
    found = learn_by_step(at(0, TWENTY), Fraction("0.05"))
    assert (found.num_caught, found.num_wrong) == (0, 0)


def test_values_that_do_not_tell_wrong_from_right_give_no_boundary() -> None:
    with pytest.raises(RescoreError, match="do not tell them apart"):
        learn_by_step([*at(0, [0.5] * 20), group(0.9, is_wrong=True)])


def trial(**changes: Any) -> dict[str, Any]:
    return unbroken(**{"correct": True, **changes})


def test_labels_of_steps_place_each_step_at_its_index() -> None:
    verification = {"rule": "mine", "fault": None, "scores": {"right_steps": 1}}
    record = record_of(trial(verification=verification))
    found = list(placed_groups([record], with_entropy=False, left_out=Counter()))
    assert [(one.first, one.group.values, one.group.is_wrong) for one in found] == [
        (0, (0.81,), False),
        (1, (0.74,), True),
    ]


def test_a_trial_without_labels_counts_as_right() -> None:
    (found,) = unlabelled_groups([record_of(trial(correct=None))])
    assert (found.first, found.group.values, found.group.is_wrong) == (0, (0.81, 0.74), False)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (breached(), "record apples breached"),
        (trial(scoring="judge_sample"), "a judge's marks are not probabilities"),
        (trial(method="skd"), "has no MOTAB thresholds"),
    ],
)
def test_a_trial_that_is_none_is_refused(fields: dict[str, Any], message: str) -> None:
    record = record_of(fields)
    with pytest.raises(RescoreError, match=message):
        list(unlabelled_groups([record]))
    with pytest.raises(RescoreError, match=message):
        list(placed_groups([record], with_entropy=False, left_out=Counter()))


@pytest.mark.parametrize(
    "text", ["", "0.1", "[]", "[true]", '["0.1"]', "[2]", "[-0.1]", "[NaN]", "{}", "[0.1", "null"]
)
def test_a_list_that_is_no_boundary_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be 1 to 64 numbers from 0 to 1, as"):
        parse_boundary(text)


def test_a_boundary_is_read_from_a_list_and_written_as_params() -> None:
    assert parse_boundary("[0, 0.25, 1]") == by_step([0, 0.25, 1])
    with pytest.raises(ValueError, match="1 to 64 numbers"):
        parse_boundary(str([0.1] * 65))
    written = learn_by_step(at(0, [0.5] * 20) + at(1, [0.0001] * 20), Fraction(0)).to_yaml()
    assert written == "boundary: quantile\nboundary_values: [0.5, 0.0001]\n"


def with_own(**params: Any) -> dict[str, Any]:
    return trial(params={**breached()["params"], **params})


def test_a_record_has_a_boundary_of_its_own() -> None:
    assert own_boundary(record_of(trial())) == thresholds(0.2, 1.0)
    quantile = {"boundary": "quantile", "boundary_values": [0.1, 1]}
    assert own_boundary(record_of(with_own(**quantile))) == by_step([0.1, 1])
    for values in ([], None, ["0.1"], [2]):
        record = record_of(with_own(**(quantile | {"boundary_values": values})))
        with pytest.raises(RescoreError, match="record bags: its boundary_values must be 1 to 64"):
            own_boundary(record)


OWN = by_step([0.3])


@pytest.mark.parametrize(
    ("wanted", "own", "rows"),
    [
        (Wanted(), OWN, [OWN]),
        (Wanted(by_step=[by_step([0.1])]), OWN, [by_step([0.1]), OWN]),
        (Wanted(bases=[0.2]), OWN, [thresholds(0.2, 0.0), OWN]),
        (Wanted(bases=[0.2], scales=[1.0]), OWN, [thresholds(0.2, 1.0), OWN]),
        (Wanted(by_step=[OWN]), thresholds(0.2, 1.0), [thresholds(0.2, 1.0), OWN]),
        (Wanted(calibration="quantile"), thresholds(0.2, 1.0), []),
        (Wanted(calibration="quantile", bases=[0.1]), OWN, [thresholds(0.1, 0.0)]),
    ],
)
def test_a_threshold_that_is_left_out_is_the_records_own(
    wanted: Wanted, own: Params, rows: list[Params]
) -> None:
    assert wanted.boundaries(own, Calibrated()) == rows


def test_records_by_step_have_no_base_threshold_for_a_scale() -> None:
    with pytest.raises(RescoreError, match="no base_threshold: give one with the entropy_scale"):
        Wanted(scales=[1.0]).boundaries(OWN, Calibrated())

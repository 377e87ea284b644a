"""A boundary by step is what plain loops over its definition find."""

from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from synth_client.report.rescore import RescoreError
from synth_client.report.step_boundary import learn_by_step
from synth_client.report.threshold_rule import Labelled, Placed
from tests.support.cases import num_cases

# Of four decimals, so that rounding changes nothing.
VALUE = st.sampled_from([0.0, 0.0001, 0.2, 0.3333, 0.5, 0.7, 0.9999, 1.0])
TRIAL = st.tuples(
    st.sampled_from([0, 0, 0, 1, 3]), st.lists(VALUE, max_size=8), st.booleans(), st.integers(1, 12)
)
"""The first index, the values, whether they are wrong, and how often they come."""
SHARE = st.integers(0, 1000).map(lambda number: Fraction(number, 1000))


def placed_of(trials: list[tuple[int, list[float], bool, int]]) -> list[Placed]:
    return [
        Placed(first, Labelled(tuple(values), (None,) * len(values), is_wrong))
        for first, values, is_wrong, times in trials
        for _ in range(times)
    ]


def pools_of(trials: list[Placed]) -> list[list[int]]:
    """The indices that share a boundary."""

    def num(indices: list[int]) -> int:
        return sum(len(right_at(trials, index)) for index in indices)

    highest = max(
        (one.first + len(one.group.values) for one in trials if not one.group.is_wrong), default=0
    )
    pools: list[list[int]] = []
    begun: list[int] = []
    for index in range(highest):
        begun = [*begun, index]
        if num(begun) >= 20:
            pools, begun = [*pools, begun], []
    if pools:
        pools[-1] = [*pools[-1], *begun]
    return pools


def right_at(trials: list[Placed], index: int) -> list[float]:
    return [
        one.group.values[index - one.first]
        for one in trials
        if not one.group.is_wrong and one.first <= index < one.first + len(one.group.values)
    ]


def boundary_of(trials: list[Placed], share: Fraction, index: int) -> float:
    """The largest value below which at most the share lies."""
    pools = pools_of(trials)
    its = next((pool for pool in pools if index in pool), pools[-1])
    values = [value for one in its for value in right_at(trials, one)]
    return max(
        value for value in values if sum(other < value for other in values) <= share * len(values)
    )


def is_caught(one: Placed, boundary: list[float]) -> bool:
    steps = enumerate(one.group.values, start=one.first)
    return any(value < boundary[index] for index, value in steps)


@settings(max_examples=num_cases(300), deadline=None)
@given(st.lists(TRIAL, min_size=1, max_size=8), SHARE)
def test_a_boundary_with_a_share_is_the_definitions(
    trials: list[tuple[int, list[float], bool, int]], share: Fraction
) -> None:
    placed = placed_of(trials)
    if not pools_of(placed):
        with pytest.raises(RescoreError, match="takes at least 20"):
            learn_by_step(placed, share)
        return
    found = learn_by_step(placed, share)
    boundary = [boundary_of(placed, share, index) for index in range(12)]
    longest = [*found.values, *[found.values[-1]] * 12][:12]
    assert longest == boundary
    caught = [one.group.is_wrong for one in placed if is_caught(one, boundary)]
    assert (found.num_caught, found.num_falsely_caught) == (caught.count(True), caught.count(False))
    assert found.params.boundary_values == found.values


@settings(max_examples=num_cases(40), deadline=None)
@given(st.lists(TRIAL, min_size=1, max_size=6))
def test_no_share_of_whole_percents_gains_more(
    trials: list[tuple[int, list[float], bool, int]],
) -> None:
    placed = placed_of(trials)
    num_wrong = sum(one.group.is_wrong for one in placed)
    assume(pools_of(placed) and 0 < num_wrong < len(placed))
    ranks = []
    for percent in range(101):
        found = learn_by_step(placed, Fraction(percent, 100))
        gain = Fraction(found.num_caught, num_wrong)
        gain -= Fraction(found.num_falsely_caught, len(placed) - num_wrong)
        ranks.append((gain, -found.num_falsely_caught, -percent))
    best = max(ranks)
    if best[0] <= 0:
        with pytest.raises(RescoreError, match="do not tell them apart"):
            learn_by_step(placed)
        return
    assert learn_by_step(placed).share == Fraction(-best[2], 100)

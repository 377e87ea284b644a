"""Paired differences of right answers, against values computed by hand and against simulation."""

import random
from itertools import product
from statistics import fmean, pstdev

import pytest

from trainer.evaluation.paired import Rates, difference
from trainer.evaluation.pass_at_k import Interval


def test_the_difference_is_that_of_each_problem_under_each_seed() -> None:
    ours = {1: {"a": 1.0, "b": 0.5}, 2: {"a": 0.5, "b": 0.5}}
    theirs = {1: {"a": 0.5, "b": 0.5}, 2: {"a": 0.5, "b": 0.25}}
    found = difference(ours, theirs)
    assert found is not None
    # +0.5, 0 under the one, 0, +0.25 under the other.
    assert found.mean == pytest.approx(0.1875)
    assert found.low is not None
    assert found.high is not None
    assert found.low <= found.mean <= found.high


def test_the_interval_is_that_of_all_ways_to_draw() -> None:
    ours = {1: {"a": 0.9, "b": 0.4}, 2: {"a": 0.7, "b": 0.1}}
    theirs = {1: {"a": 0.5, "b": 0.5}, 2: {"a": 0.5, "b": 0.5}}
    cells = {(seed, name): ours[seed][name] - 0.5 for seed in ours for name in ours[seed]}
    means = [
        fmean(cells[seed, name] for seed in seeds for name in names)
        for seeds in product((1, 2), repeat=2)
        for names in product("ab", repeat=2)
    ]
    found = difference(ours, theirs, Interval(num_resamples=20_000))
    assert found is not None
    assert found.low == pytest.approx(min(means))
    assert found.high == pytest.approx(max(means))
    assert found.error == pytest.approx(pstdev(means), rel=0.02)
    assert found.smallest == pytest.approx(2.8 * pstdev(means), rel=0.02)


def test_what_only_one_of_the_two_has_does_not_count() -> None:
    ours = {1: {"a": 1.0, "b": 1.0}, 2: {"a": 0.0}}
    found = difference(ours, {1: {"a": 0.5, "c": 1.0}, 3: {"a": 1.0}})
    assert found is not None
    assert (found.mean, found.low, found.high, found.smallest) == (0.5, None, None, None)
    assert difference(ours, {1: {"c": 1.0}}) is None
    # A problem counts only where all seeds that are compared have it.
    one = difference(ours, {1: {"a": 0.5, "b": 0.0}, 2: {"a": 0.0, "b": 1.0}})
    assert one is not None
    assert one.mean == 0.25
    assert difference(ours, {}) is None


def answers(draw: random.Random, chances: list[float], gain: float = 0.0) -> Rates:
    """Three seeds, each with eight answers to every problem."""
    return {
        seed: {
            f"{index}": sum(draw.random() < chance + gain for _ in range(8)) / 8
            for index, chance in enumerate(chances)
        }
        for seed in (1, 2, 3)
    }


def test_identical_answers_under_two_names_do_not_differ() -> None:
    rates = answers(random.Random(0), [0.1, 0.5, 0.9])
    found = difference(rates, rates)
    assert found is not None
    assert (found.mean, found.low, found.high, found.smallest) == (0.0, 0.0, 0.0, 0.0)


def test_the_interval_of_two_equal_students_holds_0_and_that_of_a_better_one_does_not() -> None:
    fast = Interval(num_resamples=300)
    draw = random.Random(1)
    num_without_0 = num_found = 0
    for _ in range(60):
        chances = [draw.uniform(0.1, 0.7) for _ in range(60)]
        base = answers(draw, chances)
        for gain in (0.0, 0.15):
            found = difference(answers(draw, chances, gain), base, fast)
            assert found is not None
            assert found.low is not None
            assert found.high is not None
            num_without_0 += gain == 0.0 and not found.low <= 0.0 <= found.high
            num_found += gain > 0.0 and found.low > 0.0
    # 5% of 60 would be 3.
    assert num_without_0 <= 9
    assert num_found == 60

import random
from itertools import combinations
from math import comb
from statistics import fmean

import pytest

from trainer.evaluation.pass_at_k import (
    Interval,
    Mean,
    Outcome,
    PassAtK,
    Weighted,
    estimate,
    pass_at_k,
    weighted_mean,
)


@pytest.mark.parametrize(
    ("n", "c", "k", "chance"),
    [
        (1, 0, 1, 0.0),
        (1, 1, 1, 1.0),
        (4, 1, 1, 0.25),
        (4, 1, 2, 0.5),  # 3 of the 6 pairs have the right one
        (4, 2, 2, 5 / 6),  # only one pair has none of them
        (8, 2, 4, 1 - 15 / 70),
        (8, 5, 4, 1.0),  # 3 wrong ones cannot fill 4 places
        (8, 0, 8, 0.0),
        (200, 3, 1, 3 / 200),
    ],
)
def test_pass_at_k_is_what_it_is_by_hand(n: int, c: int, k: int, chance: float) -> None:
    assert pass_at_k(n, c, k) == pytest.approx(chance, abs=1e-15)


def test_pass_at_k_is_the_share_of_draws_with_a_right_sample() -> None:
    for n in range(1, 9):
        for c in range(n + 1):
            for k in range(1, n + 1):
                # Samples below c are the right ones.
                draws = [min(draw) < c for draw in combinations(range(n), k)]
                assert pass_at_k(n, c, k) == pytest.approx(fmean(draws), abs=1e-15)


@pytest.mark.parametrize("p", [0.0, 0.03, 0.4, 0.97, 1.0])
def test_pass_at_k_is_unbiased(p: float) -> None:
    for n, k in [(1, 1), (4, 3), (8, 4), (16, 8), (64, 8)]:
        expected = sum(
            comb(n, c) * p**c * (1 - p) ** (n - c) * pass_at_k(n, c, k) for c in range(n + 1)
        )
        assert expected == pytest.approx(1 - (1 - p) ** k, abs=1e-12)


def test_pass_at_k_stays_exact_for_many_samples() -> None:
    # Floating-point factorials of 5,000 overflow.
    assert pass_at_k(5000, 1, 100) == pytest.approx(0.02, abs=1e-15)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 5), (4, 2, 0), (0, 0, 1)])
def test_what_cannot_be_estimated_is_refused(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match=r"cannot be"):
        pass_at_k(n, c, k)


def test_the_interval_of_two_problems_is_as_wide_as_they_are_apart() -> None:
    # Both draws are the lower one in a quarter of the resamples.
    found = estimate([Outcome(2, 1), Outcome(2, 2)], 1)
    assert found == PassAtK(1, 0.75, 0.5, 1.0, 2)


def test_problems_with_too_few_samples_are_left_out_and_not_counted_as_wrong() -> None:
    outcomes = [Outcome(4, 4), Outcome(4, 4), Outcome(3, 0), Outcome(0, 0)]
    assert estimate(outcomes, 4) == PassAtK(4, 1.0, 1.0, 1.0, 2)
    assert estimate(outcomes, 1).num_problems == 3


def test_of_one_problem_there_is_no_interval_and_of_none_no_value() -> None:
    assert estimate([Outcome(4, 1)], 1) == PassAtK(1, 0.25, None, None, 1)
    assert estimate([Outcome(2, 1)], 4) == PassAtK(4, None, None, None, 0)


def test_the_interval_is_the_same_every_time_and_another_with_another_seed() -> None:
    outcomes = [Outcome(8, c) for c in (0, 1, 3, 4, 7, 8, 8, 2, 5)]
    assert estimate(outcomes, 4) == estimate(outcomes, 4)
    assert estimate(outcomes, 1) != estimate(outcomes, 1, Interval(seed=1))


def test_the_interval_is_that_of_the_normal_approximation_where_that_holds() -> None:
    draw = random.Random(3)
    outcomes = [Outcome(8, draw.randint(0, 8)) for _ in range(1000)]
    chances = [one.c / 8 for one in outcomes]
    spread = fmean((chance - fmean(chances)) ** 2 for chance in chances) ** 0.5 / 1000**0.5
    found = estimate(outcomes, 1)
    assert found.low == pytest.approx(fmean(chances) - 1.96 * spread, abs=0.1 * spread)
    assert found.high == pytest.approx(fmean(chances) + 1.96 * spread, abs=0.1 * spread)


@pytest.mark.parametrize("k", [1, 4])
def test_the_interval_covers_the_truth_about_as_often_as_it_says(k: int) -> None:
    draw, interval = random.Random(11), Interval(num_resamples=400)
    # Chances are spread evenly over problems, so the mean of 1 - (1 - p)^k is k / (k + 1).
    truth, num_covered = k / (k + 1), 0
    for _ in range(300):
        chances = [draw.random() for _ in range(60)]
        outcomes = [Outcome(8, sum(draw.random() < p for _ in range(8))) for p in chances]
        found = estimate(outcomes, k, interval)
        assert found.low is not None
        assert found.high is not None
        num_covered += found.low <= truth <= found.high
    assert 0.91 <= num_covered / 300 <= 0.98


def test_a_weighted_mean_has_no_interval_of_one_value_and_no_value_of_none() -> None:
    assert weighted_mean([]) == Mean(None, None, None)
    assert weighted_mean([Weighted(0.25, 4)]) == Mean(0.25, None, None)


def test_values_that_weigh_the_same_have_the_interval_of_pass_at_1() -> None:
    outcomes = [Outcome(1, c) for c in (0, 1, 1, 0, 1, 1, 1)]
    same = estimate(outcomes, 1)
    found = weighted_mean([Weighted(one.c, 2) for one in outcomes])
    assert (found.value, found.low, found.high) == (same.value, same.low, same.high)

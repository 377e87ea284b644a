"""The numbers that `algorithm.md` computed by hand."""

import math

import pytest

from proxy.core.boundary import boundary
from proxy.core.credit import bifurcation
from proxy.core.params import Params
from proxy.core.scoring import entropy, oracle_value

HALVES = [math.log(0.5), math.log(0.25), math.log(0.125)]


def test_value_is_the_geometric_mean_probability() -> None:
    assert oracle_value([-1.2, -0.9, -2.0]) == pytest.approx(0.254955, abs=1e-6)


def test_entropy_is_of_the_renormalised_top_k() -> None:
    assert entropy(HALVES, 3) == pytest.approx(0.955700, abs=1e-6)


def test_boundary_loosens_with_entropy() -> None:
    params = Params(base_threshold=0.2, entropy_scale=1.0)
    assert boundary(0.955700, params, 0) == pytest.approx(0.076909, abs=1e-6)


def test_static_boundary_ignores_entropy() -> None:
    assert boundary(0.955700, Params(base_threshold=0.2, boundary="static"), 0) == 0.2


def test_a_boundary_by_step_holds_its_last_value_for_all_later_steps() -> None:
    params = Params(boundary="quantile", boundary_values=(0.1, 0.3, 0.2))
    assert [boundary(None, params, index) for index in range(5)] == [0.1, 0.3, 0.2, 0.2, 0.2]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.60, 0.55, 0.30, 0.28, 0.05], 2),
        ([0.05], 0),
        ([0.5, 0.4, 0.3, 0.05], 3),
    ],
)
def test_bifurcation_is_the_steepest_fall(values: list[float], expected: int) -> None:
    assert bifurcation(values, [0.1] * len(values)) == expected


def test_the_earliest_of_equal_falls_is_the_bifurcation() -> None:
    assert bifurcation([0.75, 0.5, 0.25, 0.0], [0.1] * 4) == 1


def test_a_fall_after_an_unsafe_step_is_no_candidate() -> None:
    assert bifurcation([0.9, 0.05, 0.04, 0.02], [0.1, 0.1, 0.01, 0.03]) == 1
    assert bifurcation([0.5, 0.49, 0.9, 0.1], [0.1, 0.1, 0.95, 0.2]) == 1


@pytest.mark.parametrize("bad", [None, math.nan, math.inf, 0.5])
def test_what_is_no_log_probability_is_refused(bad: float | None) -> None:
    with pytest.raises(ValueError, match="log-probability 1"):
        oracle_value([-1.0, bad])
    with pytest.raises(ValueError, match="top log-probability 2"):
        entropy([-1.0, -2.0, bad], 3)


def test_minus_infinity_is_a_value_of_zero() -> None:
    assert oracle_value([-0.1, -math.inf]) == 0.0


def test_a_certain_token_may_round_a_little_above_zero() -> None:
    assert oracle_value([1e-6, 1e-6]) == 1.0


def test_no_log_probabilities_are_no_value() -> None:
    with pytest.raises(ValueError, match="no log-probabilities"):
        oracle_value([])


def test_an_entry_beyond_the_top_k_is_dropped_wherever_it_stands() -> None:
    prompt_token = -12.0
    assert entropy([prompt_token, *HALVES], 3) == entropy(HALVES, 3)
    assert entropy([*HALVES, prompt_token], 3) == entropy(HALVES, 3)


def test_entropy_of_equal_candidates_is_the_logarithm_of_their_number() -> None:
    assert entropy([-50.0] * 20, 20) == pytest.approx(math.log(20))


def test_candidates_without_probability_add_no_entropy() -> None:
    assert entropy([-0.5, -0.5, -math.inf], 3) == pytest.approx(math.log(2))


@pytest.mark.parametrize("top", [[], [-0.1], [-math.inf, -math.inf]])
def test_an_entropy_of_too_little_is_refused(top: list[float]) -> None:
    with pytest.raises(ValueError, match="top log-prob"):
        entropy(top, 20)

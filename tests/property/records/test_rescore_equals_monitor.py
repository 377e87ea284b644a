"""Rescoring stored values agrees with what the monitor's rules decide on the whole text."""

from dataclasses import dataclass, replace

from hypothesis import assume, given
from hypothesis import strategies as st

from proxy.core.params import Params
from proxy.core.types import Step, StepScore, StepTrace
from proxy.core.verdict import bifurcation_of, judge
from synth_client.report.rescore import Calibrator, Scored, outcome_of, rescore

PROBABILITY = st.floats(0.0, 1.0) | st.sampled_from([0.05, 0.1, 0.2, 0.5])
STEPS = st.lists(
    st.tuples(PROBABILITY, st.floats(0.0, 3.0), st.integers(1, 30)), min_size=1, max_size=12
)
BACKTRACK = st.sampled_from(["td_error", "none"])
PAIRS = st.builds(
    Params,
    base_threshold=PROBABILITY,
    entropy_scale=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    backtrack=BACKTRACK,
)
PARAMS = PAIRS | st.builds(
    Params,
    boundary=st.just("quantile"),
    boundary_values=st.lists(PROBABILITY, min_size=1, max_size=5).map(tuple),
    backtrack=BACKTRACK,
)


@dataclass(frozen=True)
class Decided:
    breach: int | None
    bifurcation: int | None
    accepted_tokens: int


def decide(steps: list[tuple[float, float, int]], params: Params) -> Decided:
    """The monitor's decisions about a student's whole text."""
    judged: list[StepTrace] = []
    for value, entropy, num_tokens in steps:
        previous = judged[-1] if judged else None
        score = StepScore(value, entropy, num_tokens)
        judged.append(judge(Step("a", num_tokens), score, previous, params, len(judged)))
        if not judged[-1].safe:
            cut = bifurcation_of(judged, params)
            return Decided(len(judged) - 1, cut, sum(one[2] for one in steps[:cut]))
    return Decided(None, None, sum(one[2] for one in steps))


def stored(steps: list[tuple[float, float, int]], params: Params) -> Scored:
    """The record of that text, made under `params`."""
    breach = decide(steps, params).breach
    kept = steps if breach is None else steps[: breach + 1]
    return Scored(
        values=tuple(value for value, _, _ in kept),
        entropies=tuple(entropy for _, entropy, _ in kept),
        tokens=tuple(num_tokens for _, _, num_tokens in kept),
        is_open=breach is not None,
        backtracks=params.backtrack == "td_error",
    )


@given(STEPS, PARAMS, PARAMS)
def test_an_outcome_is_the_monitors_or_open_with_a_true_bound(
    steps: list[tuple[float, float, int]], made_under: Params, asked: Params
) -> None:
    asked = replace(asked, backtrack=made_under.backtrack)
    scored = stored(steps, made_under)
    outcome = outcome_of(scored, asked)
    truth = decide(steps, asked)
    if outcome.is_open:
        assert truth.breach is None or truth.breach >= len(scored.values)
        assert truth.accepted_tokens >= outcome.accepted_tokens
    else:
        assert Decided(outcome.breach, outcome.bifurcation, outcome.accepted_tokens) == truth


@given(STEPS, PARAMS)
def test_under_its_own_thresholds_nothing_is_open(
    steps: list[tuple[float, float, int]], params: Params
) -> None:
    assert not outcome_of(stored(steps, params), params).is_open


@given(st.lists(STEPS, min_size=1, max_size=8), PAIRS, st.integers(1, 8))
def test_a_calibrated_threshold_gives_the_closest_rate_there_is(
    texts: list[list[tuple[float, float, int]]], made_under: Params, wanted: int
) -> None:
    # Rounded, so that no two trajectories differ by the last bit only.
    rounded = [[(round(v, 3), round(h, 3), n) for v, h, n in steps] for steps in texts]
    scored = [stored(steps, made_under) for steps in rounded]
    calibrator = Calibrator(made_under.entropy_scale)
    for one in scored:
        calibrator.add(one)
    reachable = sum(limit < 1.0 for limit in [*calibrator.settled, *calibrator.opened])
    wanted = min(wanted, reachable)
    assume(wanted > 0)
    found = calibrator.threshold(wanted / len(scored))
    (row,) = rescore(scored, [(found.base_threshold, made_under.entropy_scale)])
    assert found.exact == (row.num_open == 0 or found.base_threshold == 0.0)
    edges = {0.0, *calibrator.settled, *calibrator.opened}
    closest = min(
        abs(sum(limit <= edge for limit in [*calibrator.settled, *calibrator.opened]) - wanted)
        for edge in edges
        if edge < 1.0
    )
    assert abs(row.num_breached - wanted) <= closest

"""Compares the rule's cost with the optimal rule's, in simulated time."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from benchmarks.waiting.optimum import Known, PlannedCall, cost_of, optimal_calls
from benchmarks.waiting.virtual import Learned, cost_of_motab

KNOWN = Known(
    rate=100,
    interval=8,
    step_tokens=48,
    hazard=1 / 28,
    trip_s=0.14,
    prefill=20_000,
    price=0.08,
    recomputes=False,
    question_tokens=31,
)
VLLM = replace(KNOWN, recomputes=True)


def depths(known: Known, num: int = 32) -> list[int]:
    """The steps of breaches, by quantiles, in an order that mixes them."""
    ranked = [int(-math.log(1 - (n + 0.5) / num) / known.hazard) for n in range(num)]
    return [ranked[7 * n % num] for n in range(num)]


def test_a_cached_call_computes_its_steps_and_a_token_and_any_other_all() -> None:
    assert KNOWN.computed(0, 1) == 31 + 48
    assert KNOWN.computed(3, 5) == 1 + 2 * 48
    assert VLLM.computed(3, 5) == 31 + 5 * 48


def test_the_student_writes_in_events_of_which_the_first_has_one_token() -> None:
    assert [KNOWN.seen(num) for num in (0, 1, 2, 9, 10)] == [1, 1, 9, 9, 17]
    # 0.34 s and 49 / 20000 s, at 100 tokens a second: 34 tokens, four events.
    assert replace(KNOWN, trip_s=0.34).written_during(1, 2) == 32


def test_the_cost_of_calls_is_counted_to_the_breach() -> None:
    calls = [PlannedCall(0, 2, 113, 0), PlannedCall(2, 3, 161, 16)]
    found = cost_of(KNOWN, calls, [0, 2])
    assert (found.kept, found.wasted) == (48 + 144, (113 - 48) + (161 - 144))
    assert (found.computed, found.waited) == (127 + 127 + 49, 16)
    assert found.total(0.5) == found.wasted + 0.5 * found.computed + 16
    with pytest.raises(ValueError, match="no call is for step 3"):
        cost_of(KNOWN, calls, [3])


def test_no_calls_of_even_length_are_cheaper_than_the_optimum() -> None:
    known, num_steps = replace(VLLM, price=0.3), 60
    best = optimal_calls(known, num_steps, most_steps=30)

    def expected(calls: Sequence[PlannedCall]) -> float:
        """The mean over breaches at every step, by their chances, and over texts without one."""
        costs = [cost_of(known, calls, [step]).total(known.price) for step in range(num_steps)]
        safe = [(1 - known.hazard) ** step for step in range(num_steps + 1)]
        all_computed = sum(known.computed(call.first, call.last) for call in calls)
        breaches = sum(known.hazard * p * cost for p, cost in zip(safe, costs, strict=False))
        return breaches + safe[-1] * known.price * all_computed

    for size in range(1, 16):
        ends = [*range(size, num_steps, size), num_steps]
        even = [
            PlannedCall(first, last, known.seen(last * 48) + known.written_during(first, last), 0)
            for first, last in zip([0, *ends], ends, strict=False)
        ]
        assert expected(best) < expected(even)


@pytest.mark.parametrize(
    "known",
    [
        pytest.param(KNOWN, id="SGLang"),
        pytest.param(
            replace(KNOWN, rate=400, step_tokens=20, interval=4, hazard=1 / 75), id="fast student"
        ),
        pytest.param(replace(KNOWN, trip_s=10), id="trip of 10 s"),
        pytest.param(replace(KNOWN, prefill=70, trip_s=0.2), id="teacher slower than student"),
        pytest.param(replace(VLLM, price=0.02), id="vLLM, price 1/4"),
        pytest.param(VLLM, id="vLLM, price 1"),
        pytest.param(replace(VLLM, hazard=1 / 7), id="vLLM, price 1, many breaches"),
        pytest.param(replace(VLLM, price=0.32), id="vLLM, price 4"),
        pytest.param(replace(VLLM, price=1.28), id="vLLM, price 16"),
    ],
)
def test_the_rule_costs_and_wastes_at_most_a_fifth_more_than_the_optimal_rule(known: Known) -> None:
    learned, breaches = Learned(known), depths(known)
    cost_of_motab(known, breaches, learned)
    found = cost_of_motab(known, breaches, learned)
    best = cost_of(known, optimal_calls(known, max(breaches) + 30, most_steps=30), breaches)
    assert found.total(known.price) <= 1.2 * best.total(known.price)
    assert found.wasted <= 1.2 * best.wasted


def test_a_pair_learns_within_a_few_trajectories() -> None:
    learned = Learned(VLLM)
    first = cost_of_motab(VLLM, depths(VLLM), learned)
    later = cost_of_motab(VLLM, depths(VLLM), learned)
    assert first.total(VLLM.price) <= 1.1 * later.total(VLLM.price)
    assert learned.hazard.a_token == pytest.approx(VLLM.hazard / 48, rel=0.2)

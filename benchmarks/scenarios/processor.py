"""Measures the proxy's whole processor time for a student's token, with few streams.

Unlike the wall-clock times of the other scenarios it is comparable on a busy machine, so it is the
scenario for development: before and after a change, in turns. The interpreter's instructions for a
token differ less still.
"""

from dataclasses import dataclass, replace

from benchmarks.figures import Figure, Findings
from benchmarks.instructions import (
    MOST_A_TOKEN,
    STREAMS,
    STUDENT,
    TEACHER,
    TRAJECTORY,
    of_a_token,
)
from benchmarks.load import together, trajectory
from benchmarks.processes import PAIR, proxy, simulated_pair
from benchmarks.simulator.plan import Plan
from benchmarks.simulator.server import Kind

_KINDS: tuple[Kind, ...] = ("sglang", "vllm")
# 1000 streams of 50 tok/s are 50,000 tokens a second: one process has 20 us for each, and some of
# them go to the clients and to waiting.
_TARGET_US = 12


@dataclass(frozen=True, slots=True)
class _Cost:
    """The costs of all streams together."""

    us_a_token: float
    calls_a_step: float


async def processor(*, quick: bool) -> Findings:
    """Measure SGLang's wire format, then vLLM's."""
    plan = Plan(0, 4 if quick else 20, 54)
    num = 10 if quick else 40
    costs = {kind: await _measured(kind, plan, num) for kind in _KINDS}
    counts = {kind: await of_a_token(kind) for kind in _KINDS}
    figures = [
        Figure(
            f"{num} streams, interval 8, {kind}: processor of the proxy",
            cost.us_a_token,
            f"{cost.calls_a_step:.2f} scoring calls a step",
            unit="us/token",
            at_most=_TARGET_US if kind == "sglang" else None,
        )
        for kind, cost in costs.items()
    ]
    figures += [
        Figure(
            f"{STREAMS} streams, interval 8, {kind}: instructions of Python",
            num,
            f"{TRAJECTORY.num_steps} steps of {TRAJECTORY.step_tokens} tokens",
            unit="/token",
            at_most=MOST_A_TOKEN[kind],
        )
        for kind, num in counts.items()
    ]
    return Findings(
        tuple(figures),
        conditions={"trajectory": f"{plan.num_steps} steps of {plan.step_tokens} tokens"},
    )


async def _measured(kind: Kind, plan: Plan, num: int) -> _Cost:
    async with (
        simulated_pair(kind, STUDENT, TEACHER) as pair,
        proxy({PAIR: pair}) as motab,
    ):
        # Costs of only the first request must not count towards a token.
        await trajectory(motab, replace(plan, seed=num, num_steps=1))
        before = motab.cpu_s()
        plans = [replace(plan, seed=seed) for seed in range(num)]
        done = await together(trajectory(motab, plan) for plan in plans)
        spent = motab.cpu_s() - before
    calls = sum(one.usage["score_calls"] for one in done)
    return _Cost(1e6 * spent / (num * plan.num_tokens), calls / (num * plan.num_steps))

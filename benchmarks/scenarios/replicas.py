"""Measures how many times as much four replicas of both models do as one server of each."""

from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

from benchmarks.figures import Figure, Findings
from benchmarks.load import together, trajectory
from benchmarks.processes import PAIR, Pair, Simulator, proxy, simulated_pair
from benchmarks.simulator.engine import Rates
from benchmarks.simulator.plan import Plan

_NUM_REPLICAS = 4
_PLACES = 16
_TOK_S = 25
_STUDENT = Rates(
    decode_tok_s=_TOK_S, prefill_tok_s=100_000, max_running=_PLACES, trip_s=0.02, stream_interval=8
)
_TEACHER = Rates(decode_tok_s=_TOK_S, prefill_tok_s=100_000, max_running=_PLACES, trip_s=0.05)


@dataclass(frozen=True, slots=True)
class _ReplicaRun:
    """All trajectories, by one number of replicas."""

    tok_s: float
    most: int
    """The most trajectories that one student replica had to write."""
    least: int
    computed: int
    """Tokens that the teachers computed, which a prefix cache elsewhere would raise."""


async def replicas(*, quick: bool) -> Findings:
    """Ask everything at once of one server of each model, then of four.

    All texts have one length, and the servers' places are full all the time in both runs.
    """
    plan = Plan(0, 6 if quick else 20, 25)
    num = _PLACES * _NUM_REPLICAS
    plans = [replace(plan, seed=seed) for seed in range(num)]
    one, several = [await _run(plans, count) for count in (1, _NUM_REPLICAS)]
    return Findings(
        (
            Figure(
                f"{_NUM_REPLICAS} replicas: throughput / one server's",
                several.tok_s / one.tok_s,
                f"{several.tok_s:.0f} / {one.tok_s:.0f} tokens a second; {num} trajectories",
                at_least=3.8,
            ),
            Figure(
                f"{_NUM_REPLICAS} replicas: trajectories of the fullest / of the emptiest",
                several.most / several.least,
                f"{several.most} / {several.least}",
                at_most=1.1,
            ),
            Figure(
                f"{_NUM_REPLICAS} replicas: teacher tokens computed / one server's",
                several.computed / one.computed,
                f"{several.computed} / {one.computed} tokens",
                at_most=1.02,
            ),
        ),
        conditions={
            "trajectory": f"{plan.num_steps} steps of {plan.step_tokens} tokens",
            "replica": f"SGLang rule, {_PLACES} places at {_TOK_S} tok/s",
        },
    )


async def _run(plans: Sequence[Plan], num_replicas: int) -> _ReplicaRun:
    async with AsyncExitStack() as stack:
        pairs: list[Pair[Simulator]] = [
            await stack.enter_async_context(simulated_pair("sglang", _STUDENT, _TEACHER, errs=True))
            for _ in range(num_replicas)
        ]
        fleet = replace(
            pairs[0],
            more_students=tuple(pair.student for pair in pairs[1:]),
            more_teachers=tuple(pair.teacher for pair in pairs[1:]),
        )
        motab = await stack.enter_async_context(proxy({PAIR: fleet}))
        done = await together(trajectory(motab, plan) for plan in plans)
        written = [(await pair.student.counters()).requests for pair in pairs]
        computed = [(await pair.teacher.counters()).tokens_prefilled for pair in pairs]
    seconds = max(one.seconds for one in done)
    num_tokens = sum(plan.num_tokens for plan in plans)
    return _ReplicaRun(num_tokens / seconds, max(written), min(written), sum(computed))

"""Measures how much of a fleet's capacity one proxy process can use, with 500 trajectories."""

from dataclasses import replace

from benchmarks.figures import Figure, Findings
from benchmarks.fleet_run import FleetRun, fleet_run, plain_share
from benchmarks.load import together
from benchmarks.processes import PAIR, Pair, Simulator, proxy, published_loop, simulated_pair
from benchmarks.simulator.engine import Rates
from benchmarks.simulator.plan import Plan

_NUM = 500
_TOK_S = 50
_STUDENT = Rates(
    decode_tok_s=_TOK_S, prefill_tok_s=500_000, max_running=_NUM, trip_s=0.02, stream_interval=8
)
_TEACHER = Rates(decode_tok_s=_TOK_S, prefill_tok_s=500_000, max_running=_NUM, trip_s=0.14)
_POOL = 32
"""Workers of the published script's process pool."""


async def fleet(*, quick: bool) -> Findings:
    """Run ours on SGLang, then the published loop there, alone and as a pool; then ours on vLLM.

    On SGLang all texts have one length. On vLLM lengths differ: the last call computes the whole
    text again, so with equal lengths 500 of these calls would come at one moment and none before.
    """
    plan = Plan(0, 5 if quick else 37, 54)
    plans = [replace(plan, seed=seed) for seed in range(_NUM)]
    pool_size = 4 if quick else _POOL
    async with simulated_pair("sglang", _STUDENT, _TEACHER, errs=True) as servers:
        plain = await plain_share(servers.student, plans, _TOK_S)
        sglang = await _ours(servers, plans)
        alone, pool = await together(
            [
                published_loop(servers, _fresh(plans[:1])),
                published_loop(servers, _fresh(plans[1 : pool_size + 1]), workers=pool_size),
            ]
        )
    lengths = range((plan.num_steps + 1) // 2, plan.num_steps + 1)
    uneven = [replace(one, num_steps=lengths[one.seed % len(lengths)]) for one in plans]
    async with simulated_pair("vllm", _STUDENT, _TEACHER, errs=True) as servers:
        vllm = await _ours(servers, uneven)
    # Trajectories one at a time add up, and so do the pool's rounds.
    alone_s = alone.seconds * _NUM
    pool_s = pool.seconds * _NUM / len(pool.done)
    return Findings(
        (
            *_own_figures("SGLang", sglang, f"plain streams {plain:.3f}"),
            Figure(
                f"{_NUM} trajectories: the published loop's wall / ours",
                alone_s / sglang.wall_s,
                f"{alone_s:.0f} s (one measured, x {_NUM}) / {sglang.wall_s:.1f} s",
                at_least=20,
            ),
            Figure(
                f"{_NUM} trajectories: its pool's wall / ours",
                pool_s / sglang.wall_s,
                f"{pool_s:.0f} s ({len(pool.done)} measured, scaled) / {sglang.wall_s:.1f} s",
                at_least=1,
            ),
            Figure(
                f"{_NUM} trajectories: processor of its pool / ours",
                pool.cpu_s / len(pool.done) / sglang.cpu_s * _NUM,
                f"{1000 * pool.cpu_s / len(pool.done):.0f} ms each / "
                f"{1000 * sglang.cpu_s / _NUM:.0f} ms; {pool.num_processes} processes, "
                f"{pool.memory_mb:.0f} MB of their own for {pool_size} at once; ours 1, "
                f"{sglang.memory_mb:.0f} MB for {_NUM}",
                at_least=1,
            ),
            *_own_figures("vLLM", vllm, f"texts of {lengths[0]} to {lengths[-1]} steps"),
        ),
        conditions={"trajectory": f"{plan.num_steps} steps of {plan.step_tokens} tokens"},
    )


def _own_figures(name: str, ours: FleetRun, detail: str) -> tuple[Figure, ...]:
    return (
        Figure(
            f"{_NUM} at {_TOK_S} tok/s, interval 8, {name}: share of capacity, one process",
            ours.share,
            f"the last ended after {ours.wall_s:.1f} s; {detail}; "
            f"{ours.calls_a_step:.2f} scoring calls a step",
            at_least=0.95,
        ),
        Figure(
            f"{_NUM} at once, {name}: processor of the proxy / seconds of decoding",
            ours.cores[0],
            ours.cost,
            unit="cores",
        ),
    )


async def _ours(servers: Pair[Simulator], plans: list[Plan]) -> FleetRun:
    async with proxy({PAIR: servers}) as motab:
        return await fleet_run(motab, servers, plans, _TOK_S)


def _fresh(plans: list[Plan]) -> list[str]:
    """Return the plans' questions with new seeds, which are in no cache yet."""
    return [replace(plan, seed=plan.seed + 10_000).question for plan in plans]

"""Measures 1,000 trajectories at once, with one proxy process and with two workers."""

import asyncio
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

from benchmarks.figures import Figure, Findings, quantile
from benchmarks.fleet_run import fleet_run, plain_share
from benchmarks.health import ask_health
from benchmarks.processes import PAIR, Pair, Simulator, free_port, proxy, simulated_pair
from benchmarks.simulator.engine import Rates
from benchmarks.simulator.plan import Plan

_NUM = 1000
_TOK_S = 50
_STUDENT = Rates(
    decode_tok_s=_TOK_S, prefill_tok_s=500_000, max_running=_NUM, trip_s=0.02, stream_interval=8
)
_TEACHER = Rates(decode_tok_s=_TOK_S, prefill_tok_s=500_000, max_running=_NUM, trip_s=0.14)


async def crowd(*, quick: bool) -> Findings:
    """Drive the fleet on SGLang's wire, and ask `/health` at its own port meanwhile.

    The simulated servers should have cores of their own. Where they do not, the share of capacity
    is lower than the proxy allows, and its processor time shows what it needs.
    """
    plan = Plan(0, 5 if quick else 37, 54)
    plans = [replace(plan, seed=seed) for seed in range(_NUM)]
    load = os.getloadavg()[0]
    figures: list[Figure] = []
    async with simulated_pair("sglang", _STUDENT, _TEACHER, errs=True) as servers:
        plain = await plain_share(servers.student, plans, _TOK_S)
        for workers in (1, 2):
            figures += await _with(workers, servers, plans, f"plain streams {plain:.3f}")
            await servers.student.reset()
            await servers.teacher.reset()
    return Findings(
        tuple(figures),
        conditions={
            "trajectory": f"{plan.num_steps} steps of {plan.step_tokens} tokens",
            "cores, which the simulated servers and the clients share": os.cpu_count() or 0,
            "load of the minute before": load,
        },
    )


async def _with(
    workers: int, servers: Pair[Simulator], plans: list[Plan], detail: str
) -> tuple[Figure, ...]:
    asked_s = 0.9 * plans[0].num_tokens / _TOK_S
    health_port = free_port()
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        async with (
            proxy({PAIR: servers}, workers=workers, health_port=health_port) as motab,
            asyncio.TaskGroup() as group,
        ):
            asking = group.create_task(ask_health(pool, health_port, asked_s))
            ours = await fleet_run(motab, servers, plans, _TOK_S)
    health = asking.result()
    how = "one process" if workers == 1 else f"{workers} workers"
    return (
        Figure(
            f"{_NUM} at {_TOK_S} tok/s, interval 8, SGLang, {how}: share of capacity",
            ours.share,
            f"the last ended after {ours.wall_s:.1f} s; {detail}; "
            f"{ours.calls_a_step:.2f} scoring calls a step; {ours.memory_mb:.0f} MB",
            at_least=0.95,
        ),
        Figure(
            f"{how}: processor of the proxy / seconds of decoding",
            ours.cores[0],
            f"{ours.cost}; all three {sum(ours.cores):.2f}",
            unit="cores",
            at_most=workers,
        ),
        Figure(
            f"{how}: /health at its own port meanwhile: p99",
            quantile(health, 0.99),
            f"median {quantile(health, 0.5):.1f} ms, worst {max(health):.0f} ms of {len(health)}",
            unit="ms",
            at_most=100,
        ),
    )

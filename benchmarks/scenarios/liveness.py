"""Measures how long `/health` takes at either of its ports while one process has 500 streams."""

import asyncio
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

from benchmarks.figures import Figure, Findings, quantile
from benchmarks.health import ask_health
from benchmarks.load import together, trajectory
from benchmarks.processes import PAIR, free_port, proxy, simulated_pair
from benchmarks.simulator.engine import Rates
from benchmarks.simulator.plan import Plan

_NUM = 500
_TOK_S = 50
_STUDENT = Rates(decode_tok_s=_TOK_S, prefill_tok_s=500_000, max_running=_NUM, trip_s=0.02)
_TEACHER = Rates(decode_tok_s=_TOK_S, prefill_tok_s=500_000, max_running=_NUM, trip_s=0.14)


async def liveness(*, quick: bool) -> Findings:
    """Ask both ports from processes that do nothing else, each time over a new connection."""
    plan = Plan(0, 5 if quick else 20, 54)
    plans = [replace(plan, seed=seed) for seed in range(_NUM)]
    asked_s = 0.6 * plan.num_tokens / _TOK_S
    health_port = free_port()
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        async with (
            simulated_pair("sglang", _STUDENT, _TEACHER, errs=True) as servers,
            proxy({PAIR: servers}, health_port=health_port) as motab,
        ):
            main_port = int(motab.base_url.rpartition(":")[2])
            async with asyncio.TaskGroup() as group:
                streams = group.create_task(together(trajectory(motab, one) for one in plans))
                main, own = await together(
                    ask_health(pool, port, asked_s) for port in (main_port, health_port)
                )
            took = sum(result.seconds for result in streams.result()) / _NUM
    return Findings(
        (
            Figure(
                f"/health at its own port, {_NUM} streams: p99",
                quantile(own, 0.99),
                f"median {quantile(own, 0.5):.1f} ms, worst {max(own):.0f} ms of {len(own)}",
                unit="ms",
                at_most=100,
            ),
            Figure(
                f"/health at the API's port, {_NUM} streams: p99",
                quantile(main, 0.99),
                f"median {quantile(main, 0.5):.1f} ms, worst {max(main):.0f} ms of {len(main)}",
                unit="ms",
            ),
        ),
        conditions={
            "student": f"{_TOK_S} tok/s, an event a token",
            "a trajectory took, times its decoding": took * _TOK_S / plan.num_tokens,
        },
    )

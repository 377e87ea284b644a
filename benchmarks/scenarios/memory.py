"""Measures the proxy's memory, with many long trajectories at once and after many requests."""

import asyncio
from dataclasses import replace
from functools import partial

from benchmarks.figures import Chart, Figure, Findings, Point
from benchmarks.load import by_workers, together, trajectory
from benchmarks.processes import PAIR, Process, proxy, simulated_pair
from benchmarks.simulator.engine import Rates
from benchmarks.simulator.plan import Plan

# Faster than any model, and in large events, because the memory held does not depend on it.
_STUDENT = Rates(decode_tok_s=1000, prefill_tok_s=1e7, max_running=4096, stream_interval=256)
_TEACHER = Rates(decode_tok_s=1e6, prefill_tok_s=1e7, max_running=4096)
_FLEET = 500
_HELD_TOK_S = 250


async def memory(*, quick: bool) -> Findings:
    """Measure resident memory over time."""
    num_long, num_short = (8, 1000) if quick else (32, 10_000)
    async with (
        simulated_pair("sglang", _STUDENT, _TEACHER, errs=True) as pair,
        proxy({PAIR: pair}) as motab,
    ):
        fresh = motab.rss_mb()
        short = await _short(motab, num_short)
        long = Plan(1_000, 64, 512)
        peak = await _peak(motab, [replace(long, seed=1000 + n) for n in range(num_long)])
        after = motab.rss_mb()
    each = (peak - short[-1].y) / num_long
    tenth = short[len(short) // 10].y
    return Findings(
        (
            Figure(
                f"memory after {num_short} requests / after a tenth of them",
                short[-1].y / tenth,
                f"{fresh:.0f} MB at the start, {tenth:.0f} MB, {short[-1].y:.0f} MB",
                at_most=1.1,
            ),
            Figure(
                f"peak memory, {num_long} trajectories of {long.num_tokens} tokens at once",
                peak,
                f"{each:.2f} MB each, so {each * _FLEET + short[-1].y:.0f} MB for {_FLEET}; "
                f"{after:.0f} MB afterwards",
                unit="MB",
            ),
        ),
        (
            Chart(
                "The proxy's memory over many requests",
                "requests",
                "resident MB",
                {"motab": short},
            ),
        ),
    )


async def held(*, quick: bool) -> Findings:
    """Hold the whole fleet of long trajectories at once; five minutes, so only on request."""
    num = 50 if quick else _FLEET
    rates = replace(_STUDENT, decode_tok_s=_HELD_TOK_S)
    plan = Plan(0, 64, 512)
    async with (
        simulated_pair("sglang", rates, _TEACHER, errs=True) as pair,
        proxy({PAIR: pair}) as motab,
    ):
        fresh = motab.rss_mb()
        plans = [replace(plan, seed=n) for n in range(num)]
        first = await _peak(motab, plans)
        again = await _peak(motab, [replace(p, seed=p.seed + num) for p in plans])
    return Findings(
        (
            Figure(
                f"peak memory, {num} trajectories of {plan.num_tokens} tokens at once",
                first,
                f"{fresh:.0f} MB at the start, so {(first - fresh) / num:.2f} MB each",
                unit="MB",
                at_most=1000 if num == _FLEET else None,
            ),
            Figure("as many once more: peak / peak", again / first, at_most=1.05),
        ),
        conditions={"student": f"{_HELD_TOK_S} tok/s, interval {rates.stream_interval}"},
    )


async def _short(motab: Process, num: int) -> tuple[Point, ...]:
    """Make requests of three steps, some with a breach, in twenty rounds."""
    points: list[Point] = []
    size = num // 20
    for start in range(0, num, size):
        plans = [
            Plan(seed, 3, 10, 1 if seed % 4 == 0 else None) for seed in range(start, start + size)
        ]
        jobs = [partial(trajectory, motab, plan) for plan in plans]
        await by_workers(32, jobs)
        points.append(Point(start + size, motab.rss_mb()))
    return tuple(points)


async def _peak(motab: Process, plans: list[Plan]) -> float:
    peak = 0.0
    async with asyncio.TaskGroup() as group:

        async def watch() -> None:
            nonlocal peak
            while True:
                peak = max(peak, motab.rss_mb())
                await asyncio.sleep(0.5)

        watching = group.create_task(watch())
        await together(trajectory(motab, plan) for plan in plans)
        watching.cancel()
    return peak

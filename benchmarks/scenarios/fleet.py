"""500 trajectories at once: how much of the fleet's capacity one proxy process can use."""

from dataclasses import replace

from benchmarks.figures import Figure, Findings, at_least
from benchmarks.load import plain_stream, session, together, trajectory
from benchmarks.processes import Pair, Simulator, proxy, published_loop, simulator
from benchmarks.published_loop import Order, Report
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
    """Ours, then the published loop, alone and as a pool, on the same fleet."""
    plan = Plan(0, 5 if quick else 37, 54)
    pool_size = 4 if quick else _POOL
    plans = [replace(plan, seed=seed) for seed in range(_NUM)]
    async with (
        session() as http,
        simulator("sglang", _STUDENT, errs=True) as student,
        simulator("sglang", _TEACHER) as teacher,
    ):
        direct = max(await together(plain_stream(http, student, plan) for plan in plans))
        await student.reset()
        async with proxy({"pair": Pair(student, teacher)}) as motab:
            cpu = [motab.cpu_s(), student.cpu_s(), teacher.cpu_s()]
            done = await together(trajectory(http, motab, "pair", plan) for plan in plans)
            wall = max(one.seconds for one in done)
            # Processor time for each second of decoding: unlike the wall, it does not depend on
            # what else the machine does.
            cores = [
                (process.cpu_s() - before) * _TOK_S / plan.num_tokens
                for process, before in zip((motab, student, teacher), cpu, strict=True)
            ]
            memory = motab.rss_mb()
        calls = sum(one.usage["score_calls"] for one in done) / (_NUM * plan.num_steps)
        alone, pool = await together(
            [
                _published(student, teacher, 1, plans[:1]),
                _published(student, teacher, pool_size, plans[1 : 1 + pool_size]),
            ]
        )
    ideal = plan.num_tokens / _TOK_S
    # One at a time adds up, and so do the pool's rounds.
    alone_s = alone.seconds * _NUM
    pool_s = pool.seconds * _NUM / len(pool.done)
    return Findings(
        (
            Figure(
                f"{_NUM} at {_TOK_S} tok/s, interval 8: share of capacity, one process",
                ideal / wall,
                "",
                at_least(0.95),
                f"{wall:.1f} s for {ideal:.1f} s of decoding; plain streams {ideal / direct:.3f}",
            ),
            Figure(
                f"{_NUM} trajectories: the published loop's wall / ours",
                alone_s / wall,
                "",
                at_least(20),
                f"{alone_s:.0f} s (one measured, x {_NUM}) / {wall:.1f} s",
            ),
            Figure(
                f"{_NUM} trajectories: its pool's wall / ours",
                pool_s / wall,
                "",
                at_least(1),
                f"{pool_s:.0f} s ({len(pool.done)} measured, scaled) / {wall:.1f} s; "
                f"{pool.num_processes} processes, {pool.rss_mb:.0f} MB of their own; "
                f"ours 1, {memory:.0f} MB",
            ),
            Figure(f"{_NUM} at once: scoring calls per step", calls),
            Figure(
                f"{_NUM} at once: processor of the proxy / seconds of decoding",
                cores[0],
                "cores",
                None,
                f"{1e6 * cores[0] / (_NUM * _TOK_S):.0f} us a token; simulated student "
                f"{cores[1]:.2f}, teacher {cores[2]:.2f} cores",
            ),
        ),
        conditions={
            "trajectory": f"{plan.num_steps} steps of {plan.step_tokens} tokens",
        },
    )


async def _published(
    student: Simulator, teacher: Simulator, workers: int, plans: list[Plan]
) -> Report:
    # Seeds that no cache knows yet.
    fresh = tuple(replace(plan, seed=plan.seed + 10_000).question for plan in plans)
    urls = (student.base_url, teacher.base_url)
    return await published_loop(Order("sglang", *urls, workers, fresh))

"""500 trajectories at once: how much of the fleet's capacity one proxy process can use."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from benchmarks.figures import Figure, Findings, at_least
from benchmarks.load import plain_stream, session, together, trajectory
from benchmarks.processes import Pair, Simulator, proxy, published_loop, simulator
from benchmarks.published_loop import Order, Report
from benchmarks.simulator.engine import Rates
from benchmarks.simulator.plan import Plan
from benchmarks.simulator.server import Kind

_NUM = 500
_TOK_S = 50
_STUDENT = Rates(
    decode_tok_s=_TOK_S, prefill_tok_s=500_000, max_running=_NUM, trip_s=0.02, stream_interval=8
)
_TEACHER = Rates(decode_tok_s=_TOK_S, prefill_tok_s=500_000, max_running=_NUM, trip_s=0.14)
_POOL = 32
"""Workers of the published script's process pool."""


@dataclass(frozen=True, slots=True)
class _Ours:
    """One fleet, driven through one proxy process."""

    wall_s: float
    direct_s: float
    """The slowest of as many plain streams, without a proxy."""
    calls_a_step: float
    cores: tuple[float, float, float]
    """Processor seconds for each second of decoding: proxy, student, teacher. Unlike the wall they
    do not depend on what else the machine does."""
    memory_mb: float


async def fleet(*, quick: bool) -> Findings:
    """Ours on SGLang and on vLLM, then the published loop, alone and as a pool, on SGLang."""
    plan = Plan(0, 5 if quick else 37, 54)
    pool_size = 4 if quick else _POOL
    async with _servers("sglang") as servers:
        sglang = await _ours(servers, plan)
        plans = [replace(plan, seed=seed) for seed in range(pool_size + 1)]
        alone, pool = await together(
            [
                _published(servers, 1, plans[:1]),
                _published(servers, pool_size, plans[1:]),
            ]
        )
    async with _servers("vllm") as servers:
        vllm = await _ours(servers, plan)
    # One at a time adds up, and so do the pool's rounds.
    alone_s = alone.seconds * _NUM
    pool_s = pool.seconds * _NUM / len(pool.done)
    return Findings(
        (
            *_own_figures("SGLang", sglang, plan),
            Figure(
                f"{_NUM} trajectories: the published loop's wall / ours",
                alone_s / sglang.wall_s,
                "",
                at_least(20),
                f"{alone_s:.0f} s (one measured, x {_NUM}) / {sglang.wall_s:.1f} s",
            ),
            Figure(
                f"{_NUM} trajectories: its pool's wall / ours",
                pool_s / sglang.wall_s,
                "",
                at_least(1),
                f"{pool_s:.0f} s ({len(pool.done)} measured, scaled) / {sglang.wall_s:.1f} s; "
                f"{pool.num_processes} processes, {pool.rss_mb:.0f} MB of their own; "
                f"ours 1, {sglang.memory_mb:.0f} MB",
            ),
            *_own_figures("vLLM", vllm, plan),
        ),
        conditions={"trajectory": f"{plan.num_steps} steps of {plan.step_tokens} tokens"},
    )


def _own_figures(name: str, ours: _Ours, plan: Plan) -> tuple[Figure, ...]:
    ideal_s = plan.num_tokens / _TOK_S
    proxy_cores, student_cores, teacher_cores = ours.cores
    return (
        Figure(
            f"{_NUM} at {_TOK_S} tok/s, interval 8, {name}: share of capacity, one process",
            ideal_s / ours.wall_s,
            "",
            at_least(0.95),
            f"{ours.wall_s:.1f} s for {ideal_s:.1f} s of decoding; "
            f"plain streams {ideal_s / ours.direct_s:.3f}; "
            f"{ours.calls_a_step:.2f} scoring calls a step",
        ),
        Figure(
            f"{_NUM} at once, {name}: processor of the proxy / seconds of decoding",
            proxy_cores,
            "cores",
            None,
            f"{1e6 * proxy_cores / (_NUM * _TOK_S):.0f} us a token; simulated student "
            f"{student_cores:.2f}, teacher {teacher_cores:.2f} cores",
        ),
    )


@asynccontextmanager
async def _servers(kind: Kind) -> AsyncIterator[Pair[Simulator]]:
    async with simulator(kind, _STUDENT, errs=True) as student, simulator(kind, _TEACHER) as own:
        yield Pair(student, own)


async def _ours(servers: Pair[Simulator], plan: Plan) -> _Ours:
    plans = [replace(plan, seed=seed) for seed in range(_NUM)]
    student, teacher = servers.student, servers.teacher
    async with session() as http:
        direct = max(await together(plain_stream(http, student, plan) for plan in plans))
        await student.reset()
        async with proxy({"pair": servers}) as motab:
            before = [process.cpu_s() for process in (motab, student, teacher)]
            done = await together(trajectory(http, motab, "pair", plan) for plan in plans)
            proxy_s, student_s, teacher_s = (
                process.cpu_s() - spent
                for process, spent in zip((motab, student, teacher), before, strict=True)
            )
            memory_mb = motab.rss_mb()
    a_second = _TOK_S / plan.num_tokens
    return _Ours(
        max(one.seconds for one in done),
        direct,
        sum(one.usage["score_calls"] for one in done) / (_NUM * plan.num_steps),
        (proxy_s * a_second, student_s * a_second, teacher_s * a_second),
        memory_mb,
    )


async def _published(servers: Pair[Simulator], workers: int, plans: list[Plan]) -> Report:
    # Seeds that no cache knows yet.
    fresh = tuple(replace(plan, seed=plan.seed + 10_000).question for plan in plans)
    urls = (servers.student.base_url, servers.teacher.base_url)
    return await published_loop(Order("sglang", *urls, workers, fresh))

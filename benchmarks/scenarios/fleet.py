"""Measures how much of a fleet's capacity one proxy process can use, with 500 trajectories."""

from dataclasses import dataclass, replace

from benchmarks.figures import Figure, Findings
from benchmarks.load import plain_stream, together, trajectory
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


@dataclass(frozen=True, slots=True)
class _FleetRun:
    """One fleet, driven through one proxy process."""

    share: float
    """Seconds of decoding / seconds under way, summed over the trajectories: a trajectory under
    way holds a stream of the student's."""
    wall_s: float
    """Wall-clock seconds of all trajectories."""
    calls_a_step: float
    cores: tuple[float, float, float]
    """Processor seconds for each second of decoding: proxy, student, teacher. Unlike the wall they
    do not depend on the machine's other work; scaled as if 500 were under way all the time."""
    cpu_s: float
    """The proxy's processor seconds for all trajectories."""
    memory_mb: float


async def fleet(*, quick: bool) -> Findings:
    """Run ours on SGLang, then the published loop there, alone and as a pool; then ours on vLLM.

    On SGLang all texts have one length. On vLLM lengths differ: the last call computes the whole
    text again, so with equal lengths 500 of these calls would come at one moment and none before.
    """
    plan = Plan(0, 5 if quick else 37, 54)
    plans = [replace(plan, seed=seed) for seed in range(_NUM)]
    pool_size = 4 if quick else _POOL
    async with simulated_pair("sglang", _STUDENT, _TEACHER, errs=True) as servers:
        plain = await _plain(servers.student, plans)
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


def _own_figures(name: str, ours: _FleetRun, detail: str) -> tuple[Figure, ...]:
    proxy_cores, student_cores, teacher_cores = ours.cores
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
            proxy_cores,
            f"{1e6 * proxy_cores / (_NUM * _TOK_S):.0f} us a token; simulated student "
            f"{student_cores:.2f}, teacher {teacher_cores:.2f} cores",
            unit="cores",
        ),
    )


async def _plain(student: Simulator, plans: list[Plan]) -> float:
    """Return the share of capacity that equally many plain streams use, without a proxy."""
    seconds = await together(plain_stream(student, plan) for plan in plans)
    await student.reset()
    return _decoding_s(plans) / sum(seconds)


async def _ours(servers: Pair[Simulator], plans: list[Plan]) -> _FleetRun:
    student, teacher = servers.student, servers.teacher
    async with proxy({PAIR: servers}) as motab:
        before = [process.cpu_s() for process in (motab, student, teacher)]
        done = await together(trajectory(motab, plan) for plan in plans)
        proxy_s, student_s, teacher_s = (
            process.cpu_s() - spent
            for process, spent in zip((motab, student, teacher), before, strict=True)
        )
        memory_mb = motab.rss_mb()
    a_second = len(plans) / _decoding_s(plans)
    return _FleetRun(
        _decoding_s(plans) / sum(one.seconds for one in done),
        max(one.seconds for one in done),
        sum(one.usage["score_calls"] for one in done) / sum(plan.num_steps for plan in plans),
        (proxy_s * a_second, student_s * a_second, teacher_s * a_second),
        proxy_s,
        memory_mb,
    )


def _decoding_s(plans: list[Plan]) -> float:
    """Return the seconds of decoding of all streams together."""
    return sum(plan.num_tokens for plan in plans) / _TOK_S


def _fresh(plans: list[Plan]) -> list[str]:
    """Return the plans' questions with new seeds, which are in no cache yet."""
    return [replace(plan, seed=plan.seed + 10_000).question for plan in plans]

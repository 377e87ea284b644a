"""Measures how scoring grows with the text's length on vLLM, with and without `--enable-scale-out`.

Without the flag every call recomputes the whole context. Our sum then depends on time, because the
rule weighs measured speeds, and steps that end during a call share the next one; all times are
divided by 4, for all servers alike, which changes no ratio. It also depends on how often the
student strays, so a few trajectories of 1500 tokens that end in a breach come first. The published
loop depends on neither, so its servers answer at once.
"""

import math
from contextlib import AsyncExitStack
from dataclasses import dataclass

from benchmarks.figures import Chart, Figure, Findings, Point
from benchmarks.load import together, trajectory
from benchmarks.processes import Pair, proxy, published_loop, simulated_pair, simulator
from benchmarks.simulator.engine import Rates
from benchmarks.simulator.plan import Plan
from benchmarks.simulator.words import encode

_SPEED = 4
_STUDENT = Rates(decode_tok_s=100 * _SPEED, trip_s=0.05 / _SPEED, stream_interval=8)
_TEACHER = Rates(decode_tok_s=100 * _SPEED, trip_s=0.14 / _SPEED, prefill_tok_s=5_000 * _SPEED)
_AT_ONCE = Rates(decode_tok_s=1e9, prefill_tok_s=1e9)
_STEP_TOKENS = 54
_EARLIER = tuple(Plan(1000 + n, 30, _STEP_TOKENS, 27) for n in range(6))


async def growth(*, quick: bool) -> Findings:
    """Return the teacher tokens computed per token of the text, from 1k to 16k tokens."""
    lengths = (1024, 2048, 4096) if quick else (1024, 2048, 4096, 8192, 16384)
    plans = [Plan(n, length // _STEP_TOKENS, _STEP_TOKENS) for n, length in enumerate(lengths)]
    cached = await _ours(plans, scale_out=True)
    of_context = [_of_context(*pair) for pair in zip(plans, cached.computed, strict=True)]
    ours = await _ours(plans, scale_out=False)
    theirs = await _published(plans)
    steps = sum(plan.num_steps for plan in plans)
    longest = plans[-1].num_tokens
    return Findings(
        (
            Figure(
                f"vLLM with --enable-scale-out: teacher tokens / length, at most, to {longest}",
                max(point.y for point in cached.computed),
                ", ".join(f"{point.y:.3f} at {point.x:.0f}" for point in cached.computed),
                at_most=1.15,
            ),
            Figure(
                "the same / context, which is the text and its question, at most",
                max(point.y for point in of_context),
                ", ".join(f"{point.y:.3f} at {point.x:.0f}" for point in of_context),
                at_most=1.15,
            ),
            Figure(
                "the same: scoring calls per step",
                cached.num_requests / steps,
                f"{cached.num_scorings / steps:.2f} of them for values",
                at_most=1.0,
            ),
            Figure(
                "vLLM rule: exponent of teacher tokens / length over length",
                _exponent(ours.computed),
                f"published loop: {_exponent(theirs):.2f} (linear is 1)",
                at_most=0.5,
            ),
            Figure(
                f"vLLM rule: teacher tokens / length at {longest}",
                ours.computed[-1].y,
                f"published loop: {theirs[-1].y:.1f}",
            ),
            Figure(
                "vLLM rule: scoring calls per step",
                ours.num_requests / steps,
                f"{ours.num_scorings / steps:.2f} of them for values, over the whole context; "
                "the others for entropies",
                at_most=1.0,
            ),
        ),
        (
            Chart(
                "Teacher tokens computed per token of the text, vLLM's rule",
                "tokens of the text",
                "teacher tokens / length",
                {
                    "motab, --enable-scale-out": cached.computed,
                    "motab": ours.computed,
                    "published loop": theirs,
                },
                log=True,
            ),
        ),
        {"student": f"100 tok/s, times / {_SPEED}", "teacher": "5000 tok/s prefill, trip 0.14 s"},
    )


@dataclass(frozen=True, slots=True)
class _GrowthRun:
    computed: tuple[Point, ...]
    """Teacher tokens per token of the text, over its length."""
    num_requests: int
    num_scorings: int


async def _ours(plans: list[Plan], *, scale_out: bool) -> _GrowthRun:
    async with AsyncExitStack() as stack:
        student = await stack.enter_async_context(simulator("vllm", _STUDENT, errs=True))
        teachers = [
            await stack.enter_async_context(simulator("vllm", _TEACHER, scale_out=scale_out))
            for _ in plans
        ]
        pairs = {f"pair{n}": Pair(student, teacher) for n, teacher in enumerate(teachers)}
        motab = await stack.enter_async_context(proxy(pairs))
        await together(trajectory(motab, p, name) for name in pairs for p in _EARLIER)
        for teacher in teachers:
            await teacher.reset()
        done = await together(trajectory(motab, p, f"pair{p.seed}") for p in plans)
        counted = [await teacher.counters() for teacher in teachers]
        return _GrowthRun(
            tuple(
                Point(plan.num_tokens, counters.tokens_prefilled / plan.num_tokens)
                for plan, counters in zip(plans, counted, strict=True)
            ),
            sum(counters.requests for counters in counted),
            sum(one.usage["score_calls"] for one in done),
        )


def _of_context(plan: Plan, of_text: Point) -> Point:
    """Return the teacher tokens per token of the context, over its length."""
    size = plan.num_tokens + len(encode(f"<|user|>{plan.question}<|assistant|>"))
    return Point(size, of_text.y * plan.num_tokens / size)


async def _published(plans: list[Plan]) -> tuple[Point, ...]:
    points: list[Point] = []
    async with simulated_pair("vllm", _AT_ONCE, _AT_ONCE) as pair:
        for plan in plans:
            await pair.teacher.reset()
            await published_loop(pair, [plan.question])
            computed = (await pair.teacher.counters()).tokens_prefilled
            points.append(Point(plan.num_tokens, computed / plan.num_tokens))
    return tuple(points)


def _exponent(points: tuple[Point, ...]) -> float:
    """Return the power of x with which y grows, by least squares over the logarithms."""
    xs, ys = [math.log(p.x) for p in points], [math.log(p.y) for p in points]
    x_mean, y_mean = sum(xs) / len(xs), sum(ys) / len(ys)
    covariance = sum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys, strict=True))
    return covariance / sum((x - x_mean) ** 2 for x in xs)

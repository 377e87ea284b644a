"""What the student writes in vain after a breach, against what scoring costs the teacher.

All times are divided by 4, which changes no ratio.
"""

from contextlib import AsyncExitStack
from dataclasses import dataclass

from benchmarks.figures import Chart, Figure, Findings, Point
from benchmarks.load import session, together, trajectory
from benchmarks.processes import Pair, Simulator, proxy, published_loop, simulator
from benchmarks.published_loop import Order
from benchmarks.simulator.engine import Rates
from benchmarks.simulator.plan import Plan
from benchmarks.simulator.server import Kind

_SPEED = 4
_STUDENT = Rates(decode_tok_s=100 * _SPEED, trip_s=0.05 / _SPEED, stream_interval=8)
_STEP_TOKENS = 54


@dataclass(frozen=True, slots=True)
class _Teacher:
    """A teacher to try; its correction comes at once, for it is not what is measured."""

    name: str
    kind: Kind
    prefill_tok_s: float

    @property
    def rates(self) -> Rates:
        """In the scenario's time."""
        prefill = self.prefill_tok_s * _SPEED
        return Rates(decode_tok_s=1e6, trip_s=0.14 / _SPEED, prefill_tok_s=prefill)


_TEACHERS = (
    _Teacher("SGLang", "sglang", 20_000),
    _Teacher("vLLM 40k tok/s", "vllm", 40_000),
    _Teacher("vLLM 20k tok/s", "vllm", 20_000),
    _Teacher("vLLM 10k tok/s", "vllm", 10_000),
    _Teacher("vLLM 5k tok/s", "vllm", 5_000),
)


async def waste(*, quick: bool) -> Findings:
    """Four trajectories at once on each teacher, with breaches at several depths."""
    depths = (3, 9) if quick else (10, 25, 40, 55)
    plans = [Plan(depth, depth + 20, _STEP_TOKENS, depth) for depth in depths]
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(session())
        pairs = {
            str(index): Pair(
                await stack.enter_async_context(simulator(teacher.kind, _STUDENT, errs=True)),
                await stack.enter_async_context(simulator(teacher.kind, teacher.rates)),
            )
            for index, teacher in enumerate(_TEACHERS)
        }
        motab = await stack.enter_async_context(proxy(pairs))
        for name in pairs:  # one after another: together they would be more than one proxy reads
            await together(trajectory(http, motab, name, plan) for plan in plans)
        points = [await _point(pair.student, pair.teacher, plans) for pair in pairs.values()]
    published = await _published(plans)
    figures = [
        Figure(
            f"student tokens wasted / kept: {teacher.name}",
            point.y,
            detail=f"teacher tokens / length {point.x:.1f}",
        )
        for teacher, point in zip(_TEACHERS, points, strict=True)
    ]
    figures.append(
        Figure(
            "student tokens wasted / kept: published loop, vLLM",
            published.y,
            detail=f"teacher tokens / length {published.x:.1f}",
        )
    )
    curves = {
        "motab on SGLang": tuple(points[:1]),
        "motab on vLLM, by its prefill rate": tuple(points[1:]),
        "published loop on vLLM": (published,),
    }
    title = "After a breach: what scoring costs, and what is written in vain"
    chart = Chart(title, "teacher tokens computed / length", "student tokens wasted / kept", curves)
    return Findings(tuple(figures), (chart,), {"student": f"100 tok/s, times / {_SPEED}"})


async def _published(plans: list[Plan]) -> Point:
    at_once = Rates(decode_tok_s=1e9, prefill_tok_s=1e9)
    async with (
        simulator("vllm", at_once, errs=True) as student,
        simulator("vllm", at_once) as teacher,
    ):
        order = Order(
            "vllm", student.base_url, teacher.base_url, 1, tuple(plan.question for plan in plans)
        )
        await published_loop(order)
        return await _point(student, teacher, plans)


async def _point(student: Simulator, teacher: Simulator, plans: list[Plan]) -> Point:
    """Teacher tokens per token kept, and student tokens in vain per token kept."""
    kept = sum(((plan.breach or 0) + 1) * plan.step_tokens for plan in plans)
    wasted = (await student.counters()).tokens_decoded - kept
    return Point((await teacher.counters()).tokens_prefilled / kept, wasted / kept)

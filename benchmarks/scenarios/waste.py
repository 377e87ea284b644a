"""Compares the student's wasted text after a breach with the teacher's cost of scoring.

All times are divided by 4, which changes no ratio.
"""

import math
from collections.abc import Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from benchmarks.figures import Chart, Figure, Findings, Point
from benchmarks.load import together, trajectory
from benchmarks.processes import Pair, Simulator, proxy, published_loop, simulated_pair, simulator
from benchmarks.simulator.engine import Rates
from benchmarks.simulator.plan import Plan
from benchmarks.simulator.server import Kind

_SPEED = 4
_STUDENT = Rates(decode_tok_s=100 * _SPEED, trip_s=0.05 / _SPEED, stream_interval=8)
_STEP_TOKENS = 54
_MEAN_STEPS = 28
"""Steps before a breach: 1500 tokens."""
_TRIP_S = 0.14
_SLOW_S = 10.0
_LIMIT = 512


@dataclass(frozen=True, slots=True)
class _Teacher:
    """A teacher to try; its correction comes at once, because it is not being measured."""

    name: str
    kind: Kind
    gpus: float = 1.0
    trip_s: float = _TRIP_S
    params: dict[str, Any] = field(default_factory=dict)

    @property
    def rates(self) -> Rates:
        """The rates in the scenario's time."""
        prefill = 20_000 * _SPEED
        return Rates(decode_tok_s=1e6, trip_s=self.trip_s / _SPEED, prefill_tok_s=prefill)


# With a price next to nothing, every step is scored at once.
_PRICES = (1e-6, 1 / 16, 1 / 4, 1.0, 4.0, 16.0)
_VLLM = tuple(
    _Teacher(f"vLLM, {'a step a call' if gpus < 1e-3 else f'price {gpus:g}'}", "vllm", gpus)
    for gpus in _PRICES
)
_PUBLISHED = "published loop on vLLM"
_SGLANG = _Teacher("SGLang", "sglang")
_SLOW = tuple(
    _Teacher(name, "sglang", trip_s=_SLOW_S, params={"max_lookahead_tokens": limit})
    for name, limit in (
        (f"a trip of {_SLOW_S:g} s, limit {_LIMIT}", _LIMIT),
        (f"a trip of {_SLOW_S:g} s, no limit", 32768),
    )
)


async def waste(*, quick: bool) -> Findings:
    """Run trajectories that all end in a breach, at depths of a constant hazard."""
    num = 6 if quick else 16
    teachers = (_SGLANG, *_VLLM[::3]) if quick else (_SGLANG, *_VLLM, *_SLOW)
    plans = _plans(num)
    found: dict[str, Point] = {}
    async with AsyncExitStack() as stack:
        pairs = {
            str(index): Pair(
                await stack.enter_async_context(simulator(teacher.kind, _STUDENT, errs=True)),
                await stack.enter_async_context(simulator(teacher.kind, teacher.rates)),
                teacher.params,
                teacher.gpus,
            )
            for index, teacher in enumerate(teachers)
        }
        motab = await stack.enter_async_context(proxy(pairs))

        async def run(index: int) -> None:
            asked = plans[: num // 2] if teachers[index] in _SLOW else plans
            await together(trajectory(motab, plan, str(index)) for plan in asked)
            found[teachers[index].name] = await _point(pairs[str(index)], asked)

        async def run_each(indices: Iterable[int]) -> None:
            for index in indices:
                await run(index)

        # All at once would be more than one proxy can read, but the slow teachers mostly wait.
        slow = [index for index, teacher in enumerate(teachers) if teacher in _SLOW]
        others = [index for index in range(len(teachers)) if index not in slow]
        await together([run_each(others), *map(run, slow)])
    found[_PUBLISHED] = await _published(plans)
    names = [teacher.name for teacher in teachers] + [_PUBLISHED]
    return Findings(
        tuple(
            Figure(
                f"student tokens wasted / kept: {name}",
                found[name].y,
                f"teacher tokens / length {found[name].x:.1f}",
                at_most=_most_wasted(plans[: num // 2]) if name == _SLOW[0].name else None,
            )
            for name in names
        ),
        (_chart(found),),
        {
            "student": f"100 tok/s, {num} at once, a breach in 1500 tokens; times / {_SPEED}",
            "teacher": "20,000 tok/s prefill, trip 0.14 s; price: of its second, in the student's",
        },
    )


def _plans(num: int) -> list[Plan]:
    """The depths are the quantiles of an exponential distribution."""
    depths = [1 + int(-_MEAN_STEPS * math.log(1 - (n + 0.5) / num)) for n in range(num)]
    return [Plan(n, depth + 60, _STEP_TOKENS, depth) for n, depth in enumerate(depths)]


def _chart(found: dict[str, Point]) -> Chart:
    curves = {
        "motab on SGLang": (found[_SGLANG.name],),
        "motab on vLLM, by the teacher's price": tuple(
            found[teacher.name] for teacher in _VLLM if teacher.name in found
        ),
        _PUBLISHED: (found[_PUBLISHED],),
    }
    title = "After a breach: cost of scoring, and wasted text"
    return Chart(title, "teacher tokens computed / length", "student tokens wasted / kept", curves)


async def _published(plans: list[Plan]) -> Point:
    at_once = Rates(decode_tok_s=1e9, prefill_tok_s=1e9)
    async with simulated_pair("vllm", at_once, at_once, errs=True) as pair:
        await published_loop(pair, [plan.question for plan in plans])
        return await _point(pair, plans)


async def _point(pair: Pair[Simulator], plans: list[Plan]) -> Point:
    """Return teacher tokens per kept token, and wasted student tokens per kept token."""
    kept = _kept(plans)
    wasted = (await pair.student.counters()).tokens_decoded - kept
    return Point((await pair.teacher.counters()).tokens_prefilled / kept, wasted / kept)


def _most_wasted(plans: list[Plan]) -> float:
    """Return the most that the limit allows; tokens under way at the pause come on top."""
    return len(plans) * (_LIMIT + 2 * _STEP_TOKENS) / _kept(plans)


def _kept(plans: list[Plan]) -> int:
    return sum(((plan.breach or 0) + 1) * plan.step_tokens for plan in plans)

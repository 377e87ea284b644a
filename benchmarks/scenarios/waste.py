"""Compares the student's wasted text after a breach with the teacher's cost of scoring, and both
with what an optimal rule would waste.

All times are divided by 4, which changes no ratio.
"""

import asyncio
import math
import time
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from benchmarks.figures import Chart, Figure, Findings, Point
from benchmarks.load import by_workers, together, trajectory
from benchmarks.processes import Pair, Simulator, proxy, published_loop, simulated_pair, simulator
from benchmarks.simulator.engine import Rates
from benchmarks.simulator.plan import Plan
from benchmarks.simulator.server import Kind
from benchmarks.waiting.optimum import Cost, Known, cost_of, optimal_calls

_SPEED = 4
_STUDENT = Rates(decode_tok_s=100 * _SPEED, trip_s=0.05 / _SPEED, stream_interval=8)
_STEP_TOKENS = 54
_MEAN_STEPS = 28
"""Steps before a breach: 1500 tokens."""
_TRIP_S = 0.14
_SLOW_S = 10.0
_LIMIT = 512
_PREFILL_TOK_S = 20_000
_SLOW_TOK_S = 70
"""Less than the student writes."""
_QUESTION_TOKENS = 31
# Wanted: an optimal rule's waste, and its cost, times this.
_AT_MOST = 1.2
# The longest call of the optimal rule; at the highest price it has 45 steps.
_MOST_STEPS = 60


@dataclass(frozen=True, slots=True)
class _Teacher:
    """A teacher to try; its correction comes at once, because it is not being measured."""

    name: str
    kind: Kind
    gpus: float = 1.0
    trip_s: float = _TRIP_S
    params: dict[str, Any] = field(default_factory=dict)
    prefill_tok_s: float = _PREFILL_TOK_S
    scale_out: bool = False
    share: int = 1
    """It gets one of that number of the plans."""
    at_once: int | None = None
    """None for all of them."""

    @property
    def rates(self) -> Rates:
        """The rates in the scenario's time."""
        prefill = self.prefill_tok_s * _SPEED
        return Rates(decode_tok_s=1e6, trip_s=self.trip_s / _SPEED, prefill_tok_s=prefill)

    def known(self, plans: list[Plan], student_tok_s: float) -> Known:
        """Return what the optimal rule knows. All of the student's streams write that many tokens a
        second together, which makes the price.
        """
        return Known(
            _STUDENT.decode_tok_s / _SPEED,
            _STUDENT.stream_interval,
            _STEP_TOKENS,
            len(plans) * _STEP_TOKENS / _kept(plans),
            self.trip_s,
            self.prefill_tok_s,
            self.gpus * student_tok_s / self.prefill_tok_s,
            recomputes=self.kind == "vllm" and not self.scale_out,
            question_tokens=_QUESTION_TOKENS,
        )


# With a price next to nothing, every step is scored at once.
_PRICES = (1e-6, 1 / 16, 1 / 4, 1.0, 4.0, 16.0)
_VLLM = tuple(
    _Teacher(f"vLLM, {'a step a call' if gpus < 1e-3 else f'price {gpus:g}'}", "vllm", gpus)
    for gpus in _PRICES
)
_PUBLISHED = "published loop on vLLM"
_SGLANG = _Teacher("SGLang", "sglang")
_CACHED = _Teacher("vLLM with --enable-scale-out", "vllm", scale_out=True)
_LIMITED, _UNLIMITED = (
    _Teacher(name, "sglang", trip_s=_SLOW_S, params={"max_lookahead_tokens": limit}, share=2)
    for name, limit in (
        (f"a trip of {_SLOW_S:g} s, limit {_LIMIT}", _LIMIT),
        (f"a trip of {_SLOW_S:g} s, no limit", 32768),
    )
)
_BEHIND = _Teacher(
    f"a teacher that scores {_SLOW_TOK_S} tok/s",
    "sglang",
    prefill_tok_s=_SLOW_TOK_S,
    share=4,
    at_once=1,
)
_SLOW = (_LIMITED, _UNLIMITED, _BEHIND)


@dataclass(frozen=True, slots=True)
class _Found:
    """The cost of a rule for some plans, of motab's and of the optimal rule."""

    motab: Cost
    optimal: Cost
    price: float


async def waste(*, quick: bool) -> Findings:
    """Run trajectories that all end in a breach, at depths of a constant hazard."""
    num = 6 if quick else 16
    teachers = (_SGLANG, _CACHED, *_VLLM[::3]) if quick else (_SGLANG, _CACHED, *_VLLM, *_SLOW)
    plans = _plans(num)
    found: dict[_Teacher, _Found] = {}
    async with AsyncExitStack() as stack:
        pairs = {
            str(index): Pair(
                await stack.enter_async_context(simulator(teacher.kind, _STUDENT, errs=True)),
                await stack.enter_async_context(
                    simulator(teacher.kind, teacher.rates, scale_out=teacher.scale_out)
                ),
                teacher.params,
                teacher.gpus,
            )
            for index, teacher in enumerate(teachers)
        }
        motab = await stack.enter_async_context(proxy(pairs))

        async def run(index: int) -> None:
            teacher, pair = teachers[index], pairs[str(index)]
            asked = plans[: -(-num // teacher.share)]
            started = time.perf_counter()
            jobs = [partial(trajectory, motab, plan, str(index)) for plan in asked]
            await by_workers(teacher.at_once or len(jobs), jobs)
            seconds = (time.perf_counter() - started) * _SPEED
            found[teacher] = await _found(teacher, pair, asked, seconds)

        async def run_each(indices: Iterable[int]) -> None:
            for index in indices:
                await run(index)

        # All at once would be more than one proxy can read, but the slow teachers mostly wait.
        slow = [index for index, teacher in enumerate(teachers) if teacher in _SLOW]
        others = [index for index in range(len(teachers)) if index not in slow]
        await together([run_each(others), *map(run, slow)])
    published = await _published(plans)
    return Findings(
        (
            *(figure for teacher in teachers for figure in _figures(teacher, found[teacher])),
            Figure(
                f"student tokens wasted / kept: {_PUBLISHED}",
                published.y,
                f"teacher tokens / length {published.x:.1f}",
            ),
        ),
        (_chart(found, published),),
        {
            "student": f"100 tok/s, {num} at once, a breach in 1500 tokens; times / {_SPEED}",
            "teacher": "20,000 tok/s prefill, trip 0.14 s; price: of its second, in the student's",
        },
    )


def _figures(teacher: _Teacher, found: _Found) -> list[Figure]:
    motab, optimal, price = found.motab, found.optimal, found.price
    wasted = Figure(
        f"student tokens wasted / kept: {teacher.name}",
        motab.wasted / motab.kept,
        f"teacher tokens / length {motab.computed / motab.kept:.2f}; optimal rule: "
        f"{optimal.wasted / optimal.kept:.3f}, {optimal.computed / optimal.kept:.2f}",
    )
    if teacher is _LIMITED:  # which no optimal rule is bound by
        return [wasted]
    of_price = f"at {price:.3g} student tokens for a teacher's"
    return [
        wasted,
        Figure("the same / the optimal rule's", motab.wasted / optimal.wasted, at_most=_AT_MOST),
        Figure(
            "its cost / the optimal rule's",
            (motab.wasted + price * motab.computed) / optimal.total(price),
            of_price,
            at_most=_AT_MOST,
        ),
    ]


def _plans(num: int) -> list[Plan]:
    """The depths are the quantiles of an exponential distribution."""
    depths = [1 + int(-_MEAN_STEPS * math.log(1 - (n + 0.5) / num)) for n in range(num)]
    return [Plan(n, depth + 60, _STEP_TOKENS, depth) for n, depth in enumerate(depths)]


def _chart(found: Mapping[_Teacher, _Found], published: Point) -> Chart:
    def points(teachers: Iterable[_Teacher], *, optimal: bool = False) -> tuple[Point, ...]:
        known = (found[teacher] for teacher in teachers if teacher in found)
        costs = [one.optimal if optimal else one.motab for one in known]
        return tuple(Point(cost.computed / cost.kept, cost.wasted / cost.kept) for cost in costs)

    curves = {
        "motab on SGLang": points([_SGLANG]),
        "motab on vLLM, by the teacher's price": points(_VLLM),
        "optimal rule on vLLM": points(_VLLM, optimal=True),
        _PUBLISHED: (published,),
    }
    title = "After a breach: cost of scoring, and wasted text"
    return Chart(title, "teacher tokens computed / length", "student tokens wasted / kept", curves)


async def _published(plans: list[Plan]) -> Point:
    at_once = Rates(decode_tok_s=1e9, prefill_tok_s=1e9)
    async with simulated_pair("vllm", at_once, at_once, errs=True) as pair:
        await published_loop(pair, [plan.question for plan in plans])
        cost = await _cost(pair, plans)
        return Point(cost.computed / cost.kept, cost.wasted / cost.kept)


async def _found(
    teacher: _Teacher, pair: Pair[Simulator], plans: list[Plan], seconds: float
) -> _Found:
    """Return what trajectories cost that took these seconds of the student's server."""
    cost = await _cost(pair, plans)
    known = teacher.known(plans, (cost.kept + cost.wasted) / seconds)
    breaches = [plan.breach or 0 for plan in plans]
    # In a thread, because other scenarios are being measured.
    calls = await asyncio.to_thread(optimal_calls, known, max(breaches) + _MOST_STEPS, _MOST_STEPS)
    return _Found(cost, cost_of(known, calls, breaches), known.price)


async def _cost(pair: Pair[Simulator], plans: list[Plan]) -> Cost:
    kept = _kept(plans)
    wasted = (await pair.student.counters()).tokens_decoded - kept
    return Cost(kept, wasted, (await pair.teacher.counters()).tokens_prefilled)


def _kept(plans: list[Plan]) -> int:
    return sum(((plan.breach or 0) + 1) * plan.step_tokens for plan in plans)

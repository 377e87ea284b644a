"""Compares the student's wasted text after a breach with the teacher's cost of scoring, and motab's
rule with the optimal rule.

The proxy's own figures are measured on simulated servers; all times are divided by 4, which changes
no ratio. The rules are compared in simulated time, so that the machine's load changes nothing.
"""

import asyncio
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any

from benchmarks.figures import Chart, Figure, Findings, Point
from benchmarks.load import by_workers, together, trajectory
from benchmarks.processes import Pair, Simulator, proxy, published_loop, simulated_pair, simulator
from benchmarks.simulator.engine import Rates
from benchmarks.simulator.plan import Plan
from benchmarks.simulator.server import Kind
from benchmarks.waiting.optimum import Cost, Known, cost_of, optimal_calls
from benchmarks.waiting.virtual import cost_of_motab

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
_NUM = 16
_NUM_COMPARED = 64
# The most steps of the optimal rule's calls, where a teacher's second costs more than a student's,
# and elsewhere.
_LONG_CALL, _CALL = 60, 30


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

    @property
    def known(self) -> Known:
        """Everything that the optimal rule knows."""
        rate = _STUDENT.decode_tok_s / _SPEED
        return Known(
            rate,
            _STUDENT.stream_interval,
            _STEP_TOKENS,
            1 / _MEAN_STEPS,
            self.trip_s,
            self.prefill_tok_s,
            self.gpus * rate * (self.at_once or _NUM) / self.prefill_tok_s,
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


async def waste(*, quick: bool) -> Findings:
    """Run trajectories that all end in a breach, at depths of a constant hazard."""
    num = 6 if quick else _NUM
    teachers = (_SGLANG, _CACHED, *_VLLM[::3]) if quick else (_SGLANG, _CACHED, *_VLLM, *_SLOW)
    plans = _plans(num)
    found: dict[str, Cost] = {}
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
            jobs = [partial(trajectory, motab, plan, str(index)) for plan in asked]
            await by_workers(teacher.at_once or len(jobs), jobs)
            found[teacher.name] = await _cost(pair, asked)

        async def run_each(indices: Iterable[int]) -> None:
            for index in indices:
                await run(index)

        # All at once would be more than one proxy can read, but the slow teachers mostly wait.
        slow = [index for index, teacher in enumerate(teachers) if teacher in _SLOW]
        others = [index for index in range(len(teachers)) if index not in slow]
        await together([run_each(others), *map(run, slow)])
    published = await _published(plans)
    # In a thread, because other scenarios are being measured.
    rules = [await asyncio.to_thread(_compare, teacher) for teacher in teachers]
    return Findings(
        (
            *(_of_proxy(teacher, found[teacher.name], len(plans)) for teacher in teachers),
            Figure(
                f"student tokens wasted / kept: {_PUBLISHED}",
                published.y,
                f"teacher tokens / length {published.x:.1f}",
            ),
            *(figure for rule in rules for figure in _of_rule(rule)),
        ),
        (_chart(found, rules, published),),
        {
            "student": f"100 tok/s, {num} at once, a breach in 1500 tokens; times / {_SPEED}",
            "teacher": "20,000 tok/s prefill, trip 0.14 s; price: of its second, in the student's",
            "rules": f"compared in simulated time, over {_NUM_COMPARED} breaches",
        },
    )


@dataclass(frozen=True, slots=True)
class _Compared:
    """The costs of motab's rule, as it learns, and of the optimal rule, for the same texts."""

    teacher: _Teacher
    motab: Cost
    optimal: Cost


def _compare(teacher: _Teacher) -> _Compared:
    known = teacher.known
    depths = _depths(_NUM_COMPARED)
    Random(0).shuffle(depths)  # noqa: S311 - no secret
    most_steps = _LONG_CALL if teacher.gpus > 1 else _CALL
    calls = optimal_calls(known, max(depths) + most_steps, most_steps)
    return _Compared(teacher, cost_of_motab(known, depths), cost_of(known, calls, depths))


def _of_proxy(teacher: _Teacher, cost: Cost, num: int) -> Figure:
    """Return what the proxy wasted. A limit is a promise; tokens under way at the pause come on
    top.
    """
    most = (_LIMIT + 2 * _STEP_TOKENS) * -(-num // teacher.share) / cost.kept
    return Figure(
        f"student tokens wasted / kept: {teacher.name}",
        cost.wasted / cost.kept,
        f"teacher tokens / length {cost.computed / cost.kept:.2f}",
        at_most=most if teacher is _LIMITED else None,
    )


def _of_rule(compared: _Compared) -> Iterator[Figure]:
    """Yield the rule's figures, unless it has a limit that the optimal rule does not know."""
    teacher, motab, optimal = compared.teacher, compared.motab, compared.optimal
    if teacher is _LIMITED:
        return
    price = teacher.known.price
    details = [
        f"wasted / kept {cost.wasted / cost.kept:.3f}, waited {cost.waited / cost.kept:.2f}, "
        f"teacher tokens {cost.computed / cost.kept:.2f}"
        for cost in (motab, optimal)
    ]
    yield Figure(
        f"motab's rule / optimal rule, wasted: {teacher.name}",
        motab.wasted / optimal.wasted,
        f"motab: {details[0]}",
        at_most=_AT_MOST,
    )
    yield Figure(
        f"motab's rule / optimal rule, cost: {teacher.name}",
        motab.total(price) / optimal.total(price),
        f"optimal: {details[1]}",
        at_most=_AT_MOST,
    )


def _plans(num: int) -> list[Plan]:
    return [Plan(n, depth + 60, _STEP_TOKENS, depth) for n, depth in enumerate(_depths(num))]


def _depths(num: int) -> list[int]:
    """Return the steps of breaches: the quantiles of an exponential distribution."""
    return [1 + int(-_MEAN_STEPS * math.log(1 - (n + 0.5) / num)) for n in range(num)]


def _chart(found: Mapping[str, Cost], rules: Sequence[_Compared], published: Point) -> Chart:
    def points(costs: Iterable[Cost]) -> tuple[Point, ...]:
        return tuple(Point(cost.computed / cost.kept, cost.wasted / cost.kept) for cost in costs)

    curves = {
        "motab on SGLang": points([found[_SGLANG.name]]),
        "motab on vLLM, by the teacher's price": points(
            found[teacher.name] for teacher in _VLLM if teacher.name in found
        ),
        "optimal rule on vLLM": points(rule.optimal for rule in rules if rule.teacher in _VLLM),
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


async def _cost(pair: Pair[Simulator], plans: list[Plan]) -> Cost:
    kept = _kept(plans)
    wasted = (await pair.student.counters()).tokens_decoded - kept
    return Cost(kept, wasted, (await pair.teacher.counters()).tokens_prefilled)


def _kept(plans: list[Plan]) -> int:
    return sum(((plan.breach or 0) + 1) * plan.step_tokens for plan in plans)

"""Runs simulated servers with the speeds of real servers, on texts of the same shapes."""

import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from statistics import fmean, median

from benchmarks.load import by_workers, trajectory
from benchmarks.processes import PAIR, Pair, Process, Served, Simulator, proxy, simulator
from benchmarks.servers.asked import Answer, ask
from benchmarks.servers.counted import block_size
from benchmarks.servers.level import Level, Part, Runner
from benchmarks.simulator.engine import Rates
from benchmarks.simulator.plan import Plan
from benchmarks.simulator.words import encode

# Steps of the texts that are scored to measure the teacher; the first call is slow.
_PROBED = (1, 1, 1, 4, 8, 12, 12)
NUM_PROBED = len(_PROBED) + 1
"""The prompts that `measured` uses."""
_STEP = "1 + 2 = 3, and so on.\n\n"
_ANSWER_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Counts:
    """The costs of a part's texts. Contexts are the texts with their questions."""

    seconds: float
    num_tokens: int
    num_context: int
    num_steps: int
    num_calls: int
    computed: float
    """Tokens of prompts that the teacher computed."""
    wasted: int
    kept: int


@dataclass(frozen=True, slots=True)
class Beside:
    """A level's counts, on the real servers and on simulators."""

    at_once: int
    real: Counts
    simulated: Counts
    real_straying: Counts
    simulated_straying: Counts


@dataclass(frozen=True, slots=True)
class Measured:
    """The speeds of a pair, from its answers at a level, and how its servers are set up."""

    student: Rates
    teacher: Rates
    scale_out: bool
    block: int

    @property
    def described(self) -> str:
        """The speeds in words."""
        student, teacher = self.student, self.teacher
        return (
            f"student {student.decode_tok_s:.0f} tok/s, first text after "
            f"{1000 * student.trip_s:.0f} ms; teacher: trip {1000 * teacher.trip_s:.0f} ms, "
            f"{teacher.prefill_tok_s:.0f} tok/s scored; stream interval {student.stream_interval}"
        )


async def measured(runner: Runner, level: Level) -> Measured:
    """Measure what simulators need: the student's speed at this level, the teacher's alone."""
    http, teacher = runner.http, runner.pair.teacher
    prompt = next(runner.prompts)
    corrects = await ask(http, teacher.base_url, teacher.model, prompt, _ANSWER_TOKENS)
    return Measured(
        _writing_rates(level.plain.answers),
        replace(await _scoring_rates(runner), decode_tok_s=_writing_rates([corrects]).decode_tok_s),
        level.motab.answers[0].trace["scoring"] == "cached_logprobs",
        await block_size(runner.http, runner.pair.teacher),
    )


def _writing_rates(answers: Sequence[Answer]) -> Rates:
    """Return the rate of a stream between its first event and its end, and the time before it."""
    num_tokens = sum(answer.num_tokens for answer in answers)
    num_events = max(1, sum(answer.num_events for answer in answers))
    seconds = sum(answer.seconds - answer.first_s for answer in answers)
    rate = (num_tokens - len(answers)) / max(seconds, 1e-6)
    trip_s = max(0.0, median(answer.first_s for answer in answers) - 1 / rate)
    return Rates(rate, trip_s=trip_s, stream_interval=max(1, round(num_tokens / num_events)))


async def _scoring_rates(runner: Runner) -> Rates:
    """Return the teacher's trip and speed: a line through the times of given texts."""
    points: list[tuple[int, float]] = []
    for num_steps in _PROBED:
        body = {"model": PAIR, **next(runner.prompts).field, "text": _STEP * num_steps}
        body["motab"] = {"delimiter": "\n\n"}
        started = time.perf_counter()
        answer = await runner.proxy.post("/v1/motab/score", body)
        usage = answer["usage"]["motab"]
        points.append((usage["teacher_scored_tokens"], time.perf_counter() - started))
    tokens, seconds = fmean(x for x, _ in points), fmean(y for _, y in points)
    rise = sum((x - tokens) * (y - seconds) for x, y in points)
    slope = max(rise / sum((x - tokens) ** 2 for x, _ in points), 1e-6)
    return Rates(prefill_tok_s=1 / slope, trip_s=max(0.0, seconds - slope * tokens))


async def beside(level: Level, pair: Pair[Served], speeds: Measured) -> Beside:
    """Run the level's texts on simulators."""
    async with AsyncExitStack() as stack:
        student_kind, teacher_kind = pair.student.kind, pair.teacher.kind
        if student_kind == "llamacpp" or teacher_kind == "llamacpp":
            raise ValueError("llama.cpp has no simulator")
        student = await stack.enter_async_context(
            simulator(student_kind, speeds.student, errs=True)
        )
        teacher = await stack.enter_async_context(
            simulator(teacher_kind, speeds.teacher, scale_out=speeds.scale_out, block=speeds.block)
        )
        motab = await stack.enter_async_context(proxy({PAIR: Pair(student, teacher)}))
        run = partial(_simulated, motab, teacher, level.at_once)
        typical = median(len(answer.trace["steps"]) for answer in level.motab.answers)
        return Beside(
            level.at_once,
            _real(level.motab),
            await run(_plans(level.motab, 0)),
            _real(level.straying),
            await run(_plans(level.straying, int(typical))),
        )


def _plans(part: Part, num_steps: int) -> list[Plan]:
    """Return texts with the steps and the breaches of the answers, and at least `num_steps`."""
    plans: list[Plan] = []
    for seed, answer in zip(count(1), part.answers, strict=False):
        steps = answer.trace["steps"]
        size = max(2, round(fmean(step["student_tokens"] for step in steps)))
        breach = answer.trace["breach"]
        num = len(steps) if breach is None else max(num_steps, breach + 2)
        plans.append(Plan(seed, num, size, breach))
    return plans


async def _simulated(
    motab: Process, teacher: Simulator, at_once: int, plans: Sequence[Plan]
) -> Counts:
    await teacher.reset()
    started = time.perf_counter()
    done = await by_workers(at_once, [partial(trajectory, motab, plan) for plan in plans])
    seconds = time.perf_counter() - started
    counters = await teacher.counters()
    wasted = sum(one.usage["student_tokens_discarded"] for one in done)
    kept = sum(one.usage["student_tokens"] for one in done) - wasted
    num_question = sum(len(encode(f"<|user|>{plan.question}<|assistant|>")) for plan in plans)
    return Counts(
        seconds,
        kept,
        kept + num_question,
        sum(one.num_steps for one in done),
        sum(one.usage["score_calls"] for one in done),
        counters.tokens_prefilled,
        wasted,
        kept,
    )


def _real(part: Part) -> Counts:
    wasted = part.used("student_tokens_discarded")
    kept = part.used("student_tokens") - wasted
    return Counts(
        part.seconds,
        part.num_tokens,
        kept + sum(answer.num_prompt for answer in part.answers),
        part.num_steps,
        part.used("score_calls"),
        part.teacher_computed or 0.0,
        wasted,
        kept,
    )

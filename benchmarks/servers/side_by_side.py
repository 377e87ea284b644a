"""Runs simulated servers with the speeds of real servers, on texts of the same shapes."""

import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean, median
from typing import Final

from benchmarks.load import by_workers, trajectory
from benchmarks.processes import PAIR, Pair, Process, Served, Simulator, proxy, simulator
from benchmarks.servers.asked import Answer, ask
from benchmarks.servers.counted import block_size
from benchmarks.servers.level import Level, Part, Runner
from benchmarks.servers.prompts import num_shared
from benchmarks.simulator.engine import Rates
from benchmarks.simulator.plan import Plan
from benchmarks.simulator.server import Kind
from benchmarks.simulator.words import encode

# Steps of the texts that are scored to measure the teacher.
_PROBED = (1, 1, 4, 8, 12, 12)
_STEP = "1 + 2 = 3, and so on.\n\n"
_ANSWER_TOKENS = 64
# A slot of llama.cpp keeps its prefix to the token, as SGLang's cache does.
_SIMULATED: Final[Mapping[str, Kind]] = {"sglang": "sglang", "vllm": "vllm", "llamacpp": "sglang"}
_SEED_STEP, _NUM_SEEDS = 618_033, 999_983


def num_probed(at_once: int) -> int:
    """Return the number of prompts that `measured` uses."""
    return len(_PROBED) * at_once + 2


@dataclass(frozen=True, slots=True)
class Counts:
    """The costs of a part's texts. Contexts are the texts with their questions, in the teacher's
    tokens, without the blocks with which all questions begin: its cache has them.
    """

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
class SideBySide:
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
        replace(
            await _scoring_rates(runner, level.at_once),
            decode_tok_s=_writing_rates([corrects]).decode_tok_s,
        ),
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


async def _scoring_rates(runner: Runner, at_once: int) -> Rates:
    """Return the teacher's trip and speed: a line through the times of given texts."""
    points: list[tuple[int, float]] = []

    async def one(num_steps: int) -> None:
        body = {"model": PAIR, **next(runner.prompts).field, "text": _STEP * num_steps}
        body["motab"] = {"delimiter": "\n\n"}
        started = time.perf_counter()
        answer = await runner.proxy.post("/v1/motab/score", body)
        num_tokens = answer["usage"]["motab"]["teacher_scored_tokens"]
        points.append((num_tokens, time.perf_counter() - started))

    await one(1)  # which is slow
    points.clear()
    await by_workers(at_once, [partial(one, num) for num in _PROBED for _ in range(at_once)])
    tokens, seconds = fmean(x for x, _ in points), fmean(y for _, y in points)
    rise = sum((x - tokens) * (y - seconds) for x, y in points)
    slope = max(rise / sum((x - tokens) ** 2 for x, _ in points), 1e-6)
    return Rates(prefill_tok_s=1 / slope, trip_s=max(0.0, seconds - slope * tokens))


async def run_simulators(level: Level, pair: Pair[Served], speeds: Measured) -> SideBySide:
    """Run the level's texts on simulators."""
    async with AsyncExitStack() as stack:
        student_kind, teacher_kind = _SIMULATED[pair.student.kind], _SIMULATED[pair.teacher.kind]
        student = await stack.enter_async_context(
            simulator(student_kind, speeds.student, errs=True)
        )
        teacher = await stack.enter_async_context(
            simulator(teacher_kind, speeds.teacher, scale_out=speeds.scale_out, block=speeds.block)
        )
        motab = await stack.enter_async_context(proxy({PAIR: Pair(student, teacher)}))
        run = partial(_simulated, motab, teacher, level.at_once, speeds.block)
        return SideBySide(
            level.at_once,
            _real(level.motab, speeds.block),
            await run(_plans(level.motab)),
            _real(level.straying, speeds.block),
            await run(_plans(level.straying)),
        )


def _plans(part: Part) -> list[Plan]:
    """Return texts with the answers' steps and breaches, and as much text as was written."""
    plans: list[Plan] = []
    for number, answer in enumerate(part.answers, 1):
        steps = answer.trace["steps"]
        size = max(2, round(fmean(step["student_tokens"] for step in steps)))
        num_written = round(answer.usage["student_tokens"] / size)
        # Seeds far apart, because equal digits would be a prefix that the cache knows.
        seed = number * _SEED_STEP % _NUM_SEEDS
        plans.append(Plan(seed, max(len(steps), num_written), size, answer.trace["breach"]))
    return plans


async def _simulated(
    motab: Process, teacher: Simulator, at_once: int, block: int, plans: Sequence[Plan]
) -> Counts:
    await teacher.reset()
    started = time.perf_counter()
    done = await by_workers(at_once, [partial(trajectory, motab, plan) for plan in plans])
    seconds = time.perf_counter() - started
    counters = await teacher.counters()
    wasted = sum(one.usage["student_tokens_discarded"] for one in done)
    kept = sum(one.usage["student_tokens"] for one in done) - wasted
    questions = [encode(f"<|user|>{plan.question}<|assistant|>") for plan in plans]
    shared = num_shared(questions)
    num_question = sum(_num_own(len(question), shared, block) for question in questions)
    return Counts(
        seconds,
        kept,
        sum(one.usage["teacher_scored_tokens"] for one in done) + num_question,
        sum(one.num_steps for one in done),
        sum(one.usage["score_calls"] for one in done),
        counters.tokens_prefilled,
        wasted,
        kept,
    )


def _num_own(num_tokens: int, shared: int, block: int) -> int:
    """Return a question's tokens without the whole blocks that it shares with all questions."""
    return num_tokens - shared // block * block


def _real(part: Part, block: int) -> Counts:
    num_question = sum(
        _num_own(answer.num_prompt, answer.num_shared, block) for answer in part.answers
    )
    wasted = part.used("student_tokens_discarded")
    kept = part.used("student_tokens") - wasted
    return Counts(
        part.seconds,
        part.num_tokens,
        part.used("teacher_scored_tokens") + num_question,
        part.num_steps,
        part.used("score_calls"),
        part.teacher_computed or 0.0,
        wasted,
        kept,
    )

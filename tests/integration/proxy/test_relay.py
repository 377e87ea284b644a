"""The methods in which student and teacher share a text, driven by the runner."""

import asyncio
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from random import Random

import pytest

from proxy.backends.base import Message, Question, Sampling
from proxy.core.thinking import Reasoning
from proxy.core.types import Judged
from proxy.engine.pair import Pair
from proxy.engine.seeds import seed_of_draws
from proxy.errors import UpstreamMalformed
from tests.support.patience import PATIENCE_S
from tests.support.proxy.runs import (
    PROMPT,
    QUESTION,
    Observed,
    error_of,
    outcome_of,
    run_of,
    spans_of,
)
from tests.support.scripted import Script, ScriptedBackend, pair, says, upstream, values

A, B, C, T = "A.\n\n", "B.\n\n", "C.\n\n", "T.\n\n"


def in_turn(*scripts: Script) -> Callable[[Sampling], Script]:
    """One script for each write."""
    left = iter(scripts)
    return lambda _sampling: next(left)


def seed_of(pattern: str, beta: float = 0.5) -> int:
    """A seed whose draws begin with these authors ("st": student, then teacher)."""
    for seed in range(10_000):
        dice = Random(seed_of_draws(seed, QUESTION))
        if all((dice.random() < beta) == (author == "t") for author in pattern):
            return seed
    raise AssertionError(pattern)


async def test_skd_keeps_what_the_teacher_finds_likely_enough_and_rewrites_the_rest() -> None:
    student = ScriptedBackend(in_turn(says(A, B, C), says("end")), written_logprob=math.log(0.5))
    teacher = ScriptedBackend(says("T", ".\n\n", "more"), values({A: 0.6, B: 0.45, "end": 0.9}))
    outcome, observed = await outcome_of(student, teacher, method="skd", gamma=1.0)
    trajectory = outcome.trajectory
    assert trajectory.text == A + T + "end"
    assert spans_of(outcome) == [("student", A), ("teacher", T), ("student", "end")]
    assert [(s.author, s.text, s.safe, s.start) for s in trajectory.steps] == [
        ("student", A, True, 0),
        ("student", B, False, None),
        ("teacher", T, None, 4),
        ("student", "end", True, 8),
    ]
    assert [s.value for s in trajectory.steps] == [0.6, 0.45, None, 0.9]
    assert [s.boundary for s in trajectory.steps] == [
        pytest.approx(0.5),
        pytest.approx(0.5),
        None,
        pytest.approx(0.5),
    ]
    assert [n.index for n in observed.notices if isinstance(n, Judged)] == [0, 1, 3]
    # Each continues from exactly what is kept.
    assert [w.context for w in student.writes] == [PROMPT, PROMPT + A + T]
    assert [w.context for w in teacher.writes] == [PROMPT + A]
    assert outcome.scoring == "prompt_logprobs"


async def test_gamma_decides_how_much_of_the_students_confidence_the_teacher_must_share() -> None:
    for gamma, kept in ((1.0, False), (0.9, True)):
        student = ScriptedBackend(in_turn(says(A), says()), written_logprob=math.log(0.5))
        teacher = ScriptedBackend(says(T), values({A: 0.48}))
        outcome, _ = await outcome_of(student, teacher, method="skd", gamma=gamma)
        assert outcome.trajectory.steps[0].safe is kept


async def test_skd_lets_the_student_write_on_while_a_step_is_scored() -> None:
    student = ScriptedBackend(in_turn(says(A, B, C, asyncio.Event()), says()))
    teacher = ScriptedBackend(says(T), values({A: 0.0}), written_logprob=None)
    teacher.faults[("score", 0)] = (release := asyncio.Event())
    run = asyncio.create_task(run_of(pair(student, teacher), method="skd").run())
    await teacher.until_called("score")
    assert student.writes[0].pieces == [A, B, C]
    release.set()
    async with asyncio.timeout(PATIENCE_S):
        outcome = await run
    assert student.writes[0].cancelled
    assert [s.num_new for s in teacher.scorings] == [1]
    assert outcome.usage.student_tokens_discarded == 3
    assert outcome.trajectory.text == T


async def test_what_the_teacher_wrote_beyond_its_step_is_counted_as_discarded() -> None:
    student = ScriptedBackend(in_turn(says(A), says()))
    teacher = ScriptedBackend(says("T", (".\n\nM", "ore"), asyncio.Event()), values({A: 0.0}))
    outcome, _ = await outcome_of(student, teacher, method="skd")
    assert outcome.trajectory.text == T
    # The token that the cut goes through is part of the step.
    assert outcome.trajectory.teacher_tokens == 2
    assert (outcome.usage.teacher_tokens, outcome.usage.teacher_tokens_discarded) == (3, 1)
    assert outcome.usage.completion_tokens == 2
    assert teacher.writes[0].cancelled
    # A halted write does not tell what came from its cache.
    assert outcome.usage.teacher_cached_tokens is None


async def test_only_skd_asks_the_student_for_log_probabilities() -> None:
    for method, asked in (("skd", True), ("imitkd", False), ("prefix", False), ("motab", False)):
        student = ScriptedBackend(says("x"))
        await outcome_of(student, ScriptedBackend(), method=method, beta=0.0)
        assert student.writes[0].sampling.logprobs is asked


@pytest.mark.parametrize("logprob", [None, math.nan, 0.5])
async def test_a_missing_log_probability_of_the_student_ends_skd(logprob: float | None) -> None:
    student = ScriptedBackend(says(A), written_logprob=logprob)
    error, observed = await error_of(student, ScriptedBackend(), method="skd")
    assert isinstance(error, UpstreamMalformed)
    assert "student" in str(error)
    assert not observed.texts


async def test_imitkd_passes_the_pen_where_the_seed_says_so() -> None:
    student = ScriptedBackend(in_turn(says(A, B, C), says("end")))
    teacher = ScriptedBackend(says(T, "more", asyncio.Event()))
    run = run_of(pair(student, teacher), observed := Observed(), method="imitkd")
    run = replace(run, sampling=Sampling(0.7, 0.9, seed=seed_of("sstss")))
    async with asyncio.timeout(PATIENCE_S):
        outcome = await run.run()
    assert spans_of(outcome) == [("student", A + B), ("teacher", T), ("student", "end")]
    assert "".join(observed.texts) == A + B + T + "end"
    assert [s.author for s in outcome.trajectory.steps] == [
        "student",
        "student",
        "teacher",
        "student",
    ]
    assert [w.context for w in teacher.writes] == [PROMPT + A + B]
    assert [w.context for w in student.writes] == [PROMPT, PROMPT + A + B + T]
    assert outcome.scoring is None
    assert not teacher.scorings
    seeds = [w.sampling.seed for w in student.writes]
    assert seeds[0] == run.sampling.seed
    # A later write does not repeat the random numbers of the first.
    assert seeds[1] not in {None, seeds[0]}


async def test_imitkd_is_one_uninterrupted_stream_where_one_author_writes_all() -> None:
    for beta, name in ((0.0, "student"), (1.0, "teacher")):
        both = {name: ScriptedBackend(says("idle")) for name in ("student", "teacher")}
        both[name] = ScriptedBackend(says(A, B, "end"))
        outcome, _ = await outcome_of(both["student"], both["teacher"], method="imitkd", beta=beta)
        assert spans_of(outcome) == [(name, A + B + "end")]
        assert len(both[name].writes) == 1
        assert both[name].writes[0].ended


async def test_one_seed_draws_otherwise_for_every_question() -> None:
    # A dataset is asked with one seed.
    texts = []
    for i in range(40):
        student, teacher = ScriptedBackend(says("s")), ScriptedBackend(says("t"))
        question = Question((Message("user", f"{i}?"),))
        run = replace(run_of(pair(student, teacher), method="imitkd"), question=question)
        texts.append((await run.run()).trajectory.text)
    assert 8 < texts.count("t") < 32


async def test_without_a_seed_the_draws_differ_from_run_to_run() -> None:
    texts = set()
    for _ in range(40):
        student, teacher = ScriptedBackend(says("s")), ScriptedBackend(says("t"))
        run = run_of(pair(student, teacher), method="imitkd")
        run = replace(run, sampling=Sampling(0.7))
        texts.add((await run.run()).trajectory.text)
    assert texts == {"s", "t"}


async def test_prefix_lets_the_teacher_finish_from_the_drawn_step_on() -> None:
    student = ScriptedBackend(says(A, B, C, "end"))
    teacher = ScriptedBackend(says(T, "done"))
    draws = (Random(seed_of_draws(seed, QUESTION)).random() for seed in count())
    seed = next(seed for seed, draw in enumerate(draws) if math.floor(4 * draw) == 2)
    run = run_of(pair(student, teacher), method="prefix")
    outcome = await replace(run, sampling=Sampling(0.7, 0.9, seed=seed)).run()
    assert spans_of(outcome) == [("student", A + B), ("teacher", T + "done")]
    assert [w.context for w in teacher.writes] == [PROMPT + A + B]
    assert student.writes[0].ended
    assert outcome.usage.student_tokens_discarded == 2
    assert outcome.usage.teacher_cached_tokens == 0


async def test_a_teacher_that_rewrites_the_first_step_thinks_as_it_would() -> None:
    # No flawed attempt stands before what it writes, so none decides whether it thinks.
    student = ScriptedBackend(in_turn(says("Plain.\n\n"), says()))
    teacher = ScriptedBackend(says("Hm.\n\n"), values({"Plain.\n\n": 0.0}))
    think, opened = Reasoning("think"), Reasoning("think", opened=True)
    both = Pair(upstream("student", student, think), upstream("teacher", teacher, opened))
    async with asyncio.timeout(PATIENCE_S):
        outcome = await run_of(both, method="skd").run()
    assert teacher.writes[0].context == PROMPT
    assert outcome.trajectory.text == "<think>\nHm.\n\n"

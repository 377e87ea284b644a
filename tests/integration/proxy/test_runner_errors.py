"""Tests how trajectories end that are cancelled or meet errors."""

import asyncio
import math
from dataclasses import replace

import pytest

from proxy.backends.base import Scores
from proxy.core.types import StepScore
from proxy.errors import MotabError, UpstreamFailed, UpstreamMalformed, UpstreamUnreachable
from tests.support.proxy.runs import A, B, error_of, outcome_of, run_of
from tests.support.scripted import ScriptedBackend, pair, says, values


async def cancel_when_called(
    student: ScriptedBackend, teacher: ScriptedBackend, method: str
) -> None:
    """Cancel a run at the teacher's first call of that method."""
    task = asyncio.create_task(run_of(pair(student, teacher)).run())
    await teacher.until_called(method)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_cancelling_while_student_and_teacher_work_closes_both_calls() -> None:
    student = ScriptedBackend(says(A, asyncio.Event()))
    teacher = ScriptedBackend(faults={("score", 0): asyncio.Event()})
    await cancel_when_called(student, teacher, "score")
    assert student.writes[0].cancelled
    assert teacher.scorings[0].closed.is_set()


async def test_cancelling_while_the_teacher_corrects_closes_its_write() -> None:
    student = ScriptedBackend(says(A, asyncio.Event()))
    teacher = ScriptedBackend(says("x", asyncio.Event()), values({A: 0.01}))
    await cancel_when_called(student, teacher, "write")
    assert teacher.writes[0].cancelled
    assert student.writes[0].cancelled


async def test_a_scoring_error_is_raised_as_itself_and_closes_the_students_write() -> None:
    failed = UpstreamFailed("teacher", "/score answered 500: down")
    student = ScriptedBackend(says(A, asyncio.Event()))
    teacher = ScriptedBackend(faults={("score", 0): failed})
    error, observed = await error_of(student, teacher)
    assert error is failed
    assert student.writes[0].cancelled
    assert not observed.notices  # no step was accepted


async def test_an_error_in_the_middle_of_a_draft_is_raised_as_itself() -> None:
    broken = UpstreamUnreachable("student", "its stream broke off before the end")
    error, _ = await error_of(ScriptedBackend(says(A, broken)), ScriptedBackend())
    assert error is broken


async def test_an_error_of_the_correction_is_raised_as_itself() -> None:
    broken = UpstreamUnreachable("teacher", "its stream broke off before the end")
    teacher = ScriptedBackend(says("x", broken), values({A: 0.01}))
    error, _ = await error_of(ScriptedBackend(says(A)), teacher)
    assert error is broken


async def test_of_errors_in_a_nested_group_the_first_is_raised() -> None:
    first, second = UpstreamFailed("teacher", "first"), UpstreamFailed("teacher", "second")
    group = ExceptionGroup("one", [ExceptionGroup("two", [first, second])])
    error, _ = await error_of(
        ScriptedBackend(says(A)), ScriptedBackend(faults={("encode", 0): group})
    )
    assert error is first


@pytest.mark.parametrize("method", ["render", "encode"])
async def test_a_teacher_that_cannot_tokenise_is_an_error(method: str) -> None:
    refused = UpstreamMalformed("teacher", "its tokens do not spell that text")
    teacher = ScriptedBackend(faults={(method, 0): refused})
    error, observed = await error_of(ScriptedBackend(says(A)), teacher)
    assert error is refused
    assert not observed.notices


async def test_a_student_that_cannot_render_is_an_error_before_it_is_asked_to_write() -> None:
    refused = UpstreamFailed("student", "down")
    student = ScriptedBackend(says(A), faults={("render", 0): refused})
    error, _ = await error_of(student, ScriptedBackend())
    assert error is refused
    assert not student.writes


@pytest.mark.parametrize(
    "score",
    [
        StepScore(math.nan, 0.0, 5),
        StepScore(math.inf, 0.0, 5),
        StepScore(-math.inf, 0.0, 5),
        StepScore(1.01, 0.0, 5),
        StepScore(-0.01, 0.0, 5),
        StepScore(0.9, math.nan, 5),
        StepScore(0.9, math.inf, 5),
        StepScore(0.9, -0.1, 5),
    ],
    ids=lambda score: f"V={score.value} H={score.entropy}",
)
@pytest.mark.parametrize("boundary", ["adaptive", "static"])
async def test_an_impossible_score_is_an_error_and_never_a_verdict(
    score: StepScore, boundary: str
) -> None:
    teacher = ScriptedBackend(judge=lambda _context, _step: score)
    error, observed = await error_of(ScriptedBackend(says(A)), teacher, boundary=boundary)
    assert isinstance(error, UpstreamMalformed)
    assert error.upstream == "teacher"
    assert not observed.notices
    assert not teacher.writes


async def test_a_missing_entropy_is_an_error_where_the_boundary_needs_it() -> None:
    teacher = ScriptedBackend(judge=lambda _context, _step: StepScore(0.9, None, 5))
    error, observed = await error_of(ScriptedBackend(says(A)), teacher)
    assert isinstance(error, UpstreamMalformed)
    assert not observed.notices


async def test_a_judge_knows_no_entropy_and_a_static_boundary_needs_none() -> None:
    teacher = ScriptedBackend(judge=lambda _context, _step: StepScore(0.9, None, 5))
    outcome, _ = await outcome_of(ScriptedBackend(says(A)), teacher, boundary="static")
    (step,) = outcome.trajectory.steps
    assert (step.entropy, step.boundary, step.safe) == (None, 0.2, True)


async def test_a_missing_value_is_an_error_and_never_a_verdict() -> None:
    teacher = ScriptedBackend(
        judge=lambda _context, _step: StepScore(None, 0.0, 5)  # type: ignore[arg-type]
    )
    _, observed = await error_of(ScriptedBackend(says(A)), teacher)
    assert not observed.notices
    assert not teacher.writes


@pytest.mark.parametrize("change", [-1, +1])
async def test_too_few_or_too_many_scores_are_an_error(change: int) -> None:
    def distort(scores: Scores) -> Scores:
        steps = scores.steps[:-1] if change < 0 else (*scores.steps, scores.steps[-1])
        return replace(scores, steps=steps)

    error, observed = await error_of(
        ScriptedBackend(says((A, B))), ScriptedBackend(distort=distort)
    )
    assert isinstance(error, UpstreamMalformed)
    assert str(error) == (
        f"upstream 'teacher': 2 steps were to be scored, {2 + change} scores came"
    )
    assert not observed.notices


async def test_a_promised_entropy_that_is_impossible_is_an_error() -> None:
    gate = asyncio.Event()
    student = ScriptedBackend(says(A, gate, B))
    teacher = ScriptedBackend(next_entropy=lambda _text: math.nan)
    task = asyncio.create_task(run_of(pair(student, teacher)).run())
    await teacher.until_called("score")
    gate.set()
    with pytest.raises(UpstreamMalformed, match="entropy"):
        await task


async def test_certainty_that_the_step_is_impossible_is_a_value_of_zero_and_a_breach() -> None:
    teacher = ScriptedBackend(says("x"), values({A: 0.0}))
    outcome, _ = await outcome_of(ScriptedBackend(says(A)), teacher)
    assert outcome.trajectory.breach == 0
    assert outcome.trajectory.steps[0].value == 0.0


async def test_a_stream_that_stops_without_an_end_gives_no_result() -> None:
    error, _ = await error_of(ScriptedBackend(says(A, end=None)), ScriptedBackend())
    assert isinstance(error, MotabError)

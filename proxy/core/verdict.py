"""Decides about steps once their scores are known, and traces the steps of the finished text."""

import math
from collections.abc import Collection, Sequence
from dataclasses import replace

from proxy.core.boundary import boundary
from proxy.core.credit import bifurcation
from proxy.core.params import Params
from proxy.core.types import Author, Step, StepScore, StepTrace


def judge(
    step: Step, score: StepScore, previous: StepTrace | None, params: Params, index: int
) -> StepTrace:
    """Decide on one step of the student, t = `index`: safe if V_t >= eps_t.

    Raises ValueError if the score is impossible.
    """
    check_value(score.value)
    if score.entropy is not None and not 0.0 <= score.entropy < math.inf:
        raise ValueError(f"an entropy must be a finite number of nats, not {score.entropy}")
    limit = boundary(score.entropy, params, index)
    before = None if previous is None else previous.value
    return StepTrace(
        text=step.text,
        author="student",
        student_tokens=step.num_tokens,
        teacher_tokens=score.num_tokens,
        value=score.value,
        entropy=score.entropy,
        boundary=limit,
        td_error=None if before is None else score.value - before,
        safe=score.value >= limit,
    )


def check_value(value: float) -> None:
    """Raise ValueError for an impossible V_t: an outage must never look like a verdict."""
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"a value must be in [0, 1], not {value}")


def unscored(step: Step, author: Author) -> StepTrace:
    """Trace a step without a score."""
    by_student = author == "student"
    return StepTrace(
        text=step.text,
        author=author,
        student_tokens=step.num_tokens if by_student else 0,
        teacher_tokens=0 if by_student else step.num_tokens,
    )


def bifurcation_of(steps: Sequence[StepTrace], params: Params) -> int:
    """t* of a trajectory whose last judged step is the breach; the breach itself if `none`."""
    if params.backtrack == "none":
        return len(steps) - 1
    values = [step.value for step in steps if step.value is not None]
    boundaries = [step.boundary for step in steps if step.boundary is not None]
    return bifurcation(values, boundaries)


def placed(steps: Sequence[StepTrace], left_out: Collection[int] = ()) -> tuple[StepTrace, ...]:
    """Set the character offsets of the steps that are part of the text: all but the steps at the
    indices `left_out`.
    """
    placed: list[StepTrace] = []
    end = 0
    for index, step in enumerate(steps):
        if index in left_out:
            placed.append(step)
            continue
        start, end = end, end + len(step.text)
        placed.append(replace(step, start=start, end=end))
    return tuple(placed)

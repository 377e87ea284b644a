"""Defines spans, steps and breaches, and checks that those of a trajectory fit together.

A *round* begins with the student's text and ends with a breach and its correction. After a
correction that is not the last the student writes again, which begins the next round.
"""

import re
from bisect import bisect_left
from collections.abc import Sequence
from typing import Annotated, Any, Final

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from proxy.core.types import Author, Role, Scoring
from trajectory_records.parts import Count, Part

Probability = Annotated[float, Field(ge=0.0, le=1.0)]

_MOST_LISTED: Final = 20
"""In a message."""
_LETTERS: Final[dict[Role, str]] = {"student": "s", "flawed": "f", "revise": "r", "teacher": "t"}
# Only the last correction may be empty: a student writes again after a correction's last step.
_STITCHED: Final = re.compile(r"(s?frt)*s?fr(ts?)?")
# Between two corrections there is no student's text where t* is the first step after the first.
_CLEAN: Final = re.compile(r"s?(t+s)*t*")


class Span(Part):
    """Characters `start` to `end` (exclusive) of the output, and their role."""

    role: Role
    start: Count
    end: Count


class StepRecord(Part):
    """One step and the numbers that decided about it.

    `start` and `end` are character offsets into the output. They are None for a flawed step that
    `stitch: clean` left out and for a step that `skd` rejected; `text` may then hold the step's
    text. The teacher's numbers are None if nothing was scored; `entropy` is in nats. `boundary` may
    be above 1 in `skd`, because its gamma may be.
    """

    start: Count | None
    end: Count | None
    value: Probability | None
    entropy: Annotated[float, Field(ge=0.0)] | None
    boundary: Annotated[float, Field(ge=0.0)] | None
    td_error: Annotated[float, Field(ge=-1.0, le=1.0)] | None
    safe: bool | None
    student_tokens: Count
    teacher_tokens: Count
    author: Author
    text: str | None = None

    @model_serializer(mode="wrap")
    def _without_empty_text(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = handler(self)
        if self.text is None:
            del fields["text"]
        return fields


class Breach(Part):
    """The step at which the student strayed (t), and the step that the teacher went back to (t*),
    as indices into the steps.
    """

    breach: Count
    bifurcation: Count

    @property
    def depth(self) -> int:
        """The number of steps between the two."""
        return self.breach - self.bifurcation


def check_spans(spans: Sequence[Span], output: str) -> None:
    """Raise ValueError unless the spans cover the output one after another."""
    end = 0
    for index, span in enumerate(spans):
        if span.start != end:
            raise ValueError(f"span {index} starts at {span.start}, not at {end}")
        if span.end <= span.start:
            raise ValueError(f"span {index} ends at {span.end}, not after its start")
        end = span.end
    if end != len(output):
        raise ValueError(f"the spans end at {end}, the output at {len(output)}")


def check_steps(steps: Sequence[StepRecord], output: str, *, scoring: Scoring | None) -> None:
    """Raise ValueError for a step that is not in the output, or whose value nothing gave."""
    for index, step in enumerate(steps):
        if step.value is not None and scoring is None:
            raise ValueError(f"step {index} has a value, but scoring is null")
        if step.start is None or step.end is None:
            if step.start != step.end:
                raise ValueError(f"step {index} has only one of start and end")
            continue
        if not step.start < step.end <= len(output):
            raise ValueError(f"step {index} ({step.start} to {step.end}) is not in the output")
        if step.text not in {None, output[step.start : step.end]}:
            raise ValueError(f"the text of step {index} is not what the output has there")


def check_listed(breaches: Sequence[Breach], breach: int | None, bifurcation: int | None) -> None:
    """Raise ValueError unless the list is of several breaches, and begins with the first."""
    if len(breaches) < 2:
        raise ValueError(
            f"breaches lists {len(breaches)}, but must be there only for two or more: breach and"
            " bifurcation are enough for one"
        )
    first = breaches[0]
    if (first.breach, first.bifurcation) != (breach, bifurcation):
        raise ValueError(
            f"breaches begins with breach {first.breach} and bifurcation {first.bifurcation}, but"
            f" breach is {_or_null(breach)} and bifurcation {_or_null(bifurcation)}"
        )


def _or_null(index: int | None) -> str:
    return "null" if index is None else str(index)


def check_breaches(
    breaches: Sequence[Breach], steps: Sequence[StepRecord], spans: Sequence[Span]
) -> None:
    """Raise ValueError if the breaches do not fit the steps or, in a trajectory of several rounds,
    the spans.
    """
    last = -1
    for one in breaches:
        if not one.bifurcation <= one.breach < len(steps):
            raise ValueError(
                f"bifurcation {one.bifurcation} and breach {one.breach} do not fit"
                f" {len(steps)} steps"
            )
        if one.bifurcation <= last:
            raise ValueError(
                f"bifurcation {one.bifurcation} is not after breach {last}, the breach before it"
            )
        if steps[one.breach].safe is not False:
            raise ValueError(f"step {one.breach} is said to be the breach, but is not unsafe")
        last = one.breach
    at = {one.breach for one in breaches}
    for index, step in enumerate(steps if at else ()):
        if step.safe is False and index not in at:
            raise ValueError(f"step {index} is unsafe, but is not among the breaches")
    if breaches and breaches[0].breach + 1 < len(steps):
        _check_rounds(breaches, steps)
        _check_spans_of_rounds(breaches, steps, spans)


def _check_rounds(breaches: Sequence[Breach], steps: Sequence[StepRecord]) -> None:
    at = {one.breach for one in breaches}
    flawed = {index for one in breaches for index in range(one.bifurcation, one.breach + 1)}
    end = 0
    for index, step in enumerate(steps):
        if step.td_error is not None and index - 1 in at:
            raise ValueError(
                f"step {index} begins a round, after breach {index - 1}, but has a td_error:"
                " there is no step before it to fall from"
            )
        if step.start is None or step.end is None:
            if index not in flawed:
                raise ValueError(f"step {index} is left out of the output, but is not flawed")
            continue
        if step.start < end:
            raise ValueError(f"step {index} starts at {step.start}, before the end of another")
        end = step.end


def _check_spans_of_rounds(
    breaches: Sequence[Breach], steps: Sequence[StepRecord], spans: Sequence[Span]
) -> None:
    flawed = [step for one in breaches for step in steps[one.bifurcation : one.breach + 1]]
    num_left_out = sum(step.start is None for step in flawed)
    if num_left_out not in {0, len(flawed)}:
        raise ValueError(
            f"{num_left_out} of {len(flawed)} flawed steps are left out of the output, but all or"
            " none must be"
        )
    is_clean = num_left_out > 0
    roles = "".join(_LETTERS[span.role] for span in spans)
    if not (_CLEAN if is_clean else _STITCHED).fullmatch(roles):
        wanted = "student and teacher" if is_clean else "student, flawed, revise and teacher"
        raise ValueError(
            f"the spans' roles ({_listed([span.role for span in spans])}) are not {wanted} in turn"
        )
    if is_clean:
        return
    found = [f"{span.start} to {span.end}" for span in spans if span.role == "flawed"]
    attempts = ((steps[one.bifurcation].start, steps[one.breach].end) for one in breaches)
    expected = [f"{start} to {end}" for start, end in attempts]
    if found != expected:
        raise ValueError(
            f"the flawed steps are at {_listed(expected)}, the flawed spans at {_listed(found)}"
        )


def _listed(texts: Sequence[str]) -> str:
    hidden = len(texts) - _MOST_LISTED
    more = f" and {hidden:,} more" if hidden > 0 else ""
    return ", ".join(texts[:_MOST_LISTED]) + more


def corrections_of(
    breaches: Sequence[Breach], steps: Sequence[StepRecord], spans: Sequence[Span]
) -> tuple[tuple[int, int], ...]:
    """Return the characters from each breach's correction to the next step: revise token and
    teacher's text.

    Where `stitch: clean` left no text between two corrections, each is a span of its own.
    """
    following = [spans[-1].end if spans else 0]
    for step in reversed(steps):
        following.append(following[-1] if step.start is None else step.start)
    following.reverse()  # at each index: the start of the first step from there on
    found: list[tuple[int, int]] = []
    end, last = 0, -1
    for index, one in enumerate(breaches):
        ends = (step.end for step in reversed(steps[last + 1 : one.breach + 1]))
        start = next((place for place in ends if place is not None), end)
        end, last = following[one.breach + 1], one.breach
        if index + 1 < len(breaches) and end == following[breaches[index + 1].breach + 1]:
            end = _end_of_span(spans, start)
        found.append((start, end))
    return tuple(found)


def _end_of_span(spans: Sequence[Span], start: int) -> int:
    """Return the end of the first span that begins at `start` or later; `start` without a span."""
    at = bisect_left(spans, start, key=lambda span: span.start)
    return spans[at].end if at < len(spans) else start

"""Puts prefix, flawed attempt, revise token and correction together (Eq. 9 and 10), and marks
texts that would teach something wrong.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

from proxy.core.params import Delimiters, Params
from proxy.core.segmenter import split_steps
from proxy.core.thinking import is_in_thought
from proxy.core.types import Breached, Quality, Role, Span, Trajectory

_OPEN, _CLOSE = "<think>", "</think>"


@dataclass(frozen=True, slots=True)
class Stitched:
    """The output's text and the spans that cover it."""

    text: str
    spans: tuple[Span, ...]


def blank_line_after(text: str) -> str:
    """The newlines that `text` needs to end in a blank line; its own are never touched."""
    return "\n" * max(0, 2 - (len(text) - len(text.rstrip("\n"))))


def blank_line_before(text: str) -> str:
    """The newlines that `text` needs to begin with a blank line."""
    return "\n" * max(0, 2 - (len(text) - len(text.lstrip("\n"))))


def stitch(prefix: str, flawed: str, correction: str, params: Params) -> Stitched:
    """Eq. 9 and 10: `prefix` is a_1..a_{t*-1}, `flawed` is a_{t*}..a_t.

    Under `stitch: clean` the flawed attempt and the revise token are left out.
    """
    if params.stitch == "clean":
        return cover(("student", prefix), ("teacher", correction))
    revise = blank_line_after(prefix + flawed) + params.revise + blank_line_before(correction)
    return cover(
        ("student", prefix), ("flawed", flawed), ("revise", revise), ("teacher", correction)
    )


def cover(*parts: tuple[Role, str]) -> Stitched:
    """Join the parts; an empty part has no span."""
    spans: list[Span] = []
    end = 0
    for role, text in parts:
        start, end = end, end + len(text)
        if text:
            spans.append(Span(role, start, end))
    return Stitched("".join(text for _, text in parts), tuple(spans))


def quality_of(trajectory: Trajectory, params: Params, *, in_thought: bool) -> tuple[Quality, ...]:
    """Return the flags of a finished trajectory; see `quality` for `in_thought`."""
    own = [trajectory.text[s.start : s.end] for s in trajectory.spans if s.role == "teacher"]
    found: set[Quality] = set()
    for flawed, correction in _corrected(trajectory, own, params):
        found.update(
            quality(trajectory.text, flawed, correction, params.delimiter, in_thought=in_thought)
        )
    return tuple(flag for flag in get_args(Quality) if flag in found)


def _corrected(
    trajectory: Trajectory, own: Sequence[str], params: Params
) -> Iterator[tuple[Sequence[str], str | None]]:
    """Yield the flawed steps of each breach with their correction; `own` is the teacher's text.

    A trajectory without a breach has one pair, without flawed steps.
    """
    if trajectory.breach is None or trajectory.bifurcation is None:
        rejected = bool(trajectory.steps) and trajectory.steps[-1].safe is False
        if rejected:  # in `skd`, and nothing was written in its place
            yield (), ""
        else:
            yield (), "".join(own) if params.method == "prefix" else None
        return
    only = Breached(trajectory.breach, trajectory.bifurcation)
    for index, one in enumerate(trajectory.breaches or (only,)):
        flawed = [step.text for step in trajectory.steps[one.bifurcation : one.breach + 1]]
        # Every correction but the last has a step, and so a span.
        yield flawed, own[index] if index < len(own) else ""


def quality(
    text: str,
    flawed: Sequence[str],
    correction: str | None,
    delimiter: str | Delimiters,
    *,
    in_thought: bool,
) -> tuple[Quality, ...]:
    """Return what is wrong with a text as something to learn from, in the order of `Quality`.

    `flawed` are the steps a_{t*}..a_t, and `correction` is the teacher's text after them, None if
    it had none to write. With `in_thought`, the prompt has opened a thought, and the text begins
    inside it.
    """
    return tuple(_faults(text, flawed, correction, delimiter, in_thought=in_thought))


def _faults(
    text: str,
    flawed: Sequence[str],
    correction: str | None,
    delimiter: str | Delimiters,
    *,
    in_thought: bool,
) -> Iterator[Quality]:
    if correction is not None and not correction.strip():
        yield "empty_correction"
    if correction is not None and _repeats(correction, flawed, delimiter):
        yield "repeated_step"
    num_opened = text.count(_OPEN) + in_thought
    if num_opened > 1:
        yield "thought_opened_twice"
    if text.count(_CLOSE) > 1:
        yield "thought_closed_twice"
    if is_in_thought(text, opened=in_thought):
        yield "thought_left_open"


def _repeats(correction: str, flawed: Sequence[str], delimiter: str | Delimiters) -> bool:
    """Return whether the correction has a flawed step, word for word: white space is no word."""
    words = [step.split() for step in flawed]
    beginning = correction.split()
    written = [step.split() for step in split_steps(correction, delimiter)]
    return any(step and (step in written or beginning[: len(step)] == step) for step in words)

"""Finds the characters of an output that are learned from."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, Literal

from proxy.core.segmenter import split_steps
from proxy.core.types import Role
from trajectory_records.record import Record
from trajectory_records.steps import Span

Mask = Literal["all", "correction", "unflawed"]
_LEARNED: Final[Mapping[Mask, frozenset[Role]]] = {
    "all": frozenset(("student", "flawed", "revise", "teacher")),
    # The revise token itself is learned, because noticing the flaw is the point.
    "correction": frozenset(("revise", "teacher")),
    "unflawed": frozenset(("student", "revise", "teacher")),
}


@dataclass(frozen=True, slots=True)
class LossSpan:
    """Characters `start` to `end` (exclusive) of the output."""

    start: int
    end: int


def loss_spans(record: Record, mask: Mask) -> tuple[LossSpan, ...]:
    """Return the spans to learn from, in order, neighbours joined; empty if there is nothing."""
    found: list[LossSpan] = []
    for span in record.spans:
        if span.role not in _LEARNED[mask]:
            continue
        if found and found[-1].end == span.start:
            found[-1] = LossSpan(found[-1].start, span.end)
        else:
            found.append(LossSpan(span.start, span.end))
    return tuple(found)


def step_ends(record: Record, span: Span) -> list[int]:
    """Return where the steps of a span end, after the delimiter that the record was made with."""
    before, text = record.output[: span.start], record.output[span.start : span.end]
    steps = split_steps(text, record.delimiter, before)
    return list(accumulate((len(step) for step in steps), initial=span.start))[1:]

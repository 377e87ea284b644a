"""Finds who wrote which stretch of a trajectory, and in whose context."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from proxy.core.types import Author
from trajectory_records.record import Record


@dataclass(frozen=True, slots=True)
class TextKind:
    """A kind of text: who wrote it, and whether text by the other model comes before it."""

    writer: Author
    after_other: bool


KIND_LABELS: Final[Mapping[TextKind, str]] = {
    TextKind("student", after_other=False): "student-written",
    TextKind("teacher", after_other=False): "teacher-written",
    TextKind("teacher", after_other=True): "teacher's after student's",
    TextKind("student", after_other=True): "student's after teacher's",
}
"""In the first two kinds, one model wrote both the text and everything before it."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A maximal stretch by one writer, from character `start` to `end` (exclusive)."""

    kind: TextKind
    start: int
    end: int

    @property
    def length(self) -> int:
        return self.end - self.start


def passages_of(record: Record) -> tuple[Passage, ...]:
    """Return the passages in order; the revise token has no writer and lies between two."""
    passages: list[Passage] = []
    writers: set[Author] = set()
    for span in record.spans:
        if span.role == "revise":
            continue
        writer: Author = "teacher" if span.role == "teacher" else "student"
        writers.add(writer)
        last = passages[-1] if passages else None
        if last is not None and last.end == span.start and last.kind.writer == writer:
            passages[-1] = Passage(last.kind, last.start, span.end)
        else:
            passages.append(Passage(TextKind(writer, len(writers) > 1), span.start, span.end))
    return tuple(passages)


def handover_of(passages: Sequence[Passage]) -> int | None:
    """Return where the student's text ends and the teacher's begins.

    None unless that is the only change of writer.
    """
    if [passage.kind.writer for passage in passages] != ["student", "teacher"]:
        return None
    return passages[0].end

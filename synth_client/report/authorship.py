"""Who wrote which stretch of a trajectory, and in whose context."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from synth_client.record import Author, Record


@dataclass(frozen=True, slots=True)
class TextKind:
    """Text of one writer; `after_other` where text of the other stands before it."""

    writer: Author
    after_other: bool


KIND_LABELS: Final[Mapping[TextKind, str]] = {
    TextKind("student", after_other=False): "student-written",
    TextKind("teacher", after_other=False): "teacher-written",
    TextKind("teacher", after_other=True): "teacher's after student's",
    TextKind("student", after_other=True): "student's after teacher's",
}
"""The first two are contexts of one hand: the text itself and all before it."""


@dataclass(frozen=True, slots=True)
class Passage:
    """The longest stretch, from character `start` to `end` (exclusive), that one writer wrote."""

    kind: TextKind
    start: int
    end: int

    @property
    def length(self) -> int:
        return self.end - self.start


def passages_of(record: Record) -> tuple[Passage, ...]:
    """The passages in their order. The revise token is nobody's, so it lies between two of them."""
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
    """Where the student's text ends and all that follows is the teacher's, None where that is not
    so or the pen changes hands more often.
    """
    if [passage.kind.writer for passage in passages] != ["student", "teacher"]:
        return None
    return passages[0].end

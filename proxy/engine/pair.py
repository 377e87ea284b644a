"""Joins a student and a teacher, and keeps what was learned about the two together."""

from dataclasses import dataclass, field

from proxy.backends.base import Question
from proxy.core.params import Method
from proxy.core.thinking import Bridge, Reasoning
from proxy.core.types import Author
from proxy.engine.schedule import BreachRate, MeasuredSchedule
from proxy.engine.upstream import Upstream
from proxy.errors import MotabError


@dataclass(frozen=True, slots=True)
class Pair:
    """Who writes and who scores; a plain model has only one of them."""

    student: Upstream | None
    teacher: Upstream | None
    hazards: dict[Method, BreachRate] = field(default_factory=dict, compare=False, kw_only=True)
    """How often the student was seen to stray, by what counts as that."""

    def of(self, author: Author) -> Upstream:
        """The upstream of `author`; the method never asks for one that is not there."""
        upstream = self.student if author == "student" else self.teacher
        if upstream is None:
            raise MotabError(f"this model has no {author}")
        return upstream

    def bridge(self, author: Author, question: Question) -> Bridge:
        """What lies between the visible text, which is the student's, and that model.

        Nothing does for a raw prompt, which says itself how its answer begins, for a model that
        reads no markup, and where one of the formats is not known.
        """
        model = self.of(author)
        student = self.of("teacher" if self.student is None else "student").reasoning
        reads_markup = model.markup is not None and question.prompt is None
        if not reads_markup or model.reasoning is None or student is None:
            return Bridge(Reasoning(), Reasoning())
        return Bridge(student.visible, model.reasoning)

    def schedule(self, method: Method) -> MeasuredSchedule:
        """A trajectory's, where every scoring call computes its whole context."""
        student, teacher = self.of("student"), self.of("teacher")
        return MeasuredSchedule(
            student.writing_speed,
            teacher.computing_speed,
            self.hazards.setdefault(method, BreachRate()),
            teacher.gpus / student.gpus,
        )

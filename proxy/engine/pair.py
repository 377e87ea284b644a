"""Joins a student and a teacher, and keeps the breach rates of the pair."""

from dataclasses import dataclass, field

from proxy.backends.base import Question
from proxy.core.params import Method
from proxy.core.thinking import Bridge, Reasoning, is_in_thought
from proxy.core.types import Author
from proxy.engine.schedule import BreachRate, MeasuredSchedule
from proxy.engine.upstream import Upstream
from proxy.errors import MotabError


@dataclass(frozen=True, slots=True)
class Pair:
    """The upstreams that write and score; a plain model has only one of them."""

    student: Upstream | None
    teacher: Upstream | None
    hazards: dict[Method, BreachRate] = field(default_factory=dict, compare=False, kw_only=True)
    """The observed rates of breaches, by method, because each has its own kind of breach."""

    def of(self, author: Author) -> Upstream:
        """The upstream of `author`; the method never asks for a missing upstream."""
        upstream = self.student if author == "student" else self.teacher
        if upstream is None:
            raise MotabError(f"this model has no {author}")
        return upstream

    def bridge(self, author: Author, question: Question) -> Bridge:
        """The bridge between the visible text, which is the student's, and that model.

        It maps nothing for a raw prompt, which itself decides how its answer begins, for a model
        that reads no markup, and if one of the formats is not known.
        """
        model = self.of(author)
        student = self.visible.reasoning
        reads_markup = model.markup is not None and question.prompt is None
        if not reads_markup or model.reasoning is None or student is None:
            return Bridge(Reasoning(), Reasoning())
        return Bridge(student.visible, model.reasoning)

    @property
    def visible(self) -> Upstream:
        """The model in whose format the text is: the student's, unless the teacher is alone."""
        return self.of("teacher" if self.student is None else "student")

    def begins_in_thought(self, question: Question) -> bool:
        """Return whether the visible text begins inside a thought, which its prompt or the begun
        answer has opened.
        """
        if question.prompt is not None:
            return question.prompt.rstrip().endswith("<think>")
        reasoning = self.visible.reasoning
        opened = reasoning is not None and reasoning.visible.opened
        return is_in_thought(question.begun, opened=opened)

    def schedule(self, method: Method) -> MeasuredSchedule:
        """A trajectory's schedule if every scoring call computes its whole context."""
        student, teacher = self.of("student"), self.of("teacher")
        return MeasuredSchedule(
            student.writing_speed,
            teacher.computing_speed,
            self.hazards.setdefault(method, BreachRate()),
            teacher.gpus / student.gpus,
        )

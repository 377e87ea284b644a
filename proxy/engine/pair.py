"""Joins a student and a teacher, and keeps the breach rates of the pair."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from proxy.backends.base import Call, Question, Scorer
from proxy.core.params import Method
from proxy.core.thinking import Bridge, Reasoning, is_in_thought
from proxy.core.types import Party, Scoring
from proxy.engine.model_context import ModelContext, Prompts
from proxy.engine.schedule import BreachRate, Line, MeasuredSchedule
from proxy.engine.upstream import Template, Upstream
from proxy.errors import MotabError, UnsupportedField


@dataclass(frozen=True, slots=True)
class Pair:
    """The upstreams that write and score; a plain model has only one of them."""

    student: Upstream | None
    teacher: Upstream | None
    scorer: Upstream | None = field(default=None, kw_only=True)
    """The pair's own scorer, in the place of the teacher's ways to score."""
    hazards: dict[Method, BreachRate] = field(default_factory=dict, compare=False, kw_only=True)
    """The observed rates of breaches, by method, because each has its own kind of breach."""
    answering: dict[Scoring, Line] = field(default_factory=dict, compare=False, kw_only=True)
    """The time until steps were scored over their tokens, by the way of scoring."""
    formats: Mapping[str, Reasoning] = field(default_factory=dict, compare=False, kw_only=True)
    """Formats of thoughts that are not the upstream's usual format, by its name; see `under`."""

    def of(self, party: Party) -> Upstream:
        """The upstream of `party`; the method never asks for a missing upstream."""
        known = {"student": self.student, "teacher": self.teacher, "scorer": self.scorer}
        if (upstream := known[party]) is None:
            raise MotabError(f"this model has no {party}")
        return upstream

    def scored_by(self, scorer: Scorer | None) -> Party:
        """Return whose way to score that is; the teacher stands in where nothing is scored."""
        return "scorer" if scorer is not None and scorer.scoring == "http" else "teacher"

    def context(
        self, party: Party, question: Question, call: Call, prompts: Prompts | None = None
    ) -> ModelContext:
        """Return the context of a new trajectory, as that upstream's model reads it."""
        bridge = self.bridge(party, question)
        return ModelContext(self.of(party), bridge, question, call, prompts or Prompts())

    def bridge(self, party: Party, question: Question) -> Bridge:
        """The bridge between the visible text, which is the student's, and that model.

        It maps nothing for a raw prompt, which itself decides how its answer begins, for a model
        that reads no markup, and if one of the formats is not known.
        """
        model = self.of(party)
        student, own = self._format_of(self.visible), self._format_of(model)
        reads_markup = model.markup is not None and question.prompt is None
        if not reads_markup or own is None or student is None:
            return Bridge(Reasoning(), Reasoning())
        return Bridge(student.visible, own)

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
        reasoning = self._format_of(self.visible)
        opened = reasoning is not None and reasoning.visible.opened
        return is_in_thought(question.begun, opened=opened)

    def _format_of(self, upstream: Upstream) -> Reasoning | None:
        return self.formats.get(upstream.name, upstream.reasoning)

    async def under(self, kwargs: Mapping[str, Any]) -> "Pair":
        """Return the pair with the formats that its models have under variables of a request's.

        Raises `RequestError` if the variables would change nothing.
        """
        if not kwargs:
            return self
        upstreams = [one for one in (self.student, self.teacher) if one is not None]
        templates = {one.name: one.template for one in upstreams if one.template is not None}
        if len(templates) == len({one.name for one in upstreams}):
            await _check_taken(list(templates.values()), kwargs)
        found = {name: await one.reasoning(kwargs) for name, one in templates.items()}
        return replace(self, formats=found)

    def schedule(self, method: Method, scorer: Scorer) -> MeasuredSchedule:
        """A trajectory's schedule for the calls of a scorer."""
        student, server = self.of("student"), self.of(self.scored_by(scorer))
        return MeasuredSchedule(
            student.writing_speed,
            server.computing_speed,
            self.hazards.setdefault(method, BreachRate()),
            self.answering.setdefault(scorer.scoring, Line()),
            # A student's speed is that of all its servers together, a call is at one of them.
            server.gpus / student.gpus_writing,
            recomputes=scorer.recomputes,
        )


async def _check_taken(templates: Sequence[Template], kwargs: Mapping[str, Any]) -> None:
    if "reasoning_effort" in kwargs:
        wants_thought = kwargs["reasoning_effort"] != "none"
        if wants_thought and not any([await template.takes_effort() for template in templates]):
            message = (
                "reasoning_effort makes no difference to this model: its chat template or its API"
                " does not know it"
            )
            raise UnsupportedField(message, param="reasoning_effort")
    elif not any(template.takes_kwargs for template in templates):
        message = "this model's API renders messages itself, so there are no chat_template_kwargs"
        raise UnsupportedField(message, param="chat_template_kwargs")

"""Counts what a trajectory costs, in tokens and in calls."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

from proxy.backends.base import Draft, Scores
from proxy.core.types import Author, Quality, Scoring, Trajectory
from proxy.engine.budget import LimitedBy
from proxy.engine.schedule import WritingSpeed
from proxy.tracing.attributes import CACHED_TOKENS, OUTPUT_TOKENS, of_end, of_usage
from proxy.tracing.tracer import Attributes, TraceSpan


@dataclass(slots=True)
class Usage:
    """The cost of a trajectory, in calls and in tokens of the model that a field names."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    student_tokens: int = 0
    student_tokens_discarded: int = 0
    teacher_scored_tokens: int = 0
    teacher_cached_tokens: int | None = 0
    """None if the teacher's server does not report it."""
    teacher_tokens: int = 0
    teacher_tokens_discarded: int = 0
    student_calls: int = 0
    score_calls: int = 0
    correction_calls: int = 0

    def count_call(self, author: Author, num_prompt: int) -> None:
        """Count a write of an author, after `num_prompt` tokens."""
        if author == "student":
            self.student_calls += 1
        else:
            self.correction_calls += 1
        if not self.prompt_tokens:  # the first write follows the bare prompt
            self.prompt_tokens = num_prompt

    def count_tokens(self, author: Author, num_tokens: int) -> None:
        """Count the tokens that an author wrote."""
        if author == "student":
            self.student_tokens += num_tokens
        else:
            self.teacher_tokens += num_tokens

    def count_scoring(self, scores: Scores) -> None:
        """Count a scoring call that was answered."""
        self.score_calls += 1
        self.teacher_scored_tokens += scores.num_tokens
        self.count_cached(scores.num_cached_tokens)

    def count_cached(self, num_tokens: int | None) -> None:
        """Count the tokens from the teacher's cache; None if its server does not report them."""
        if self.teacher_cached_tokens is not None:
            self.teacher_cached_tokens = (
                None if num_tokens is None else self.teacher_cached_tokens + num_tokens
            )

    def abandon(self) -> None:
        """Count all that was written as discarded: the trajectory came to no end."""
        self.completion_tokens = 0
        self.student_tokens_discarded = self.student_tokens
        self.teacher_tokens_discarded = self.teacher_tokens

    def add_wasted(self, other: "Usage") -> None:
        """Add the cost of an abandoned attempt at the same text."""
        for name in _SPENT:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.count_cached(other.teacher_cached_tokens)

    def attributes(self) -> Attributes:
        """Return the counts for the trajectory's span."""
        return of_usage(asdict(self))

    def conclude(self, trajectory: Trajectory, num_revise: int) -> None:
        """Separate the output's tokens from the rest; `num_revise` are the revise token's own."""
        self.student_tokens_discarded = self.student_tokens - trajectory.student_tokens
        self.teacher_tokens_discarded = self.teacher_tokens - trajectory.teacher_tokens
        self.completion_tokens = trajectory.student_tokens + num_revise + trajectory.teacher_tokens


# The fields that are sums over attempts; the others describe the text that the client sees.
_SPENT = tuple(
    name
    for name in Usage.__dataclass_fields__
    if name not in {"prompt_tokens", "completion_tokens", "teacher_cached_tokens"}
)


@dataclass(slots=True)
class WriteMeter:
    """Counts one write: in its trajectory's usage, in its server's speed and in its span."""

    author: Author
    usage: Usage
    speed: WritingSpeed
    span: TraceSpan
    _num_tokens: int = field(init=False, default=0)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Measure while the text is written."""
        try:
            with self.speed.writing():
                yield
        finally:
            self.span.set({OUTPUT_TOKENS: self._num_tokens})

    def count(self, draft: Draft) -> None:
        """Count a draft, and the end if it has it."""
        num_tokens = len(draft.pieces)
        if not self._num_tokens and num_tokens:
            self.span.event("first_token", {})
        self._num_tokens += num_tokens
        self.speed.count(num_tokens)
        self.usage.count_tokens(self.author, num_tokens)
        if draft.end is not None:
            if self.author == "teacher":
                self.usage.count_cached(draft.num_cached_tokens)
            self.span.set({**of_end(draft.end), CACHED_TOKENS: draft.num_cached_tokens})


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished trajectory and its cost. `scoring` names the way the teacher scored, if it did;
    `quality` has the flags of a text that would teach something wrong; `fallbacks` are the steps,
    by index, that another judge had to mark.
    """

    trajectory: Trajectory
    usage: Usage
    scoring: Scoring | None
    quality: tuple[Quality, ...] = ()
    fallbacks: Mapping[Scoring, tuple[int, ...]] = field(default_factory=dict)
    limited_by: LimitedBy | None = None
    """The model's limit that ended the text before its own end."""

    def attributes(self) -> Attributes:
        """Return the result for the trajectory's span; its `Usage` has the counts."""
        found, chosen = self.trajectory, self.trajectory.chosen
        of_several = (
            {}
            if chosen is None
            else {
                "motab.num_corrections": len(chosen.answers),
                "motab.chosen_correction": chosen.index,
                "motab.chosen_by": chosen.by,
                "motab.num_lost_corrections": len(chosen.lost) or None,
            }
        )
        return {
            **of_end(found.finish_reason),
            "motab.outcome": "safe" if found.breach is None else "breach",
            "motab.num_steps": len(found.steps),
            "motab.breach_step": found.breach,
            "motab.bifurcation_step": found.bifurcation,
            "motab.num_breaches": len(found.breaches) or None,
            **of_several,
            "motab.scoring": self.scoring,
            "motab.quality": self.quality or None,
            "motab.limited_by": None if self.limited_by is None else self.limited_by.limit,
        }

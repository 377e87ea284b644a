"""Looks up token log-probabilities by character position, so that tokenizers can be compared."""

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, Literal, NamedTuple, get_args

from trajectory_records.parts import ModelLogprobs, TokenLogprobs

Model = Literal["student", "teacher"]
MODELS: Final[tuple[Model, ...]] = get_args(Model)


class Mark(NamedTuple):
    """Totals up to a position: tokens, their log-probability, and that of the characters."""

    num_tokens: int
    tokens: float
    characters: float


class TextLogprobs:
    """One model's log-probabilities of a text; positions are in characters."""

    def __init__(self, tokens: ModelLogprobs) -> None:
        self._ends = tokens.ends
        self._logprobs = tokens.logprobs
        self._totals = [0.0, *accumulate(tokens.logprobs)]
        # Bins of several widths share most of their edges.
        self._marks = {0: Mark(0, 0.0, 0.0)}

    def tokens(self, start: int, end: int) -> tuple[int, float]:
        """Return the number of tokens that end within the stretch, and their log-probability."""
        first, last = self._mark(start), self._mark(end)
        return last.num_tokens - first.num_tokens, last.tokens - first.tokens

    def characters(self, start: int, end: int) -> float:
        """Return the stretch's log-probability; a token's spreads evenly over its characters."""
        return self._mark(end).characters - self._mark(start).characters

    def _mark(self, position: int) -> Mark:
        found = self._marks.get(position)
        if found is None:
            found = self._marks[position] = self._marked(position)
        return found

    def _marked(self, position: int) -> Mark:
        num = bisect_right(self._ends, position)
        total = self._totals[num]
        if num == len(self._ends):
            return Mark(num, total, total)
        start = self._ends[num - 1] if num else 0
        share = (position - start) / (self._ends[num] - start)
        return Mark(num, total, total + self._logprobs[num] * share)


@dataclass(frozen=True, slots=True)
class BothModels:
    """The log-probabilities of one text under both models."""

    student: TextLogprobs
    teacher: TextLogprobs

    @classmethod
    def of(cls, logprobs: TokenLogprobs) -> "BothModels":
        return cls(TextLogprobs(logprobs.student), TextLogprobs(logprobs.teacher))

    def by(self, model: Model) -> TextLogprobs:
        return self.student if model == "student" else self.teacher

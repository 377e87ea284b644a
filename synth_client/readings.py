"""Token log-probabilities by character positions, so that two tokenizers meet on one text."""

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, Literal, get_args

from synth_client.record import BothLogprobs, TokenLogprobs

Model = Literal["student", "teacher"]
MODELS: Final[tuple[Model, ...]] = get_args(Model)


class Reading:
    """One model's log-probabilities of a text; positions are in characters."""

    def __init__(self, tokens: TokenLogprobs) -> None:
        self._ends = tokens.ends
        self._logprobs = tokens.logprobs
        self._totals = [0.0, *accumulate(tokens.logprobs)]

    def tokens(self, start: int, end: int) -> tuple[int, float]:
        """How many tokens end within the stretch, and their log-probability together."""
        first, last = self._num_until(start), self._num_until(end)
        return last - first, self._totals[last] - self._totals[first]

    def characters(self, start: int, end: int) -> float:
        """The log-probability of the stretch, that of a token spread evenly over its characters."""
        return self._until(end) - self._until(start)

    def _num_until(self, position: int) -> int:
        # A token may end at 0, within the first character. It belongs to the text, too.
        return bisect_right(self._ends, position) if position else 0

    def _until(self, position: int) -> float:
        num = self._num_until(position)
        total = self._totals[num]
        if not position or num == len(self._ends):
            return total
        start = self._ends[num - 1] if num else 0
        return total + self._logprobs[num] * (position - start) / (self._ends[num] - start)


@dataclass(frozen=True, slots=True)
class Readings:
    """The same text as both models find it."""

    student: Reading
    teacher: Reading

    @classmethod
    def of(cls, logprobs: BothLogprobs) -> "Readings":
        return cls(Reading(logprobs.student), Reading(logprobs.teacher))

    def by(self, model: Model) -> Reading:
        return self.student if model == "student" else self.teacher

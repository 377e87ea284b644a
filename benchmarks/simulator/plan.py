"""What a simulated model writes: the question itself says it, so servers need no side channel."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.simulator.words import (
    ASSISTANT,
    DELIMITER_ID,
    DOUBTFUL,
    END,
    SURE,
    USER,
    WRONG,
    decode,
    encode,
)

_NONE = 9999
_QUESTION = re.compile(r"Task (\d{6}) (\d{5}) (\d{5}) (\d{4}):")
_COLON = encode(":")[0]
# Long enough for the template's mark before the question and the question itself.
_HEAD_TOKENS = 256
# Primes far apart: words of neighbouring places have nothing to do with each other.
_BY_SEED, _BY_PLACE = 7919, 104_729


@dataclass(frozen=True, slots=True)
class Plan:
    """A trajectory: `num_steps` steps of `step_tokens` tokens, each ended by the delimiter.

    At `breach` the student writes what the teacher rejects, and the step before it is doubtful,
    so the bifurcation is there. The teacher writes the same steps without a fault.
    """

    seed: int
    num_steps: int
    step_tokens: int
    breach: int | None = None

    @property
    def num_tokens(self) -> int:
        """The text's tokens, without the end token."""
        return self.num_steps * self.step_tokens

    @property
    def question(self) -> str:
        """The user's message that calls for it."""
        breach = _NONE if self.breach is None else self.breach
        return f"Task {self.seed:06} {self.num_steps:05} {self.step_tokens:05} {breach:04}:"

    def token(self, place: int, *, errs: bool) -> int:
        """The token at `place` of the text; the end token after the last."""
        step, within = divmod(place, self.step_tokens)
        if step >= self.num_steps:
            return END
        if within == self.step_tokens - 1:
            return DELIMITER_ID
        words = SURE
        if errs and self.breach is not None:
            if step == self.breach:
                words = WRONG
            elif step == self.breach - 1:
                words = DOUBTFUL
        return words[(self.seed * _BY_SEED + place * _BY_PLACE) % len(words)]


@dataclass(frozen=True, slots=True)
class Placed:
    """A plan, and how many tokens of its text a context holds already."""

    plan: Plan
    place: int


_IDLE = Placed(Plan(0, 1, 16), 0)


def read_context(ids: Sequence[int]) -> Placed:
    """The plan that a context's question names; 16 tokens of anything where it names none."""
    head = ids[:_HEAD_TOKENS]
    found = _QUESTION.search(decode([i for i in head if i not in {USER, ASSISTANT}]))
    if found is None:
        return _IDLE
    seed, num_steps, step_tokens, breach = map(int, found.groups())
    plan = Plan(seed, num_steps, step_tokens, None if breach == _NONE else breach)
    # The colon is the only one before the text, whose words have none.
    start = list(head).index(_COLON) + 1
    if start < len(ids) and ids[start] == ASSISTANT:
        start += 1
    return Placed(plan, len(ids) - start)

"""Plans what a simulated model writes; the question itself carries the plan to the servers."""

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
# Primes far apart, so that words of neighbouring places are unrelated.
_BY_SEED, _BY_PLACE = 7919, 104_729


@dataclass(frozen=True, slots=True)
class Plan:
    """A trajectory: `num_steps` steps of `step_tokens` tokens, each ended by the delimiter.

    At `breach` the student writes a step that the teacher rejects; the step before it is doubtful,
    so the bifurcation is there. The teacher writes the same steps without a fault.
    """

    seed: int
    num_steps: int
    step_tokens: int
    breach: int | None = None

    @property
    def num_tokens(self) -> int:
        """The number of the text's tokens, without the end token."""
        return self.num_steps * self.step_tokens

    @property
    def question(self) -> str:
        """The user's message that asks for this plan."""
        breach = _NONE if self.breach is None else self.breach
        return f"Task {self.seed:06} {self.num_steps:05} {self.step_tokens:05} {breach:04}:"

    def token(self, place: int, *, errs: bool) -> int:
        """Return the token at `place` of the text, the end token after the last place."""
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
    """A plan, and the number of tokens of its text that a context holds already."""

    plan: Plan
    place: int


_IDLE = Placed(Plan(0, 1, 16), 0)


def read_context(ids: Sequence[int]) -> Placed:
    """Return the plan that a context's question names; without one, 16 arbitrary tokens."""
    head = ids[:_HEAD_TOKENS]
    found = _QUESTION.search(decode([i for i in head if i not in {USER, ASSISTANT}]))
    if found is None:
        return _IDLE
    seed, num_steps, step_tokens, breach = map(int, found.groups())
    plan = Plan(seed, num_steps, step_tokens, None if breach == _NONE else breach)
    # The only colon before the text, because its words contain none.
    start = list(head).index(_COLON) + 1
    if start < len(ids) and ids[start] == ASSISTANT:
        start += 1
    return Placed(plan, len(ids) - start)

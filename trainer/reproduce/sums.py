"""Makes the task `sums`: chains of sums and differences, in words and symbols.

It follows Reasoning Gym's `chain_sum`. To check a step is as hard as to compute it. Every step
starts from the result of the previous step, so one slip makes the answer wrong; all values are from
0 to `LARGEST`, so late steps are not harder than early ones.
"""

import random
import re
from collections.abc import Sequence
from typing import ClassVar, Final

from trainer.reproduce.task import Exercise, Level, State, Task

LARGEST: Final = 29
_LARGEST_TERM: Final = 9
_NUM_TERMS: Final[dict[Level, tuple[int, ...]]] = {"easy": (2, 3), "hard": (5, 6)}
_WORDINGS: Final = ("What is {chain}?", "Compute {chain}.", "{chain} =", "How much is {chain}?")
_WORDS: Final = {1: ("+", "plus", "and"), -1: ("-", "minus", "less")}


class Sums(Task):
    """A state's value is the sum so far; its terms are taken in their order."""

    name: ClassVar = "sums"
    step: ClassVar = re.compile(r"(?P<value>\d+)(?P<term>[+-]\d+)=(?P<result>\d+)\.")

    def worded(self, value: int, term: int, result: int) -> str:
        """Return a step in symbols."""
        return f"{value}{term:+d}={result}."

    def term_of(self, said: str) -> int:
        """Return the term with its sign."""
        return int(said)

    def problem(self, name: str, rng: random.Random, level: Level) -> Exercise:
        """Draw a chain whose values stay within bounds."""
        start = value = rng.randint(1, LARGEST)
        num_terms = rng.choice(_NUM_TERMS[level])
        terms: list[int] = []
        chain = [str(start)]
        while len(terms) < num_terms:
            sign = rng.choice((1, -1))
            size = rng.randint(1, _LARGEST_TERM)
            if 0 <= value + sign * size <= LARGEST:
                value += sign * size
                terms.append(sign * size)
                chain.append(f"{rng.choice(_WORDS[sign])} {size}")
        return Exercise(
            id=name,
            text=rng.choice(_WORDINGS).format(chain=" ".join(chain)),
            level=level,
            start=State(start, tuple(terms)),
            answer=str(value),
        )

    def num_steps(self, problem: Exercise) -> int:
        """Return the number of terms."""
        return len(problem.start.left)

    def right_terms(self, state: State) -> Sequence[int]:
        """Return the next term."""
        return state.left[:1]

    def wrong_terms(self, state: State) -> Sequence[int]:
        """Return the next term with the wrong sign, and the term after it."""
        terms = {-state.left[0], *state.left[1:2]} - {state.left[0]}
        return [term for term in sorted(terms) if 0 <= state.value + term <= LARGEST]

    def careless_terms(self, state: State) -> Sequence[int]:
        """Return the next term, if the value stays within bounds."""
        return [term for term in state.left[:1] if 0 <= state.value + term <= LARGEST]

    def after(self, state: State, term: int, value: int) -> State | None:
        """Return the state with the next term added."""
        if state.left[:1] != (term,):
            return None
        return State(value, state.left[1:], (*state.done, term))

    def astray(self, state: State, term: int, value: int) -> State:
        """Return the state after the term, and after a term that was skipped for it."""
        place = state.left.index(term) if term in state.left[:2] else 0
        return State(value, state.left[place + 1 :], (*state.done, term))

    def is_end(self, state: State) -> bool:
        """Return whether all terms are added."""
        return not state.left

    def answer(self, state: State) -> str:
        """Return the sum."""
        return str(state.value)

"""Makes the task `sets`: choose the numbers that make a total.

A wrong choice shows only later, when nothing fits any more; to check a choice is easier than to
make it. Every problem has one solution, in any order.
"""

import random
import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations
from typing import ClassVar, Final

from trainer.reproduce.task import Exercise, Level, State, Task

LARGEST: Final = 12
_NUM_NUMBERS: Final[dict[Level, tuple[int, ...]]] = {"easy": (3,), "hard": (5,)}
_NUM_CHOSEN: Final[dict[Level, tuple[int, ...]]] = {"easy": (1, 2, 3), "hard": (2, 3)}
_WORDINGS: Final = (
    "Which of {numbers} make {total}?",
    "Make {total} from {numbers}.",
    "{numbers}: which add up to {total}?",
    "Choose from {numbers} to get {total}.",
)


class Sets(Task):
    """A state's value is what is still missing, its terms are the numbers, each negative."""

    name: ClassVar = "sets"
    has_opening: ClassVar = True
    # The choice comes first, where the teacher's entropy is measured.
    step: ClassVar = re.compile(r"(?P<term>\d+) from (?P<value>\d+) is (?P<result>\d+)\.")

    def worded(self, value: int, term: int, result: int) -> str:
        """Return a step in words."""
        return f"{-term} from {value} is {result}."

    def term_of(self, said: str) -> int:
        """Return the number that is taken away, as a term."""
        return -int(said)

    def problem(self, name: str, rng: random.Random, level: Level) -> Exercise:
        """Draw numbers of which one choice alone makes the total."""
        while True:
            numbers = rng.sample(range(1, LARGEST + 1), rng.choice(_NUM_NUMBERS[level]))
            chosen = rng.sample(numbers, rng.choice(_NUM_CHOSEN[level]))
            total = sum(chosen)
            if len(_choices(tuple(sorted(numbers)), total)) == 1:
                break
        said = " ".join(map(str, numbers))
        return Exercise(
            id=name,
            text=rng.choice(_WORDINGS).format(numbers=said, total=total),
            level=level,
            start=State(total, tuple(-number for number in numbers)),
            answer=",".join(map(str, sorted(chosen))),
        )

    def num_steps(self, problem: Exercise) -> int:
        """Return how many numbers are chosen."""
        return len(problem.answer.split(","))

    def right_terms(self, state: State) -> Sequence[int]:
        """Return the terms of all choices that make the rest."""
        numbers = tuple(sorted(-term for term in state.left))
        choices = _choices(numbers, state.value)
        return sorted({-number for choice in choices for number in choice})

    def wrong_terms(self, state: State) -> Sequence[int]:
        """Return the terms that fit, but after which the rest cannot be made."""
        right = self.right_terms(state)
        return [term for term in self.careless_terms(state) if term not in right]

    def careless_terms(self, state: State) -> Sequence[int]:
        """Return the terms that fit."""
        return [term for term in state.left if -term <= state.value]

    def after(self, state: State, term: int, value: int) -> State | None:
        """Return the state with one number chosen."""
        return self.astray(state, term, value) if term in state.left else None

    def astray(self, state: State, term: int, value: int) -> State:
        """Return the state with one number chosen, because every wrong term is one of them."""
        left = tuple(other for other in state.left if other != term)
        return State(value, left, (*state.done, term))

    def is_end(self, state: State) -> bool:
        """Return whether nothing is missing."""
        return state.value == 0 and bool(state.done)

    def answer(self, state: State) -> str:
        """Return the numbers in the order in which they were chosen."""
        return ",".join(str(-term) for term in state.done)


@lru_cache(maxsize=100_000)
def _choices(numbers: tuple[int, ...], total: int) -> tuple[tuple[int, ...], ...]:
    return tuple(
        choice
        for num in range(1, len(numbers) + 1)
        for choice in combinations(numbers, num)
        if sum(choice) == total
    )

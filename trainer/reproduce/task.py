"""Makes the task: chains of sums and differences, in words and symbols, solved step by paragraph.

It follows Reasoning Gym's `chain_sum`. Every step starts from the result of the previous step, so
one slip makes the answer wrong; all values are from 0 to 99, so late steps are not harder than
early ones.
"""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

Mistake = Literal["sum", "place", "other"]
"""A wrong result; a step that is not the next one; anything else."""

LARGEST: Final = 99
_STEP: Final = re.compile(r"(First )?(\d+)([+-]\d+)=(\d+)")
_END: Final = ".\n\n"
_WORDS: Final = {1: ("+", "plus", "and"), -1: ("-", "minus", "less")}
_SHARE_OF_DIGITS: Final = 0.25
_SHARE_SPLIT: Final = 0.5


@dataclass(frozen=True, slots=True)
class ChainSum:
    """`terms` are added to `start` one after the other; `text` says them in words and symbols."""

    id: str
    start: int
    terms: tuple[int, ...]
    text: str

    @property
    def answer(self) -> int:
        """The right answer."""
        return self.start + sum(self.terms)


def problems(name: str, num: int, num_terms: Sequence[int]) -> Iterator[ChainSum]:
    """Yield `num` different problems, each with one of `num_terms` terms; the name is the seed."""
    rng = random.Random(name)  # noqa: S311 - reproducible, not secret
    seen: set[str] = set()
    while len(seen) < num:
        problem = _problem(f"{name}-{len(seen)}", rng, rng.choice(num_terms))
        if problem.text not in seen:
            seen.add(problem.text)
            yield problem


def _problem(name: str, rng: random.Random, num_terms: int) -> ChainSum:
    start = value = rng.randint(1, LARGEST)
    terms: list[int] = []
    text = [f"What is {start}"]
    while len(terms) < num_terms:
        sign = rng.choice((1, -1))
        size = rng.randint(1, 9 if rng.random() < _SHARE_OF_DIGITS else LARGEST)
        if 0 <= value + sign * size <= LARGEST:
            value += sign * size
            terms.append(sign * size)
            text.append(f"{rng.choice(_WORDS[sign])} {size}")
    return ChainSum(name, start, tuple(terms), f"{' '.join(text)}?")


def worked(problem: ChainSum, rng: random.Random) -> str:
    """Return a right solution.

    A term of two digits is taken in two steps half of the time, tens first; the first word of the
    first step says so. There, and only there, the continuation cannot be predicted.
    """
    steps: list[str] = []
    value = problem.start
    for term in problem.terms:
        goal = value + term
        tens = _tens(term)
        if tens not in {0, term} and rng.random() < _SHARE_SPLIT:
            steps.append(f"First {value}{tens:+d}={value + tens}{_END}")
            value += tens
        steps.append(f"{value}{goal - value:+d}={goal}{_END}")
        value = goal
    return f"{''.join(steps)}The answer is \\boxed{{{value}}}."


def first_mistake(problem: ChainSum, solution: str) -> Mistake | None:
    """Return the first mistake; None for a right solution, and if only the answer is wrong."""
    value, terms = problem.start, list(problem.terms)
    for text in solution.split(_END)[:-1]:
        step = _STEP.fullmatch(text)
        if step is None:
            return "other"
        before, term, after = (int(step[index]) for index in (2, 3, 4))
        if not terms or before != value:
            return "place"
        if step[1] and term == _tens(terms[0]) != terms[0]:
            terms[0] -= term
        elif term == terms[0]:
            del terms[0]
        else:
            return "place"
        if before + term != after:
            return "sum"
        value = after
    return "place" if terms else None


def _tens(term: int) -> int:
    return term - term % 10 if term > 0 else term + -term % 10

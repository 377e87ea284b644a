"""Makes chains of sums and differences, the questions of the benchmarks and of the demo.

They follow Reasoning Gym's `chain_sum`: in words and symbols, with all values from 0 to 99.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

LARGEST: Final = 99
_WORDS: Final = {1: ("+", "plus", "and"), -1: ("-", "minus", "less")}
_SHARE_OF_DIGITS: Final = 0.25


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

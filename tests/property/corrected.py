"""The choice among several corrections as a plain loop.

Written from the page on the algorithm alone; shares no code with `proxy.core`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Correction:
    """A correction by the teacher, and how it ends: `stop`, `length` or `lost`."""

    tokens: list[str]
    end: str

    @property
    def text(self) -> str:
        return "".join(self.tokens)


@dataclass(frozen=True)
class Kept:
    index: int
    by: str
    answers: list[str | None]
    lost: list[int]


def keep(
    corrections: Sequence[Correction],
    answer_of: Callable[[Correction], str | None],
    are_equal: Callable[[str, str], bool],
    reference: str | None,
) -> Kept:
    """`answer_of` reads the whole output that ends with a correction."""
    answers: list[str | None] = []
    lost = []
    for index, one in enumerate(corrections):
        if one.end == "lost":
            lost.append(index)
            answers.append(None)
        else:
            answers.append(answer_of(one))
    written = [index for index in range(len(corrections)) if index not in lost]
    if any(corrections[index].text.split() for index in written):
        written = [index for index in written if corrections[index].text.split()]

    def agree(one: int, other: int) -> bool:
        left, right = answers[one], answers[other]
        return left is not None and right is not None and are_equal(left, right)

    for index in written:
        answer = answers[index]
        if reference is not None and answer is not None and are_equal(answer, reference):
            return Kept(index, "reference", answers, lost)
    voters = [index for index in written if corrections[index].end == "stop"]
    voters = voters or written
    best, best_rank = -1, (0, 0)
    for index in voters:
        num_votes = sum(agree(index, other) for other in voters)
        rank = (num_votes, -len(corrections[index].tokens))
        if best == -1 or rank > best_rank:
            best, best_rank = index, rank
    return Kept(best, "majority", answers, lost)

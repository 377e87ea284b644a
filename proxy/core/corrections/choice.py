"""Chooses one of several corrections by their answers: a right one, or one of the majority.

The choice depends on the texts alone, not on which of them came first.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from proxy.core.types import Chosen, FinishReason, FoundAnswer


@dataclass(slots=True)
class Correction:
    """One of several corrections, as far as it is written: its text, a piece for each token."""

    pieces: list[str] = field(default_factory=list)
    end: FinishReason | None = None
    is_lost: bool = False
    """Whether its server failed, so that its text has no end."""

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def is_over(self) -> bool:
        """Return whether nothing more of it will come."""
        return self.is_lost or self.end is not None


def choose(candidates: Sequence[Correction], answers: Mapping[int, FoundAnswer]) -> Chosen:
    """Return which candidate is kept, given the answers of those that are not lost, by index.

    The first right one is kept, by index. Where none is known to be right, those that came to their
    own end vote by their answers, all if none did, and the shortest of the majority is kept. Of two
    majorities of the same size, the one with the shortest correction wins; of corrections of the
    same length, the first. Where no answer can be read, the shortest is kept. A blank correction
    stands back behind all others, because there is nothing to learn from it.
    """
    found = [answers[index].text if index in answers else None for index in range(len(candidates))]
    lost = tuple(index for index in range(len(candidates)) if index not in answers)
    some = [index for index in answers if candidates[index].text.strip()] or list(answers)
    right = [index for index in some if answers[index].is_right]
    if right:
        return Chosen(min(right), "reference", tuple(found), lost)
    voters = [index for index in some if candidates[index].end == "stop"] or some
    groups = [answers[index].group for index in voters]
    votes = Counter(group for group in groups if group is not None)
    most = max(votes.values(), default=0)
    winning = {group for group, num in votes.items() if num == most}
    kept = [index for index in voters if not winning or answers[index].group in winning]
    index = min(kept, key=lambda index: (len(candidates[index].pieces), index))
    return Chosen(index, "majority", tuple(found), lost)

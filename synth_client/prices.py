"""Computes the cost of tokens from prices per million tokens, by what the tokens are for."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from trajectory_records.record import Usage

PRICED: Final[Mapping[str, str]] = {
    "prompt": "questions",
    "student": "written by the student",
    "scored": "scored by the teacher",
    "teacher": "written by the teacher",
}


def priced_tokens(usage: Usage) -> dict[str, int]:
    """Return the tokens of a usage by the names in `PRICED`; counts that are not known are 0."""
    return {
        "prompt": usage.prompt_tokens or 0,
        "student": usage.motab.student_tokens,
        "scored": usage.motab.teacher_scored_tokens,
        "teacher": usage.motab.teacher_tokens or 0,
    }


@dataclass(frozen=True, slots=True)
class Cost:
    """Tokens of one kind and, if they have a price, their cost."""

    kind: str
    label: str
    num_tokens: int
    price: float | None

    @property
    def cost(self) -> float | None:
        return None if self.price is None else self.price * self.num_tokens / 1e6


def costs_of(tokens: Mapping[str, int], prices: Mapping[str, float]) -> tuple[Cost, ...]:
    """Return each kind of tokens with its cost; `tokens` and `prices` use the names in `PRICED`."""
    return tuple(
        Cost(kind, label, tokens.get(kind, 0), prices.get(kind)) for kind, label in PRICED.items()
    )

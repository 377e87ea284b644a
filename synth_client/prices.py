"""What tokens cost: prices for a million tokens, by what the tokens are for."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import typer

PRICED: Final[Mapping[str, str]] = {
    "prompt": "questions",
    "student": "written by the student",
    "scored": "scored by the teacher",
    "teacher": "written by the teacher",
}
_TOKENS_OF_A_PRICE: Final = 1e6


@dataclass(frozen=True, slots=True)
class Cost:
    """Tokens of one kind and, where they have a price, what they cost."""

    kind: str
    label: str
    num_tokens: int
    price: float | None

    @property
    def cost(self) -> float | None:
        return None if self.price is None else self.price * self.num_tokens / _TOKENS_OF_A_PRICE


def costs_of(tokens: Mapping[str, int], prices: Mapping[str, float]) -> tuple[Cost, ...]:
    """Every kind of tokens with its cost. `tokens` and `prices` go by the names in `PRICED`."""
    return tuple(
        Cost(kind, label, tokens.get(kind, 0), prices.get(kind)) for kind, label in PRICED.items()
    )


def parse_prices(texts: Iterable[str] | None) -> dict[str, float]:
    """The values of `--price KIND=PRICE`; raises `BadParameter` saying what would be right."""
    return dict(_parse(text) for text in texts or ())


def _parse(text: str) -> tuple[str, float]:
    kind, _, value = text.partition("=")
    try:
        price = float(value)
    except ValueError:
        price = -1.0
    if kind not in PRICED or not 0 <= price < float("inf"):
        raise typer.BadParameter(f"--price {text}: wanted is one of {', '.join(PRICED)}=PRICE")
    return kind, price

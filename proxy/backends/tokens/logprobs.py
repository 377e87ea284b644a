"""Log-probabilities as servers write them."""

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field


def finite(logprob: float | None, lowest: float) -> float | None:
    """`logprob`, or -inf where it is `lowest` or less: JSON has none, so servers write a number.

    None stays None, which core refuses.
    """
    return -math.inf if logprob is not None and logprob <= lowest else logprob


def all_finite(logprobs: Iterable[float | None], lowest: float) -> list[float | None]:
    """Each of them as `finite` gives it."""
    return [-math.inf if x is not None and x <= lowest else x for x in logprobs]


def complete(top: list[float | None], top_k: int) -> list[float | None]:
    """`top`. Raises ValueError where it is shorter than what was asked for."""
    if len(top) < top_k:
        raise ValueError(f"{top_k} top log-probabilities were asked for, {len(top)} came")
    return top


@dataclass(slots=True)
class PieceLogprobs:
    """Hands out a stream's log-probabilities with the pieces, which come later than their tokens.

    Pieces come in the order of the tokens, one each; text that comes after all of its tokens, as a
    held-back character does, is a piece for which none is left.
    """

    wanted: bool
    """Else nothing is handed out."""
    _waiting: deque[float] = field(default_factory=deque)

    def add(self, logprobs: Iterable[float | None]) -> None:
        """Those of the next tokens; one that is None is missing, which core refuses as NaN."""
        self._waiting.extend(math.nan if x is None else x for x in logprobs)

    def take(self, num_pieces: int) -> tuple[tuple[float, ...], ...] | None:
        """Those of the next pieces."""
        if not self.wanted:
            return None
        pieces = range(num_pieces)
        return tuple((self._waiting.popleft(),) if self._waiting else () for _ in pieces)

    def drop_last(self) -> None:
        """The last token that was added was an end token, which is no text."""
        if self._waiting:
            self._waiting.pop()

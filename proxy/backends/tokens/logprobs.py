"""Reads log-probabilities as servers write them."""

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field


def finite(logprob: float | None, lowest: float) -> float | None:
    """`logprob`, or -inf if it is `lowest` or less: servers write a number, as JSON has no -inf.

    None stays None, which core refuses.
    """
    return -math.inf if logprob is not None and logprob <= lowest else logprob


def all_finite(logprobs: Iterable[float | None], lowest: float) -> list[float | None]:
    """Apply `finite` to each log-probability."""
    found = list(logprobs)
    # Nearly always nothing is missing or so low, which two passes in C find out.
    if None not in found and min(found, default=0.0) > lowest:  # type: ignore[operator, type-var]
        return found
    return [-math.inf if x is not None and x <= lowest else x for x in found]


def complete(top: list[float | None], top_k: int) -> list[float | None]:
    """Return `top`. Raises ValueError if it is shorter than requested."""
    if len(top) < top_k:
        raise ValueError(f"{top_k} top log-probabilities were asked for, {len(top)} came")
    return top


@dataclass(slots=True)
class PieceLogprobs:
    """Hands out a stream's log-probabilities with the pieces, which come later than their tokens.

    Pieces come in the order of the tokens, one per token; text that comes after all of its tokens,
    such as a held-back character, is a piece without a log-probability.
    """

    wanted: bool
    """If False, nothing is handed out."""
    _waiting: deque[float] = field(default_factory=deque)

    def add(self, logprobs: Iterable[float | None]) -> None:
        """Add those of the next tokens; a missing one (None) becomes NaN, which core refuses."""
        self._waiting.extend(math.nan if x is None else x for x in logprobs)

    def take(self, num_pieces: int) -> tuple[tuple[float, ...], ...] | None:
        """Return the log-probabilities of the next pieces."""
        if not self.wanted:
            return None
        pieces = range(num_pieces)
        return tuple((self._waiting.popleft(),) if self._waiting else () for _ in pieces)

    def drop_last(self) -> None:
        """Drop the log-probability of the last token: it was an end token, which has no text."""
        if self._waiting:
            self._waiting.pop()

"""Log-probabilities as servers write them."""

import math


def finite(logprob: float | None, lowest: float) -> float | None:
    """`logprob`, or -inf where it is `lowest` or less: JSON has none, so servers write a number.

    None stays None, which core refuses.
    """
    return -math.inf if logprob is not None and logprob <= lowest else logprob


def complete(top: list[float | None], top_k: int) -> list[float | None]:
    """`top`. Raises ValueError where it is shorter than what was asked for."""
    if len(top) < top_k:
        raise ValueError(f"{top_k} top log-probabilities were asked for, {len(top)} came")
    return top

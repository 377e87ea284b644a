"""Cuts contexts into steps and computes what their scores must be."""

import math

from proxy.backends.base import Context, Segment


def steps_at_the_end(ids: list[int], *lengths: int) -> Context:
    """A context of these tokens; its last ones are cut into steps of these lengths."""
    start = len(ids) - sum(lengths)
    context = Context(Segment("", tuple(ids[:start])))
    for index, length in enumerate(lengths):
        context.append(Segment(f"step {index}", tuple(ids[start : start + length])))
        start += length
    return context


def geometric_mean(logprobs: list[float]) -> float:
    """V_t of Eq. 5, from its tokens' log-probabilities."""
    return math.exp(sum(logprobs) / len(logprobs))


def entropy_from(*logprobs: float) -> float:
    """H_t of Eq. 6, of candidates that are all there are."""
    weights = [math.exp(x) for x in logprobs]
    return -sum(w / sum(weights) * math.log(w / sum(weights)) for w in weights if w)

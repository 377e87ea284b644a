"""Computes a value and an entropy from the teacher's log-probabilities. Missing is never zero."""

import math
from collections.abc import Sequence
from typing import cast

# Servers compute log-probabilities in float32, so a certain token may come out a little above 0.
_LOGPROB_SLACK = 1e-3


def checked_logprob(logprob: float | None, what: str) -> float:
    """Return `logprob`, at most 0. Raises ValueError if it is missing, NaN or positive."""
    if logprob is None:
        raise ValueError(f"{what} is missing")
    if math.isnan(logprob) or logprob > _LOGPROB_SLACK:
        raise ValueError(f"{what} is {logprob}, which is not a log-probability")
    return min(logprob, 0.0)


def _checked(logprobs: Sequence[float | None], what: str) -> Sequence[float]:
    """Apply `checked_logprob` to each entry; `what` names an entry by its index."""
    # Nearly always no entry is missing or above 0, and a sum that is not NaN had no NaN in it: some
    # passes in C instead of a loop over every scored token.
    if None not in logprobs:
        known = cast("Sequence[float]", logprobs)
        if known and max(known) <= 0.0 and not math.isnan(sum(known)):
            return known
    return [checked_logprob(x, what.format(i)) for i, x in enumerate(logprobs)]


def oracle_value(logprobs: Sequence[float | None]) -> float:
    """V_t of Eq. 5: the geometric mean probability of the step's L_t teacher tokens, in [0, 1].

    `logprobs` are natural logarithms, one per token. -inf is legal and gives 0. Raises ValueError
    for an empty sequence and for a missing, NaN or positive entry.
    """
    if not logprobs:
        raise ValueError("the step has no log-probabilities")
    checked = _checked(logprobs, "log-probability {} of the step")
    return math.exp(math.fsum(checked) / len(logprobs))


def entropy(top_logprobs: Sequence[float | None], top_k: int) -> float:
    """H_t of Eq. 6 in nats: the entropy of the `top_k` largest entries, renormalised.

    `top_logprobs` are natural logarithms in any order; a server may add the prompt's own token
    as entry K+1. Raises ValueError if there are fewer than 2 entries, if an entry is missing or
    NaN, and if no entry has any probability.
    """
    largest = sorted(_checked(top_logprobs, "top log-probability {}"), reverse=True)[:top_k]
    if len(largest) < 2:
        raise ValueError(f"an entropy needs at least 2 top log-probabilities, got {len(largest)}")
    if largest[0] == -math.inf:
        raise ValueError("every top log-probability is -inf")
    # H = log Z - sum(q log w), with w = q Z; entries without probability add nothing.
    logs = [x - largest[0] for x in largest if x > -math.inf]
    weights = list(map(math.exp, logs))
    total = math.fsum(weights)
    mean_log = math.fsum([w * x for w, x in zip(weights, logs, strict=True)]) / total
    return max(0.0, math.log(total) - mean_log)

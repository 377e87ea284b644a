"""Finds the step that is to blame for a breach (Eq. 7 and 8)."""

from collections.abc import Sequence


def bifurcation(values: Sequence[float], boundaries: Sequence[float]) -> int:
    """t*: the step with the steepest fall of value after a safe step; the earliest wins a tie.

    `values` and `boundaries` are V and eps of all steps up to the breach, which is the last step.
    A breach at the first step is its own bifurcation.
    """
    candidates = [k for k in range(1, len(values)) if values[k - 1] >= boundaries[k - 1]]
    return min(candidates, key=lambda k: values[k] - values[k - 1], default=len(values) - 1)

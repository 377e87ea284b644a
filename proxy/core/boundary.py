"""Computes the boundary below which a step is not safe (Eq. 6, or from data)."""

import math

from proxy.core.params import Params


def boundary(entropy: float | None, params: Params, index: int) -> float:
    """eps_t = eps_0 * exp(-theta * H_t) for H_t in nats; eps_0 if the boundary is static. Boundary
    `quantile` has a value for each step, and the last one holds for all later steps.

    `index` is t, counted from 0. Raises ValueError if an adaptive boundary has no entropy.
    """
    if params.boundary == "quantile":
        return params.boundary_values[min(index, len(params.boundary_values) - 1)]
    if params.boundary == "static":
        return params.base_threshold
    if entropy is None:
        message = (
            "an entropy must be there for the adaptive boundary, and the teacher's server gave"
        )
        raise ValueError(f"{message} none for this step; boundary: static needs none")
    return params.base_threshold * math.exp(-params.entropy_scale * entropy)

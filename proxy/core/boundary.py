"""Where a step stops being safe (Eq. 6)."""

import math

from proxy.core.params import Params


def boundary(entropy: float, params: Params) -> float:
    """eps_t = eps_0 * exp(-theta * H_t) for H_t in nats; eps_0 where the boundary is static."""
    if params.boundary == "static":
        return params.base_threshold
    return params.base_threshold * math.exp(-params.entropy_scale * entropy)

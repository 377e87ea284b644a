"""Where a step stops being safe (Eq. 6)."""

import math

from proxy.core.params import Params


def boundary(entropy: float | None, params: Params) -> float:
    """eps_t = eps_0 * exp(-theta * H_t) for H_t in nats; eps_0 where the boundary is static.

    Raises ValueError where an adaptive boundary has no entropy to go by.
    """
    if params.boundary == "static":
        return params.base_threshold
    if entropy is None:
        message = (
            "an entropy must be there for the adaptive boundary, and the teacher's server gave"
        )
        raise ValueError(f"{message} none for this step; boundary: static needs none")
    return params.base_threshold * math.exp(-params.entropy_scale * entropy)

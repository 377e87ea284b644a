"""Defines the parameters of a trajectory, with the paper's symbols, and checks their bounds."""

import math
from dataclasses import dataclass, fields
from typing import Literal

Method = Literal["motab", "teacher", "student", "imitkd", "skd", "prefix"]


class ParameterError(ValueError):
    """A parameter is out of its bounds. `field` is its name."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field} {message}")
        self.field = field


@dataclass(frozen=True, slots=True, kw_only=True)
class Params:
    """The parameters of the methods. The defaults are the paper's.

    Raises `ParameterError` if a value is out of bounds.
    """

    method: Method = "motab"
    """`motab` as in the paper, the `teacher` or the `student` alone, or one of the methods that the
    paper compares with: `imitkd`, `skd`, `prefix`."""
    base_threshold: float = 0.2
    """eps_0 of Eq. 6, in [0, 1]: the boundary if the teacher is certain."""
    entropy_scale: float = 1.0
    """theta of Eq. 6, at least 0: the rate at which the teacher's entropy loosens the boundary."""
    entropy_top_k: int = 20
    """K: the number of the teacher's most probable next tokens that the entropy covers."""
    delimiter: str = ".\n\n"
    """The text that ends a step, and belongs to the step that it ends."""
    max_step_tokens: int = 8192
    """Student tokens after which a step, and with it the trajectory, is cut."""
    max_total_tokens: int = 32768
    """Tokens of the trajectory: the student's, or the safe prefix plus the correction."""
    max_lookahead_tokens: int = 4096
    """The number of unjudged student tokens at which the student must wait for the teacher. No
    result depends on it."""
    revise: str = "However,"
    """The revise token of Eq. 10, set as a paragraph of its own."""
    boundary: Literal["adaptive", "static"] = "adaptive"
    """`static`: eps_t = eps_0 (the paper's ablation "w/o adapt")."""
    backtrack: Literal["td_error", "none"] = "td_error"
    """`none`: the teacher takes over at the breach itself (ablation "w/o back")."""
    stitch: Literal["flawed", "clean"] = "flawed"
    """`clean`: safe prefix and correction only (ablation "w/o stitch")."""
    gamma: float = 1.0
    """Method `skd`, above 0: a step is kept if V_t > gamma U_t."""
    beta: float = 0.5
    """Method `imitkd`, in [0, 1]: the probability that the teacher writes a step."""
    teacher_temperature: float = 0.6
    """Sampling temperature of all text that the teacher writes."""

    @property
    def scores(self) -> bool:
        """Return whether the teacher scores steps under this method."""
        return self.method in {"motab", "skd"}

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise ParameterError(field.name, f"must be a finite number, not {value}")
        self._require("in [0, 1]", 0.0 <= self.base_threshold <= 1.0, "base_threshold")
        self._require("above 0", self.gamma > 0.0, "gamma")
        self._require("in [0, 1]", 0.0 <= self.beta <= 1.0, "beta")
        self._require("at least 0", self.entropy_scale >= 0.0, "entropy_scale")
        self._require("at least 0", self.teacher_temperature >= 0.0, "teacher_temperature")
        self._require("at least 1", self.max_step_tokens >= 1, "max_step_tokens")
        self._require("at least 1", self.max_total_tokens >= 1, "max_total_tokens")
        self._require("at least 1", self.max_lookahead_tokens >= 1, "max_lookahead_tokens")
        # The entropy of one renormalised entry is always 0, so the boundary would silently be
        # static.
        self._require("at least 2", self.entropy_top_k >= 2, "entropy_top_k")
        self._require("some text", bool(self.delimiter), "delimiter")
        self._require("some text", bool(self.revise), "revise")

    def _require(self, bound: str, holds: bool, field: str) -> None:  # noqa: FBT001
        if not holds:
            raise ParameterError(field, f"must be {bound}, not {getattr(self, field)!r}")

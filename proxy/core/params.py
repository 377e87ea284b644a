"""Defines the parameters of a trajectory, with the paper's symbols, and checks their bounds."""

import math
from dataclasses import dataclass, fields
from typing import Literal

_MOST_TOKENS = 2**31 - 1
_MOST_SCALE = 1000
_LONGEST_TEXT = 1000
_MOST_DELIMITERS = 16
MOST_BOUNDARY_VALUES = 64

Method = Literal["motab", "teacher", "student", "imitkd", "skd", "prefix"]
# SGLang takes no larger value than this for all tokens of the vocabulary.
_MAX_TOP_K = 2**30
# A server makes this many candidates for every step, and one that is asked for more than it has
# may die.
_MOST_CANDIDATES = 1000
# Each is a text of its own that the teacher writes to its end.
_MOST_CORRECTIONS = 64
ONLY_MOTAB = ("rounds", "correction_steps", "corrections")
"""Parameters that the other methods refuse, because they would change nothing there."""
PENALTIES = ("presence_penalty", "frequency_penalty", "repetition_penalty")


class ParameterError(ValueError):
    """A parameter is out of its bounds. `field` is its name."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field} {message}")
        self.field = field


def _check_finite(values: "Params | FurtherSampling") -> None:
    # Not `fields`, which goes through all of them once more and is slow.
    for name in values.__dataclass_fields__:
        value = getattr(values, name)
        if isinstance(value, float) and not math.isfinite(value):
            raise ParameterError(name, f"must be a finite number, not {value}")


def _require(
    values: "Params | FurtherSampling",
    bound: str,
    holds: bool,  # noqa: FBT001
    field: str,
) -> None:
    if not holds:
        raise ParameterError(field, f"must be {bound}, not {getattr(values, field)!r}")


def _require_at_most(values: "Params", most: float, field: str) -> None:
    _require(values, f"at most {most}", getattr(values, field) <= most, field)


@dataclass(frozen=True, slots=True, kw_only=True)
class FurtherSampling:
    """The sampling values beyond temperature and top-p, which subclasses add. No default changes
    anything. Raises `ParameterError` if a value is out of the bounds that all servers have.
    """

    top_k: int = 0
    """The number of most probable tokens that may be drawn; 0 and -1: all of them."""
    min_p: float = 0.0
    """The least probability that may be drawn, as a part of the most probable token's."""
    presence_penalty: float = 0.0
    """Taken off the logit of every token that the text has."""
    frequency_penalty: float = 0.0
    """Taken off the logit of a token once for each time that the text has it."""
    repetition_penalty: float = 1.0
    """Divides the positive logits of tokens that came before, and multiplies the negative ones."""

    def is_neutral(self, name: str) -> bool:
        """Return whether that one of these values changes nothing."""
        value = getattr(self, name)
        return bool(value <= 0 if name == "top_k" else value == _NEUTRAL[name])

    @property
    def has_penalties(self) -> bool:
        """Return whether a token's probability depends on the tokens written before it."""
        return not all(map(self.is_neutral, PENALTIES))

    def __post_init__(self) -> None:
        _check_finite(self)
        _require(self, f"in [-1, {_MAX_TOP_K}]", -1 <= self.top_k <= _MAX_TOP_K, "top_k")
        _require(self, "in [0, 1]", 0.0 <= self.min_p <= 1.0, "min_p")
        for field in ("presence_penalty", "frequency_penalty"):
            _require(self, "in [-2, 2]", -2.0 <= getattr(self, field) <= 2.0, field)
        in_bounds = 0.0 < self.repetition_penalty <= 2.0
        _require(self, "above 0 and at most 2", in_bounds, "repetition_penalty")


_NEUTRAL = {field.name: field.default for field in fields(FurtherSampling)}


@dataclass(frozen=True, slots=True)
class SamplingValues(FurtherSampling):
    """The values by which an author's next token is drawn."""

    temperature: float = 1.0
    top_p: float = 1.0
    """The least total probability of the most probable tokens that may be drawn."""

    def __post_init__(self) -> None:
        FurtherSampling.__post_init__(self)
        _require(self, "in [0, 2]", 0.0 <= self.temperature <= 2.0, "temperature")
        _require(self, "above 0 and at most 1", 0.0 < self.top_p <= 1.0, "top_p")


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherSampling(FurtherSampling):
    """The teacher's values but for the temperature, which is `Params.teacher_temperature`."""

    top_p: float = 1.0

    def __post_init__(self) -> None:
        FurtherSampling.__post_init__(self)
        _require(self, "above 0 and at most 1", 0.0 < self.top_p <= 1.0, "top_p")


@dataclass(frozen=True, slots=True, kw_only=True)
class Delimiters:
    """Several texts that end a step. Raises `ParameterError` if there are none, or too many."""

    any: tuple[str, ...]
    """The texts. The one that is complete first ends the step."""
    keep_code: bool = False
    """Whether no step ends within fenced code."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.any) <= _MOST_DELIMITERS:
            message = f"must have 1 to {_MOST_DELIMITERS} texts, not {len(self.any)}"
            raise ParameterError("any", message)
        for text in self.any:
            _require_text("any", text)


def _require_text(field: str, text: str) -> None:
    if not text:
        raise ParameterError(field, "must be some text, not ''")
    if len(text) > _LONGEST_TEXT:
        message = f"must have at most {_LONGEST_TEXT} characters, not {len(text)}"
        raise ParameterError(field, message)


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
    delimiter: str | Delimiters = ".\n\n"
    """The text that ends a step, and belongs to the step that it ends; or several."""
    max_step_tokens: int = 8192
    """Student tokens after which a step, and with it the trajectory, is cut."""
    max_total_tokens: int = 32768
    """Tokens of the trajectory: the student's, or the safe prefix plus the correction."""
    max_lookahead_tokens: int = 4096
    """The number of unjudged student tokens at which the student must wait for the teacher. No
    result depends on it."""
    revise: str = "However,"
    """The revise token of Eq. 10, set as a paragraph of its own."""
    boundary: Literal["adaptive", "static", "quantile"] = "adaptive"
    """`static`: eps_t = eps_0 (the paper's ablation "w/o adapt"). `quantile`: `boundary_values`."""
    boundary_values: tuple[float, ...] = ()
    """Boundary `quantile`, in [0, 1]: eps_t of each step; the last holds for all later steps."""
    backtrack: Literal["td_error", "none"] = "td_error"
    """`none`: the teacher takes over at the breach itself (ablation "w/o back")."""
    stitch: Literal["flawed", "clean"] = "flawed"
    """`clean`: safe prefix and correction only (ablation "w/o stitch")."""
    rounds: int = 1
    """The most corrections of a trajectory, at least 1. Before the last the student takes the pen
    back after `correction_steps` steps, and is monitored again."""
    correction_steps: int = 1
    """The steps of each correction before the last round's, at least 1."""
    corrections: int = 1
    """The number of corrections that the teacher writes at the breach, of which one is kept."""
    gamma: float = 1.0
    """Method `skd`, above 0: a step is kept if V_t > gamma U_t."""
    beta: float = 0.5
    """Method `imitkd`, in [0, 1]: the probability that the teacher writes a step."""
    teacher_temperature: float = 0.6
    """Sampling temperature of all text that the teacher writes."""
    teacher: TeacherSampling = TeacherSampling()
    """The other sampling values of all text that the teacher writes."""

    @property
    def scores(self) -> bool:
        """Return whether the teacher scores steps under this method."""
        return self.method in {"motab", "skd"}

    def __post_init__(self) -> None:
        _check_finite(self)
        _require(self, "in [0, 1]", 0.0 <= self.base_threshold <= 1.0, "base_threshold")
        _require(self, "above 0", self.gamma > 0.0, "gamma")
        _require(self, "in [0, 1]", 0.0 <= self.beta <= 1.0, "beta")
        _require(self, "at least 0", self.entropy_scale >= 0.0, "entropy_scale")
        _require(self, "at least 0", self.teacher_temperature >= 0.0, "teacher_temperature")
        _require(self, "at most 2", self.teacher_temperature <= 2.0, "teacher_temperature")
        for field in ("gamma", "entropy_scale"):
            _require_at_most(self, _MOST_SCALE, field)
        _require(self, "at least 1", self.max_step_tokens >= 1, "max_step_tokens")
        _require(self, "at least 1", self.max_total_tokens >= 1, "max_total_tokens")
        _require(self, "at least 1", self.max_lookahead_tokens >= 1, "max_lookahead_tokens")
        for field in ("max_step_tokens", "max_total_tokens", "max_lookahead_tokens"):
            _require_at_most(self, _MOST_TOKENS, field)
        for field in ONLY_MOTAB:
            _require(self, "at least 1", getattr(self, field) >= 1, field)
            _require_at_most(self, _MOST_TOKENS, field)
            is_used = self.method == "motab" or getattr(self, field) == 1
            _require(self, f"1 with method {self.method!r}", is_used, field)
        _require_at_most(self, _MOST_CORRECTIONS, "corrections")
        # The entropy of one renormalised entry is always 0, so the boundary would silently be
        # static.
        _require(self, "at least 2", self.entropy_top_k >= 2, "entropy_top_k")
        _require_at_most(self, _MOST_CANDIDATES, "entropy_top_k")
        for field in ("delimiter", "revise"):
            if isinstance(text := getattr(self, field), str):
                _require_text(field, text)
        self._check_boundary_values()

    def _check_boundary_values(self) -> None:
        name, values = "boundary_values", self.boundary_values
        if self.boundary != "quantile":
            if values:
                message = f"are for boundary 'quantile', and boundary is {self.boundary!r}"
                raise ParameterError(name, message)
            return
        if not 1 <= len(values) <= MOST_BOUNDARY_VALUES:
            message = f"must have 1 to {MOST_BOUNDARY_VALUES} values for boundary 'quantile', not"
            raise ParameterError(name, f"{message} {len(values)}")
        for index, value in enumerate(values):
            if not 0.0 <= value <= 1.0:
                raise ParameterError(name, f"must be in [0, 1], and value {index} is {value!r}")

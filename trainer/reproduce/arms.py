"""Lists what is compared: the paper's methods, MOTAB beyond it and without its parts, masks."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from pydantic import JsonValue

from synth_client.training_data.masks import Mask


@dataclass(frozen=True, slots=True)
class Arm:
    """Data made with `params`, of which the records that pass `filters` are learned.

    Every question is asked `num_tries` times. `data_of` names the arm whose records are used, if
    they are another arm's.
    """

    name: str
    label: str
    params: Mapping[str, JsonValue]
    filters: tuple[str, ...] = ()
    num_tries: int = 1
    is_ablation: bool = False
    data_of: str | None = None
    mask: Mask = "all"
    """The spans of an answer that are learned."""
    weights: Literal["token", "step", "prefix"] | None = None
    """The level at which the distribution-corrected loss weights the tokens, if it does."""
    is_clean: bool = False
    """The flawed attempts of the shared records are left out."""


_MOTAB: Final[Mapping[str, JsonValue]] = {"method": "motab"}
_SFT: Final[Mapping[str, JsonValue]] = {"method": "teacher", "teacher_temperature": 0.6}

_OTHER_THRESHOLDS: Final = (0.2, 0.4, 0.6, 0.8)
"""Tried with the learned theta, and compared with the learned eps_0."""

ARMS: Final = (
    Arm("sft", "SFT", _SFT),
    Arm("rft", "RFT", {"method": "student"}, filters=("correct",), num_tries=4),
    Arm("imitkd", "ImitKD", {"method": "imitkd"}),
    Arm("skd-0.9", "SKD, gamma 0.9", {"method": "skd", "gamma": 0.9}),
    Arm("skd-1.0", "SKD, gamma 1.0", {"method": "skd", "gamma": 1.0}),
    Arm("skd-1.1", "SKD, gamma 1.1", {"method": "skd", "gamma": 1.1}),
    Arm("prefix", "prefix", {"method": "prefix"}),
    Arm("motab", "MOTAB", _MOTAB),
    Arm("motab-rounds", "MOTAB, 3 rounds", {**_MOTAB, "rounds": 3}),
    Arm("motab-best", "MOTAB, best of 4", {**_MOTAB, "corrections": 4, "choose": "verified"}),
    Arm("sft-weighted-token", "SFT, tokens weighted", _SFT, data_of="sft", weights="token"),
    Arm("sft-weighted-step", "SFT, steps weighted", _SFT, data_of="sft", weights="step"),
    Arm("sft-weighted-prefix", "SFT, prefixes weighted", _SFT, data_of="sft", weights="prefix"),
    Arm("motab-static", "w/o adapt", {**_MOTAB, "boundary": "static"}, is_ablation=True),
    Arm("motab-no-back", "w/o back", {**_MOTAB, "backtrack": "none"}, is_ablation=True),
    Arm("motab-clean", "w/o stitch", _MOTAB, is_ablation=True, data_of="motab", is_clean=True),
    Arm(
        "motab-unflawed",
        "flawed attempt masked",
        _MOTAB,
        is_ablation=True,
        data_of="motab",
        mask="unflawed",
    ),
    Arm(
        "motab-correction",
        "correction only",
        _MOTAB,
        is_ablation=True,
        data_of="motab",
        mask="correction",
    ),
    *(
        Arm(
            f"motab-{base_threshold:g}",
            f"MOTAB, eps_0 {base_threshold:g}",
            {**_MOTAB, "base_threshold": base_threshold},
            is_ablation=True,
        )
        for base_threshold in _OTHER_THRESHOLDS
    ),
)

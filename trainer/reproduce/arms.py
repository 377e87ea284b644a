"""Lists what is compared: the paper's methods, and MOTAB without each of its parts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pydantic import JsonValue

from synth_client.training_data.masks import Mask


@dataclass(frozen=True, slots=True)
class Arm:
    """Data made with `params`, of which the records that pass `filters` are learned.

    `data_of` names the arm whose records are used, if they are another arm's.
    """

    name: str
    label: str
    params: Mapping[str, JsonValue]
    filters: tuple[str, ...] = ()
    is_ablation: bool = False
    data_of: str | None = None
    mask: Mask = "all"
    """The spans of an answer that are learned."""


_MOTAB: Final[Mapping[str, JsonValue]] = {"method": "motab"}

ARMS: Final = (
    Arm("sft", "SFT", {"method": "teacher", "teacher_temperature": 0.6}),
    Arm("rft", "RFT", {"method": "student"}, filters=("correct",)),
    Arm("imitkd", "ImitKD", {"method": "imitkd"}),
    Arm("skd-0.9", "SKD, gamma 0.9", {"method": "skd", "gamma": 0.9}),
    Arm("skd-1.0", "SKD, gamma 1.0", {"method": "skd", "gamma": 1.0}),
    Arm("skd-1.1", "SKD, gamma 1.1", {"method": "skd", "gamma": 1.1}),
    Arm("prefix", "prefix", {"method": "prefix"}),
    Arm("motab", "MOTAB", _MOTAB),
    Arm("motab-static", "w/o adapt", {**_MOTAB, "boundary": "static"}, is_ablation=True),
    Arm("motab-no-back", "w/o back", {**_MOTAB, "backtrack": "none"}, is_ablation=True),
    Arm("motab-clean", "w/o stitch", {**_MOTAB, "stitch": "clean"}, is_ablation=True),
    Arm(
        "motab-unflawed",
        "flawed attempt masked",
        _MOTAB,
        is_ablation=True,
        data_of="motab",
        mask="unflawed",
    ),
)

"""Finds the boundaries under which records are rescored: those that are given, and those that a
calibration learns from the records themselves.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product, starmap
from typing import Final, Literal

from proxy.core.params import Params
from synth_client.report.rescore import (
    Calibrator,
    RescoreError,
    scored_steps,
    sentence_of,
    thresholds,
)
from synth_client.report.step_boundary import (
    learn_by_step,
    sentence_of_steps,
    unlabelled_groups,
)
from synth_client.report.threshold_rule import (
    SCALES,
    best_of,
    best_of_scale,
    labelled_groups,
    placed_groups,
    sentence_of_learned,
)
from trajectory_records.record import Record

LABELS: Final = "labels"
QUANTILE: Final = "quantile"


@dataclass(frozen=True, slots=True)
class Calibrated:
    """The boundaries that a calibration found, its sentences about them, and the lines for a
    model's `params` where the sentences do not have them.
    """

    boundaries: Sequence[Params] = ()
    notes: Sequence[str] = ()
    yaml: str = ""


@dataclass(frozen=True, slots=True)
class Wanted:
    """The boundaries that are asked for. `calibration` is a breach rate or a way of learning."""

    bases: Sequence[float] = ()
    scales: Sequence[float] = ()
    by_step: Sequence[Params] = ()
    calibration: float | Literal["labels", "quantile"] | None = None
    quantile: float | None = None
    """The share q of `step_boundary`; None if the labels decide."""

    def calibrated(self, records: Callable[[], Iterable[Record]], own: Params) -> Calibrated:
        """Return what the calibration finds; nothing if there is none. `own` is the records' own
        boundary.
        """
        match self.calibration:
            case None:
                return Calibrated()
            case "labels":
                return _learned(records(), self.scales or SCALES)
            case "quantile":
                return _learned_by_step(records, self.quantile)
            case rate:
                return _of_rate(records(), self._scales(own), rate)

    def boundaries(self, own: Params, found: Calibrated) -> list[Params]:
        """Return all boundaries in the order of their rows. A threshold that is left out is the
        records' own. Raises `RescoreError` if they have none.
        """
        bases, own_is_by_step = self.bases, own.boundary == "quantile"
        if self.calibration is None and not bases:
            if own_is_by_step and self.scales:
                raise RescoreError(
                    "the records have a boundary for each step and no base_threshold: give one with"
                    " the entropy_scale"
                )
            bases = () if own_is_by_step else (own.base_threshold,)
        pairs = starmap(thresholds, product(bases, self._scales(own)))
        by_step = [own] if own_is_by_step and self.calibration is None else []
        return sorted(
            {*pairs, *by_step, *self.by_step, *found.boundaries},
            key=lambda one: (one.boundary_values, one.entropy_scale, one.base_threshold),
        )

    def _scales(self, own: Params) -> Sequence[float]:
        return self.scales or (0.0 if own.boundary == "quantile" else own.entropy_scale,)


def _of_rate(records: Iterable[Record], scales: Sequence[float], rate: float) -> Calibrated:
    calibrators = [Calibrator(scale) for scale in scales]
    for scored in scored_steps(records, with_entropy=any(scales)):
        for calibrator in calibrators:
            calibrator.add(scored)
    found = [calibrator.threshold(rate) for calibrator in calibrators]
    return Calibrated(
        [thresholds(one.base_threshold, one.entropy_scale) for one in found],
        [sentence_of(one, rate) for one in found],
    )


def _learned(records: Iterable[Record], scales: Sequence[float]) -> Calibrated:
    unlabelled: Counter[str] = Counter()
    groups = list(labelled_groups(records, with_entropy=any(scales), left_out=unlabelled))
    found = [best_of_scale(groups, scale) for scale in scales]
    best = best_of(found)
    notes = [sentence_of_learned(one) for one in found]
    notes.append(
        f"the rule takes entropy_scale {best.entropy_scale:g} and base_threshold"
        f" {best.base_threshold:g}"
    )
    notes += _left_out(unlabelled)
    return Calibrated([thresholds(one.base_threshold, one.entropy_scale) for one in found], notes)


def _learned_by_step(records: Callable[[], Iterable[Record]], quantile: float | None) -> Calibrated:
    unlabelled: Counter[str] = Counter()
    placed = list(placed_groups(records(), with_entropy=False, left_out=unlabelled))
    notes = _left_out(unlabelled)
    if quantile is not None and not placed:
        placed = list(unlabelled_groups(records()))
        notes = [f"no record has a verdict: all {len(placed):,} trajectories count as right"]
    found = learn_by_step(placed, None if quantile is None else Fraction(str(quantile)))
    return Calibrated([found.params], [sentence_of_steps(found), *notes], found.to_yaml())


def _left_out(unlabelled: Counter[str]) -> list[str]:
    return [f"left out of the rule: {num:,} {why}" for why, num in unlabelled.items()]

"""Learns the thresholds of MOTAB and of its static boundary from trials of the student."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from synth_client.report.rescore import scored_records
from synth_client.report.threshold_rule import Labelled, Learned, choose
from trajectory_records.record import Record

Labels = Callable[[Record], Sequence[bool | None]]
"""Says of each step whether it is wrong: None where it is neither, and nothing of later steps."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The thresholds of the adaptive boundary and, by the same rule at theta = 0, of the static."""

    adaptive: Learned
    static: Learned


def learn_thresholds(records: Iterable[Record], labels: Labels) -> Thresholds:
    """Learn both from records that were made with eps_0 = 0. Raises `RescoreError`."""
    groups = [
        Labelled((value,), (entropy,), is_wrong)
        for record, scored in scored_records(records, with_entropy=True)
        for value, entropy, is_wrong in zip(
            scored.values, scored.entropies, labels(record), strict=False
        )
        if is_wrong is not None
    ]
    return Thresholds(choose(groups), choose(groups, scales=(0.0,)))

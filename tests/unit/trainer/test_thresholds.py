"""The thresholds that a comparison learns from trials of its base student."""

from typing import Any

import pytest

from synth_client.report.rescore import RescoreError
from tests.support.records import record_of, unbroken
from trainer.reproduce.thresholds import learn_thresholds
from trajectory_records.record import Record

LABELS: dict[str, list[bool | None]] = {"a": [False, True], "b": [None, False], "c": [True]}


def labels(record: Record) -> list[bool | None]:
    return LABELS[record.id]


def trial(name: str, *steps: tuple[float, float]) -> dict[str, Any]:
    fields = unbroken(id=name)
    for step, (value, entropy) in zip(fields["steps"], steps, strict=True):
        step |= {"value": value, "entropy": entropy}
    return fields


def test_each_boundary_gets_thresholds_of_its_own() -> None:
    # Right: 0.9 and, where the teacher is unsure, 0.3. Wrong: 0.5 and 0.4. Neither: 0.1 and 0.2.
    records = [
        trial("a", (0.9, 0.0), (0.5, 0.0)),
        trial("b", (0.1, 0.0), (0.3, 2.0)),
        trial("c", (0.4, 0.0), (0.2, 0.0)),
    ]
    found = learn_thresholds(map(record_of, records), labels)
    adaptive, static = found.adaptive, found.static
    # 0.3 e^(2 theta) is above 0.5 from theta = 0.5 on; the static boundary catches it, too.
    assert adaptive.entropy_scale == 0.5
    assert 0.5 < adaptive.base_threshold <= 0.3 * 2.7183
    assert (adaptive.caught, adaptive.falsely_caught) == (1.0, 0.0)
    assert static.entropy_scale == 0.0
    assert 0.5 < static.base_threshold <= 0.9
    assert (static.caught, static.falsely_caught) == (1.0, 0.5)
    assert (static.num_wrong, static.num_right) == (2, 2)


def test_trials_without_a_mistake_are_refused() -> None:
    records = [record_of(trial("b", (0.1, 0.0), (0.3, 0.0)))]
    with pytest.raises(RescoreError, match="none is wrong"):
        learn_thresholds(records, labels)

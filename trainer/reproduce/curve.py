"""Counts how many trajectories breach at which threshold, over the student's whole texts.

The student's texts are made with eps_0 = 0, at which nothing breaches, so every step has a value
and every threshold is settled.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from synth_client.files.record_file import read_records
from synth_client.report.rescore import Row, rescore, scored_steps
from trajectory_records.record import Record

BASE_THRESHOLDS: Final = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
ENTROPY_SCALES: Final = (0.0, 1.0)
_PARTS: Final = ("all", "right", "wrong")


@dataclass(frozen=True, slots=True)
class Point:
    """Breach rates at one pair of thresholds: of all, of right and of wrong trajectories.

    The rates of right and wrong trajectories are None if there are none.
    """

    base_threshold: float
    entropy_scale: float
    all: float | None
    right: float | None
    wrong: float | None


@dataclass(frozen=True, slots=True)
class Curve:
    """The points in order, and the rows that `motab rescore` shows for them."""

    points: tuple[Point, ...]
    rows: tuple[Row, ...]

    def to_markdown(self) -> str:
        """Return the rates in percent, for each theta."""
        heads = [f"theta {scale:g}: {of}" for scale in ENTROPY_SCALES for of in _PARTS]
        lines = [f"| Breached, % at eps_0 | {' | '.join(heads)} |", "|---:|" + "---:|" * len(heads)]
        for base in BASE_THRESHOLDS:
            cells = [
                "" if rate is None else f"{rate * 100:.1f}"
                for point in self.points
                if point.base_threshold == base
                for rate in (point.all, point.right, point.wrong)
            ]
            lines.append(f"| {base:g} | {' | '.join(cells)} |")
        return "\n".join(lines)


def curve(records: Path) -> Curve:
    """Compute the curve of a file. Raises `RescoreError` if its records hold no values."""
    there = list(read_records(records))
    rows = _rescored(there)
    rates = [
        [row.lowest_rate if part else None for row in _rescored(part or there)]
        for part in (
            [record for record in there if record.correct],
            [record for record in there if not record.correct],
        )
    ]
    points = tuple(
        Point(row.base_threshold, row.entropy_scale, row.lowest_rate, right, wrong)
        for row, right, wrong in zip(rows, *rates, strict=True)
    )
    return Curve(points, tuple(rows))


def _rescored(records: Sequence[Record]) -> list[Row]:
    pairs = [(base, scale) for scale in ENTROPY_SCALES for base in BASE_THRESHOLDS]
    return rescore(scored_steps(records, with_entropy=True), pairs)

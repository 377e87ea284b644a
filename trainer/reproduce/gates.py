"""Checks whether a pair and its task can show a difference between methods, before any is trained.

Where a gate fails, the design is rejected, and not a result.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Final

from synth_client.files.record_file import read_records
from synth_client.report.rescore import outcome_of, scored_records, thresholds
from trainer.errors import ServerFailed
from trainer.evaluation.evaluate import RECORDS, read_results, right_rates
from trainer.evaluation.paired import Difference, difference
from trainer.reproduce.task import DOUBT
from trainer.reproduce.thresholds import Thresholds
from trajectory_records.record import Record

_LEAST_GAP: Final = 0.25
_DOUBTS: Final = (0.02, 0.25)
_LEAST_EARLIER: Final = 0.15
_LEAST_WRONG: Final = 0.8
_MOST_RIGHT: Final = 0.2
_LEAST_REDONE: Final = 0.4
_STANDARD_ERRORS: Final = 2


@dataclass(frozen=True, slots=True)
class Gate:
    """A condition; `value` is a share, and None if there is nothing to measure it by."""

    name: str
    wanted: str
    value: float | None
    holds: bool


def check_pair(
    teacher: Path, student: Path, trial: Sequence[Record], learned: Thresholds
) -> tuple[Gate, ...]:
    """Return the gates before the first arm.

    `teacher` and `student` are the folders of their evaluations; `trial` holds answers of the base
    student at temperature 1, without a breach.
    """
    gap = _gain([teacher], student).mean
    doubts = _share(DOUBT in record.output for record in trial)
    redone = _share(
        bool(record.correct) for record in read_records(teacher / RECORDS) if DOUBT in record.output
    )
    params = thresholds(learned.adaptive.base_threshold, learned.adaptive.entropy_scale)
    outcomes = [
        (bool(record.correct), outcome_of(scored, params))
        for record, scored in scored_records(trial, with_entropy=True)
    ]
    breaches = [outcome for _, outcome in outcomes if outcome.breach is not None]
    earlier = _share(outcome.bifurcation != outcome.breach for outcome in breaches)
    wrong = _share(outcome.breach is not None for is_right, outcome in outcomes if not is_right)
    right = _share(outcome.breach is not None for is_right, outcome in outcomes if is_right)
    low, high = _DOUBTS
    return (
        _at_least("teacher - base, pass@1", gap, _LEAST_GAP),
        Gate(
            f"the base says {DOUBT.rstrip(',')}",
            f"{low:.0%} to {high:.0%}",
            doubts,
            doubts is not None and low <= doubts <= high,
        ),
        _at_least("t* before t, of the breaches", earlier, _LEAST_EARLIER),
        _at_least("wrong trajectories that breach", wrong, _LEAST_WRONG),
        Gate(
            "right trajectories that breach",
            f"at most {_MOST_RIGHT:.0%}",
            right,
            right is not None and right <= _MOST_RIGHT,
        ),
        _at_least(
            f"the teacher's answers with {DOUBT.rstrip(',')} that are right", redone, _LEAST_REDONE
        ),
    )


def check_sft(sft: Sequence[Path], student: Path) -> Gate:
    """Return the gate after the SFT arm, from the evaluations of its seeds and of the base."""
    found = _gain(sft, student)
    name, wanted = "SFT - base, pass@1", f"above {_STANDARD_ERRORS} standard errors"
    if found.error is None:
        return Gate(name, wanted, found.mean, holds=False)
    least = _STANDARD_ERRORS * found.error
    return Gate(name, f"{wanted}, {least:.1%}", found.mean, found.mean > least)


def gates_table(gates: Iterable[Gate]) -> str:
    """Return the gates as a table in Markdown."""
    lines = ["| Gate | wanted | found | holds |", "|---|---|---:|---|"]
    for gate in gates:
        found = "" if gate.value is None else f"{gate.value:.1%}"
        lines.append(f"| {gate.name} | {gate.wanted} | {found} | {'yes' if gate.holds else 'no'} |")
    return "\n".join(lines)


def _gain(folders: Sequence[Path], base: Path) -> Difference:
    theirs = right_rates(read_results(base))
    ours = {seed: right_rates(read_results(folder)) for seed, folder in enumerate(folders)}
    found = difference(ours, dict.fromkeys(ours, theirs))
    if found is None:
        raise ServerFailed(f"{base} and {', '.join(map(str, folders))} have no problem in common")
    return found


def _at_least(name: str, value: float | None, least: float) -> Gate:
    return Gate(name, f"at least {least:.0%}", value, value is not None and value >= least)


def _share(answers: Iterable[bool]) -> float | None:
    found = list(answers)
    return fmean(found) if found else None

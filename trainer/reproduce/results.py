"""Collects what the evaluations and the data of a comparison show, for each arm and seed."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any, Final

import orjson

from synth_client.files.record_file import read_records
from synth_client.training_data.filters import Filters, Kept
from trainer.compare.data_statistics import Data, data_of
from trainer.evaluation.evaluate import RECORDS, read_results
from trainer.evaluation.paired import Difference, difference
from trainer.reproduce.arms import Arm
from trainer.reproduce.curve import Curve
from trainer.reproduce.plan import Unit
from trajectory_records.record import Record

DOUBT: Final = "However,"
"""The revise token: an answer that says it takes back what came before."""
BASE: Final = "student"
"""The name of the base student among the models of the pair."""
_BASELINE: Final = "sft"


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer to a problem; `mistake` is the first that it does not correct, None for none."""

    problem: str
    is_right: bool
    doubts: bool
    is_cut: bool
    mistake: str | None


@dataclass(frozen=True, slots=True)
class Counts:
    """Shares of a student's answers. `right_doubting` is None if no answer doubts, and
    `right_without` if all do.
    """

    num: int
    doubting: float
    right_doubting: float | None
    right_without: float | None
    cut: float
    mistakes: Mapping[str, float]
    """Of all answers, by the first mistake."""


@dataclass(frozen=True, slots=True)
class ArmResult:
    """One arm by seed: pass@k, all and by level, the counts of the answers, and the data."""

    arm: Arm
    by_k: Mapping[int, Mapping[int, float]]
    data: Mapping[int, Data]
    by_level: Mapping[str, Mapping[int, float]]
    answers: Mapping[int, Counts]
    against_sft: Difference | None
    """None for SFT itself, and where it is not among the arms."""
    against_base: Difference | None


@dataclass(frozen=True, slots=True)
class PairResult:
    """A model of the pair itself."""

    by_k: Mapping[int, float]
    answers: Counts


@dataclass(frozen=True, slots=True)
class Comparison:
    """All arms in order, and the pair itself."""

    arms: tuple[ArmResult, ...]
    pair: Mapping[str, PairResult]
    curve: Curve

    def to_json(self) -> bytes:
        """Return one object, indented."""
        return orjson.dumps(
            self, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS
        )


def comparison(
    units: Sequence[Unit],
    pair: Mapping[str, Path],
    rates: Curve,
    first_mistake: Callable[[Record], str | None],
) -> Comparison:
    """Read the results of the evaluations.

    `pair` holds the evaluation folders of the two models; `first_mistake` judges an answer.
    """
    by_arm: dict[str, list[Unit]] = {}
    for unit in units:
        by_arm.setdefault(unit.arm.name, []).append(unit)
    judged = {
        name: {one.seed: _answers_in(one.evaluation, first_mistake) for one in members}
        for name, members in by_arm.items()
    }
    of_pair = {name: _answers_in(folder, first_mistake) for name, folder in pair.items()}
    right = {
        name: {seed: rates_of(answers) for seed, answers in by_seed.items()}
        for name, by_seed in judged.items()
    }
    base = rates_of(of_pair[BASE])
    return Comparison(
        tuple(
            _arm_result(
                members,
                {seed: counts_of(answers) for seed, answers in judged[name].items()},
                difference(right[name], {} if name == _BASELINE else right.get(_BASELINE, {})),
                difference(right[name], dict.fromkeys(right[name], base)),
            )
            for name, members in by_arm.items()
        ),
        {
            name: PairResult(_overall(read_results(folder)), counts_of(of_pair[name]))
            for name, folder in pair.items()
        },
        rates,
    )


def _answers_in(folder: Path, first_mistake: Callable[[Record], str | None]) -> list[Answer]:
    return answers_of(read_records(folder / RECORDS), first_mistake)


def answers_of(
    records: Iterable[Record], first_mistake: Callable[[Record], str | None]
) -> list[Answer]:
    """Return the answers of an evaluation's records that could be judged."""
    return [
        Answer(
            problem=record.id,
            is_right=record.correct,
            doubts=DOUBT in record.output,
            is_cut=record.finish_reason == "length",
            mistake=first_mistake(record),
        )
        for record in records
        if record.correct is not None
    ]


def counts_of(answers: Sequence[Answer]) -> Counts:
    """Count at least one answer."""
    num = len(answers)
    mistakes = Counter(one.mistake for one in answers if one.mistake is not None)
    return Counts(
        num=num,
        doubting=fmean(one.doubts for one in answers),
        right_doubting=_share(one.is_right for one in answers if one.doubts),
        right_without=_share(one.is_right for one in answers if not one.doubts),
        cut=fmean(one.is_cut for one in answers),
        mistakes={kind: count / num for kind, count in sorted(mistakes.items())},
    )


def rates_of(answers: Iterable[Answer]) -> dict[str, float]:
    """Return the share of right answers of each problem."""
    ordered = sorted(answers, key=lambda one: one.problem)
    return {
        problem: fmean(one.is_right for one in group)
        for problem, group in groupby(ordered, key=lambda one: one.problem)
    }


def _share(answers: Iterable[bool]) -> float | None:
    found = list(answers)
    return fmean(found) if found else None


def _arm_result(
    units: Sequence[Unit],
    answers: Mapping[int, Counts],
    against_sft: Difference | None,
    against_base: Difference | None,
) -> ArmResult:
    by_k: dict[int, dict[int, float]] = {}
    by_level: dict[str, dict[int, float]] = {}
    for unit in units:
        found = read_results(unit.evaluation)
        for k, value in _overall(found).items():
            by_k.setdefault(k, {})[unit.seed] = value
        for row in found["table"]:
            if row["by"] == "level":
                by_level.setdefault(row["name"], {})[unit.seed] = row["pass_at_k"][0]["value"]
    data = {unit.seed: _data(unit) for unit in units}
    return ArmResult(units[0].arm, by_k, data, by_level, answers, against_sft, against_base)


def _overall(results: Mapping[str, Any]) -> dict[int, float]:
    return {one["k"]: one["value"] for one in results["table"][-1]["pass_at_k"]}


def _data(unit: Unit) -> Data:
    records = list(read_records(unit.learned))
    split = Filters(unit.arm.filters).split(lambda: iter(records), Kept())
    return data_of(records, [record for record, passes in split if passes])

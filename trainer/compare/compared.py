"""Collects what the stages of a comparison show, for each arm, seed and benchmark."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import orjson

from synth_client.files.record_file import read_records
from trainer.compare.data_statistics import Data, data_of
from trainer.compare.plan import Plan
from trainer.compare.stages import STUDENT, ArmUnit, EvalStage, Stages
from trainer.evaluation.evaluate import read_results, right_rates
from trainer.evaluation.paired import Difference, difference


@dataclass(frozen=True, slots=True)
class Score:
    """The answers of an arm's students to one benchmark: pass@k by k and by seed."""

    by_k: Mapping[int, Mapping[int, float]]
    against_baseline: Difference | None
    """None for the baseline itself."""
    against_student: Difference | None


@dataclass(frozen=True, slots=True)
class ArmScores:
    """One arm: its scores by benchmark, and its data by seed; `cost` is money a seed, if priced."""

    name: str
    label: str
    scores: Mapping[str, Score]
    data: Mapping[int, Data]
    cost: float | None


@dataclass(frozen=True, slots=True)
class Compared:
    """All arms in order, and the models of the pair: pass@k by model, benchmark and k."""

    baseline: str
    arms: tuple[ArmScores, ...]
    pair: Mapping[str, Mapping[str, Mapping[int, float]]]

    def to_json(self) -> bytes:
        """Return one object, indented."""
        return orjson.dumps(
            self, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS
        )


@dataclass(frozen=True, slots=True)
class _Measured:
    """The results of one model on one benchmark."""

    by_k: Mapping[int, float]
    rates: Mapping[str, float]
    """The share of right answers, by problem."""


def compared(plan: Plan, stages: Stages) -> Compared:
    """Read the results of stages that are all done."""
    pair = {
        name: {benchmark: _measured(one) for benchmark, one in evals.items()}
        for name, evals in stages.pair.items()
    }
    by_arm: dict[str, list[ArmUnit]] = {}
    for unit in stages.units:
        by_arm.setdefault(unit.name, []).append(unit)
    found = {
        name: {unit.seed: _all_of(unit.evals) for unit in units} for name, units in by_arm.items()
    }
    baseline = found[plan.baseline]
    return Compared(
        plan.baseline,
        tuple(
            ArmScores(
                name,
                units[0].arm.label or name,
                {
                    benchmark: _score(
                        {seed: one[benchmark] for seed, one in found[name].items()},
                        {}
                        if name == plan.baseline
                        else {seed: one[benchmark] for seed, one in baseline.items()},
                        pair[STUDENT][benchmark],
                    )
                    for benchmark in plan.benchmarks
                },
                {unit.seed: _data(unit) for unit in units},
                _cost(plan, units),
            )
            for name, units in by_arm.items()
        ),
        {
            name: {benchmark: one.by_k for benchmark, one in measured.items()}
            for name, measured in pair.items()
        },
    )


def _all_of(evals: Mapping[str, EvalStage]) -> dict[str, _Measured]:
    return {name: _measured(one) for name, one in evals.items()}


def _score(
    ours: Mapping[int, _Measured], theirs: Mapping[int, _Measured], student: _Measured
) -> Score:
    by_k: dict[int, dict[int, float]] = {}
    for seed, one in ours.items():
        for k, value in one.by_k.items():
            by_k.setdefault(k, {})[seed] = value
    rates = {seed: one.rates for seed, one in ours.items()}
    return Score(
        by_k,
        difference(rates, {seed: one.rates for seed, one in theirs.items()}),
        difference(rates, dict.fromkeys(rates, student.rates)),
    )


def _measured(stage: EvalStage) -> _Measured:
    found = read_results(stage.folder)
    return _Measured(
        {
            one["k"]: one["value"]
            for one in found["table"][-1]["pass_at_k"]
            if one["value"] is not None
        },
        right_rates(found),
    )


def _data(unit: ArmUnit) -> Data:
    """Sum up what was made for a unit, and what of it is learned."""
    records = list(read_records(unit.data.records))
    return data_of(records, list(read_records(unit.examples.records)))


def _cost(plan: Plan, units: Sequence[ArmUnit]) -> float | None:
    """Return the mean cost of an arm's data by the plan's prices, None without prices."""
    if not plan.prices:
        return None
    tokens = [unit.data.facts()["tokens"] for unit in units]
    costs: list[float] = [
        sum(number * plan.prices.get(kind, 0.0) / 1e6 for kind, number in one.items())
        for one in tokens
    ]
    return sum(costs) / len(costs)

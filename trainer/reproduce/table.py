"""Collects the results per arm over the seeds, as JSON and as tables in Markdown."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Final, get_args

import orjson

from synth_client.files.atomic import output_errors
from synth_client.files.record_file import read_records
from synth_client.training_data.filters import Filters, Kept
from trainer.evaluation.evaluate import RECORDS, RESULTS
from trainer.reproduce.arms import Arm
from trainer.reproduce.curve import Curve
from trainer.reproduce.plan import Unit
from trainer.reproduce.task import ChainSum, Mistake, first_mistake

COMPARISON: Final = "comparison.json"
TABLE: Final = "comparison.md"
_BASELINE: Final = "sft"


@dataclass(frozen=True, slots=True)
class Spread:
    """A mean over seeds and its standard deviation, which is None for one seed."""

    mean: float
    deviation: float | None

    @classmethod
    def over(cls, values: Sequence[float]) -> "Spread":
        """Summarise at least one value."""
        return cls(fmean(values), stdev(values) if len(values) > 1 else None)

    def percent(self, *, sign: bool = False) -> str:
        """Format for a table."""
        mean = f"{self.mean * 100:{'+' if sign else ''}.1f}"
        return mean if self.deviation is None else f"{mean} ± {self.deviation * 100:.1f}"


@dataclass(frozen=True, slots=True)
class Data:
    """The data that one unit learned from: tokens per question; `right`, `breached` as shares."""

    num_examples: int
    right: float
    breached: float
    student_tokens: float
    teacher_tokens: float
    teacher_scored_tokens: float
    output_characters: float


@dataclass(frozen=True, slots=True)
class ArmResult:
    """One line: pass@k by seed, and the data by seed."""

    arm: Arm
    by_k: Mapping[int, Mapping[int, float]]
    data: Mapping[int, Data]
    by_level: Mapping[str, Mapping[int, float]]
    mistakes: Mapping[Mistake, Mapping[int, float]]
    """The share of answers by the first mistake in them."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """All arms in order, and pass@k of the pair itself."""

    arms: tuple[ArmResult, ...]
    pair: Mapping[str, Mapping[int, float]]
    curve: Curve

    def to_json(self) -> bytes:
        """Return one object, indented."""
        return orjson.dumps(
            self, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS
        )

    def to_markdown(self) -> str:
        """Return the tables of the comparison, the ablations, and the data they learned from."""
        return "\n\n".join(
            [
                _table("Methods", self, [one for one in self.arms if not one.arm.is_ablation]),
                _table(
                    "MOTAB without its parts",
                    self,
                    [one for one in self.arms if one.arm.is_ablation or one.arm.name == "motab"],
                ),
                "\n".join(_data_lines(self.arms)),
                "\n".join(_mistake_lines(self.arms)),
                self.curve.to_markdown(),
            ]
        )


def comparison(
    units: Sequence[Unit], pair: Mapping[str, Path], rates: Curve, asked: Mapping[str, ChainSum]
) -> Comparison:
    """Read the results of the evaluations.

    `pair` holds the evaluation folders of the two models, `asked` the problems by their ids.
    """
    arms = {unit.arm.name: unit.arm for unit in units}
    return Comparison(
        tuple(
            _arm_result(arm, [unit for unit in units if unit.arm.name == name], asked)
            for name, arm in arms.items()
        ),
        {name: _overall(_results(folder)) for name, folder in pair.items()},
        rates,
    )


def _arm_result(arm: Arm, units: Sequence[Unit], asked: Mapping[str, ChainSum]) -> ArmResult:
    by_k: dict[int, dict[int, float]] = {}
    by_level: dict[str, dict[int, float]] = {}
    for unit in units:
        found = _results(unit.evaluation)
        for k, value in _overall(found).items():
            by_k.setdefault(k, {})[unit.seed] = value
        for row in found["table"]:
            if row["by"] == "level":
                by_level.setdefault(row["name"], {})[unit.seed] = row["pass_at_k"][0]["value"]
    mistakes: dict[Mistake, dict[int, float]] = {}
    for unit in units:
        found_first = _mistakes(unit, asked)
        for kind in get_args(Mistake):
            mistakes.setdefault(kind, {})[unit.seed] = found_first[kind] / found_first.total()
    data = {unit.seed: _data(unit) for unit in units}
    return ArmResult(arm, by_k, data, by_level, mistakes)


def _mistakes(unit: Unit, asked: Mapping[str, ChainSum]) -> Counter[Mistake | None]:
    records = read_records(unit.evaluation / RECORDS)
    return Counter(first_mistake(asked[record.id], record.output) for record in records)


def _results(folder: Path) -> dict[str, Any]:
    path = folder / RESULTS
    with output_errors(path):
        found: dict[str, Any] = orjson.loads(path.read_bytes())
    return found


def _overall(results: Mapping[str, Any]) -> dict[int, float]:
    return {one["k"]: one["value"] for one in results["table"][-1]["pass_at_k"]}


def _data(unit: Unit) -> Data:
    records = list(read_records(unit.records))
    num = len(records)
    split = Filters(unit.arm.filters).split(lambda: iter(records), Kept())
    used = [record for record, passes in split if passes]
    usages = [record.usage.motab for record in records]
    return Data(
        num_examples=len(used),
        right=sum(bool(record.correct) for record in records) / num,
        breached=sum(record.breach is not None for record in records) / num,
        student_tokens=fmean(usage.student_tokens for usage in usages),
        teacher_tokens=fmean(usage.teacher_tokens or 0 for usage in usages),
        teacher_scored_tokens=fmean(usage.teacher_scored_tokens for usage in usages),
        output_characters=fmean(len(record.output) for record in used),
    )


def _table(title: str, found: Comparison, arms: Sequence[ArmResult]) -> str:
    ks = list(found.arms[0].by_k)
    levels = list(found.arms[0].by_level)
    columns = [title, *(f"pass@{k}" for k in ks), "pass@1 against SFT", *levels]
    lines = [
        f"| {' | '.join(columns)} |",
        "|---|" + "---:|" * (len(ks) + 1 + len(levels)),
    ]
    for name, by_k in found.pair.items():
        values = " | ".join(f"{by_k[k] * 100:.1f}" for k in ks)
        lines.append(f"| the {name} itself | {values} | |{' |' * len(levels)}")
    baseline = next((one for one in found.arms if one.arm.name == _BASELINE), None)
    for one in arms:
        cells = [Spread.over(list(one.by_k[k].values())).percent() for k in ks]
        cells.append(_against(one, baseline))
        cells += [Spread.over(list(one.by_level[level].values())).percent() for level in levels]
        lines.append(f"| {one.arm.label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _against(one: ArmResult, baseline: ArmResult | None) -> str:
    """Return the difference seed by seed, because both had the same questions."""
    if baseline is None or one is baseline:
        return ""
    return Spread.over(
        [value - baseline.by_k[1][seed] for seed, value in one.by_k[1].items()]
    ).percent(sign=True)


def _data_lines(arms: Sequence[ArmResult]) -> Iterator[str]:
    yield (
        "| Data, mean over the seeds | examples | right, % | breached, % | characters |"
        " student tokens | teacher tokens written | teacher tokens scored |"
    )
    yield "|---|" + "---:|" * 7
    for one in arms:
        data = list(one.data.values())
        cells = (
            f"{fmean(each.num_examples for each in data):.0f}",
            f"{fmean(each.right for each in data) * 100:.1f}",
            f"{fmean(each.breached for each in data) * 100:.1f}",
            f"{fmean(each.output_characters for each in data):.0f}",
            f"{fmean(each.student_tokens for each in data):.0f}",
            f"{fmean(each.teacher_tokens for each in data):.0f}",
            f"{fmean(each.teacher_scored_tokens for each in data):.0f}",
        )
        yield f"| {one.arm.label} | {' | '.join(cells)} |"


def _mistake_lines(arms: Sequence[ArmResult]) -> Iterator[str]:
    yield "| What goes wrong first, % of the answers | a wrong sum | not the next step | other |"
    yield "|---|---:|---:|---:|"
    for one in arms:
        cells = [Spread.over(list(by_seed.values())).percent() for by_seed in one.mistakes.values()]
        yield f"| {one.arm.label} | {' | '.join(cells)} |"

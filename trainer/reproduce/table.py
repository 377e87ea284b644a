"""Renders the results of a comparison as tables in Markdown, and as points of cost."""

from collections.abc import Callable, Iterator, Sequence
from statistics import fmean
from typing import Final, get_args

from trainer.compare.data_statistics import data_lines
from trainer.compare.tables import cost_point
from trainer.compare.wording import Spread, against, smallest
from trainer.evaluation.cost_plot import CostPoint
from trainer.reproduce.results import DOUBT, ArmResult, Comparison, Counts
from trainer.reproduce.task import Mistake

COMPARISON: Final = "comparison.json"
TABLE: Final = "comparison.md"
_WORD: Final = DOUBT.rstrip(",")
_MOTAB: Final = "motab"


def to_markdown(found: Comparison) -> str:
    """Return the tables of the comparison, the ablations, the answers, the data, the mistakes, the
    thresholds where several were tried, and the breach rates.
    """
    tried = [one for one in found.arms if _is_threshold(one)]
    arms = [one for one in found.arms if not _is_threshold(one)]
    motab = [one for one in arms if one.arm.name == _MOTAB]
    methods = [one for one in arms if not one.arm.is_ablation]
    ablations = motab + [one for one in arms if one.arm.is_ablation]
    tables = [
        "\n".join(_lines("Methods", found, methods)),
        "\n".join(_lines("MOTAB without its parts", found, ablations)),
        smallest([one.against_sft for one in arms]),
        "\n".join(_answer_lines(found, arms)),
        "\n".join(data_lines({one.arm.label: list(one.data.values()) for one in arms})),
        "\n".join(_mistake_lines(arms)),
        "\n".join(_threshold_lines([*motab, *tried])) if tried else "",
        found.curve.to_markdown(),
    ]
    return "\n\n".join(table for table in tables if table)


def cost_points(found: Comparison) -> list[CostPoint]:
    """Return each arm's accuracy and what its data cost the teacher."""
    return [
        cost_point(one.arm.label, list(one.by_k[1].values()), list(one.data.values()))
        for one in found.arms
    ]


def _is_threshold(one: ArmResult) -> bool:
    return "base_threshold" in one.arm.params


def _lines(title: str, found: Comparison, arms: Sequence[ArmResult]) -> Iterator[str]:
    ks = list(found.arms[0].by_k)
    columns = [title, *(f"pass@{k}" for k in ks), "against SFT", "against the base"]
    yield f"| {' | '.join([*columns, f'says {_WORD}'])} |"
    yield "|---|" + "---:|" * len(columns)
    for name, model in found.pair.items():
        values = " | ".join(f"{model.by_k[k] * 100:.1f}" for k in ks)
        yield f"| the {name} itself | {values} | | | {model.answers.doubting * 100:.1f} |"
    for one in arms:
        cells = [Spread.over(list(one.by_k[k].values())).percent() for k in ks]
        cells += [against(one.against_sft), against(one.against_base)]
        cells.append(_spread(one, lambda counts: counts.doubting))
        yield f"| {one.arm.label} | {' | '.join(cells)} |"


def _spread(one: ArmResult, share: Callable[[Counts], float | None]) -> str:
    """Return a share of the answers over the seeds that have it."""
    values = [value for each in one.answers.values() if (value := share(each)) is not None]
    return Spread.over(values).percent() if values else ""


_ANSWERS: Final[tuple[tuple[str, Callable[[Counts], float | None]], ...]] = (
    (f"says {_WORD}", lambda counts: counts.doubting),
    ("right with it", lambda counts: counts.right_doubting),
    ("right without it", lambda counts: counts.right_without),
    ("cut off", lambda counts: counts.cut),
)


def _answer_lines(found: Comparison, arms: Sequence[ArmResult]) -> Iterator[str]:
    levels = list(found.arms[0].by_level)
    heads = [*(name for name, _ in _ANSWERS), *(f"right: {level}" for level in levels)]
    yield f"| Answers, % | {' | '.join(heads)} |"
    yield "|---|" + "---:|" * len(heads)
    for name, model in found.pair.items():
        shares = [share(model.answers) for _, share in _ANSWERS]
        cells = ["" if one is None else f"{one * 100:.1f}" for one in shares]
        yield f"| the {name} itself | {' | '.join(cells + [''] * len(levels))} |"
    for arm in arms:
        cells = [_spread(arm, share) for _, share in _ANSWERS]
        cells += [Spread.over(list(arm.by_level[level].values())).percent() for level in levels]
        yield f"| {arm.arm.label} | {' | '.join(cells)} |"


def _mistake_lines(arms: Sequence[ArmResult]) -> Iterator[str]:
    kinds = get_args(Mistake)
    yield f"| What goes wrong first, % of the answers | {' | '.join(kinds)} |"
    yield "|---|" + "---:|" * len(kinds)
    for one in arms:
        cells = [_mistaken(one, kind) for kind in kinds]
        yield f"| {one.arm.label} | {' | '.join(cells)} |"


def _mistaken(one: ArmResult, kind: str) -> str:
    return _spread(one, lambda counts: counts.mistakes.get(kind, 0.0))


def _threshold_lines(arms: Sequence[ArmResult]) -> Iterator[str]:
    """Yield a line for each eps_0 that data were made with, in ascending order."""
    yield "| eps_0 | theta | breached, % | right data, % | pass@1 | against SFT |"
    yield "|---:|" + "---:|" * 5

    def thresholds(one: ArmResult) -> tuple[float, float]:
        data = list(one.data.values())
        return (
            fmean(each.base_threshold or 0.0 for each in data),
            fmean(each.entropy_scale or 0.0 for each in data),
        )

    for one in sorted(arms, key=thresholds):
        base_threshold, entropy_scale = thresholds(one)
        data = list(one.data.values())
        cells = (
            f"{base_threshold:g}",
            f"{entropy_scale:g}",
            Spread.over([each.breached for each in data]).percent(),
            Spread.over([each.right for each in data]).percent(),
            Spread.over(list(one.by_k[1].values())).percent(),
            against(one.against_sft),
        )
        yield f"| {' | '.join(cells)} |"

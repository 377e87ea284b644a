"""Renders the results of a comparison as tables in Markdown, and as points of cost."""

from collections.abc import Iterator, Sequence
from statistics import fmean

from trainer.compare.compared import ArmScores, Compared, Score
from trainer.compare.data_statistics import Data, data_lines
from trainer.compare.wording import Spread, against, smallest
from trainer.evaluation.cost_plot import CostPoint
from trainer.evaluation.paired import Difference


def to_markdown(found: Compared) -> str:
    """Return a table for each benchmark, the smallest differences they can show, and the data."""
    baseline = label_of(found, found.baseline)
    parts = []
    for benchmark in found.arms[0].scores:
        parts.append("\n".join(score_lines(found, benchmark)))
        differences = [one.scores[benchmark].against_baseline for one in found.arms]
        parts.append(smallest(differences, baseline))
    parts.append("Bold: the interval does not contain 0.")
    parts.append("\n".join(all_data_lines(found)))
    return "\n\n".join(part for part in parts if part) + "\n"


def label_of(found: Compared, name: str) -> str:
    """Return the label of an arm."""
    return next(one.label for one in found.arms if one.name == name)


def score_lines(found: Compared, benchmark: str) -> Iterator[str]:
    """Yield the lines of a benchmark's table: means over the seeds, with standard deviations."""
    ks = list(found.arms[0].scores[benchmark].by_k)
    baseline = label_of(found, found.baseline)
    heads = [*(f"pass@{k}" for k in ks), f"against {baseline}", "against the student"]
    yield f"| {benchmark}, % | {' | '.join(heads)} |"
    yield "|---|" + "---:|" * len(heads)
    for name, scores in found.pair.items():
        cells = [f"{scores[benchmark][k] * 100:.1f}" if k in scores[benchmark] else "" for k in ks]
        yield f"| the {name} itself | {' | '.join([*cells, '', ''])} |"
    for one in found.arms:
        score = one.scores[benchmark]
        cells = [spread_of(score, k) for k in ks]
        cells += [_shown(score.against_baseline), _shown(score.against_student)]
        yield f"| {one.label} | {' | '.join(cells)} |"


def spread_of(score: Score, k: int) -> str:
    """Return a mean over the seeds with its deviation, in percent."""
    values = list(score.by_k.get(k, {}).values())
    return Spread.over(values).percent() if values else ""


def _shown(difference: Difference | None) -> str:
    text = against(difference)
    return f"**{text}**" if difference is not None and is_clear(difference) else text


def is_clear(difference: Difference) -> bool:
    """Return whether the interval does not contain 0."""
    low, high = difference.low, difference.high
    return low is not None and high is not None and (low > 0.0 or high < 0.0)


def all_data_lines(found: Compared) -> Iterator[str]:
    """Yield the lines of the table of the data; with prices, what it cost."""
    lines = data_lines({one.label: list(one.data.values()) for one in found.arms})
    if any(one.cost is not None for one in found.arms):
        added = iter(["cost of a seed", "---:", *(_cost(one) for one in found.arms)])
        for line in lines:
            cell = next(added)
            yield f"{line}{cell}|" if set(cell) == {"-", ":"} else f"{line} {cell} |"
    else:
        yield from lines


def _cost(one: ArmScores) -> str:
    return "" if one.cost is None else f"{one.cost:,.2f}"


def cost_points(found: Compared, benchmark: str) -> list[CostPoint]:
    """Return each arm's accuracy on a benchmark, and what its data cost the teacher."""
    return [
        cost_point(one.label, list(by_k[1].values()), list(one.data.values()))
        for one in found.arms
        if 1 in (by_k := one.scores[benchmark].by_k)
    ]


def cost_point(label: str, accuracies: Sequence[float], data: Sequence[Data]) -> CostPoint:
    """Return the point of an arm, given its pass@1 and its data by seed."""
    accuracy = Spread.over(accuracies)
    return CostPoint(
        label,
        fmean(each.teacher_tokens for each in data),
        fmean(each.teacher_scored_tokens for each in data),
        accuracy.mean,
        accuracy.deviation,
    )


def cells_of(lines: Sequence[str]) -> list[list[str]]:
    """Return the cells of a table in Markdown, without the line under its head."""
    rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]
    return [rows[0], *rows[2:]]

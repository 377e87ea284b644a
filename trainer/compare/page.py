"""Writes the results of a comparison: a table in Markdown, every number as JSON, and a page."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Final

from markupsafe import Markup

from synth_client.files.atomic import write_whole
from synth_client.files.record_file import read_records
from synth_client.report.page import asset, page, write_page
from synth_client.report.trajectory_viewer import Sample
from trainer.compare.compared import Compared
from trainer.compare.plan import Plan, recipe_of_plan
from trainer.compare.stages import Stages
from trainer.compare.tables import (
    all_data_lines,
    cells_of,
    cost_points,
    label_of,
    score_lines,
    to_markdown,
)
from trainer.compare.wording import smallest
from trainer.evaluation.cost_plot import cost_plots
from trajectory_records.record import ROLE_LABELS, Record
from trajectory_records.viewer.sources import legend_markup, viewer_markup, viewer_script

if TYPE_CHECKING:
    from synth_client.report.plots import PlotGroup

TABLE: Final = "comparison.md"
COMPARISON: Final = "comparison.json"
PAGE: Final = "comparison.html"
_NUM_EXAMPLES: Final = 20


def write_results(plan: Plan, stages: Stages, found: Compared) -> None:
    """Write all three into the plan's output folder."""
    write_whole(plan.output / COMPARISON, found.to_json())
    write_whole(plan.output / TABLE, to_markdown(found).encode())
    write_page(comparison_page(plan, stages, found), plan.output / PAGE)


def comparison_page(plan: Plan, stages: Stages, found: Compared) -> Iterator[str]:
    """Yield the page in pieces."""
    sample = Sample(_NUM_EXAMPLES * len(plan.arms))
    for record in _examples(plan, stages):
        sample.add(record)
    benchmarks = list(plan.benchmarks)
    baseline = label_of(found, found.baseline)
    results = [
        (
            cells_of(list(score_lines(found, name))),
            smallest([one.scores[name].against_baseline for one in found.arms], baseline),
        )
        for name in benchmarks
    ]
    groups = [_differences(found, benchmarks, baseline)] if len(found.arms) > 1 else []
    groups += [cost_plots(cost_points(found, name), name) for name in benchmarks]
    return page(
        "compare.html.j2",
        scripts=(asset("page.js"), f"{viewer_script()}\n{asset('report.js')}"),
        groups=groups,
        blocks=[*sample.blocks()],
        name=plan.output.name,
        facts=[
            ("student", recipe_of_plan(plan).model),
            ("pair", plan.pair.model),
            ("questions", plan.questions.source),
            ("seeds", ", ".join(map(str, plan.seeds))),
        ],
        results=results,
        data=cells_of(list(all_data_lines(found))),
        num_examples=_NUM_EXAMPLES,
        role_labels=ROLE_LABELS,
        legend=Markup(legend_markup()),  # noqa: S704 - our own file
        viewer=Markup(viewer_markup()),  # noqa: S704 - our own file
    )


def _examples(plan: Plan, stages: Stages) -> Iterator[Record]:
    """Yield the first examples of every arm under the first seed, with the arm in their ids."""
    for unit in stages.units:
        if unit.seed != plan.seeds[0]:
            continue
        label = unit.arm.label or unit.name
        for record in islice(read_records(unit.examples.records), _NUM_EXAMPLES):
            yield record.model_copy(update={"id": f"{label}: {record.id}"})


def _differences(found: Compared, benchmarks: Sequence[str], baseline: str) -> "PlotGroup":
    # It imports Plotly, which is slow.
    from synth_client.report.plots import Plot, PlotGroup, colour, new_figure  # noqa: PLC0415

    plots = []
    for name in benchmarks:
        arms = [
            (one.label, difference)
            for one in found.arms
            if (difference := one.scores[name].against_baseline) is not None
        ]
        figure = new_figure(
            x="", y=f"pass@1 minus {baseline}", y_axis={"tickformat": "+.1%", "zeroline": True}
        )
        means = [difference.mean for _, difference in arms]
        highs = [
            difference.mean if difference.high is None else difference.high
            for _, difference in arms
        ]
        lows = [
            difference.mean if difference.low is None else difference.low for _, difference in arms
        ]
        figure.add_scatter(
            x=[label for label, _ in arms],
            y=means,
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [high - mean for high, mean in zip(highs, means, strict=True)],
                "arrayminus": [mean - low for low, mean in zip(lows, means, strict=True)],
                "color": colour("soft"),
                "thickness": 1,
            },
            mode="markers",
            marker={"size": 8, "color": colour("teacher")},
            hovertemplate="%{x}: %{y:+.1%}<extra></extra>",
        )
        caption = "Paired over problems and seeds; the bar is the 95% interval."
        plots.append(Plot(f"difference-{name}", name, caption, figure))
    return PlotGroup(f"Difference from {baseline}", tuple(plots))

"""Plots accuracy against what the teacher's tokens cost."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from synth_client.report.plots import PlotGroup


@dataclass(frozen=True, slots=True)
class CostPoint:
    """A student: its pass@1, and the teacher's tokens for each question that it learned from.

    `deviation` is of pass@1 over seeds, None for one seed.
    """

    label: str
    written: float
    scored: float
    accuracy: float
    deviation: float | None


def cost_plots(points: Sequence[CostPoint], benchmark: str = "") -> "PlotGroup":
    """Draw a point for each student, over the tokens that the teacher wrote, and over all.

    Groups for several benchmarks on one page need the benchmarks' names.
    """
    # It imports Plotly, which is slow and may be missing.
    from synth_client.report.plots import Plot, PlotGroup  # noqa: PLC0415

    return PlotGroup(
        f"Accuracy against the teacher's tokens{benchmark and f': {benchmark}'}",
        (
            Plot(
                f"cost-written{benchmark}",
                "Over the tokens that the teacher wrote",
                "Each point is a student; the bar is one standard deviation over the seeds.",
                _scatter(points, "teacher tokens written per question", lambda one: one.written),
            ),
            Plot(
                f"cost-all{benchmark}",
                "Over all tokens that the teacher read or wrote",
                "Scored tokens are read at once, and cost far less than written ones.",
                _scatter(
                    points,
                    "teacher tokens written and scored per question",
                    lambda one: one.written + one.scored,
                ),
            ),
        ),
    )


def _scatter(
    points: Sequence[CostPoint], x: str, cost: Callable[[CostPoint], float]
) -> "go.Figure":
    from synth_client.report.plots import colour, new_figure  # noqa: PLC0415

    figure = new_figure(x=x, y="pass@1", y_axis={"tickformat": ".0%"})
    figure.add_scatter(
        x=[cost(one) for one in points],
        y=[one.accuracy for one in points],
        error_y={
            "array": [one.deviation or 0.0 for one in points],
            "color": colour("soft"),
            "thickness": 1,
        },
        text=[one.label for one in points],
        textposition="top center",
        textfont={"size": 10},
        mode="markers+text",
        marker={"size": 7, "color": colour("teacher")},
        hovertemplate="%{text}: %{y:.1%} at %{x:.0f} tokens<extra></extra>",
    )
    figure.update_layout(height=420, hovermode="closest")
    return figure

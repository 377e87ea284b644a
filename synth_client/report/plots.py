"""Draws the plots of the pages, as Plotly figures in the palette's light colours."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson
import plotly.graph_objects as go

from synth_client.prices import PRICED
from synth_client.report.statistics import (
    NUM_STEPS_SHOWN,
    RELATIVE_BINS,
    Spread,
    Statistics,
    mean,
    quantiles_by_step,
)
from trajectory_records.viewer.palette import PALETTE

_FONT: Final = "ui-sans-serif, system-ui, sans-serif"
_MARGIN_BIN: Final = 0.05
_THIN: Final = 10
"""Medians of fewer trajectories have their number under them."""


@dataclass(frozen=True, slots=True)
class Plot:
    """A figure with a heading above and a caption below. `name` is its id in the page."""

    name: str
    title: str
    caption: str
    figure: go.Figure

    def to_json(self) -> Any:  # noqa: ANN401 - Plotly's own format, passed on to its script
        """Return the figure as Plotly's script reads it."""
        return orjson.loads(self.figure.to_json())


@dataclass(frozen=True, slots=True)
class PlotGroup:
    """Plots that belong together."""

    title: str
    plots: tuple[Plot, ...]


def plots_of(run: Statistics) -> tuple[PlotGroup, ...]:
    """Return all plots that have something to show."""
    groups = []
    if run.num_breached:
        plots = (_absolute(run), _relative(run), _depths(run))
        groups.append(PlotGroup("Where trajectories stray", plots))
    if run.num_scored:
        plots_over_steps = [_values(run)]
        if run.entropies:
            plots_over_steps.append(_entropies(run))
        groups.append(PlotGroup("What the teacher saw", tuple(plots_over_steps)))
        groups.append(PlotGroup("Safety margin", _margins(run)))
    groups.append(PlotGroup("Tokens", (_tokens(run),)))
    return tuple(groups)


def colour(name: str) -> str:
    """Return the light colour of that name; the page's script replaces it in dark mode."""
    return PALETTE[name].light


def new_figure(
    *,
    x: str,
    y: str,
    x_axis: Mapping[str, Any] | None = None,
    y_axis: Mapping[str, Any] | None = None,
) -> go.Figure:
    """Return an empty figure in the style of the page, with titles for its axes."""
    axis = {
        "gridcolor": colour("line"),
        "linecolor": colour("line"),
        "zerolinecolor": colour("line"),
        "title": {"font": {"size": 12, "color": colour("soft")}, "standoff": 8},
        "tickfont": {"size": 11, "color": colour("soft")},
        "tickangle": 0,
        "automargin": True,
        "fixedrange": True,
    }
    figure = go.Figure(
        layout={
            "template": "none",
            "font": {"family": _FONT, "size": 12, "color": colour("ink")},
            "paper_bgcolor": colour("card"),
            "plot_bgcolor": colour("card"),
            "margin": {"l": 48, "r": 8, "t": 28, "b": 40},
            "height": 280,
            "bargap": 0.12,
            "dragmode": False,
            "hovermode": "x",
            "hoverlabel": {
                "bgcolor": colour("page"),
                "bordercolor": colour("line"),
                "font": {"color": colour("ink"), "family": _FONT},
            },
            "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
            "showlegend": False,
        }
    )
    figure.update_xaxes(
        {**axis, "showgrid": False, "zeroline": False, **(x_axis or {})}, title_text=x
    )
    figure.update_yaxes({**axis, "rangemode": "tozero", **(y_axis or {})}, title_text=y)
    return figure


def add_band(
    figure: go.Figure, x: Sequence[float], lows: Sequence[float], highs: Sequence[float], name: str
) -> None:
    """Fill the space between the lows and the highs with a palette colour's band."""
    edge = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
    figure.add_scatter(x=x, y=highs, **edge)
    figure.add_scatter(x=x, y=lows, fill="tonexty", fillcolor=colour(f"{name}-band"), **edge)


def _absolute(run: Statistics) -> Plot:
    average = mean(run.unsafe_points)
    figure = _counts(run, "step of the breach", run.unsafe_points, _whole(run.unsafe_points))
    figure.add_trace(_bars(run.unsafe_points, "flawed", "step %{x}: %{y:,}<extra></extra>"))
    over = f"The index of the breach, over the {run.num_breached:,} trajectories that have one"
    if _has_several(run):
        over = (
            f"The index of each breach, over the {run.num_breaches:,} breaches of"
            f" {run.num_breached:,} trajectories"
        )
    caption = f"{over} (mean {average:.2f})."
    return Plot("unsafe-absolute", "Unsafe points, absolute", caption, figure)


def _relative(run: Statistics) -> Plot:
    width = 1 / RELATIVE_BINS
    shares = {(index + 0.5) * width: run.relative_points[index] for index in range(RELATIVE_BINS)}
    x_axis = {"tickformat": ".0%", "range": [0, 1]}
    figure = _counts(run, "share of the text written", run.relative_points, x_axis)
    bars = _bars(shares, "flawed", "around %{x:.0%}: %{y:,}<extra></extra>")
    figure.add_trace(bars.update(width=width * 0.88))
    caption = "The text of both models up to the breach's end, as a share of all that they wrote."
    if run.num_unplaced:
        caption += f" {run.num_unplaced:,} records lack the text of their left-out steps."
    return Plot("unsafe-relative", "Unsafe points, relative", caption, figure)


def _depths(run: Statistics) -> Plot:
    figure = _counts(run, "steps taken back", run.depths, _whole(run.depths))
    figure.add_trace(_bars(run.depths, "revise", "%{x} steps: %{y:,}<extra></extra>"))
    caption = (
        f"Breach minus bifurcation (mean {mean(run.depths):.2f}); 0: the teacher took over at the"
        " breach itself."
    )
    return Plot("depth", "Depth of backtracking", caption, figure)


def _values(run: Statistics) -> Plot:
    figure = new_figure(x="step", y="probability", x_axis=_steps(run), y_axis={"range": [0, 1.02]})
    _add_medians(figure, run.values, "student", "value V")
    _add_medians(figure, run.boundaries, "flawed", "boundary eps", dash="dot")
    figure.update_layout(showlegend=True)
    caption = "Medians; the bands hold the middle 80% of the trajectories that reached the step."
    caption += _count_thin(figure, run.values) + _cut(run)
    return Plot("values", "Values and boundaries over the steps", caption, figure)


def _entropies(run: Statistics) -> Plot:
    figure = new_figure(x="step", y="nats", x_axis=_steps(run))
    _add_medians(figure, run.entropies, "teacher", "entropy H")
    caption = "The teacher's uncertainty before each step: median and the middle 80%."
    caption += _count_thin(figure, run.entropies) + _cut(run)
    return Plot("entropies", "Entropy over the steps", caption, figure)


def _margins(run: Statistics) -> tuple[Plot, ...]:
    named = {False: ("without", "student"), True: ("with", "flawed")}
    extremes = [
        number
        for margins in run.margins.values()
        for _, quantiles in quantiles_by_step(margins.over_steps)
        for number in (quantiles.low, quantiles.high)
    ]
    # One scale for both, so that they can be compared.
    scale = {"range": [min(extremes, default=0) - 0.05, max(extremes, default=0) + 0.05]}
    plots = []
    for breached, (word, name) in named.items():
        spreads = run.margins[breached].over_steps
        if not spreads:
            continue
        figure = _margin_figure("step", _steps(run), scale)
        _add_medians(figure, spreads, name, "V - eps")
        title = f"Trajectories {word} backtracking"
        caption = "V - eps over the steps: median and the middle 80%; below 0 is a breach."
        caption += _count_thin(figure, spreads)
        plots.append(Plot(f"margin-{word}", title, caption, figure))
    if run.margins_to_breach:
        figure = _margin_figure("steps from the breach", {}, {})
        _add_medians(figure, run.margins_to_breach, "flawed", "V - eps")
        caption = "The same trajectories, aligned at the breach (0)."
        if _has_several(run):
            caption = "The rounds of these trajectories, aligned at their breaches (0)."
        caption += _count_thin(figure, run.margins_to_breach)
        plots.append(Plot("margin-breach", "On the way to the breach", caption, figure))
    plots.append(_margin_distribution(run, named))
    return tuple(plots)


def _margin_figure(x: str, x_axis: Mapping[str, Any], y_axis: Mapping[str, Any]) -> go.Figure:
    figure = new_figure(x=x, y="V - eps", x_axis=x_axis, y_axis={"rangemode": "normal", **y_axis})
    figure.add_hline(y=0, line={"color": colour("soft"), "width": 1, "dash": "dot"})
    return figure


def _margin_distribution(run: Statistics, named: Mapping[bool, tuple[str, str]]) -> Plot:
    figure = new_figure(x="V - eps", y="share of the steps", y_axis={"tickformat": ".0%"})
    figure.add_vline(x=0, line={"color": colour("soft"), "width": 1, "dash": "dot"})
    for breached, (word, name) in named.items():
        spread = run.margins[breached].of_all
        if not spread.num:
            continue
        shares = {
            (index + 0.5) * _MARGIN_BIN: count / spread.num
            for index, count in sorted(spread.binned(_MARGIN_BIN).items())
        }
        bars = _bars(shares, name, "around %{x:.3f}: %{y:.1%}")
        figure.add_trace(
            bars.update(name=f"{word} backtracking", width=_MARGIN_BIN * 0.92, opacity=0.6)
        )
    figure.update_layout(barmode="overlay", showlegend=True)
    caption = "All scored steps, by whether their trajectory had a breach."
    return Plot("margin-distribution", "Distribution of the margin", caption, figure)


def _tokens(run: Statistics) -> Plot:
    kept = run.tokens["student_tokens"] - run.tokens["student_tokens_discarded"]
    amounts = {
        "questions": (run.tokens["prompt"], "soft"),
        "student, kept": (kept, "student"),
        "student, discarded": (run.tokens["student_tokens_discarded"], "flawed"),
        PRICED["scored"]: (run.tokens["teacher_scored_tokens"], "revise"),
        PRICED["teacher"]: (run.tokens["teacher_tokens"], "teacher"),
    }
    figure = new_figure(x="tokens", y="", y_axis={"autorange": "reversed", "showgrid": False})
    figure.add_bar(
        x=[amount for amount, _ in amounts.values()],
        y=list(amounts),
        orientation="h",
        marker={"color": [colour(name) for _, name in amounts.values()]},
        hovertemplate="%{y}: %{x:,}<extra></extra>",
    )
    figure.update_layout(hovermode="y", height=240)
    caption = "Scored tokens are read, the others written. Discarded text came after its breach."
    return Plot("tokens", "Tokens by what they were for", caption, figure)


def _bars(counts: Mapping[Any, float], name: str, hover: str) -> go.Bar:
    keys = sorted(counts)
    return go.Bar(
        x=keys,
        y=[counts[key] for key in keys],
        marker={"color": colour(name)},
        hovertemplate=hover,
    )


def _add_medians(
    figure: go.Figure, spreads: Mapping[int, Spread], name: str, label: str, dash: str = "solid"
) -> None:
    """Draw a line of medians within a band of the middle 80%."""
    found = quantiles_by_step(spreads)
    steps = [index for index, _ in found]
    lows = [quantiles.low for _, quantiles in found]
    highs = [quantiles.high for _, quantiles in found]
    add_band(figure, steps, lows, highs, name)
    figure.add_scatter(
        x=steps,
        y=[quantiles.median for _, quantiles in found],
        customdata=[
            [spreads[index].num, quantiles.low, quantiles.high] for index, quantiles in found
        ],
        mode="lines+markers",
        line={"color": colour(name), "width": 2, "dash": dash},
        marker={"size": 5},
        name=label,
        hovertemplate="%{y:.3f} (%{customdata[1]:.3f} to %{customdata[2]:.3f},"
        " %{customdata[0]:,} steps)",
    )


def _count_thin(figure: go.Figure, spreads: Mapping[int, Spread]) -> str:
    """Write n under the medians of few trajectories, and return a sentence about it, if any is.

    A number is written where it changes: at every step they would run into each other.
    """
    written: int | None = None
    for index in sorted(spreads):
        num = spreads[index].num
        if num == written or (num >= _THIN and (written is None or written >= _THIN)):
            continue
        figure.add_annotation(
            text=str(num) if written else f"n = {num}",
            x=index,
            y=0,
            yref="paper",
            yanchor="top",
            yshift=-18,
            showarrow=False,
            font={"size": 10, "color": colour("soft")},
        )
        written = num
    if written is None:
        return ""
    figure.update_xaxes(title_standoff=24)
    figure.update_layout(height=296)
    return (
        f" n under a step counts the trajectories of its median, where they are fewer than {_THIN};"
        " it holds up to the next number."
    )


def _has_several(run: Statistics) -> bool:
    """Return whether a trajectory has more than one breach."""
    return run.num_breaches > run.num_breached


def _counts(
    run: Statistics, x: str, counts: Mapping[Any, int], x_axis: Mapping[str, Any]
) -> go.Figure:
    """A figure that counts breaches, so its y axis has whole numbers only."""
    y_axis = {"dtick": 1} if max(counts.values(), default=0) <= 5 else {}
    y = "breaches" if _has_several(run) else "trajectories"
    return new_figure(x=x, y=y, x_axis=x_axis, y_axis=y_axis)


def _whole(counts: Mapping[int, object]) -> dict[str, Any]:
    """An axis of whole numbers."""
    return {"dtick": 1} if max(counts) - min(counts) <= 12 else {}


def _steps(run: Statistics) -> dict[str, Any]:
    return {"rangemode": "tozero", **_whole(run.values)}


def _cut(run: Statistics) -> str:
    if not run.num_long:
        return ""
    return f" Steps from {NUM_STEPS_SHOWN} on, of {run.num_long:,} trajectories, are not shown."

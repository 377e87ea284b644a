"""Plots token log-probabilities: confidence, divergence, and both along trajectories."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from math import exp
from typing import Any, Final

import plotly.graph_objects as go

from synth_client.report.authorship import KIND_LABELS, TextKind
from synth_client.report.likelihood import (
    BIN_WIDTHS,
    NUM_BINS,
    OTHER_METHODS,
    RELATIVE_BINS,
    Bins,
    Estimate,
    Likelihoods,
    Ratio,
    points_of,
)
from synth_client.report.plots import Plot, PlotGroup, add_band, colour, new_figure
from trajectory_records.text_logprobs import MODELS, Model

_SHARE_IN_SIGHT: Final = 0.9
_SHARE_OF_HANDOVERS: Final = 0.5
_HOVER: Final = "%{y:.3f} (%{customdata})"
_INTERVAL: Final = "Bands are 95% intervals over trajectories."


@dataclass(frozen=True, slots=True)
class _Style:
    """A colour name of the palette and a line style."""

    colour: str
    dash: str = "solid"


_METHOD_STYLES: Final[Mapping[str, _Style]] = {
    "motab": _Style("revise"),
    "teacher": _Style("teacher"),
    "student": _Style("student"),
    "skd": _Style("flawed"),
    "imitkd": _Style("flawed", "dash"),
    "prefix": _Style("revise", "dash"),
    OTHER_METHODS: _Style("soft", "dot"),
}


@dataclass(frozen=True, slots=True)
class _Line:
    """Estimates by position, ready to draw."""

    label: str
    style: _Style
    points: Sequence[tuple[float, Estimate]]


def likelihood_plots_of(run: Likelihoods) -> tuple[PlotGroup, ...]:
    """Return all plots of token log-probabilities; none if no record has any."""
    if not run.num_scored:
        return ()
    along = [*_along(run)]
    if run.num_handovers:
        along.append(_handover(run))
    return (
        PlotGroup("Confidence by context", (_confidence(run), *_confidence_over_length(run))),
        PlotGroup("Divergence by context", _divergences(run)),
        PlotGroup("Token log-probabilities along the trajectory", tuple(along)),
    )


def _confidence(run: Likelihoods) -> Plot:
    kinds = [kind for kind in KIND_LABELS if kind in run.by_kind]
    labels = [KIND_LABELS[kind].replace(" after ", "<br>after ") for kind in kinds]
    x_axis = {
        "tickvals": [*range(len(kinds))],
        "ticktext": labels,
        "range": [-0.5, len(kinds) - 0.5],
    }
    figure = new_figure(x="", y="probability", x_axis=x_axis, y_axis={"range": [0, 1.02]})
    for model, shift in zip(MODELS, (-0.08, 0.08), strict=True):
        points = [
            (place + shift, _exp(ratio.estimate()))
            for place, kind in enumerate(kinds)
            if (ratio := run.by_kind[kind].by(model)).num
        ]
        _draw_dots(figure, points, model)
    _show_legend(figure).update_layout(hovermode="closest")
    caption = (
        "The geometric mean of the probabilities that each model gives the tokens of a text, by who"
        f" wrote it and what comes before it; {run.num_scored:,} trajectories, 95% intervals."
        " Tokenizers differ, so compare a model only with itself."
    )
    return Plot("confidence", "Confidence", caption, figure)


def _confidence_over_length(run: Likelihoods) -> tuple[Plot, ...]:
    level = run.reach.level(_SHARE_IN_SIGHT)
    plots = []
    for model in MODELS:
        lines = _lines_by_kind(run, level, partial(_of_model, model=model), _exp)
        figure = _length_figure("probability", {"range": [0, 1.02]})
        _draw(figure, lines)
        caption = (
            "The same by position, in characters from the start of the text."
            f" {_INTERVAL}{_cut(run, level)}"
        )
        title = f"The {model}'s confidence over the length"
        plots.append(Plot(f"confidence-{model}", title, caption, figure))
    return tuple(plots)


def _divergences(run: Likelihoods) -> tuple[Plot, Plot]:
    level = run.reach.level(_SHARE_IN_SIGHT)
    width = BIN_WIDTHS[level]
    lines = _lines_by_kind(
        run, level, lambda bins: ((index, one.divergence) for index, one in bins.items())
    )
    rates = _length_figure("nats per character", {})
    _draw(rates, lines)
    caption = (
        "Log-probability under the writer minus log-probability under the other model; a sampled"
        " estimate of KL(writer || other) if the text was drawn at temperature 1."
        f" {_INTERVAL}{_cut(run, level)}"
    )
    sums = _length_figure("nats", {})
    for line in lines:
        totals = accumulate(estimate.value * width for _, estimate in line.points)
        points = [
            (x + width / 2, Estimate(total, None, None, estimate.num))
            for (x, estimate), total in zip(line.points, totals, strict=True)
        ]
        _draw(sums, [_Line(line.label, line.style, points)])
    cumulated = "The same, summed from the start of the text: straight if errors do not"
    return (
        Plot("divergence", "Divergence over the length", caption, rates),
        Plot("divergence-sum", "Divergence, cumulated", f"{cumulated} compound.", sums),
    )


def _along(run: Likelihoods) -> tuple[Plot, ...]:
    drawn = {
        model: [
            _Line(method, style, _relative(run.along[method], model))
            for method, style in _METHOD_STYLES.items()
            if method in run.along
        ]
        for model in MODELS
    }
    scale = _scale([line for lines in drawn.values() for line in lines])
    plots = []
    for model, lines in drawn.items():
        x_axis = {"tickformat": ".0%", "range": [0, 1], "dtick": 0.25}
        figure = new_figure(x="share of output", y="nats per token", x_axis=x_axis, y_axis=scale)
        _draw(_show_legend(figure), lines)
        caption = f"Mean log-probability per token, by method. {_INTERVAL}"
        plots.append(Plot(f"along-{model}", f"As the {model} finds it", caption, figure))
    return tuple(plots)


def _handover(run: Likelihoods) -> Plot:
    level = run.sides.level(_SHARE_OF_HANDOVERS)
    width = BIN_WIDTHS[level]
    figure = new_figure(x="characters from the handover", y="nats per token")
    figure.add_vline(x=0, line={"color": colour("soft"), "width": 1, "dash": "dot"})
    for model in MODELS:
        found = points_of(_of_model(run.around_handover[level], model), run.num_handovers)
        points = [((index + 0.5) * width, _capped(estimate, 0.0)) for index, estimate in found]
        _draw(_show_legend(figure), [_Line(model, _Style(model), points)])
    caption = (
        f"{run.num_handovers:,} trajectories, aligned where the student's text ends and the"
        f" teacher's, revise token included, begins. {_INTERVAL}"
    )
    return Plot("along-handover", "Around the handover", caption, figure)


def _lines_by_kind(
    run: Likelihoods,
    level: int,
    ratios: Callable[[Bins], Iterable[tuple[int, Ratio]]],
    drawn: Callable[[Estimate], Estimate] = lambda estimate: estimate,
) -> list[_Line]:
    """Return a line for each kind of text, with its points at the centres of the bins."""
    width = BIN_WIDTHS[level]
    lines = []
    for kind, label in KIND_LABELS.items():
        if kind not in run.over_length:
            continue
        found = points_of(ratios(run.over_length[kind][level]), run.by_kind[kind].divergence.num)
        points = [((index + 0.5) * width, drawn(estimate)) for index, estimate in found]
        lines.append(_Line(label, _style_of(kind), points))
    return lines


def _style_of(kind: TextKind) -> _Style:
    return _Style(kind.writer, "dash" if kind.after_other else "solid")


def _relative(bins: Bins, model: Model) -> list[tuple[float, Estimate]]:
    num = max(one.by(model).num for one in bins.values())
    return [
        ((index + 0.5) / RELATIVE_BINS, _capped(estimate, 0.0))
        for index, estimate in points_of(_of_model(bins, model), num)
    ]


def _of_model(bins: Bins, model: Model) -> Iterable[tuple[int, Ratio]]:
    return ((index, measures.by(model)) for index, measures in bins.items())


def _exp(estimate: Estimate) -> Estimate:
    """Convert a mean log-probability to a probability."""
    if estimate.low is None or estimate.high is None:
        return Estimate(exp(estimate.value), None, None, estimate.num)
    value, low, high = map(exp, (estimate.value, estimate.low, estimate.high))
    return _capped(Estimate(value, low, high, estimate.num), 1.0)


def _capped(estimate: Estimate, limit: float) -> Estimate:
    """Cut off the part of the interval that no log-probability (or probability) can reach."""
    high = None if estimate.high is None else min(estimate.high, limit)
    return replace(estimate, high=high)


def _length_figure(y: str, y_axis: Mapping[str, Any]) -> go.Figure:
    figure = new_figure(x="characters", y=y, x_axis={"rangemode": "tozero"}, y_axis=y_axis)
    return _show_legend(figure)


def _show_legend(figure: go.Figure) -> go.Figure:
    # Plotly reverses the order where a trace fills up to the next.
    figure.update_layout(showlegend=True, legend_traceorder="normal")
    return figure


def _scale(lines: Iterable[_Line]) -> dict[str, Any]:
    """An axis from 0 down to the lowest line, so that plots on it can be compared."""
    values = [
        estimate.value if estimate.low is None else estimate.low
        for line in lines
        for _, estimate in line.points
    ]
    return {"range": [min(values, default=-1.0) * 1.05, 0]}


def _draw_dots(figure: go.Figure, points: Sequence[tuple[float, Estimate]], name: str) -> None:
    shown = [(x, estimate, *_bounds(estimate)) for x, estimate in points]
    figure.add_scatter(
        x=[x for x, *_ in shown],
        y=[estimate.value for _, estimate, *_ in shown],
        customdata=[_spoken(estimate) for _, estimate, *_ in shown],
        error_y={
            "array": [high - estimate.value for _, estimate, _, high in shown],
            "arrayminus": [estimate.value - low for _, estimate, low, _ in shown],
            "thickness": 1.5,
            "width": 5,
        },
        mode="markers",
        marker={"size": 9, "color": colour(name)},
        name=name,
        hovertemplate=_HOVER,
    )


def _draw(figure: go.Figure, lines: Iterable[_Line]) -> None:
    """Draw lines of values, each within a band from its lows to its highs."""
    for line in lines:
        shown = [(x, estimate, *_bounds(estimate)) for x, estimate in line.points]
        xs = [x for x, *_ in shown]
        lows, highs = [low for _, _, low, _ in shown], [high for *_, high in shown]
        add_band(figure, xs, lows, highs, line.style.colour)
        figure.add_scatter(
            x=xs,
            y=[estimate.value for _, estimate, *_ in shown],
            customdata=[_spoken(estimate) for _, estimate, *_ in shown],
            mode="lines",
            line={"color": colour(line.style.colour), "width": 2, "dash": line.style.dash},
            name=line.label,
            hovertemplate=_HOVER,
        )


def _spoken(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return f"{estimate.num:,} trajectories"
    return f"{estimate.low:.3f} to {estimate.high:.3f}, {estimate.num:,} trajectories"


def _bounds(estimate: Estimate) -> tuple[float, float]:
    """Return the interval; without one (a single trajectory), its bounds are the value."""
    low = estimate.value if estimate.low is None else estimate.low
    return low, estimate.value if estimate.high is None else estimate.high


def _cut(run: Likelihoods, level: int) -> str:
    num = run.reach.num_beyond(level)
    if not num:
        return ""
    return f" Of {num:,} longer texts, only the first {BIN_WIDTHS[level] * NUM_BINS:,} are shown."

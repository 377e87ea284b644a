"""Shows what other thresholds would have done: a table for the terminal, and a page with plots."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import plotly.graph_objects as go
from rich import box
from rich.table import Table

from proxy.core.params import Params
from synth_client.report.page import asset, page
from synth_client.report.plots import Plot, PlotGroup, add_band, colour, new_figure
from synth_client.report.rescore import Row, sentence_of_rounds

_COLUMNS: Final = ("eps_0", "theta", "breached", "open", "breach rate", "mean depth", "accepted")
_UNBROKEN: Final = {"eps_0", "breach rate", "accepted"}
_LINES: Final = ("student", "teacher", "revise", "flawed")


def render_rows(rows: Sequence[Row], own: Params) -> Table:
    """Return a table with a line for each boundary, the records' own marked."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in _COLUMNS:
        table.add_column(column, justify="right", no_wrap=column in _UNBROKEN)
    for row in rows:
        table.add_row(*cells(row), style="bold" if row.params == own else None)
    return table


def cells(row: Row) -> tuple[str, ...]:
    """Return a row's cells as printed, in the order of the table's columns."""
    rate = f"{row.lowest_rate:.1%}"
    at_least = ""
    if row.num_open:
        rate = f"{rate} to {row.highest_rate:.1%}"
        at_least = "\u2265 "
    first = f"{row.base_threshold:g}", f"{row.entropy_scale:g}"
    if _is_by_step(row):
        low, high = min(row.params.boundary_values), max(row.params.boundary_values)
        first = f"{low:g} to {high:g}" if low < high else f"{low:g}", "by step"
    return (
        *first,
        f"{row.num_breached:,}",
        f"{row.num_open:,}",
        rate,
        "-" if row.mean_depth is None else f"{row.mean_depth:.2f}",
        f"{at_least}{row.accepted_tokens:,} ({row.accepted_share:.0%})",
    )


def rescore_page(
    rows: Sequence[Row],
    own: Params,
    notes: Sequence[str],
    more: Sequence[PlotGroup] = (),
) -> Iterator[str]:
    """Yield the page in pieces; `notes` are sentences above the table, `more` further plots. A
    boundary by step has no place on the plots' axes, and is in the table only.
    """
    drawn = [row for row in rows if not _is_by_step(row)]
    return page(
        "rescore.html.j2",
        scripts=(asset("page.js"),),
        groups=(*([_plots(drawn)] if drawn else []), *more),
        columns=_COLUMNS,
        rows=[(cells(row), row.params == own) for row in rows],
        num_trajectories=rows[0].num_trajectories,
        num_open=max(row.num_open for row in rows),
        rounds=sentence_of_rounds(rows[0]),
        notes=notes,
    )


def _is_by_step(row: Row) -> bool:
    return row.params.boundary == "quantile"


def _plots(rows: Sequence[Row]) -> PlotGroup:
    quantities: tuple[
        tuple[str, str, str, Callable[[Row], float | None], Mapping[str, Any]], ...
    ] = (
        (
            "rate",
            "Breach rate",
            "Known breaches; the top of the band assumes that every open trajectory breaches too.",
            lambda row: row.lowest_rate,
            {"tickformat": ".0%"},
        ),
        (
            "accepted",
            "Accepted tokens",
            "Share of the student's scored tokens before the bifurcation; lower bounds where open.",
            lambda row: row.accepted_share,
            {"tickformat": ".0%"},
        ),
        (
            "depth",
            "Mean depth of backtracking",
            "Breach minus bifurcation in steps, over known breaches.",
            lambda row: row.mean_depth,
            {},
        ),
    )
    plots = []
    for name, title, caption, quantity, axis in quantities:
        figure = _curves(rows, quantity, axis, band=name == "rate")
        plots.append(Plot(name, title, caption, figure))
    return PlotGroup("Over the thresholds", tuple(plots))


def _curves(
    rows: Sequence[Row],
    quantity: Callable[[Row], float | None],
    axis: Mapping[str, Any],
    *,
    band: bool,
) -> go.Figure:
    """Draw one line for each value of the threshold that takes fewer values."""
    by_base = len({row.base_threshold for row in rows}) >= len({row.entropy_scale for row in rows})
    x_title = "base threshold (eps_0)" if by_base else "entropy scale (theta)"
    figure = new_figure(x=x_title, y="", y_axis=axis)
    lines: dict[float, list[Row]] = {}
    for row in rows:
        lines.setdefault(row.entropy_scale if by_base else row.base_threshold, []).append(row)
    for index, (fixed, members) in enumerate(sorted(lines.items())):
        name = _LINES[index % len(_LINES)]
        x = [row.base_threshold if by_base else row.entropy_scale for row in members]
        if band:
            lows = [row.lowest_rate for row in members]
            add_band(figure, x, lows, [row.highest_rate for row in members], name)
        figure.add_scatter(
            x=x,
            y=[quantity(row) for row in members],
            mode="lines+markers",
            line={"color": colour(name), "width": 2},
            marker={"size": 6},
            name=f"{'theta' if by_base else 'eps_0'} {fixed:g}",
        )
    figure.update_layout(showlegend=len(lines) > 1)
    return figure

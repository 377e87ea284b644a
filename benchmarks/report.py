"""Writes the table, the JSON and the plot."""

import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import orjson
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from rich.console import Console
from rich.table import Table

from benchmarks.figures import Chart, Figure, Findings
from synth_client.files.atomic import write_whole

_OWN_COLOURS: Final = ("#1f77b4", "#2ca02c", "#9467bd")
_PUBLISHED_COLOUR: Final = "#d62728"


def show(findings: Mapping[str, Findings], console: Console) -> None:
    """Print one table of all figures."""
    table = Table("figure", "value", "target", "reached", "detail", title="motab bench")
    table.columns[1].justify = table.columns[2].justify = "right"
    for found in findings.values():
        for figure in found.figures:
            table.add_row(*_row(figure))
        table.add_section()
    console.print(table)


def _row(figure: Figure) -> tuple[str, ...]:
    reached = {None: "", True: "[green]yes[/]", False: "[red]no[/]"}[figure.reached]
    value = f"{figure.value:.3g}" if abs(figure.value) < 1000 else f"{figure.value:.0f}"
    return (
        figure.name,
        f"{value} {figure.unit}".strip(),
        figure.target or "",
        reached,
        figure.detail,
    )


def write(findings: Mapping[str, Findings], folder: Path, *, quick: bool, seconds: float) -> None:
    """Write `bench.json` and, if there are curves, `bench.html`."""
    folder.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {
        "machine": _machine(),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "quick": quick,
        "seconds": round(seconds, 1),
        "scenarios": {name: _fields_of(found) for name, found in findings.items()},
    }
    indented = orjson.dumps(content, option=orjson.OPT_INDENT_2)
    write_whole(folder / "bench.json", indented)
    charts = [chart for found in findings.values() for chart in found.charts]
    if charts:
        _plot(charts).write_html(folder / "bench.html")


def _fields_of(found: Findings) -> dict[str, Any]:
    names = ("name", "value", "unit", "target", "detail", "reached")
    figures = [{name: getattr(one, name) for name in names} for one in found.figures]
    return {"figures": figures, "charts": found.charts, "conditions": found.conditions}


def _machine() -> dict[str, Any]:
    return {
        "cores": os.cpu_count(),
        "load": [round(x, 2) for x in os.getloadavg()],
        "python": platform.python_version(),
        "system": platform.platform(),
    }


def _commit() -> str | None:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return None  # not a checkout
    return done.stdout.strip()


def _plot(charts: list[Chart]) -> go.Figure:
    """Draw one chart below another, each with its own legend."""
    figure = make_subplots(rows=len(charts), cols=1, subplot_titles=[c.title for c in charts])
    for row, chart in enumerate(charts, 1):
        legend, colours = f"legend{row}", iter(_OWN_COLOURS)
        for name, points in chart.curves.items():
            colour = _PUBLISHED_COLOUR if name.startswith("published") else next(colours)
            figure.add_scatter(
                x=[p.x for p in points],
                y=[p.y for p in points],
                name=name,
                mode="lines+markers",
                line={"color": colour},
                legend=legend,
                row=row,
                col=1,
            )
        scale = {"type": "log"} if chart.log else {"type": "linear", "rangemode": "tozero"}
        figure.update_xaxes(title=chart.x, **scale, row=row, col=1)
        figure.update_yaxes(title=chart.y, **scale, row=row, col=1)
        top = next(figure.select_yaxes(row=row, col=1)).domain[1]
        figure.update_layout({legend: {"x": 1.02, "y": top}})
    figure.update_layout(height=420 * len(charts), template="simple_white", showlegend=True)
    return figure

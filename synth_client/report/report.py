"""Writes one HTML page about a run: its numbers, its plots, and a viewer for its trajectories."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from markupsafe import Markup

from synth_client.prices import costs_of
from synth_client.report.likelihood import Likelihoods
from synth_client.report.page import asset, page, require_plotly, write_page
from synth_client.report.statistics import Statistics, summarise
from synth_client.report.trajectory_viewer import Sample
from trajectory_records.record import ROLE_LABELS, Record
from trajectory_records.viewer.sources import viewer_markup, viewer_script

MAX_TRAJECTORIES: Final = 10_000


def write_report(
    records: Iterable[Record],
    path: Path,
    *,
    max_trajectories: int = MAX_TRAJECTORIES,
    prices: Mapping[str, float] | None = None,
) -> None:
    """Write the page about `records`, which are read once and not kept.

    The numbers and plots cover all records, the viewer a sample of `max_trajectories`. `prices`
    are for a million tokens, by the names in `synth_client.prices`. Raises `PageError` if the page
    would be too large and `OutputError` if it cannot be written; `path` then stays as it was.
    """
    write_page(report(records, max_trajectories=max_trajectories, prices=prices), path)


def report(
    records: Iterable[Record],
    *,
    max_trajectories: int = MAX_TRAJECTORIES,
    prices: Mapping[str, float] | None = None,
) -> Iterator[str]:
    """Yield the page in pieces."""
    require_plotly()
    # Plotly is slow to import, and every command imports this module.
    from synth_client.report.likelihood_plots import likelihood_plots_of  # noqa: PLC0415
    from synth_client.report.plots import plots_of  # noqa: PLC0415

    run, likelihoods, sample = Statistics(), Likelihoods(), Sample(max_trajectories)
    for record in records:
        run.add(record)
        likelihoods.add(record)
        sample.add(record)
    return page(
        "report.html.j2",
        scripts=(asset("page.js"), f"{viewer_script()}\n{asset('report.js')}"),
        groups=(*plots_of(run), *likelihood_plots_of(likelihoods)) if run.num_records else (),
        blocks=tuple(sample.blocks()),
        run=run,
        summary=summarise(run),
        costs=costs_of(run.priced, prices or {}),
        num_token_scored=likelihoods.num_scored,
        num_shown=len(sample),
        role_labels=ROLE_LABELS,
        viewer=Markup(viewer_markup()),  # noqa: S704 - our own file
    )

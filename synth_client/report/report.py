"""Writes one HTML page about a run: its story, its plots, and a viewer for its trajectories."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import date, datetime
from pathlib import Path
from typing import Final, TypedDict, Unpack

from markupsafe import Markup

from synth_client.prices import costs_of
from synth_client.report.likelihood import Likelihoods
from synth_client.report.page import asset, block, page, require_plotly, write_page
from synth_client.report.statistics import Statistics, summarise
from synth_client.report.story import Baseline, Story
from synth_client.report.trajectory_viewer import Sample
from trajectory_records.record import ROLE_LABELS, Record
from trajectory_records.viewer.sources import legend_markup, viewer_markup, viewer_script
from trajectory_records.viewer.view import entry_of, view_of

MAX_TRAJECTORIES: Final = 10_000


class ReportOptions(TypedDict, total=False):
    """The options of a report.

    The plots cover all records, the viewer a sample of `max_trajectories`. `prices` are for a
    million tokens, by the names in `synth_client.prices`. `name` is the dataset's, and `baseline`
    holds the student's own answers to the same questions. `made` is the date, by default today.
    """

    max_trajectories: int
    prices: Mapping[str, float]
    name: str
    baseline: Iterable[Record] | None
    made: date


def write_report(records: Iterable[Record], path: Path, **options: Unpack[ReportOptions]) -> None:
    """Write the page about `records`, which are read once and not kept.

    Raises `BaselineError` if the baseline is not about the same questions, `PageError` if the page
    would be too large and `OutputError` if it cannot be written; `path` then stays as it was.
    """
    write_page(report(records, **options), path)


def report(records: Iterable[Record], **options: Unpack[ReportOptions]) -> Iterator[str]:
    """Yield the page in pieces."""
    require_plotly()
    # Plotly is slow to import, and every command imports this module.
    from synth_client.report.likelihood_plots import likelihood_plots_of  # noqa: PLC0415
    from synth_client.report.plots import plots_of  # noqa: PLC0415

    alone = options.get("baseline")
    story = Story(None if alone is None else Baseline(alone))
    run, likelihoods = Statistics(), Likelihoods()
    sample = Sample(options.get("max_trajectories", MAX_TRAJECTORIES))
    for record in records:
        run.add(record)
        likelihoods.add(record)
        sample.add(record)
        story.add(record)
    blocks = [*sample.blocks()]
    # Who wants no trajectory in the page wants no example either.
    example = story.example if sample else None
    if example is not None:
        blocks.append(block("example", [entry_of(example), view_of(example)]))
    return page(
        "report.html.j2",
        scripts=(asset("page.js"), f"{viewer_script()}\n{asset('report.js')}"),
        groups=(*plots_of(run), *likelihood_plots_of(likelihoods)) if run.num_records else (),
        blocks=blocks,
        name=options.get("name"),
        made=options.get("made", datetime.now().astimezone().date()),
        run=run,
        story=story,
        rates=story.rates() if run.num_records else (),
        has_example=example is not None,
        summary=summarise(run),
        costs=costs_of(run.priced, options.get("prices", {})),
        num_token_scored=likelihoods.num_scored,
        num_shown=len(sample),
        role_labels=ROLE_LABELS,
        legend=Markup(legend_markup()),  # noqa: S704 - our own file
        viewer=Markup(viewer_markup()),  # noqa: S704 - our own file
    )

"""The commands `motab report` and `motab rescore`."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from synth_client.cli import options
from synth_client.cli.shared import check_output, parse_prices
from synth_client.files.atomic import write_whole
from synth_client.files.record_file import read_records
from synth_client.report.calibrate import LABELS, QUANTILE, Wanted
from synth_client.report.page import require_plotly, write_page
from synth_client.report.report import MAX_TRAJECTORIES, write_report
from synth_client.report.rescore import (
    RescoreError,
    Row,
    first_to_rescore,
    of_method,
    rescore_under,
    scored_steps,
    sentence_of_rounds,
)
from synth_client.report.step_boundary import own_boundary, parse_boundary
from trajectory_records.record import Record


def report_command(
    *,
    records: Annotated[
        list[Path],
        typer.Argument(
            metavar="RECORDS...",
            help="Records, as motab synth writes them (JSONL). One page covers all files.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Option(help="The HTML page to write.")] = Path("report.html"),
    max_trajectories: Annotated[
        int,
        typer.Option(min=0, help="Upper bound for the viewer; the plots cover all records."),
    ] = MAX_TRAJECTORIES,
    price: options.Prices = None,
    baseline: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Records of the method student on the same questions (matched by id): what the"
            " student answers alone.",
        ),
    ] = None,
) -> None:
    """Write one HTML page about a run: numbers, plots and every trajectory. It opens offline."""
    prices = parse_prices(price)
    for path in (*records, *([] if baseline is None else [baseline])):
        check_output(output, path)
    all_records = chain.from_iterable(read_records(path) for path in records)
    write_report(
        all_records,
        output,
        max_trajectories=max_trajectories,
        prices=prices,
        name=", ".join(path.name for path in records),
        baseline=None if baseline is None else read_records(baseline),
    )
    typer.echo(f"Report in {output}")


def rescore_command(
    *,
    records: options.RecordsPath,
    base_threshold: Annotated[
        list[float] | None,
        typer.Option(min=0, max=1, help="eps_0. Repeat it for a grid. Default: the records' own."),
    ] = None,
    entropy_scale: Annotated[
        list[float] | None,
        typer.Option(min=0, help="theta. Repeat it for a grid. Default: the records' own."),
    ] = None,
    calibrate: Annotated[
        str | None,
        typer.Option(
            metavar="RATE|labels|quantile",
            help="Find the base threshold that gives this breach rate, for each entropy scale; or"
            " the thresholds that catch the most wrong and the fewest right parts of a labelled"
            " trial; or a boundary for each step, a quantile of the right parts' values there.",
        ),
    ] = None,
    quantile: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="With --calibrate quantile: the share of the right steps' values that may lie"
            " below the boundary. Default: the share that catches the most wrong and the fewest"
            " right parts.",
        ),
    ] = None,
    boundary_values: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LIST",
            help="A boundary for each step, as '[0.1, 0.2]'; the last value holds for all later"
            " steps. Repeat it for several.",
        ),
    ] = None,
    params_output: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False,
            help="With --calibrate quantile: write the boundary as YAML for a model's params.",
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write a page with plots, too.")] = None,
) -> None:
    """Compute the breaches of other thresholds from stored values, without asking a model."""
    for name, path in (("--output", output), ("--params-output", params_output)):
        if path is not None:
            check_output(path, records, name)
    wanted = _wanted(base_threshold, entropy_scale, boundary_values, calibrate, quantile)
    if params_output is not None and wanted.calibration != QUANTILE:
        raise typer.BadParameter(f"--params-output needs --calibrate {QUANTILE}")
    first = first_to_rescore(read_records(records))
    if first is None:
        raise RescoreError(f"{records} holds no records")
    others: Counter[str] = Counter()

    def alike() -> Iterator[Record]:
        others.clear()
        return of_method(first.method, read_records(records), others)

    own = own_boundary(first)
    found = wanted.calibrated(alike, own)
    boundaries = wanted.boundaries(own, found)
    with_entropy = any(one.boundary == "adaptive" for one in boundaries)
    rows = rescore_under(scored_steps(alike(), with_entropy=with_entropy), boundaries)
    require_plotly()
    # It imports Plotly, which is slow.
    from synth_client.report.rescore_page import render_rows, rescore_page  # noqa: PLC0415

    console = Console()
    console.print(render_rows(rows, own))
    for note in found.notes:
        console.print(note, markup=False, highlight=False)
    for remark in _remarks(rows, others):
        console.print(remark, style="dim")
    # The console would break long lines.
    typer.echo(found.yaml, nl=False)
    if params_output is not None:
        about = "".join(f"# {note}\n" for note in (*found.notes, f"from {records}"))
        write_whole(params_output, (about + found.yaml).encode())
        typer.echo(f"Params in {params_output}")
    if output is not None:
        write_page(rescore_page(rows, own, found.notes), output)
        typer.echo(f"Page in {output}")


def _remarks(rows: Sequence[Row], others: Mapping[str, int]) -> Iterator[str]:
    if others:
        left_out = ", ".join(f"{number:,} of {method}" for method, number in others.items())
        yield f"left out, because other methods have no thresholds: {left_out}"
    if any(row.num_open for row in rows):
        yield (
            "open: passes its stored steps but was cut at its breach, so it may breach later or"
            " not at all"
        )
    if sentence := sentence_of_rounds(rows[0]):
        yield sentence


def _wanted(
    bases: Sequence[float] | None,
    scales: Sequence[float] | None,
    by_step: Sequence[str] | None,
    calibrate: str | None,
    quantile: float | None,
) -> Wanted:
    """Return what the options ask for; raises `BadParameter` saying what would be right."""
    numbers = [*(bases or ()), *(scales or ()), quantile or 0.0]
    if any(not math.isfinite(number) for number in numbers):
        raise typer.BadParameter("a threshold must be a finite number")
    if quantile is not None and calibrate != QUANTILE:
        raise typer.BadParameter(f"--quantile needs --calibrate {QUANTILE}")
    if calibrate == QUANTILE and scales and not bases:
        raise typer.BadParameter(
            "--entropy-scale needs --base-threshold here: a boundary by step knows no entropy"
        )
    try:
        given = [parse_boundary(text) for text in by_step or ()]
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--boundary-values") from error
    return Wanted(bases or (), scales or (), given, _calibration(calibrate), quantile)


def _calibration(text: str | None) -> float | Literal["labels", "quantile"] | None:
    """Return the breach rate or the way of learning that is wanted, None if none is."""
    match text:
        case None | "labels" | "quantile":
            return text
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 0 <= rate <= 1:
        raise typer.BadParameter(
            f"must be a breach rate from 0 to 1, {LABELS} or {QUANTILE}, not {text}",
            param_hint="--calibrate",
        )
    return rate

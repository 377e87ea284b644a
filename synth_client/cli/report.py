"""The commands `motab report` and `motab rescore`."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from synth_client.cli import options
from synth_client.cli.shared import check_output, parse_prices
from synth_client.files.record_file import read_records
from synth_client.report.page import require_plotly, write_page
from synth_client.report.report import MAX_TRAJECTORIES, write_report
from synth_client.report.rescore import (
    Calibrator,
    RescoreError,
    Row,
    first_to_rescore,
    of_method,
    own_thresholds,
    rescore,
    scored_steps,
    sentence_of,
    sentence_of_rounds,
)
from synth_client.report.threshold_rule import (
    SCALES,
    best_of,
    best_of_scale,
    labelled_groups,
    sentence_of_learned,
)
from trajectory_records.record import Record

_LABELS: Final = "labels"


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
            metavar="RATE|labels",
            help="Find the base threshold that gives this breach rate, for each entropy scale; or"
            " the thresholds that catch the most wrong and the fewest right parts of a labelled"
            " trial.",
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write a page with plots, too.")] = None,
) -> None:
    """Compute the breaches of other thresholds from stored values, without asking a model."""
    numbers = [*(base_threshold or []), *(entropy_scale or [])]
    if any(not math.isfinite(number) for number in numbers):
        raise typer.BadParameter("a threshold must be a finite number")
    if output is not None:
        check_output(output, records)
    rate = _rate(calibrate)
    first = first_to_rescore(read_records(records))
    if first is None:
        raise RescoreError(f"{records} holds no records")
    others: Counter[str] = Counter()

    def alike() -> Iterator[Record]:
        others.clear()
        return of_method(first.method, read_records(records), others)

    own = own_thresholds(first)
    scales = entropy_scale or [own[1]]
    if calibrate == _LABELS:
        found = _learned(alike(), entropy_scale or SCALES)
    else:
        found = _calibrated(alike(), scales, rate)
    bases = base_threshold or ([own[0]] if calibrate is None else [])
    pairs = sorted(
        {*product(bases, scales), *found.pairs},
        key=lambda pair: (pair[1], pair[0]),
    )
    with_entropy = any(scale for _, scale in pairs)
    rows = rescore(scored_steps(alike(), with_entropy=with_entropy), pairs)
    require_plotly()
    # It imports Plotly, which is slow.
    from synth_client.report.rescore_page import render_rows, rescore_page  # noqa: PLC0415

    console = Console()
    console.print(render_rows(rows, own))
    for note in found.notes:
        console.print(note, markup=False, highlight=False)
    for footnote in _footnotes(rows, others):
        console.print(footnote, style="dim")
    if output is not None:
        write_page(rescore_page(rows, own, found.notes), output)
        typer.echo(f"Page in {output}")


def _footnotes(rows: Sequence[Row], others: Mapping[str, int]) -> Iterator[str]:
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


@dataclass(frozen=True, slots=True)
class _Calibrated:
    """The pairs of eps_0 and theta that a calibration found, and its sentences about them."""

    pairs: Sequence[tuple[float, float]] = ()
    notes: Sequence[str] = ()


def _rate(calibrate: str | None) -> float | None:
    """Return the breach rate that is wanted, None if none is."""
    if calibrate in {None, _LABELS}:
        return None
    try:
        rate = float(calibrate or "")
    except ValueError:
        rate = math.nan
    if not 0 <= rate <= 1:
        raise typer.BadParameter(
            f"must be a breach rate from 0 to 1, or {_LABELS}, not {calibrate}",
            param_hint="--calibrate",
        )
    return rate


def _calibrated(
    records: Iterable[Record], scales: Sequence[float], rate: float | None
) -> _Calibrated:
    if rate is None:
        return _Calibrated()
    calibrators = [Calibrator(scale) for scale in scales]
    for scored in scored_steps(records, with_entropy=any(scales)):
        for calibrator in calibrators:
            calibrator.add(scored)
    found = [calibrator.threshold(rate) for calibrator in calibrators]
    return _Calibrated(
        [(one.base_threshold, one.entropy_scale) for one in found],
        [sentence_of(one, rate) for one in found],
    )


def _learned(records: Iterable[Record], scales: Sequence[float]) -> _Calibrated:
    unlabelled: Counter[str] = Counter()
    groups = list(labelled_groups(records, with_entropy=any(scales), left_out=unlabelled))
    found = [best_of_scale(groups, scale) for scale in scales]
    best = best_of(found)
    notes = [sentence_of_learned(one) for one in found]
    notes.append(
        f"the rule takes entropy_scale {best.entropy_scale:g} and base_threshold"
        f" {best.base_threshold:g}"
    )
    notes += [f"left out of the rule: {num:,} {why}" for why, num in unlabelled.items()]
    return _Calibrated([(one.base_threshold, one.entropy_scale) for one in found], notes)

"""The commands that take records: `motab verify`, `motab filter` and `motab export`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from synth_client.cli.shared import FILTER_HELP, RULE_HELP, say_dropped
from synth_client.judging.rules import MATH
from synth_client.judging.verifier import Limits, Verifier
from synth_client.training_data.export import Export, Format, check_mask, export
from synth_client.training_data.filters import Filters, known_filters
from synth_client.training_data.masks import Mask
from synth_client.training_data.rewrite import Verdicts, filter_records, verify_records

_Records = Annotated[
    Path, typer.Argument(metavar="RECORDS", help="The records, as JSON lines.", show_default=False)
]
_Filters = Annotated[list[str] | None, typer.Option("--filter", help=FILTER_HELP)]


def verify_command(
    *,
    records: _Records,
    output: Annotated[Path, typer.Option(help="The records as they are judged now.")],
    rule: Annotated[str, typer.Option(help=RULE_HELP)] = MATH,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for one answer.")] = 10.0,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes.", show_default="one a processor")
    ] = None,
) -> None:
    """Judge the answers of records again. RECORDS and the output may be the same file."""
    with (
        Console(stderr=True).status(f"Verifying {records} ..."),
        Verifier(rule, limits=Limits(seconds=timeout), num_workers=workers) as verifier,
    ):
        verifier.start()
        verdicts = verify_records(records, output, verifier)
    _say_verdicts(verdicts)


def filter_command(
    *,
    records: _Records,
    output: Annotated[Path, typer.Option(help="The records that pass.")],
    filters: _Filters = None,
    dropped: Annotated[Path | None, typer.Option(help="The records that do not.")] = None,
) -> None:
    """Keep the records that pass all filters. RECORDS and the output may be the same file."""
    if not filters:
        raise typer.BadParameter(f"wanted is at least one --filter: {known_filters()}")
    if dropped is not None and dropped.resolve() == output.resolve():
        raise typer.BadParameter("--dropped and --output are the same file")
    kept = filter_records(records, output, dropped, Filters(filters))
    typer.echo(f"{kept.num_kept:,} records in {output}")
    say_dropped(kept)


def export_command(
    *,
    records: _Records,
    to: Annotated[Format, typer.Option("--format", help="The trainer's format.")],
    output: Annotated[Path, typer.Option(help="A folder, which is made.")],
    filters: _Filters = None,
    mask: Annotated[
        Mask, typer.Option(help="What of an answer is learned from; parquet and hf only.")
    ] = "all",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an export that is there.")
    ] = False,
) -> None:
    """Make training data of records."""
    check_mask(to, mask)
    job = Export(
        source=records,
        output=output,
        format=to,
        filters=Filters(filters or ()),
        mask=mask,
        overwrite=overwrite,
    )
    kept = export(job)
    typer.echo(f"{kept.num_kept:,} records in {output}")
    say_dropped(kept)


def _say_verdicts(verdicts: Verdicts) -> None:
    typer.echo(
        f"{verdicts.num_right:,} right, {verdicts.num_wrong:,} wrong,"
        f" {verdicts.num_unknown:,} without a reference answer"
    )
    for fault, number in verdicts.faults.most_common():
        typer.echo(f"{number:,} not judged: {fault}")

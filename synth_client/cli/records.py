"""The commands that take records: `motab verify`, `motab filter` and `motab export`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from synth_client.cli import options
from synth_client.cli.shared import say_dropped
from synth_client.judging.rules import MATH
from synth_client.judging.verifier import Limits, Verifier
from synth_client.training_data.export import Export, Format, check_mask, export
from synth_client.training_data.filters import Filters, known_filters
from synth_client.training_data.masks import Mask
from synth_client.training_data.rewrite import Verdicts, filter_records, verify_records


def verify_command(
    *,
    records: options.RecordsPath,
    output: Annotated[Path, typer.Option(help="The same records, judged again.")],
    rule: Annotated[str, typer.Option(help=options.RULE_HELP)] = MATH,
    timeout: options.JudgingSeconds = 10.0,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="The number of processes.", show_default="one a processor"),
    ] = None,
) -> None:
    """Judge the answers of records again. The output may be the file RECORDS itself."""
    with (
        Console(stderr=True).status(f"Verifying {records} ..."),
        Verifier(rule, limits=Limits(seconds=timeout), num_workers=workers) as verifier,
    ):
        verifier.start()
        verdicts = verify_records(records, output, verifier)
    _say_verdicts(verdicts)


def filter_command(
    *,
    records: options.RecordsPath,
    output: Annotated[Path, typer.Option(help="The records that pass.")],
    filters: options.FilterTexts = None,
    dropped: Annotated[
        Path | None, typer.Option(help="The records that do not pass. Default: discarded.")
    ] = None,
) -> None:
    """Keep the records that pass all filters. The output may be the file RECORDS itself."""
    if not filters:
        raise typer.BadParameter(f"give at least one --filter: {known_filters()}")
    if dropped is not None and dropped.resolve() == output.resolve():
        raise typer.BadParameter("--dropped and --output are the same file")
    kept = filter_records(records, output, dropped, Filters(filters))
    typer.echo(f"{kept.num_kept:,} records in {output}")
    say_dropped(kept)


def export_command(
    *,
    records: options.RecordsPath,
    to: Annotated[Format, typer.Option("--format", help="The trainer's format.")],
    output: Annotated[Path, typer.Option(help="The new folder for the data.")],
    filters: options.FilterTexts = None,
    mask: Annotated[
        Mask, typer.Option(help="The part of an answer to learn from; parquet and hf only.")
    ] = "all",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier export.")
    ] = False,
) -> None:
    """Make training data from records."""
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

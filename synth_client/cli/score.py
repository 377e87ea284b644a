"""The command `motab score`."""

from pathlib import Path
from typing import Annotated

import typer

from synth_client.cli.shared import check_url, log_console
from synth_client.files.workspace import Workspace
from synth_client.runs.score import Scoring, score_records
from synth_client.runs.session import run_loop


def score_command(
    *,
    records: Annotated[
        Path,
        typer.Argument(metavar="RECORDS", help="The records, as JSON lines.", show_default=False),
    ],
    output: Annotated[
        Path, typer.Option(dir_okay=False, help="The records with their token_logprobs.")
    ],
    base_url: Annotated[
        list[str], typer.Option(help="The proxy, with /v1. Repeat it for more than one.")
    ],
    model: Annotated[str, typer.Option(help="The pair's name there.")],
    concurrency: Annotated[int, typer.Option(min=1, help="The most requests at a time.")] = 16,
    min_concurrency: Annotated[int, typer.Option(min=1, help="The fewest, when it is cut.")] = 1,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar=["MOTAB_API_KEY", "OPENAI_API_KEY"], show_envvar=True, help="The server's key."
        ),
    ] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds for one record.")] = 3600.0,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume/--fresh", help="Go on where the journal ends, or move all aside and start."
        ),
    ] = True,
) -> None:
    """Fill the records' token_logprobs: every token's, under the student and under the teacher."""
    if min_concurrency > concurrency:
        raise typer.BadParameter("--min-concurrency is larger than --concurrency")
    if output.exists() and records.exists() and output.samefile(records):
        raise typer.BadParameter("--output is the input itself")
    job = Scoring(
        source=records,
        output=output,
        base_urls=tuple(check_url(url) for url in base_url),
        model=model,
        concurrency=concurrency,
        min_concurrency=min_concurrency,
        api_key=api_key,
        timeout_s=timeout,
        fresh=not resume,
    )
    totals = run_loop(score_records(job, log_console()))
    typer.echo(f"{totals.num_records:,} scored records in {output}")
    if totals.num_failed:
        typer.echo(
            f"{totals.num_failed:,} failed: {Workspace(output).failed} says why, and the same"
            " command tries them again"
        )
    if not totals.num_records:
        raise typer.Exit(1)

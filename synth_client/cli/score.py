"""The command `motab score`."""

from pathlib import Path
from typing import Annotated

import typer

from synth_client.cli import options
from synth_client.cli.shared import check_output, log_console, say_failed, servers_of
from synth_client.files.workspace import Workspace
from synth_client.runs.score import Scoring, score_records
from synth_client.runs.session import run_loop


def score_command(
    *,
    records: options.RecordsPath,
    output: Annotated[
        Path, typer.Option(dir_okay=False, help="The same records with token_logprobs.")
    ],
    base_url: options.BaseUrls,
    model: options.Model,
    concurrency: options.Concurrency = 16,
    min_concurrency: options.MinConcurrency = 1,
    api_key: options.ApiKey = None,
    timeout: options.Timeout = 3600.0,
    resume: options.Resume = True,
) -> None:
    """Add every token's log-probability under both models to records. Run it again to resume."""
    check_output(output, records)
    job = Scoring(
        source=records,
        output=output,
        servers=servers_of(base_url, api_key, concurrency, min_concurrency),
        model=model,
        timeout_s=timeout,
        fresh=not resume,
    )
    totals = run_loop(score_records(job, log_console()))
    typer.echo(f"{totals.num_records:,} scored records in {output}")
    say_failed(totals.num_failed, Workspace(output).failed)
    if not totals.num_records:
        raise typer.Exit(1)

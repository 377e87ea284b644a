"""The command `motab compare`."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from synth_client.cli import options
from synth_client.cli.shared import log_console
from trainer.cli.options import EvalScopePython, TrainerPython
from trainer.compare.basis import trial_plan, trial_stages
from trainer.compare.estimate import outline
from trainer.compare.page import PAGE
from trainer.compare.plan import load_plan
from trainer.compare.run import Job, carry_out, compare
from trainer.compare.tables import to_markdown


def compare_command(
    *,
    plan: Annotated[
        Path, typer.Argument(metavar="PLAN", help="The plan (YAML).", show_default=False)
    ],
    output: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="The output folder. Default: the plan's."),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print the stages with estimates, and do nothing."),
    ] = False,
    trial: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Measure what an estimate needs: all data for that many questions (at least a"
            " batch of the recipe), a short training of each kind, and the pair on as many"
            " problems. 20 is a good number.",
        ),
    ] = None,
    python: TrainerPython = None,
    evalscope_python: EvalScopePython = None,
    api_key: options.ApiKey = None,
) -> None:
    """Compare methods on your own models, from data to table. Run it again to resume."""
    if trial is not None and dry_run:
        raise typer.BadParameter(
            "--dry-run does nothing, so it makes no --trial; --trial shows both"
        )
    loaded = load_plan(plan)
    if output is not None:
        loaded = loaded.model_copy(update={"output": output})
    job = Job(
        plan=loaded,
        console=log_console(),
        python=python,
        evalscope=evalscope_python,
        api_key=api_key,
    )
    if trial is not None:
        measured = trial_plan(loaded, trial)
        carry_out(replace(job, plan=measured), trial_stages(measured))
    if trial is not None or dry_run:
        typer.echo(outline(loaded))
        return
    found = compare(job)
    typer.echo(to_markdown(found))
    typer.echo(f"{loaded.output / PAGE} has this table, plots and examples")

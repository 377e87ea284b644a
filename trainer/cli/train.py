"""The command `motab train`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from trainer.cli.options import TrainerPython
from trainer.errors import TrainingFailed
from trainer.training.preview import preview
from trainer.training.recipe import load_recipe
from trainer.training.train import train

_INTERRUPTED = 130


def train_command(
    *,
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="The recipe (YAML).", show_default=False)
    ],
    output: Annotated[
        Path | None, typer.Option(help="The output folder. Default: the recipe's.")
    ] = None,
    python: TrainerPython = None,
    resume: Annotated[
        bool, typer.Option(help="Continue from the last checkpoint, or start over.")
    ] = True,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Check everything, print the data's size, the command and all settings, and do"
            " not train.",
        ),
    ] = False,
) -> None:
    """Train a student with LLaMA-Factory, or on-policy with TRL; exits with the trainer's code."""
    loaded = load_recipe(recipe)
    if output is not None:
        loaded = loaded.model_copy(update={"output": output})
    if dry_run:
        typer.echo(preview(loaded, python), nl=False)
        return
    console = Console(stderr=True)
    try:
        done = train(loaded, python=python, resume=resume, console=console)
    except TrainingFailed as error:
        console.print(error.tail, markup=False, highlight=False, soft_wrap=True)
        console.print(f"motab: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(error.exit_code) from error
    except KeyboardInterrupt as error:
        console.print(
            "motab: interrupted; run the same command again to resume from the last checkpoint"
        )
        raise typer.Exit(_INTERRUPTED) from error
    if done.was_done:
        console.print("The training is complete already; --no-resume starts over", highlight=False)
    if done.by_step:
        first, last = min(done.by_step), max(done.by_step)
        typer.echo(f"{last} steps, loss {done.by_step[first]:.4f} to {done.by_step[last]:.4f}")
    typer.echo(f"Student in {done.model}")

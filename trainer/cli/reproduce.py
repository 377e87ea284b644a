"""The command `motab reproduce`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from trainer.reproduce.plan import SHIPPED, SMOKE, TINY
from trainer.reproduce.run import Reproduction, reproduce
from trainer.reproduce.table import COMPARISON, TABLE, to_markdown
from trainer.reproduce.tiny_pair import Pair, make_pair


class _Size(StrEnum):
    TINY = "tiny"


_SCALES: Final = {_Size.TINY: (TINY, SMOKE)}


def reproduce_command(
    *,
    scale: Annotated[_Size, typer.Option(help="The size of the models.")],
    output: Annotated[
        Path, typer.Option(file_okay=False, help="The folder for models, data and results.")
    ] = Path("runs/reproduce"),
    smoke: Annotated[
        bool,
        typer.Option("--smoke", help="Run all stages on far too little data to learn from."),
    ] = False,
    retrain: Annotated[
        bool,
        typer.Option(
            "--retrain", help="Train the pair of models, too, instead of using the shipped pair."
        ),
    ] = False,
) -> None:
    """Compare the paper's methods on small models. Run it again to resume."""
    console = Console(stderr=True)
    if retrain:
        pair = make_pair(output / "pair", console)
    else:
        pair = Pair(student=SHIPPED / "student", teacher=SHIPPED / "teacher")
    job = Reproduction(_SCALES[scale][smoke], pair, output, console)
    comparison = reproduce(job)
    typer.echo(to_markdown(comparison))
    typer.echo(f"{output / TABLE} has this table, {output / COMPARISON} every seed")

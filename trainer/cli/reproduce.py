"""The command `motab reproduce`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from trainer.errors import GateFailed
from trainer.reproduce.plan import MINI, SHIPPED, SMOKE, TINY
from trainer.reproduce.run import GATES, Reproduction, reproduce
from trainer.reproduce.sets import Sets
from trainer.reproduce.sums import Sums
from trainer.reproduce.table import COMPARISON, TABLE, to_markdown
from trainer.reproduce.task import Task
from trainer.reproduce.tiny_pair import Pair, make_pair


class _Size(StrEnum):
    MINI = "mini"
    TINY = "tiny"


class _Tasks(StrEnum):
    SETS = "sets"
    SUMS = "sums"
    BOTH = "both"


_SCALES: Final = {_Size.MINI: MINI, _Size.TINY: TINY}
_TASKS: Final[dict[_Tasks, tuple[Task, ...]]] = {
    _Tasks.SETS: (Sets(),),
    _Tasks.SUMS: (Sums(),),
    _Tasks.BOTH: (Sets(), Sums()),
}


def reproduce_command(
    *,
    scale: Annotated[_Size, typer.Option(help="How many arms, seeds and problems.")],
    task: Annotated[_Tasks, typer.Option(help="The kind of problems.")] = _Tasks.BOTH,
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
            "--retrain", help="Train the pairs of models, too, instead of using the shipped pairs."
        ),
    ] = False,
    despite_gates: Annotated[
        bool,
        typer.Option(
            "--despite-gates", help="Compare the methods even where the pair fails a gate."
        ),
    ] = False,
) -> None:
    """Compare the paper's methods on small models. Run it again to resume."""
    console = Console(stderr=True)
    rejected: list[str] = []
    for one in _TASKS[task]:
        folder = output / one.name
        if retrain:
            pair = make_pair(one, folder / "pair", console)
        else:
            shipped = SHIPPED / one.name
            pair = Pair(student=shipped / "student", teacher=shipped / "teacher")
        job = Reproduction(
            SMOKE if smoke else _SCALES[scale],
            one,
            pair,
            folder,
            console,
            needs_gates=not (smoke or despite_gates),
        )
        try:
            comparison = reproduce(job)
        except GateFailed as error:
            rejected.append(str(error))
            continue
        typer.echo((folder / GATES).read_text(encoding="utf-8"))
        typer.echo(to_markdown(comparison))
        typer.echo(f"{folder / TABLE} has this table, {folder / COMPARISON} every seed")
    if rejected:
        raise GateFailed("\n".join(rejected))
